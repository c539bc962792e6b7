"""ALIGN in Flax against the recorded outputs of the original program, and against our PyTorch class."""

import math
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import flax_arrays
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import transformers
from flax import nnx
from goldens import error
from jax import export
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file
from tolerances import TOLERANCE

import kakao_models
from kakao_models import AlignConfig, FlaxAlignModel, FlaxAlignTextModel, FlaxAlignVisionModel
from kakao_models.align import modeling_flax
from kakao_models.align.depthwise_flax import _native, depthwise_convolution
from kakao_models.checkpoint.flax import LayerNorm
from kakao_models.inference.engine_flax import FlaxEngine
from kakao_models.train.lamb_flax import lamb

# compiling the larger towers takes most of a minute
SMALL = ["align_a", "align_nano", pytest.param("align_b", marks=pytest.mark.slow)]
FULL = [pytest.param(name, marks=pytest.mark.slow) for name in ("align_c", "align_d")]


def inputs_of(golden, dtype=np.float32, scale=1 / 127.5) -> dict:
    tokens = {key: golden.arrays[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    return {"pixel_values": golden.images.transpose(0, 3, 1, 2).astype(dtype) * dtype(scale) - dtype(1), **tokens}


@flax_arrays.jitted
def run(model, **inputs) -> dict:
    """Everything the fixtures recorded; layers by their names in the original, channels last."""
    output = model(**inputs, return_loss=True, output_hidden_states=True)
    vision, text = output.vision_model_output, output.text_model_output
    x = inputs["pixel_values"].transpose(0, 2, 3, 1)
    seen = {"rescaling": x}
    stem, first = model.vision_model.embeddings, model.vision_model.encoder.blocks[0]
    x = seen["stem_conv"] = stem.convolution(modeling_flax.pad_for_stride_2(x, 3))
    x = seen["stem_bn"] = stem.batchnorm(x)
    x = seen["stem_activation"] = stem.activation(x)
    x = seen["block1a_dwconv"] = first.depthwise_conv.depthwise_conv(x)
    x = seen["block1a_bn"] = first.depthwise_conv.depthwise_norm(x)
    x = seen["block1a_activation"] = first.depthwise_conv.depthwise_act(x)
    seen["block1a_se_squeeze"] = x.mean((1, 2))
    scale = seen["block1a_se_reduce"] = first.squeeze_excite.act_reduce(
        first.squeeze_excite.reduce(x.mean((1, 2), keepdims=True))
    )
    seen["block1a_se_expand"] = nnx.sigmoid(first.squeeze_excite.expand(scale))
    x = seen["block1a_se_excite"] = first.squeeze_excite(x)
    x = seen["block1a_project_conv"] = first.projection.project_conv(x)
    seen["block1a_project_bn"] = first.projection.project_bn(x)
    seen["avg_pool"] = vision.pooler_output
    layers = {"embeddings": text.hidden_states[0], "pooler": text.pooler_output}
    layers |= {f"layer_._{i}": state for i, state in enumerate(text.hidden_states[1:])}
    return dict(
        image_embeds=output.image_embeds,
        text_embeds=output.text_embeds,
        logits_per_image=output.logits_per_image,
        loss=output.loss,
        image_features=model._project_image(vision),
        text_features=model._project_text(text),
        image=seen,
        blocks=[state.transpose(0, 2, 3, 1) for state in vision.hidden_states[1:]],
        text=layers,
    )


@pytest.fixture(scope="module")
def outputs(golden_folder):
    """name of a recorded run → what the model computes of its inputs, compiled once."""

    @cache
    def compute(name: str) -> dict:
        model = FlaxAlignModel.from_pretrained(golden_folder(name))
        return run(model, **inputs_of(goldens.load(name)))

    return compute


@pytest.mark.parametrize("name", SMALL + FULL)
def test_golden_float32(name, outputs):
    got, recorded = outputs(name), goldens.load(name).arrays
    for output in ("image_embeds", "text_embeds", "logits_per_image", "text_features"):
        assert error(got[output], recorded[output]) <= TOLERANCE[output], output
    rms = np.sqrt(np.mean(np.square(recorded["image_features"])))
    assert error(got["image_features"], recorded["image_features"]) <= TOLERANCE["image_features / rms"] * rms
    loss = recorded["loss"] if "loss" in recorded else np.mean(recorded["loss_i2t"] + recorded["loss_t2i"])
    assert error(got["loss"], loss) <= TOLERANCE["align loss"]


@pytest.mark.parametrize("name", SMALL + FULL)
def test_golden_layer_by_layer(name, outputs):
    got, golden = outputs(name), goldens.load(name)
    blocks = iter(got["blocks"][1:])
    for layer, recorded in golden.image_probes.items():
        # a name of its own in the first block, then one name per block, in order
        value = got["image"][layer] if layer in got["image"] else next(blocks)
        if layer == "block1a_se_squeeze" and recorded.shape != goldens.probe(value, recorded.shape[1]).shape:
            value = value[:, None, None]
        assert error(goldens.probe(value, recorded.shape[1]), recorded) <= TOLERANCE["align inter"], layer
    assert next(blocks, None) is None
    for layer, recorded in golden.text_probes.items():
        assert error(goldens.probe(got["text"][layer]), recorded) <= TOLERANCE["align inter"], layer


@pytest.mark.parametrize("name", ["align_a", *FULL])
def test_golden_float64_with_the_original_s_float32_constants(name, golden_folder):
    """What is left in float64 comes from constants that the original rounds: with them, nothing is left."""
    golden = goldens.load(name)
    root_of_2 = float(np.float32(math.sqrt(2)))

    def gelu(x):
        return 0.5 * x * (1 + jax.lax.erf(x / root_of_2))

    with jax.enable_x64(True):
        model = FlaxAlignModel.from_pretrained(golden_folder(name), dtype="float64")
        for layer in model.text_model.encoder.layer:
            layer.intermediate.intermediate_act_fn = gelu
        inputs, recorded = goldens.first_rows(inputs_of(golden, np.float64, scale=np.float32(1 / 127.5)), golden)
        got = run(model, **inputs)
    for output, expected in recorded.items():
        assert error(got[output], expected) <= TOLERANCE["align float64, same constants"], output


# --- against PyTorch, small random models


def batch(count: int = 4, dtype=np.float64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    lengths = np.arange(count)[:, None] % 5 + 3
    return {
        "input_ids": random.integers(5, 80, (count, 7)),
        "pixel_values": random.standard_normal((count, 3, 32, 32)).astype(dtype),
        "attention_mask": (np.arange(7) < lengths).astype(np.int64),
        "token_type_ids": random.integers(0, 2, (count, 7)),
    }


def pytorch_model(folder: str, **kwargs):
    return kakao_models.AlignModel.from_pretrained(folder, **kwargs)


def tensors(torch, inputs: dict) -> dict:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small model with dropouts of zero and ghost batches of four."""
    config = tiny.align_config(use_visual_projection=True)
    config.vision_config.drop_connect_rate, config.vision_config.virtual_batch_size = 0.0, 4
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    config.temperature_init_value = 0.3
    folder = tmp_path_factory.mktemp("align_flax")
    return tiny.save_model("AlignModel", config, folder)


def flat(output) -> dict[str, np.ndarray]:
    found = {}
    for name, value in output.items():
        if hasattr(value, "items"):
            found |= {f"{name}.{key}": array for key, array in flat(value).items()}
        elif isinstance(value, tuple):
            found |= {f"{name}.{index}": np.asarray(array) for index, array in enumerate(value)}
        else:
            found[name] = np.asarray(value)
    return found


def test_every_output_is_pytorch_s(torch, folder):
    options = dict(return_loss=True, output_hidden_states=True, output_attentions=True)
    inputs = batch()
    with torch.no_grad():
        wanted = flat(pytorch_model(folder, dtype=torch.float64)(**tensors(torch, inputs), **options))
    with jax.enable_x64(True):
        model = FlaxAlignModel.from_pretrained(folder, dtype="float64")
        got = flat(nnx.jit(lambda model, inputs: model(**inputs, **options))(model, inputs))
    assert got.keys() == wanted.keys() and len(got) >= 20
    for name in wanted:
        assert got[name].shape == wanted[name].shape and error(got[name], wanted[name]) <= 1e-11, name


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"output_hidden_states": True},
        {"position_ids": np.array([[3, 1, 4, 1, 5, 9, 2]])},
        {"input_ids": None, "inputs_embeds": np.random.default_rng(1).standard_normal((4, 7, 32)).astype(np.float32)},
    ],
)
def test_text_features_are_pytorch_s(torch, folder, inputs):
    inputs = {"input_ids": batch()["input_ids"]} | inputs
    converted = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    with torch.no_grad():
        wanted = flat(pytorch_model(folder).get_text_features(**converted))
    got = flat(FlaxAlignModel.from_pretrained(folder).get_text_features(**inputs))
    assert got.keys() == wanted.keys()
    assert all(error(got[name], wanted[name]) <= 1e-5 for name in wanted)


def test_one_training_step_has_pytorch_s_gradients_and_statistics(torch, folder):
    """Eight samples, two ghost batches, both directions of the loss."""
    inputs = batch(8)
    theirs = pytorch_model(folder, dtype=torch.float64).train()
    loss = theirs(**tensors(torch, inputs), return_loss=True).loss
    loss.backward()
    with jax.enable_x64(True):
        model = FlaxAlignModel.from_pretrained(folder, dtype="float64")
        model.train()
        step = nnx.jit(nnx.value_and_grad(lambda model, inputs: model(**inputs, return_loss=True).loss))
        value, gradients = step(model, inputs)
        gradients = flax_arrays.canonical(model, gradients)
        statistics = flax_arrays.canonical(model, nnx.state(model, nnx.BatchStat))
    assert abs(float(value) - loss.item()) <= 1e-12
    parameters = dict(theirs.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if parameter.grad is None:
            assert "pooler" in name and not gradients[name].any()
        else:
            assert error(gradients[name], parameter.grad) <= TOLERANCE["gradients float64"], name
    buffers = {name: buffer for name, buffer in theirs.named_buffers() if "running" in name}
    assert statistics.keys() == buffers.keys()
    for name, buffer in buffers.items():
        assert error(statistics[name], buffer) <= 1e-12, name


# --- training


@pytest.mark.slow  # 3.5 GB; groups and statistics are compared with PyTorch's above, and PyTorch's with these
def test_ghost_batch_norm_golden(golden_folder):
    recorded = goldens.load_arrays("align_a_ghostbn")
    inputs = inputs_of(SimpleNamespace(arrays=recorded, images=goldens.input_formula.images(1, 32, 289)))
    config = AlignConfig.from_pretrained(golden_folder("align_a"))
    config.vision_config.drop_connect_rate = 0.0
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = FlaxAlignModel.from_pretrained(golden_folder("align_a"), config=config)
    model.train()

    @nnx.jit
    def forward(model, inputs):
        output = model(**inputs)
        return model._project_image(output.vision_model_output), model._project_text(output.text_model_output)

    image_features, text_features = forward(model, inputs)
    assert error(image_features, recorded["image_features"]) <= TOLERANCE["ghost features"]
    assert error(text_features, recorded["text_features"]) <= TOLERANCE["ghost features"]
    blocks = model.vision_model.encoder.blocks
    norms = {
        "stem_bn": model.vision_model.embeddings.batchnorm,
        "block1a_bn": blocks[0].depthwise_conv.depthwise_norm,
        "block3a_expand_bn": blocks[3].expansion.expand_bn,
        "block5b_project_bn": blocks[9].projection.project_bn,
        "block7a_project_bn": blocks[15].projection.project_bn,
    }
    for name, norm in norms.items():
        for ours, theirs in ((norm.mean, "moving_mean"), (norm.var, "moving_variance")):
            assert error(ours[...], recorded[f"bn/{name}/{theirs}"]) <= TOLERANCE["ghost statistics"], (name, theirs)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 300.0, 2000.0])
def test_half_precision_vectors_of_any_norm_are_normalised(norm):
    """In float16 squares overflow from a norm of 256 on."""
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    x *= norm / np.linalg.norm(x, axis=1, keepdims=True)
    got = modeling_flax.l2_normalize(jnp.asarray(x, jnp.float16))
    assert got.dtype == jnp.float16
    np.testing.assert_allclose(np.linalg.norm(np.asarray(got, np.float32), axis=1), 1, atol=2e-3)


def test_layer_norm_of_a_large_mean_is_accurate():
    """As a difference of large numbers, the variance here would be wrong by a hundredth and more."""
    x = np.random.default_rng(0).standard_normal((4, 64)) + 1000
    got = LayerNorm(64, 1e-12, rngs=nnx.Rngs(0))(jnp.asarray(x, jnp.float32))
    wanted = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize("count", [16, 48, 37, 20, 7])
def test_batch_norm_groups(count):
    """Against the definition: group j is samples j, j + n, ...; statistics are means over groups of biased moments."""
    config = SimpleNamespace(batch_norm_eps=1e-3, batch_norm_momentum=0.99, virtual_batch_size=16)
    random = np.random.default_rng(0)
    x, scale, bias = random.standard_normal((count, 3, 4, 5)), random.uniform(0.5, 2, 5), random.standard_normal(5)
    n = max(1, count // 16)
    wanted, means, variances = np.empty_like(x), [], []
    for j in range(n):
        mean, variance = x[j::n].mean((0, 1, 2)), x[j::n].var((0, 1, 2))
        wanted[j::n] = (x[j::n] - mean) / np.sqrt(variance + 1e-3) * scale + bias
        means.append(mean), variances.append(variance)
    with jax.enable_x64(True):
        norm = modeling_flax.FlaxAlignBatchNorm(5, config, rngs=nnx.Rngs(0))
        for variable, value in (
            (norm.scale, scale),
            (norm.bias, bias),
            (norm.mean, np.zeros(5)),
            (norm.var, np.ones(5)),
        ):
            variable.set_value(jnp.asarray(value))
        assert error(norm(jnp.asarray(x)), wanted) <= 1e-12
        assert error(norm.mean[...], 0.01 * np.mean(means, 0)) <= 1e-15
        assert error(norm.var[...], 0.99 + 0.01 * np.mean(variances, 0)) <= 1e-15
        norm.eval()
        before = np.asarray(norm.mean[...])
        inference = (x - before) / np.sqrt(np.asarray(norm.var[...]) + 1e-3) * scale + bias
        assert error(norm(jnp.asarray(x)), inference) <= 1e-12 and error(norm.mean[...], before) == 0


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_both_formulations_of_depthwise_convolution_agree(kernel, stride):
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, weights = (jnp.asarray(random.standard_normal(shape)) for shape in ((2, 9, 10, 6), (kernel, kernel, 1, 6)))
        got, backward = jax.vjp(lambda x, w: depthwise_convolution(x, w, stride), x, weights)
        wanted, backward_wanted = jax.vjp(lambda x, w: _native(x, w, stride), x, weights)
        assert got.shape == wanted.shape and error(got, wanted) <= 1e-13
        dy = jnp.asarray(random.standard_normal(got.shape))
        for a, b in zip(backward(dy), backward_wanted(dy)):
            assert error(a, b) <= 1e-12


def test_dropout_is_where_the_original_has_it(folder, monkeypatch):
    """Maps of the blocks with a skip, then BERT's embeddings and, twice, attention weights and both outputs."""
    seen = []

    def drop(layer, x):
        seen.append(x.shape)
        return x

    monkeypatch.setattr(nnx.Dropout, "__call__", drop)
    model = FlaxAlignModel.from_pretrained(folder)
    nnx.eval_shape(lambda model: model(np.zeros((2, 7), np.int32), np.zeros((2, 3, 32, 32), np.float32)), model)
    blocks = [shape for shape in seen if shape[1] == shape[2] and len(shape) == 4 and shape[1] != 2]
    assert len(blocks) == sum(spec.skip for spec in model.config.vision_config.blocks()) > 0
    assert seen == [*blocks, (2, 7, 32), *[(2, 2, 7, 7), (2, 7, 32), (2, 7, 32)] * 2]


def test_drop_connect_drops_whole_samples(folder):
    config = tiny.align_config()
    config.vision_config.drop_connect_rate = 0.5
    model = FlaxAlignVisionModel.from_pretrained(folder, config=config.vision_config)
    blocks = model.encoder.blocks
    assert [block.drop_connect.rate for block in blocks] == [
        s.drop_rate * s.skip for s in config.vision_config.blocks()
    ]
    block = next(block for block in blocks if block.skip)
    model.train()
    block.drop_connect.rate = 0.25
    kept = np.asarray(block.drop_connect(jnp.ones((4000, 2, 2, 3)))).reshape(4000, -1)
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)} and (kept == kept[:, :1]).all()
    assert (kept[:, 0] > 0).mean() == pytest.approx(0.75, abs=0.03)
    model.eval()
    assert (block.drop_connect(jnp.ones((4, 2, 2, 3))) == 1).all()


@pytest.mark.slow  # three compilations of a gradient
def test_gradient_checkpointing_changes_nothing(folder):
    inputs, steps = batch(8, np.float32), []
    for checkpointing in (False, True):
        model = FlaxAlignModel.from_pretrained(folder)
        model.train()
        model.gradient_checkpointing_enable(checkpointing)
        assert model.vision_model.encoder.gradient_checkpointing == checkpointing
        step = nnx.jit(nnx.grad(lambda model, inputs: model(**inputs, return_loss=True).loss))
        gradients = flax_arrays.canonical(model, step(model, inputs))
        steps.append(gradients | flax_arrays.canonical(model, nnx.state(model, nnx.BatchStat)))
    assert steps[0].keys() == steps[1].keys()
    for name, value in steps[0].items():
        np.testing.assert_allclose(steps[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


# --- files


@pytest.mark.parametrize("ours", [FlaxAlignModel, FlaxAlignTextModel, FlaxAlignVisionModel])
def test_pytorch_to_flax_to_file_is_bit_exact(torch, ours, folder, tmp_path):
    theirs = getattr(kakao_models, ours.__name__.removeprefix("Flax"))
    theirs.from_pretrained(folder).save_pretrained(tmp_path / "torch")
    model = ours.from_pretrained(folder)
    again = ours.from_pretrained(tmp_path / "torch")  # a tower saved alone
    for name, value in flax_arrays.canonical(model).items():
        assert np.array_equal(flax_arrays.canonical(again)[name], value)
    model.save_pretrained(tmp_path / "flax")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("torch", "flax"))
    assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    reloaded = theirs.from_pretrained(tmp_path / "flax").state_dict()
    assert all(np.array_equal(reloaded[key], a[key]) for key in a)


def test_a_configuration_of_transformers_will_do(folder):
    given = transformers.AlignConfig.from_pretrained(folder)
    model = nnx.eval_shape(lambda: FlaxAlignModel(given, rngs=nnx.Rngs(0)))
    assert isinstance(model.config, AlignConfig)


def test_a_file_of_another_model_is_refused(folder):
    config = AlignConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="missing text_model.encoder.layer.2.attention.self.query.weight"):
        FlaxAlignModel.from_pretrained(folder, config=config)
    with pytest.raises(TypeError, match="drop_rte"):
        FlaxAlignModel.from_pretrained(folder, drop_rte=0.1)


@pytest.fixture(scope="module")
def one_block(tmp_path_factory) -> str:
    """A model of one block and one layer, whose training step compiles quickly."""
    return tiny.save_model("AlignModel", tiny.one_block_config(), tmp_path_factory.mktemp("one_block"))


def test_half_precision(folder, one_block):
    model, half = (FlaxAlignModel.from_pretrained(folder, dtype=dtype) for dtype in (None, "bfloat16"))
    assert {variable.dtype for variable in half._variables().values()} == {jnp.dtype(jnp.bfloat16)}
    inputs = batch(dtype=np.float32)
    wanted, got = (run_outputs(model, **inputs) for model in (model, half))
    assert got["image_embeds"].dtype == got["text_embeds"].dtype == jnp.bfloat16
    text = nnx.eval_shape(lambda model, ids: model.text_model(ids), half, inputs["input_ids"])
    assert text.last_hidden_state.dtype == jnp.bfloat16
    for name in ("image_embeds", "text_embeds"):
        assert error(got[name], wanted[name]) <= 0.05, name
    half = FlaxAlignModel.from_pretrained(one_block, dtype="bfloat16")
    half.train()
    loss, gradients = nnx.jit(nnx.value_and_grad(lambda m, x: m(**x, return_loss=True).loss))(half, inputs)
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves((loss, gradients)))


def test_mixed_precision(one_block):
    """Float32 parameters, averages, embeddings and gradients around bfloat16 maps; a step of LAMB is that of float32."""
    inputs, steps = batch(dtype=np.float32), {}
    for options in ({}, {"dtype": jnp.bfloat16, "param_dtype": "float32"}):
        model = FlaxAlignModel.from_pretrained(one_block, **options)
        output = nnx.eval_shape(lambda model, x: model(**x), model, inputs)
        maps = output.vision_model_output.last_hidden_state, output.text_model_output.last_hidden_state
        assert {x.dtype for x in maps} == {jnp.dtype(options.get("dtype", "float32"))}
        assert output.image_embeds.dtype == output.logits_per_image.dtype == jnp.float32
        start = {path: np.asarray(variable) for path, variable in model._variables().items()}
        model.train()
        optimizer = nnx.Optimizer(model, lamb(model, 0.01), wrt=nnx.Param)
        loss = nnx.jit(training_step)(model, optimizer, inputs)
        end = {path: np.asarray(variable) for path, variable in model._variables().items()}
        assert {value.dtype for value in end.values()} == {np.dtype("float32")}
        steps[bool(options)] = float(loss), np.concatenate([(end[path] - start[path]).ravel() for path in start])
    (loss, step), (mixed_loss, mixed_step) = steps[False], steps[True]
    assert 0 < abs(mixed_loss - loss) < 0.05
    assert step @ mixed_step / np.linalg.norm(step) / np.linalg.norm(mixed_step) > 0.9


def training_step(model, optimizer, inputs):
    loss, gradients = nnx.value_and_grad(lambda model: model(**inputs, return_loss=True).loss)(model)
    optimizer.update(model, gradients)
    return loss


def test_compute_dtype_of_a_model_that_was_constructed():
    model = FlaxAlignModel(tiny.one_block_config(), rngs=nnx.Rngs(0))
    model.set_compute_dtype("bfloat16")
    assert FlaxEngine(model).dtype == jnp.bfloat16 and FlaxEngine(model, dtype="float32").dtype == jnp.float32
    assert model.visual_projection.dtype == jnp.bfloat16  # the engine in float32 left it
    model.set_compute_dtype(None)
    assert FlaxEngine(model).dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype='bfloat16', param_dtype='float32'"):
        model.set_compute_dtype("mixed_bfloat16")


def test_names_of_transformers_4_say_what_replaces_them(folder):
    model = FlaxAlignModel.from_pretrained(folder)
    for name, instead in (("params", "nnx.split"), ("to_bf16", "dtype='bfloat16'"), ("get_input_embeddings", "layer")):
        with pytest.raises(AttributeError, match=f"FlaxAlignModel has no {name}.*{instead}"):
            getattr(model, name)
    for arguments, instead in (
        ({"train": True}, "model.train"),
        ({"params": {}}, "merge"),
        ({"dropout_rng": 0}, "reseed"),
    ):
        with pytest.raises(TypeError, match=f"FlaxAlignModel has no argument.*{instead}"):
            model(**batch(), **arguments)
    with pytest.raises(TypeError, match="seed.*rngs=nnx.Rngs"):
        FlaxAlignModel(model.config, seed=0)
    with pytest.raises(TypeError, match="_do_init.*nnx.eval_shape"):
        FlaxAlignModel.from_pretrained(folder, _do_init=False)


def test_parameters_are_counted_as_in_pytorch(torch, folder):
    assert FlaxAlignModel.from_pretrained(folder).num_parameters() == pytorch_model(folder).num_parameters()


@flax_arrays.jitted
def run_outputs(model, **inputs):
    output = model(**inputs)
    return {"image_embeds": output.image_embeds, "text_embeds": output.text_embeds}


def test_split_and_merge_share_one_compilation(folder):
    """Two models of one checkpoint are the same function to jit; another batch norm is not."""
    calls = []

    @nnx.jit
    def embed(model, pixels):
        calls.append(1)
        return model.get_image_features(pixels).pooler_output

    pixels = batch(dtype=np.float32)["pixel_values"]
    model = FlaxAlignModel.from_pretrained(folder)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    assert {type(v) for _, v in nnx.to_flat_state(parameters)} == {nnx.Param}
    a = embed(model, pixels)
    b = embed(nnx.merge(graph, parameters, rest), pixels)
    c = embed(FlaxAlignModel.from_pretrained(folder), pixels)
    assert error(a, b) == error(a, c) == 0 and len(calls) == 1


def test_outputs_are_pytrees_with_three_ways_in(folder):
    model, inputs = FlaxAlignModel.from_pretrained(folder), batch(dtype=np.float32)
    output = nnx.jit(lambda model, inputs: model(**inputs))(model, inputs)
    assert output.loss is None and "loss" not in output and output.keys()[0] == "logits_per_image" == list(output)[0]
    assert output["text_embeds"] is output.text_embeds is output[2]
    with pytest.raises(KeyError, match="it has logits_per_image"):
        output["loss"]
    doubled = jax.tree.map(lambda x: 2 * x, output)
    assert (
        type(doubled) is type(output) and error(doubled.vision_model_output[0], 2 * output.vision_model_output[0]) == 0
    )
    as_tuple = nnx.eval_shape(lambda model, inputs: model(**inputs, return_dict=False), model, inputs)
    assert isinstance(as_tuple, tuple) and isinstance(as_tuple[-1], tuple) and len(as_tuple) == len(output)


def test_the_text_tower_goes_without_its_pooler(folder):
    texts = batch()["input_ids"].astype(np.int32)
    assert FlaxAlignTextModel.from_pretrained(folder, add_pooling_layer=False)(texts).pooler_output is None


def test_exports_to_stablehlo(folder):
    """For any number of texts, without the model's code."""
    graph, state = nnx.split(FlaxAlignTextModel.from_pretrained(folder))
    ids = jax.ShapeDtypeStruct(export.symbolic_shape("b, 7"), jnp.int32)
    exported = export.export(jax.jit(lambda ids: nnx.merge(graph, state)(ids)), platforms=["cpu", "tpu"])(ids)
    again = export.deserialize(exported.serialize())
    texts = batch()["input_ids"].astype(np.int32)
    wanted = FlaxAlignTextModel.from_pretrained(folder)(texts)
    for count in (1, 4):
        got = again.call(texts[:count])
        assert type(got) is type(wanted) and error(got.pooler_output, wanted.pooler_output[:count]) <= 1e-5
    pixels = jax.ShapeDtypeStruct((2, 3, 32, 32), jnp.float32)
    graph_, state_ = nnx.split(FlaxAlignVisionModel.from_pretrained(folder))
    program = export.export(jax.jit(lambda x: nnx.merge(graph_, state_)(x).pooler_output), platforms=["cpu", "tpu"])
    assert "feature_group_count = 48" in program(pixels).mlir_module()  # the other formulation, for the other platform


def test_partition_specs_follow_the_kind_of_layer(folder):
    model = FlaxAlignModel.from_pretrained(folder)
    specs = {".".join(map(str, path)): spec for path, spec in nnx.to_flat_state(model.partition_specs("model"))}
    assert specs.keys() >= model._variables().keys()
    layer = "text_model.encoder.layer.1."
    assert specs[layer + "attention.self.query.kernel"] == P(None, "model")
    assert specs[layer + "intermediate.dense.bias"] == P("model")
    assert specs[layer + "output_layer.dense.kernel"] == P("model", None)
    assert specs[layer + "attention.output_layer.dense.bias"] == specs[layer + "output_layer.LayerNorm.scale"] == P()
    block = "vision_model.encoder.blocks.1."
    assert specs[block + "expansion.expand_conv.kernel"] == P(None, None, None, "model")
    assert specs[block + "depthwise_conv.depthwise_conv.kernel"] == P(None, None, None, "model")
    assert (
        specs[block + "depthwise_conv.depthwise_norm.var"] == P("model") == specs[block + "squeeze_excite.expand.bias"]
    )
    assert specs[block + "projection.project_conv.kernel"] == P(None, None, "model", None)
    assert specs[block + "squeeze_excite.reduce.kernel"] == P(None, None, "model", None)
    assert specs[block + "squeeze_excite.reduce.bias"] == specs[block + "projection.project_bn.mean"] == P()
    assert specs["vision_model.embeddings.convolution.kernel"] == P()


def test_a_mesh_is_placed_on_or_refused(folder):
    model = FlaxAlignModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"expected a mesh whose axes are Auto.*make_mesh\(\(1,\), \('data',\)"):
        model.shard(jax.make_mesh((1,), ("data",)))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model.shard(mesh)
    assert {value.sharding for value in jax.tree.leaves(nnx.state(model))} == {jax.sharding.NamedSharding(mesh, P())}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.text_model(), "both or neither"),
        (lambda m: m.text_model(np.zeros((1, 81), np.int32)), "81 tokens, but there are 80"),
        (
            lambda m: m.vision_model(np.zeros((1, 32, 32, 3))),
            r"must be \(batch, 3, height, width\), got \(1, 32, 32, 3\). Channels come first",
        ),
        (lambda m: m.vision_model(np.zeros((1, 3, 32, 32), np.uint8)), r"numbers in \[-1, 1\].* got uint8"),
        (
            lambda m: jax.eval_shape(
                lambda: m(np.zeros((2, 3), np.int32), np.zeros((1, 3, 32, 32)), return_loss=True).loss
            ),
            "1 images and 2 texts",
        ),
    ],
)
def test_wrong_inputs_are_named(call, message, folder):
    with pytest.raises(ValueError, match=message):
        call(FlaxAlignModel.from_pretrained(folder))


def test_runs_without_torch():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from flax import nnx
from kakao_models import FlaxAlignModel, FlaxViTModel
model = FlaxAlignModel.from_pretrained("align-small")
size = model.config.vision_config.image_size
inputs = np.array([[2, 5, 3]]), np.zeros((1, 3, size, size), np.float32)
output = nnx.eval_shape(lambda model: model(*inputs), model)
print(output.logits_per_image.shape, sys.modules["torch"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(1, 1) None", done.stderr[-2000:]
