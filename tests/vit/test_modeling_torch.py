"""ViT in PyTorch against the recorded outputs of the original program, block by block and as a whole."""

import goldens
import numpy as np
import pytest
import scipy.ndimage
import tiny
import torch
from goldens import error
from tolerances import TOLERANCE
from torch.nn import functional as F

from kakao_models import ViTForImageClassification, ViTModel
from kakao_models.vit import modeling_torch
from kakao_models.vit.modeling_torch import resize_position_embeddings

NANO = ["vit_nano_ckpt", "vit_nano_model_weights", "vit_nano_backbone_weights"]
FULL = [pytest.param(name, marks=pytest.mark.slow) for name in ("vit_c", "vit_d", "vit_e")]
WITH_HEAD = ["vit_a", "vit_b", *NANO[:2], *FULL]
POSITIONS = ["from4_to6", "from14_to24", "from14_to32", "from24_to14", "from14_to14"]


def pixels_of(golden, dtype=torch.float32) -> torch.Tensor:
    images = (golden.images.astype(np.float32) - 127.5) / 127.5
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype)


def load(golden_folder, name: str, **kwargs):
    has_head = not name.endswith("backbone_weights")
    return (ViTForImageClassification if has_head else ViTModel).from_pretrained(golden_folder(name), **kwargs)


def run(model, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """pre_logits and, where there is a head, logits."""
    seen = {}
    hook = model.base_model.register_forward_hook(lambda _, args, output: seen.update(backbone=output))
    with torch.no_grad():
        output = model(pixels)
    hook.remove()
    pooled = seen["backbone"].pooler_output
    pooled = seen["backbone"].last_hidden_state[:, 0] if pooled is None else pooled
    return {"pre_logits": pooled.numpy()} | ({"logits": output.logits.numpy()} if "logits" in output else {})


def check(got: dict[str, np.ndarray], recorded: dict, suffix: str = "") -> None:
    """`got` may hold more than was recorded: logits are recorded for every `logits_step`-th class."""
    step = int(recorded.get("logits_step", 1))
    for name in got.keys() & {"logits", "pre_logits"}:
        value = got[name][:, ::step] if name == "logits" else got[name]
        limit = TOLERANCE["vit float64" if suffix else f"vit {name}"]
        assert error(value, recorded[name + suffix]) <= limit, (
            f"{name}{suffix} is off by {error(value, recorded[name + suffix])}"
        )


@pytest.mark.parametrize("name", [*WITH_HEAD, NANO[2]])
def test_golden_float32(name, golden_folder):
    golden = goldens.load(name)
    got = run(load(golden_folder, name), pixels_of(golden))
    assert ("logits" in got) == ("logits" in golden.arrays)
    check(got, golden.arrays)
    if "top5" in golden.arrays:
        logits = got["logits"]
        assert np.array_equal(np.argsort(-logits, axis=1, kind="stable")[:, :5], golden.arrays["top5"])
        stats = np.stack([logits.mean(1), logits.std(1), logits.min(1), logits.max(1)], axis=1)
        assert error(stats, golden.arrays["logits_stats"]) <= TOLERANCE["vit logits"]


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *FULL])
def test_golden_float64(name, golden_folder):
    golden = goldens.load(name)
    model = load(golden_folder, name, dtype=torch.float64)
    check(run(model, pixels_of(golden, torch.float64)), golden.arrays, "_f64")


@pytest.mark.parametrize("name", ["vit_a", *NANO[:1]])
def test_eager_attention_keeps_float64(name, golden_folder):
    """transformers' eager attention takes its softmax in float32, whatever the model's type."""
    golden = goldens.load(name)
    pixels = pixels_of(golden, torch.float64)
    model = load(golden_folder, name, dtype=torch.float64)
    wanted = run(model, pixels)["logits"]
    model.set_attn_implementation("eager")
    assert error(run(model, pixels)["logits"], wanted) <= 1e-13


def layers_of(model, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """The outputs that the fixtures probe, (B, H, W, C), (B, T, C) or (B, C), by their names in the original."""
    backbone = model.base_model
    first = backbone.layers[0]
    named = {
        "embedding": backbone.embeddings.patch_embeddings.projection,
        "embeddings": backbone.embeddings,
        "encoderblock_0/layernorm1": first.layernorm_before,
        "encoderblock_0/att": first.attention,
        "encoderblock_0/layernorm2": first.layernorm_after,
        "encoderblock_0/mlp": first.mlp,
        **{f"encoderblock_{i}": layer for i, layer in enumerate(backbone.layers)},
        "norm": backbone.layernorm,
    }
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: output[0] if isinstance(output, tuple) else output})
        )
        for name, module in named.items()
    ]
    outputs = run(model, pixels)
    for hook in hooks:
        hook.remove()
    seen["embedding"] = seen["embedding"].permute(0, 2, 3, 1)
    seen["extract_token"] = seen["norm"][:, 0]
    return {name: value.numpy() for name, value in seen.items()} | outputs


@pytest.mark.parametrize("name", [*WITH_HEAD, NANO[2]])
def test_golden_layer_by_layer(name, golden_folder):
    golden = goldens.load(name)
    layers = layers_of(load(golden_folder, name), pixels_of(golden))
    assert set(layers) == set(golden.probes)
    for (layer, recorded), stats in zip(golden.probes.items(), golden.arrays["inter/stats"]):
        got = layers[layer]
        assert error(goldens.probe(got), recorded) <= TOLERANCE["vit inter"], layer
        assert error([got.mean(), got.std(), got.min(), got.max()], stats) <= TOLERANCE["vit inter"], layer


# --- typical mistakes


def _exact_gelu(model):
    for layer in model.vit.layers:
        layer.mlp.activation_fn = torch.nn.GELU()


def _layer_norm_eps(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12


def _no_tanh(model):
    model.vit.pooler.activation = torch.nn.Identity()


def _no_representation(model):
    model.vit.pooler = None  # vit_a has it as wide as the class token, so the head fits either


@pytest.mark.parametrize(
    "mistake, name, low, high",
    [
        (_exact_gelu, "vit_a", 3e-4, 6e-4),
        (_exact_gelu, "vit_b", 3e-4, 6e-4),
        (_layer_norm_eps, "vit_a", 1.1e-3, 3.5e-3),
        (_layer_norm_eps, "vit_b", 1.1e-3, 3.5e-3),
        (_no_representation, "vit_a", 2.8, 2.8),
        (_no_tanh, "vit_a", 1.7, 1.7),  # measured here, the page does not have it
    ],
)
def test_typical_mistakes_are_caught(mistake, name, low, high, golden_folder):
    """`low` to `high` is what the recorded page says the mistake changes in the logits."""
    golden = goldens.load(name)
    model = load(golden_folder, name)
    mistake(model)
    got = run(model, pixels_of(golden))
    assert 0.9 * low <= error(got["logits"], golden.arrays["logits"]) <= 1.1 * high
    with pytest.raises(AssertionError, match="logits is off by"):
        check({"logits": got["logits"]}, golden.arrays)


# --- position embeddings


def positions(entry: str) -> tuple[torch.Tensor, int, int, np.ndarray]:
    """The recorded table: before, sides of its old and new grid, after."""
    old, new = (int(side) for side in entry.removeprefix("from").split("_to"))
    after = goldens.load_arrays("vit_posemb")[entry]
    before = goldens.weight_formula.fill(f"interpolate/{old}/pos_emb", (1, old * old + 1, after.shape[2]), 1)
    return torch.from_numpy(before), old, new, after


@pytest.mark.parametrize("entry", POSITIONS)
def test_position_embeddings_golden(entry):
    before, old, new, after = positions(entry)
    got = resize_position_embeddings(before, (old, old), (new, new))
    assert error(got, after) <= TOLERANCE["vit positions"]


@pytest.mark.parametrize("how", [{"mode": "bicubic"}, {"mode": "bilinear"}, {"mode": "bicubic", "align_corners": True}])
@pytest.mark.parametrize("entry", POSITIONS[:4])
def test_other_interpolations_are_caught(entry, how, monkeypatch):
    """transformers resizes bicubically, and with the corners of the grids not aligned."""
    before, old, new, after = positions(entry)
    interpolate = F.interpolate
    monkeypatch.setattr(modeling_torch.F, "interpolate", lambda x, size, **_: interpolate(x, size=size, **how))
    got = resize_position_embeddings(before, (old, old), (new, new))
    assert error(got, after) > 8e-3  # of values up to 0.07


def test_grids_that_are_not_square():
    table = torch.randn(1, 1 + 4 * 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = resize_position_embeddings(table, (4, 6), (7, 3))
    wanted = scipy.ndimage.zoom(table[0, 1:].reshape(4, 6, 5).numpy(), (7 / 4, 3 / 6, 1), order=1)
    assert wanted.shape == (7, 3, 5)
    np.testing.assert_allclose(got[0, 1:].reshape(7, 3, 5).numpy(), wanted, rtol=0, atol=1e-12)
    assert torch.equal(got[:, 0], table[:, 0])


@pytest.mark.parametrize("entry", POSITIONS)
def test_positions_resized_on_load_and_at_run_time(entry, tmp_path):
    before, old, new, after = positions(entry)
    config = tiny.vit_config(image_size=2 * old, patch_size=2, hidden_size=before.shape[2], representation_size=None)
    model = tiny.fill(ViTForImageClassification(config))
    model.vit.embeddings.position_embeddings.data.copy_(before)
    model.save_pretrained(tmp_path)
    for model_class in (ViTForImageClassification, ViTModel):
        loaded = model_class.from_pretrained(tmp_path, image_size=2 * new)
        embeddings = loaded.base_model.embeddings
        assert error(embeddings.position_embeddings.detach(), after) <= TOLERANCE["vit positions"]
        assert loaded.config.image_size == loaded.base_model.config.image_size == 2 * new
    pixels = torch.randn(2, 3, 2 * new, 2 * new, generator=torch.Generator().manual_seed(0))
    loaded = ViTForImageClassification.from_pretrained(tmp_path, image_size=2 * new)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, model(pixels, interpolate_pos_encoding=True).logits)


def test_a_resized_model_saves_and_loads(tmp_path):
    model = tiny.fill(ViTForImageClassification(tiny.vit_config()))
    model.save_pretrained(tmp_path / "small")
    large = ViTForImageClassification.from_pretrained(tmp_path / "small", image_size=[48, 64])
    assert large.config.grid == (6, 8)
    large.save_pretrained(tmp_path / "large")
    again = ViTForImageClassification.from_pretrained(tmp_path / "large")
    pixels = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, large(pixels).logits)
        torch.testing.assert_close(model(pixels, interpolate_pos_encoding=True).logits, again(pixels).logits)
        with pytest.raises(ValueError, match=r"48\*64"):
            model(pixels)
    again.set_image_size(32)
    assert again.vit.embeddings.position_embeddings.shape == (1, 17, 32) and again.config.image_size == 32
    assert again.vit.embeddings.position_embeddings.requires_grad


# --- losses


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *FULL])
def test_losses_golden(name, golden_folder):
    golden = goldens.load(name)
    recorded, model = golden.arrays, load(golden_folder, name)
    labels = torch.from_numpy(recorded["labels"])
    several = torch.zeros(len(labels), model.config.num_labels).scatter_(1, labels, 1.0)
    with torch.no_grad():
        output = model(pixels_of(golden), labels=labels[:, 0])
        losses = {"loss_ce": output.loss}
        model.config.problem_type = "multi_label_classification"
        losses["loss_bce"] = model._loss(output.logits, several)
        # Smoothing belongs to training: of several labels it is in the labels, of a single one in the loss.
        losses["loss_bce_smooth"] = model._loss(output.logits, several * (1 - 1e-4) + 0.5e-4)
        losses["loss_ce_smooth"] = F.cross_entropy(output.logits, labels[:, 0], label_smoothing=0.1)
    for key, value in losses.items():
        assert value.item() == pytest.approx(float(recorded[key]), rel=TOLERANCE["vit loss, relative"]), key


def test_problem_types():
    model = tiny.fill(ViTForImageClassification(tiny.vit_config()))
    classes = model.config.num_labels
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, several = torch.arange(4), torch.eye(4, classes)
    with torch.no_grad():
        for wrong in (several[:, :5], one.float(), one[:2]):  # which decide nothing for later calls
            with pytest.raises(ValueError, match="ViTForImageClassification: .*labels"):
                model(pixels, labels=wrong)
        output = model(pixels, labels=one)
        assert model.config.problem_type == "single_label_classification"
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, one))
        assert torch.equal(model(pixels, labels=one.to(torch.uint8)).loss, output.loss)
        model.config.problem_type = None
        output = model(pixels, labels=several)
        assert model.config.problem_type == "multi_label_classification"
        mean = F.binary_cross_entropy_with_logits(output.logits, several)
        torch.testing.assert_close(output.loss, mean * classes)
        assert torch.equal(model(pixels, labels=several.long()).loss, output.loss)
        # a step of two micro-batches, as transformers' Trainer counts its labels
        halves = [model(pixels[i::2], labels=several[i::2], num_items_in_batch=several.numel()).loss for i in (0, 1)]
        torch.testing.assert_close(sum(halves), output.loss)
        model.config.problem_type = "regression"
        output = model(pixels, labels=several)
        torch.testing.assert_close(output.loss, F.mse_loss(output.logits, several))


# --- what runs it


@pytest.fixture
def model():
    return tiny.fill(ViTForImageClassification(tiny.vit_config(representation_size=24)))


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_outputs(model, pixels):
    with torch.no_grad():
        plain = model(pixels)
        full = model(pixels, output_hidden_states=True, output_attentions=True)
        assert model.config._attn_implementation == "sdpa"
        torch.testing.assert_close(full.logits, plain.logits)
        assert plain.hidden_states is None and plain.attentions is None
        assert [state.shape for state in full.hidden_states] == [(3, 17, 32)] * 3
        assert [weights.shape for weights in full.attentions] == [(3, 2, 17, 17)] * 2
        for weights in full.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 17))
        backbone = model.vit(pixels, output_hidden_states=True)
        torch.testing.assert_close(model.vit.layernorm(backbone.hidden_states[-1]), backbone.last_hidden_state)
        torch.testing.assert_close(model.classifier(backbone.pooler_output), plain.logits)
        as_tuple = model(pixels, labels=torch.arange(3), return_dict=False)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], plain.logits)


def test_attention_mask_hides_tokens(model, pixels):
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[:, 9:] = 0
    with torch.no_grad():
        weights = model(pixels, attention_mask=mask, output_attentions=True).attentions
        assert all((layer[..., 9:] == 0).all() for layer in weights)
        sdpa = model(pixels, attention_mask=mask).logits
        torch.testing.assert_close(model(pixels, attention_mask=mask, output_attentions=True).logits, sdpa)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(pixels, attention_mask=mask).logits, sdpa)


def test_the_fresh_head_is_zero_and_nothing_else_is():
    model = ViTForImageClassification(tiny.vit_config(representation_size=24))
    zero = {name for name, value in model.named_parameters() if value.ndim > 1 and not value.any()}
    assert zero == {"classifier.weight"} and not model.classifier.bias.any()
    assert model.vit.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_no_labels_means_no_head(pixels):
    model = tiny.fill(ViTForImageClassification(tiny.vit_config(id2label={}, representation_size=24)))
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model.vit(pixels).pooler_output)


def test_gradient_checkpointing_changes_nothing(model, pixels):
    steps = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.vit.layers)
        model(pixels, labels=torch.arange(3)).loss.backward()
        steps.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in steps[0].items():
        assert gradient.any() or name.endswith("k_proj.bias"), name  # a key's bias changes no softmax
        torch.testing.assert_close(steps[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision(model, pixels, dtype, limit):
    with torch.no_grad():
        wanted = model(pixels).logits
        half = model.to(dtype)
        got = half(pixels).logits
        assert got.dtype == dtype
        assert (got.float() - wanted).abs().max() <= limit * wanted.std()
        assert half(torch.randn(1, 3, 40, 48), interpolate_pos_encoding=True).logits.dtype == dtype


def test_compiles_without_a_break(model, pixels):
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)
        rectangle = torch.randn(1, 3, 40, 48)
        wanted = model(rectangle, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(compiled(rectangle, interpolate_pos_encoding=True).logits, wanted)


def test_exports(model, pixels):
    batch = {"pixel_values": {0: torch.export.Dim("batch", max=64)}}
    program = torch.export.export(model, (), {"pixel_values": pixels}, dynamic_shapes=batch).module()
    many = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program(pixel_values=pixels).logits, model(pixels).logits)
        torch.testing.assert_close(program(pixel_values=many).logits, model(many).logits)


def test_wrong_channels_are_named(model):
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\), got \(1, 1, 32, 32\)"):
        model(torch.zeros(1, 1, 32, 32))
