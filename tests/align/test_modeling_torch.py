"""ALIGN in PyTorch against the recorded outputs of the original program, block by block and as a whole."""

import copy
import math
from types import SimpleNamespace

import goldens
import numpy as np
import pytest
import torch
from goldens import error
from tiny import IMAGE_SIZE, align_config, fill
from tolerances import TOLERANCE

from kakao_models import AlignConfig, AlignModel
from kakao_models.align import ghost_norm_torch, modeling_torch
from kakao_models.align.depthwise_torch import DepthwiseConv2d, depthwise_conv
from kakao_models.align.ghost_norm_torch import ghost_norm
from kakao_models.train.recompute import checkpointing

SMALL = ["align_a", "align_b", "align_nano"]
FULL = [pytest.param(name, marks=pytest.mark.slow) for name in ("align_c", "align_d")]


def inputs_of(golden, dtype=torch.float32, scale=1 / 127.5) -> dict:
    tokens = {
        key: torch.from_numpy(golden.arrays[key]).long() for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    pixels = torch.from_numpy(golden.images).permute(0, 3, 1, 2).to(dtype) * scale - 1
    return {"pixel_values": pixels, **tokens}


def run(model, inputs) -> SimpleNamespace:
    with torch.no_grad():
        output = model(**inputs, return_loss=True)
        values = dict(
            image_embeds=output.image_embeds,
            text_embeds=output.text_embeds,
            logits_per_image=output.logits_per_image,
            loss=output.loss,
            image_features=model._project_image(output.vision_model_output),
            text_features=model._project_text(output.text_model_output),
        )
    return SimpleNamespace(**{name: value.numpy() for name, value in values.items()})


def check_float32(got: SimpleNamespace, recorded: dict) -> None:
    for name in ("image_embeds", "text_embeds", "logits_per_image", "text_features"):
        assert error(getattr(got, name), recorded[name]) <= TOLERANCE[name], name
    rms = np.sqrt(np.mean(np.square(recorded["image_features"])))
    assert error(got.image_features, recorded["image_features"]) <= TOLERANCE["image_features / rms"] * rms
    loss = recorded["loss"] if "loss" in recorded else np.mean(recorded["loss_i2t"] + recorded["loss_t2i"])
    assert error(got.loss, loss) <= TOLERANCE["align loss"]


@pytest.mark.parametrize("name", SMALL + FULL)
def test_golden_float32(name, golden_folder):
    golden = goldens.load(name)
    model = AlignModel.from_pretrained(golden_folder(name))
    check_float32(run(model, inputs_of(golden)), golden.arrays)


@pytest.mark.parametrize("name", ["align_a", *FULL])
def test_golden_float64(name, golden_folder):
    golden = goldens.load(name)
    model = AlignModel.from_pretrained(golden_folder(name), dtype=torch.float64)
    inputs, recorded = goldens.first_rows(inputs_of(golden, torch.float64), golden)
    got = run(model, inputs)
    for output, expected in recorded.items():
        limit = TOLERANCE["align float64, relative"] * np.abs(expected).max()
        assert error(getattr(got, output), expected) <= limit, output


class GeluWithRoot(torch.nn.Module):
    def __init__(self, root_of_2: float):
        super().__init__()
        self.root_of_2 = root_of_2

    def forward(self, x):
        return 0.5 * x * (1 + torch.erf(x / self.root_of_2))


@pytest.mark.parametrize("name", ["align_a", *FULL])
def test_golden_float64_with_the_original_s_float32_constants(name, golden_folder):
    """What is left in float64 comes from constants that the original rounds: with them, nothing is left."""
    golden = goldens.load(name)
    model = AlignModel.from_pretrained(golden_folder(name), dtype=torch.float64)
    root_of_2 = float(np.float32(math.sqrt(2)))
    for layer in model.text_model.encoder.layer:
        layer.intermediate.intermediate_act_fn = GeluWithRoot(root_of_2)
    inputs, recorded = goldens.first_rows(inputs_of(golden, torch.float64, scale=float(np.float32(1 / 127.5))), golden)
    got = run(model, inputs)
    for output, expected in recorded.items():
        assert error(getattr(got, output), expected) <= TOLERANCE["align float64, same constants"], output


def probes_of(model, inputs) -> tuple[dict, dict]:
    """The outputs that the fixtures probe, (B, H, W, C) or (B, T, C), by their names in the original."""
    image, text, seen = {}, {}, {}
    vision = model.vision_model
    first = vision.encoder.blocks[0]
    named = {
        "stem_conv": vision.embeddings.convolution,
        "stem_bn": vision.embeddings.batchnorm,
        "stem_activation": vision.embeddings,
        "block1a_dwconv": first.depthwise_conv.depthwise_conv,
        "block1a_bn": first.depthwise_conv.depthwise_norm,
        "block1a_activation": first.depthwise_conv,
        "block1a_se_reduce": first.squeeze_excite.reduce,
        "block1a_se_expand": first.squeeze_excite.expand,
        "block1a_se_excite": first.squeeze_excite,
        "block1a_project_conv": first.projection.project_conv,
        "block1a_project_bn": first.projection.project_bn,
    }
    hooks = [
        module.register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: output, name + "/in": args[0]})
        )
        for name, module in named.items()
    ]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    seen["rescaling"] = inputs["pixel_values"]
    seen["block1a_se_squeeze"] = seen["block1a_se_reduce/in"].flatten(1)
    seen["block1a_se_reduce"] = torch.nn.functional.silu(seen["block1a_se_reduce"])
    seen["block1a_se_expand"] = seen["block1a_se_expand"].sigmoid()
    for name, value in seen.items():
        image[name] = (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()
    image["blocks"] = [state.permute(0, 2, 3, 1).numpy() for state in output.vision_model_output.hidden_states[1:]]
    image["avg_pool"] = output.vision_model_output.pooler_output.numpy()
    states = output.text_model_output.hidden_states
    text = {"embeddings": states[0], **{f"layer_._{i}": state for i, state in enumerate(states[1:])}}
    text["pooler"] = output.text_model_output.pooler_output
    return image, {name: value.numpy() for name, value in text.items()}


@pytest.mark.parametrize("name", SMALL + FULL)
def test_golden_layer_by_layer(name, golden_folder):
    golden = goldens.load(name)
    image, text = probes_of(AlignModel.from_pretrained(golden_folder(name)), inputs_of(golden))
    blocks = iter(image["blocks"][1:])
    for layer, recorded in golden.image_probes.items():
        # a name of its own in the first block, then one name per block, in order
        got = image[layer] if layer in image else next(blocks)
        if layer == "block1a_se_squeeze" and recorded.shape != goldens.probe(got, recorded.shape[1]).shape:
            got = got[:, None, None]
        assert error(goldens.probe(got, recorded.shape[1]), recorded) <= TOLERANCE["align inter"], layer
    assert next(blocks, None) is None
    for layer, recorded in golden.text_probes.items():
        assert error(goldens.probe(text[layer]), recorded) <= TOLERANCE["align inter"], layer


@pytest.fixture
def align_a(golden_folder):
    return AlignModel.from_pretrained(golden_folder("align_a"))


def _batch_norm_eps(model, inputs):
    for module in model.modules():
        if isinstance(module, modeling_torch.AlignBatchNorm):
            module.eps = 1e-5


def _symmetric_padding(model, inputs):
    def pad(x, kernel_size):
        return torch.nn.functional.pad(x, [kernel_size // 2] * 4)

    return pad


def _relu_in_squeeze_excite(model, inputs):
    for block in model.vision_model.encoder.blocks:
        block.squeeze_excite.act_reduce = torch.nn.ReLU()


def _layer_norm_eps(model, inputs):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


def _tanh_gelu(model, inputs):
    for layer in model.text_model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.GELU(approximate="tanh")


def _divided_by_128(model, inputs):
    inputs["pixel_values"] = (inputs["pixel_values"] + 1) * 127.5 / 128 - 1


@pytest.mark.parametrize(
    "mistake, output, cost",
    [
        (_batch_norm_eps, "image_embeds", 5.6e-3),
        (_symmetric_padding, "image_embeds", 7e-2),
        (_relu_in_squeeze_excite, "image_embeds", 9e-2),
        (_divided_by_128, "image_embeds", 7e-3),
        (_layer_norm_eps, "text_embeds", 2.1e-4),
        (_tanh_gelu, "text_embeds", 2.2e-4),
    ],
)
def test_typical_mistakes_are_caught(mistake, output, cost, align_a, monkeypatch):
    """`cost` is what the recorded page says the mistake changes."""
    golden = goldens.load("align_a")
    inputs = inputs_of(golden)
    padding = mistake(align_a, inputs)
    if padding:
        monkeypatch.setattr(modeling_torch, "pad_for_stride_2", padding)
    got = run(align_a, inputs)
    assert error(getattr(got, output), golden.arrays[output]) == pytest.approx(cost, rel=0.2)
    with pytest.raises(AssertionError, match=output):
        check_float32(got, golden.arrays)


# --- training


def ghost_model(folder, dtype, **vision) -> AlignModel:
    """The recorded run had its dropouts switched off."""
    config = AlignConfig.from_pretrained(folder)
    config.vision_config.drop_connect_rate = 0.0
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    return AlignModel.from_pretrained(folder, config=config, dtype=dtype).train()


def ghost_inputs(dtype) -> tuple[dict, dict]:
    recorded = goldens.load_arrays("align_a_ghostbn")
    images = goldens.input_formula.images(1, 32, 289)
    golden = SimpleNamespace(arrays=recorded, images=images)
    return inputs_of(golden, dtype), recorded


@pytest.mark.parametrize(
    "dtype, suffix",
    # PyTorch has no fast float64 convolution on CPUs: half a minute
    [(torch.float32, ""), pytest.param(torch.float64, "_f64", marks=pytest.mark.slow)],
)
def test_ghost_batch_norm_golden(dtype, suffix, golden_folder):
    inputs, recorded = ghost_inputs(dtype)
    model = ghost_model(golden_folder("align_a"), dtype)
    got = run(model, inputs)
    limits = ("ghost features", "ghost statistics") if not suffix else ("align float64, relative",) * 2
    assert error(got.image_features, recorded["image_features" + suffix]) <= TOLERANCE[limits[0]]
    assert error(got.text_features, recorded["text_features" + suffix]) <= TOLERANCE[limits[0]]
    blocks = model.vision_model.encoder.blocks
    norms = {
        "stem_bn": model.vision_model.embeddings.batchnorm,
        "block1a_bn": blocks[0].depthwise_conv.depthwise_norm,
        "block3a_expand_bn": blocks[3].expansion.expand_bn,
        "block5b_project_bn": blocks[9].projection.project_bn,
        "block7a_project_bn": blocks[15].projection.project_bn,
    }
    for name, norm in norms.items():
        for ours, theirs in ((norm.running_mean, "moving_mean"), (norm.running_var, "moving_variance")):
            assert error(ours.numpy(), recorded[f"bn/{name}/{theirs}{suffix}"]) <= TOLERANCE[limits[1]], (name, theirs)
    every = [module for module in model.modules() if isinstance(module, modeling_torch.AlignBatchNorm)]
    assert len(every) == len(recorded["bn/names"]) == 48
    for theirs, attribute in (("moving_mean", "running_mean"), ("moving_variance", "running_var")):
        ours = sorted(float(getattr(module, attribute).double().norm()) for module in every)
        np.testing.assert_allclose(ours, sorted(recorded[f"bn/{theirs}_norm{suffix}"]), rtol=1e-5)


@pytest.mark.parametrize("size", [None, 8])
def test_another_ghost_batch_is_another_function(size, golden_folder):
    """The golden of groups of 16 bites: other groups are far outside its limit."""
    inputs, recorded = ghost_inputs(torch.float32)
    got = run(ghost_model(golden_folder("align_a"), torch.float32, virtual_batch_size=size), inputs)
    assert error(got.image_features, recorded["image_features"]) > 100 * TOLERANCE["ghost features"]


def batch_norm(size: int | None, channels: int = 5, dtype=torch.float64) -> modeling_torch.AlignBatchNorm:
    config = SimpleNamespace(batch_norm_eps=1e-3, batch_norm_momentum=0.99, virtual_batch_size=size)
    norm = modeling_torch.AlignBatchNorm(channels, config).to(dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.uniform_(norm.bias)
    return norm.train()


@pytest.mark.parametrize("batch", [16, 48, 37, 20, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_groups(batch, layout):
    """Against the definition: group j is samples j, j + n, ...; statistics are means over groups of biased moments."""
    torch.manual_seed(0)
    norm = batch_norm(16)
    x = torch.randn(batch, 5, 3, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    n = max(1, batch // 16)
    wanted, means, variances = torch.empty_like(x), [], []
    for j in range(n):
        group = x[j::n]
        mean, variance = group.mean((0, 2, 3)), group.var((0, 2, 3), unbiased=False)
        scaled = (group - mean.view(1, 5, 1, 1)) / (variance.view(1, 5, 1, 1) + 1e-3).sqrt()
        wanted[j::n] = scaled * norm.weight.view(1, 5, 1, 1) + norm.bias.view(1, 5, 1, 1)
        means.append(mean), variances.append(variance)
    got = norm(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    direction = torch.randn_like(got)
    (a,) = torch.autograd.grad((got * direction).sum(), x)
    (b,) = torch.autograd.grad((wanted * direction).sum(), x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, 0.01 * torch.stack(means).mean(0).detach(), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        norm.running_var, 0.99 + 0.01 * torch.stack(variances).mean(0).detach(), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("norm", [1e-2, 1.0, 2000.0])
def test_half_precision_vectors_of_any_norm_are_normalised(norm):
    """The sum of their squares overflows float16 from a norm of 256 on, and 1e-12 is zero there."""
    x = torch.full((2, 640), norm / 640**0.5, dtype=torch.float16)
    x[1] = 0
    got = modeling_torch.l2_normalize(x)
    assert got.dtype == torch.float16 and got[0].float().norm().item() == pytest.approx(1, abs=2e-3)
    assert not got[1].any()


def test_drop_connect_drops_whole_samples(align_a):
    block = next(b for b in align_a.train().vision_model.encoder.blocks if b.skip)
    block.drop_rate = 0.25
    torch.manual_seed(0)
    kept = block.drop_connect(torch.ones(4000, 3, 2, 2, dtype=torch.float64)).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.75}
    assert (kept == kept[:, :1]).all()
    assert (kept[:, 0] > 0).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert block.eval().drop_connect(torch.ones(4, 3, 2, 2)).eq(1).all()


def step_of(model, inputs) -> dict[str, torch.Tensor]:
    """Gradients and running statistics after one step."""
    torch.manual_seed(1)  # of dropouts
    model(**inputs, return_loss=True).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def training_model(dtype=torch.float64) -> tuple[AlignModel, dict]:
    """A small one with the dropouts that training has and ghost batches of two, and a batch of four."""
    config = align_config()
    config.vision_config.virtual_batch_size, config.vision_config.drop_connect_rate = 2, 0.5
    model = fill(AlignModel(config)).to(dtype).train()
    torch.manual_seed(0)
    ids = torch.randint(5, 20, (4, 6))
    return model, {"pixel_values": torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype) * 2 - 1, "input_ids": ids}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("what", ["activations", "blocks", "hf"])
def test_gradient_checkpointing_changes_nothing(what, layout):
    """Gradients and running statistics after a step are those of a plain step, on both towers, dropouts included."""
    steps = []
    for checkpointed in (False, True):
        model, inputs = training_model()
        inputs["pixel_values"] = inputs["pixel_values"].to(memory_format=layout)
        model.to(memory_format=layout)
        if checkpointed:
            model.activation_checkpointing_enable(None if what == "hf" else checkpointing(what))
            assert model.vision_model.encoder.blocks[0].gradient_checkpointing
            assert model.text_model.encoder.layer[0].gradient_checkpointing
        steps.append(step_of(model, inputs))
    assert steps[0].keys() == steps[1].keys()
    for name, value in steps[0].items():
        torch.testing.assert_close(value, steps[1][name], rtol=1e-12, atol=1e-12, msg=name)


def test_activations_are_not_kept():
    """What is there between forward and backward; and with "activations" no convolution runs again."""
    kept, convolutions = {}, {}
    for what in (None, "activations", "blocks"):
        model, inputs = training_model(torch.float32)
        if what:
            model.activation_checkpointing_enable(checkpointing(what))
        with torch.profiler.profile(profile_memory=True) as profile:
            loss = model(**inputs, return_loss=True).loss
        kept[what] = sum(event.self_cpu_memory_usage for event in profile.events())
        with torch.profiler.profile() as profile:
            loss.backward()
        convolutions[what] = sum(event.name == "aten::mkldnn_convolution" for event in profile.events())
    assert kept["blocks"] < kept["activations"] < 0.7 * kept[None], kept
    assert convolutions["activations"] == convolutions[None] == 0 < convolutions["blocks"]


def test_bfloat16_step_is_near_float32():
    """Autocast: maps in bfloat16, statistics in float32."""
    steps = []
    for enabled in (False, True):
        model, inputs = training_model(torch.float32)
        model.activation_checkpointing_enable(checkpointing("activations"))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            steps.append(step_of(model, inputs))
    norms = [name for name in steps[0] if "running" in name]
    assert len(norms) > 10
    for name in norms:
        assert steps[1][name].dtype == torch.float32
        torch.testing.assert_close(steps[0][name], steps[1][name], rtol=0.05, atol=0.05, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_norm_with_parameters_of_16_bits_is_trained(dtype):
    """A model that was loaded in bfloat16, without autocast."""
    narrow = batch_norm(16).to(dtype)
    wide, x = copy.deepcopy(narrow).double(), torch.randn(37, 5, 3, 4).to(dtype)
    y, expected = narrow(x, silu=True), wide(x.double(), silu=True)
    y.sum().backward()
    assert y.dtype == narrow.running_mean.dtype == narrow.weight.grad.dtype == dtype
    for got, other in ((y, expected), (narrow.running_mean, wide.running_mean), (narrow.running_var, wide.running_var)):
        torch.testing.assert_close(got.double(), other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("batch", [16, 48, 37])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_with_silu_is_both_one_after_the_other(batch, layout, monkeypatch):
    """In value, gradients and statistics; and equal to the plain path, which GPUs and compilers take."""
    results = []
    for way in ("together", "apart", "plain"):
        torch.manual_seed(0)
        norm = batch_norm(16)
        x = torch.randn(batch, 5, 3, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
        with monkeypatch.context() as context:
            if way == "plain":
                context.setattr(torch.compiler, "is_compiling", lambda: True)
            activation = torch.nn.SiLU()
            if way == "apart":
                y = activation(norm(x))
            else:
                y = modeling_torch.normalize_and_activate(norm, activation, x)
        gradients = torch.autograd.grad(y, [x, norm.weight, norm.bias], torch.sin(torch.arange(y.numel())).view_as(y))
        results.append([y, *gradients, norm.running_mean, norm.running_var])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("silu", [False, True])
def test_gradients_of_ghost_norm(groups, silu):
    torch.manual_seed(0)
    x = torch.randn(7, 4, 3, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    given = [value.requires_grad_() for value in (x, torch.rand(4, dtype=x.dtype), torch.randn(4, dtype=x.dtype))]
    assert torch.autograd.gradcheck(lambda *given: ghost_norm(*given, groups, 1e-3, silu)[0], given)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups, silu", [(1, True), (3, True), (3, False)])
def test_ghost_norm_of_16_bits_is_that_of_32(groups, silu, dtype, layout, monkeypatch):
    monkeypatch.setattr(ghost_norm_torch, "_BLOCK", 60)  # several in a group
    torch.manual_seed(0)
    x = (torch.randn(8, 5, 4, 3) + torch.arange(8.0).view(8, 1, 1, 1)).to(dtype).to(memory_format=layout)
    gradient = torch.randn(8, 5, 4, 3).to(dtype).to(memory_format=layout)
    weight, bias = torch.rand(5) + 0.5, torch.randn(5)
    results = []
    for kind in (torch.float32, dtype):
        given = [value.detach().clone().requires_grad_() for value in (x.to(kind), weight, bias)]
        y, *statistics = ghost_norm(*given, groups, 1e-3, silu)
        results.append([y.detach(), *torch.autograd.grad(y, given, gradient.to(kind)), *statistics])
    assert [value.dtype for value in results[1]] == [dtype, dtype, *[torch.float32] * 4]
    assert results[1][0].is_contiguous(memory_format=layout) and results[1][1].is_contiguous(memory_format=layout)
    for a, b in zip(*results):
        torch.testing.assert_close(b.float(), a, rtol=0, atol=3 * torch.finfo(dtype).eps * float(a.abs().max()))
    for a, b in zip(results[0][4:], results[1][4:]):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kernel, stride, padding, size", [(3, 1, 1, 5), (3, 2, 0, 6), (5, 1, 2, 3), (5, 2, 2, 8), (7, 1, 3, 4)]
)
def test_gradients_of_depthwise_convolution(kernel, stride, padding, size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size + 1, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: depthwise_conv(*given, stride, padding), (x, weight))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_depthwise_convolution_in_bfloat16_is_that_of_float32(autocast, layout):
    torch.manual_seed(0)
    own = DepthwiseConv2d(8, 8, 5, 2, 2, groups=8, bias=False)
    wide, narrow = copy.deepcopy(own), own if autocast else own.bfloat16()
    x = torch.randn(4, 8, 11, 13).to(memory_format=layout)
    results = []
    for conv, dtype in ((wide, torch.float32), (narrow, torch.float32 if autocast else torch.bfloat16)):
        given = x.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and conv is narrow):
            y = conv(given)
        y.float().square().sum().backward()
        results.append([y, given.grad, conv.weight.grad])
    assert y.dtype == torch.bfloat16 and type(y.grad_fn).__name__ == "_DepthwiseBackward"
    for a, b in zip(*results):
        torch.testing.assert_close(b.float(), a, rtol=0, atol=2**-6 * float(a.detach().abs().max()))


def test_statistics_of_large_channels_last_maps_are_accurate():
    """PyTorch's own kernel for them adds in float32 one by one, and is wrong by 1e-4 here."""
    torch.manual_seed(0)
    x = (torch.randn(16, 8, 145, 145) * 3 + 5).to(memory_format=torch.channels_last)
    _, mean, variance = ghost_norm(x, torch.ones(8), torch.zeros(8), 1, 1e-3, True)
    wide = x.double()
    torch.testing.assert_close(mean[0].double(), wide.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance[0].double(), wide.var((0, 2, 3), unbiased=False), rtol=1e-6, atol=0)
