"""ALIGN in Keras against the recorded outputs of the original program, and against our PyTorch class in float64."""

import json
import math
from types import SimpleNamespace

import goldens
import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf
import tiny
from goldens import error
from tolerances import TOLERANCE

import kakao_models
from kakao_models import AlignConfig, TFAlignModel, TFAlignTextModel, TFAlignVisionModel
from kakao_models.align import depthwise_tf, modeling_tf
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.weightmap import permute
from kakao_models.train.lamb_tf import Lamb, WarmupLinearDecay

SMALL = ["align_a", "align_b", "align_nano"]
FULL = [pytest.param(name, marks=pytest.mark.slow) for name in ("align_c", "align_d")]
TEXT = ("input_ids", "attention_mask", "token_type_ids")


def inputs_of(golden, dtype: str = "float32", scale: float = 1 / 127.5) -> dict:
    pixels = golden.images.transpose(0, 3, 1, 2).astype(dtype) * np.asarray(scale, dtype) - 1
    return {"pixel_values": pixels, **{key: golden.arrays[key] for key in TEXT}}


def run(model, inputs, **kwargs) -> SimpleNamespace:
    return recorded_outputs(model, model(**inputs, return_loss=True, **kwargs))


def recorded_outputs(model, output) -> SimpleNamespace:
    """What the fixtures recorded of a model's output, in numpy."""
    values = dict(
        image_embeds=output.image_embeds,
        text_embeds=output.text_embeds,
        logits_per_image=output.logits_per_image,
        loss=output.loss,
        image_features=model._project_image(output.vision_model_output),
        text_features=model._project_text(output.text_model_output),
    )
    return SimpleNamespace(**{name: value.numpy() for name, value in values.items()})


def check_layers(model, inputs, output, golden) -> None:
    first = model.vision_model.encoder.blocks[0]
    nhwc = np.ascontiguousarray(inputs["pixel_values"].transpose(0, 2, 3, 1))
    stem = model.vision_model.embeddings
    seen = {"rescaling": nhwc, "stem_conv": stem.convolution(modeling_tf.pad_for_stride_2(nhwc, 3))}
    seen["stem_bn"] = stem.batchnorm(seen["stem_conv"])
    seen["stem_activation"] = x = stem(nhwc)
    seen["block1a_dwconv"] = first.depthwise_conv.depthwise_conv(x)
    seen["block1a_bn"] = first.depthwise_conv.depthwise_norm(seen["block1a_dwconv"])
    seen["block1a_activation"] = x = first.depthwise_conv(x)
    seen["block1a_se_excite"] = first.squeeze_excite(x)
    seen["block1a_project_conv"] = first.projection.project_conv(seen["block1a_se_excite"])
    seen["block1a_project_bn"] = first.projection(seen["block1a_se_excite"])
    seen["avg_pool"] = output.vision_model_output.pooler_output
    states = [state.numpy().transpose(0, 2, 3, 1) for state in output.vision_model_output.hidden_states]
    blocks = iter(states[2:])
    for layer, recorded in golden.image_probes.items():
        if layer.startswith("block1a_se_") and layer not in seen:
            continue  # inside the layer whose output is compared
        got = np.asarray(seen[layer]) if layer in seen else next(blocks)
        assert error(goldens.probe(got, recorded.shape[1]), recorded) <= TOLERANCE["align inter"], layer
    assert next(blocks, None) is None
    texts = output.text_model_output.hidden_states
    text = {"embeddings": texts[0], **{f"layer_._{i}": state for i, state in enumerate(texts[1:])}}
    text["pooler"] = output.text_model_output.pooler_output
    for layer, recorded in golden.text_probes.items():
        assert error(goldens.probe(text[layer].numpy()), recorded) <= TOLERANCE["align inter"], layer


@pytest.mark.parametrize("name", SMALL + FULL)
def test_golden_float32(name, golden_folder):
    """The outputs, and those of each layer where they fit into memory."""
    golden = goldens.load(name)
    model, inputs = TFAlignModel.from_pretrained(golden_folder(name)), inputs_of(golden)
    output = model(**inputs, return_loss=True, output_hidden_states=name in SMALL)
    got, recorded = recorded_outputs(model, output), golden.arrays
    for key in ("image_embeds", "text_embeds", "logits_per_image", "text_features"):
        assert error(getattr(got, key), recorded[key]) <= TOLERANCE[key], key
    rms = np.sqrt(np.mean(np.square(recorded["image_features"])))
    assert error(got.image_features, recorded["image_features"]) <= TOLERANCE["image_features / rms"] * rms
    loss = recorded["loss"] if "loss" in recorded else np.mean(recorded["loss_i2t"] + recorded["loss_t2i"])
    assert error(got.loss, loss) <= TOLERANCE["align loss"]
    if name in SMALL:
        check_layers(model, inputs, output, golden)


@pytest.mark.parametrize("name", ["align_a", *FULL])
def test_golden_float64_with_the_original_s_float32_constants(name, golden_folder):
    golden = goldens.load(name)
    model = TFAlignModel.from_pretrained(golden_folder(name), dtype="float64")
    root_of_2 = float(np.float32(math.sqrt(2)))
    for layer in model.text_model.encoder.layer:
        layer.intermediate.intermediate_act_fn = lambda x: 0.5 * x * (1 + keras.ops.erf(x / root_of_2))
    inputs, recorded = goldens.first_rows(inputs_of(golden, "float64", scale=float(np.float32(1 / 127.5))), golden)
    got = run(model, inputs)
    for output, expected in recorded.items():
        assert error(getattr(got, output), expected) <= TOLERANCE["align float64, same constants"], output


# --- training


def without_dropout(folder) -> AlignConfig:
    config = AlignConfig.from_pretrained(folder)
    config.vision_config.drop_connect_rate = 0.0
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    return config


@pytest.mark.slow  # 3 GB; groups and statistics are compared with PyTorch's below, and PyTorch's with these
@pytest.mark.parametrize("dtype, suffix", [("float32", ""), ("float64", "_f64")])
def test_ghost_batch_norm_golden(dtype, suffix, golden_folder):
    recorded, folder = goldens.load_arrays("align_a_ghostbn"), golden_folder("align_a")
    inputs = inputs_of(SimpleNamespace(arrays=recorded, images=goldens.input_formula.images(1, 32, 289)), dtype)
    model = TFAlignModel.from_pretrained(folder, config=without_dropout(folder), dtype=dtype)
    got = run(model, inputs, training=True)
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
        for key in ("moving_mean", "moving_variance"):
            assert error(getattr(norm, key).numpy(), recorded[f"bn/{name}/{key}{suffix}"]) <= TOLERANCE[limits[1]], name


@pytest.mark.parametrize("batch", [16, 48, 37, 20, 7])
@pytest.mark.parametrize("graph", [False, True])
def test_batch_norm_groups(batch, graph):
    """Against the definition: group j is samples j, j + n, ...; statistics are means over groups of biased moments."""
    config = SimpleNamespace(batch_norm_eps=1e-3, batch_norm_momentum=0.99, virtual_batch_size=16)
    keras.config.set_dtype_policy("float64")
    norm = modeling_tf.TFAlignBatchNorm(5, config)
    keras.config.set_dtype_policy("float32")
    random = np.random.default_rng(0)
    x, gamma, beta = random.normal(size=(batch, 3, 4, 5)), random.uniform(0.5, 2, 5), random.normal(size=5)
    norm.gamma.assign(gamma), norm.beta.assign(beta)
    n = max(1, batch // 16)
    wanted, means, variances = np.empty_like(x), [], []
    for j in range(n):
        group = x[j::n]
        mean, variance = group.mean((0, 1, 2)), group.var((0, 1, 2))
        wanted[j::n] = (group - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        means.append(mean), variances.append(variance)
    step = lambda x: norm(x, training=True)  # noqa: E731
    if graph:  # a graph that does not know the size of its batches
        step = tf.function(step, input_signature=[tf.TensorSpec((None, 3, 4, 5), tf.float64)])
    assert error(step(tf.constant(x)), wanted) <= 1e-12
    assert error(norm.moving_mean.numpy(), 0.01 * np.mean(means, 0)) <= 1e-15
    assert error(norm.moving_variance.numpy(), 0.99 + 0.01 * np.mean(variances, 0)) <= 1e-15


@pytest.mark.parametrize("graph", [False, True])
def test_a_replica_without_samples_leaves_the_averages(graph):
    norm = modeling_tf.TFAlignBatchNorm(3, AlignConfig().vision_config)
    step = lambda x: norm(x, training=True)  # noqa: E731
    if graph:
        step = tf.function(step, input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32)])
    step(tf.ones((2, 4, 4, 3)))
    before = [norm.moving_mean.numpy(), norm.moving_variance.numpy()]
    assert step(tf.zeros((0, 4, 4, 3))).shape == (0, 4, 4, 3)
    for old, now in zip(before, (norm.moving_mean, norm.moving_variance)):
        assert np.array_equal(old, now.numpy()) and (old != 0).all()


def test_a_frozen_batch_norm_keeps_its_averages():
    norm = modeling_tf.TFAlignBatchNorm(5, tiny.align_config().vision_config)
    norm.trainable = False
    x = np.random.default_rng(0).normal(1, 2, (16, 3, 4, 5)).astype(np.float32)
    assert error(norm(x, training=True), norm(x).numpy()) == 0 and not np.any(norm.moving_mean)
    norm.trainable = True
    assert error(norm(x, training=True), norm(x).numpy()) > 0.1 and np.all(norm.moving_mean)


def small_config(**kwargs) -> AlignConfig:
    """As `tiny.align_config`, with three blocks."""
    whole = tiny.align_config()
    vision = whole.vision_config.to_dict() | dict(
        kernel_sizes=[3, 5], in_channels=[32, 16], out_channels=[16, 24], strides=[1, 2],
        num_block_repeats=[1, 2], expand_ratios=[1, 6], hidden_dim=8, drop_connect_rate=0.0,
    )  # fmt: skip
    text = whole.text_config.to_dict() | dict(
        num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return tiny.align_config(vision_config=vision | kwargs, text_config=text)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random checkpoint, and a batch of 32."""
    folder = tmp_path_factory.mktemp("small")
    tiny.save_model("AlignModel", small_config(), folder)
    random = np.random.default_rng(0)
    mask = np.ones((32, 9), np.int64)
    mask[16:, 5:] = 0
    batch = dict(
        pixel_values=random.uniform(-1, 1, (32, 3, 32, 32)),
        input_ids=random.integers(1, 50, (32, 9)),
        attention_mask=mask,
        token_type_ids=random.integers(0, 2, (32, 9)),
    )
    return folder, batch


def float32(batch: dict) -> dict:
    return batch | {"pixel_values": batch["pixel_values"].astype(np.float32)}


def as_torch(batch: dict) -> dict:
    import torch

    return {name: torch.from_numpy(value) for name, value in batch.items()}


def assert_same(ours, theirs, limit: float = 1e-9, where: str = "") -> None:
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], limit, f"{where}.{key}")
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs), where
        for index, (a, b) in enumerate(zip(ours, theirs)):
            assert_same(a, b, limit, f"{where}[{index}]")
    else:
        assert ours.shape == theirs.shape and error(ours, theirs.detach().numpy()) <= limit, where


def test_every_output_is_pytorch_s(torch, small):
    folder, batch = small
    ours = TFAlignModel.from_pretrained(folder, dtype="float64")
    theirs = kakao_models.AlignModel.from_pretrained(folder).double()
    options = dict(return_loss=True, output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        assert_same(ours(**batch, **options), theirs(**as_torch(batch), **options))
        plain, by_tuple = ours(**batch), ours(**batch, return_dict=False)
        assert_same(by_tuple, theirs(**as_torch(batch), return_dict=False))
        assert plain.loss is None and plain[0] is plain.logits_per_image
        text = {key: batch[key] for key in TEXT}
        assert_same(ours.get_text_features(**text), theirs.get_text_features(**as_torch(text)))
        words = theirs.text_model.embeddings.word_embeddings(torch.from_numpy(batch["input_ids"]))
        by_words = ours.get_text_features(inputs_embeds=words.numpy(), position_ids=np.arange(9)[None])
        assert_same(by_words, theirs.get_text_features(torch.from_numpy(batch["input_ids"])))
        pixels = batch["pixel_values"][:3, :, :, :25]  # of another size than the configuration's
        assert_same(ours.get_image_features(pixels), theirs.get_image_features(torch.from_numpy(pixels)))


def test_gradients_and_statistics_are_pytorch_s(torch, small):
    folder, batch = small
    theirs = kakao_models.AlignModel.from_pretrained(folder, dtype=torch.float64).train()
    theirs(**as_torch(batch), return_loss=True).loss.backward()
    ours = TFAlignModel.from_pretrained(folder, dtype="float64")
    with tf.GradientTape() as tape:
        loss = ours(**batch, return_loss=True, training=True).loss
    variables, state = ours._variables(), dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    gradients = tape.gradient(loss, [variables[slot.local_key].value for slot in ours._slots()])
    compared = set()
    for slot, gradient in zip(ours._slots(), gradients):
        if "moving" in slot.local_key:
            got, wanted = variables[slot.local_key].numpy(), state[slot.key].numpy()
        elif gradient is None:
            assert slot.key.startswith("text_model.pooler.") and state[slot.key].grad is None
            continue
        else:
            got, wanted = tf.convert_to_tensor(gradient).numpy(), state[slot.key].grad.numpy()
        assert error(permute(got, slot.local_axes, slot.axes), wanted) <= 1e-8, slot.key
        compared.add(slot.key)
    assert len(compared) == len(ours._slots()) - 2


def test_two_lamb_steps_are_pytorch_s(torch, small):
    from kakao_models.train.optim import build_optimizer, parameter_groups

    folder, batch = small
    theirs = kakao_models.AlignModel.from_pretrained(folder, dtype=torch.float64).train()
    step = build_optimizer("lamb", parameter_groups(theirs, lr=1e-2, weight_decay=1e-5))
    ours = TFAlignModel.from_pretrained(folder, dtype="float64")
    optimizer = Lamb(1e-2).spare_batch_norms(ours)
    start = {slot.key: ours._variables()[slot.local_key].numpy() for slot in ours._slots()}
    for _ in range(2):
        step.zero_grad()
        theirs(**as_torch(batch), return_loss=True).loss.backward()
        step.step()
        with tf.GradientTape() as tape:
            loss = ours(**batch, return_loss=True, training=True).loss
        gradients = tape.gradient(loss, [variable.value for variable in ours.trainable_variables])
        optimizer.apply_gradients(zip(gradients, ours.trainable_variables))
    state = theirs.state_dict()
    for slot in ours._slots():
        got, expected = ours._variables()[slot.local_key].numpy(), state[slot.key].numpy()
        if slot.key.endswith("key.bias"):  # its gradient is zero but for rounding, of which a step is made too
            continue
        assert error(permute(got, slot.local_axes, slot.axes), expected) <= 1e-7, slot.key
        assert slot.key.startswith("text_model.pooler.") or not np.array_equal(got, start[slot.key]), slot.key


@pytest.mark.slow  # 97 seconds of CPU, most of them in the graph of 16 blocks; two steps on a small model are above
def test_two_lamb_steps_are_the_originals(golden_folder, monkeypatch, little_memory):
    recorded = goldens.load_arrays("align_a_lamb")
    run_facts = json.loads((goldens.FOLDER / "golden_align_a_lamb.json").read_text())
    folder, golden = golden_folder("align_a"), goldens.load("align_a")
    images = goldens.input_formula.images(1, run_facts["batch"], 289)
    inputs = inputs_of(SimpleNamespace(arrays=golden.arrays, images=images))
    # Backward computes blocks again, in a graph: 1 GB of memory instead of 5. Keras does not tell them then that they train
    norm = modeling_tf.TFAlignBatchNorm.call
    train = lambda self, x, training=None: norm(self, x, training=True)  # noqa: E731
    monkeypatch.setattr(modeling_tf.TFAlignBatchNorm, "call", train)
    model = TFAlignModel.from_pretrained(folder, config=without_dropout(folder))
    for block in model.vision_model.encoder.blocks:
        block.call = tf.recompute_grad(block.call)
    optimizer = Lamb(1e-3).spare_batch_norms(model)
    variables = model.trainable_variables
    homes = {slot.key: slot.local_key for slot in model._slots()}
    named = {slot.local_key: (model._variables()[homes[slot.key]], slot) for slot in align_tpu_slots(model.config)}
    keys = [str(key) for key in recorded["trainable_keys"]]
    moving = ~recorded["zero_gradient"] & ~np.array(["/pooler/" in key for key in keys])
    chosen = [named[key][0] for key, keep in zip(keys, moving) if keep]
    places = {id(variable): index for index, variable in enumerate(variables)}

    @tf.function
    def loss_and_gradients(inputs):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y_pred=model(inputs, training=True))
        return loss, tape.gradient(loss, [variable.value for variable in variables])

    for step, limit in ((1, "lamb loss, first"), (2, "lamb loss, later")):
        loss, gradients = loss_and_gradients(inputs)
        assert error(loss, recorded["loss"][step - 1]) <= TOLERANCE[limit]
        if step == 1:
            norms = [np.linalg.norm(tf.convert_to_tensor(gradients[places[id(v)]]).numpy().ravel()) for v in chosen]
            np.testing.assert_allclose(norms, recorded["grad_norm"][moving], rtol=TOLERANCE["step norms"])
        # a gradient of zero up to rounding becomes a step of full size, in a direction of noise
        idle = {
            id(named[key][0]) for key, zero in zip(keys, recorded["zero_gradient"]) if zero and "/pooler/" not in key
        }
        gradients = [keras.ops.zeros_like(v) if id(v) in idle else g for g, v in zip(gradients, variables)]
        before = [variable.numpy() for variable in chosen]
        optimizer.apply_gradients(zip(gradients, variables))
        norms = [np.linalg.norm((v.numpy() - old).astype(np.float64).ravel()) for v, old in zip(chosen, before)]
        np.testing.assert_allclose(norms, recorded[f"update{step}_norm"][moving], rtol=TOLERANCE["lamb step norms"])


def test_lamb_adds_up_a_table_s_repeated_rows():
    start, gradient = np.array([[1.0], [-2.0], [3.0], [0.5]]), np.array([[3.0], [0.0], [4.0], [0.0]])
    slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([0, 0, 2]), tf.constant([4, 1]))
    variable, optimizer = keras.Variable(start), Lamb(1e-2)
    value, first, second = start, 0.0, 0.0
    for step in (1, 2):
        optimizer.apply_gradients([(slices, variable)])
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-6) + 1e-5 * value
        value = value - 1e-2 * np.linalg.norm(value) / np.linalg.norm(update) * update
    assert error(variable.numpy(), value) <= 1e-6


def test_learning_rate_is_the_original_s():
    rate = WarmupLinearDecay(2.0, 10, 30)
    assert [float(rate(step)) for step in (0, 5, 10, 20, 30, 40)] == pytest.approx([0, 1, 2, 1, 0, 0])
    assert float(WarmupLinearDecay.from_config(rate.get_config())(5)) == pytest.approx(1)
    rate = WarmupLinearDecay(2.0, 0, 4)  # as for retrieval
    assert [float(rate(step)) for step in (0, 1, 4)] == pytest.approx([2, 1.5, 0])


def test_fit_trains(small):
    folder, batch = small
    model = TFAlignModel.from_pretrained(folder)
    model.compile(optimizer=Lamb(2e-2).spare_batch_norms(model), jit_compile=False)  # by XLA: test_fit_tf.py
    data = tf.data.Dataset.from_tensor_slices(float32(batch)).batch(16)
    losses = model.fit(data, epochs=4, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert model.evaluate(data, verbose=0) > 0
    again = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
    assert type(again) is Lamb and again.decay == 1e-5


def test_two_replicas_train_as_one_device(small):
    """The loss is that of the global batch, and so are all gradients and running statistics."""
    folder, batch = small
    one = TFAlignModel.from_pretrained(folder, dtype="float64")
    one.compile(optimizer=keras.optimizers.SGD(1e-3), run_eagerly=True)
    # each replica gets one of the two interleaved ghost batches
    order = np.concatenate([np.arange(0, 32, 2), np.arange(1, 32, 2)])
    shuffled = {name: value[order] for name, value in batch.items()}
    with replicas.mirrored().scope():
        two = TFAlignModel.from_pretrained(folder, dtype="float64")
        two.compile(optimizer=keras.optimizers.SGD(1e-3))
    losses = [
        model.fit(data, batch_size=32, shuffle=False, verbose=0).history["loss"][0]
        for model, data in ((one, batch), (two, shuffled))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # Keras keeps its mean in float32
    before = TFAlignModel.from_pretrained(folder, dtype="float64")._variables()
    moved = 0
    for name, value in one._variables().items():
        assert error(two._variables()[name].numpy(), value.numpy()) <= 1e-10, name
        moved += error(value.numpy(), before[name].numpy()) > 1e-7
    assert moved > 0.7 * len(before)  # key biases have a gradient of zero, the pooler none


def test_mixed_precision(small):
    folder, batch = small
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = TFAlignModel.from_pretrained(folder)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in model.variables if variable.path != "seed"} >= {"float32"}
    with tf.GradientTape() as tape:
        output = model(float32(batch), training=True)
        loss = model.compute_loss(y_pred=output)
    assert output.vision_model_output.last_hidden_state.dtype == tf.bfloat16
    assert output.image_embeds.dtype == loss.dtype == tf.float32
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)
    wanted = TFAlignModel.from_pretrained(folder)(float32(batch), training=True)
    assert (output.image_embeds.numpy() * wanted.image_embeds.numpy()).sum(1).min() > 0.99


def test_names_of_transformers_4_say_what_replaces_them(small):
    model = TFAlignModel.from_pretrained(small[0])
    with pytest.raises(AttributeError, match="TFAlignModel has no prepare_tf_dataset.*to_tf_dataset"):
        model.prepare_tf_dataset(None)
    with pytest.raises(AttributeError, match="get_input_embeddings. Take the layer"):
        model.get_input_embeddings()
    for name in ("serving", "eager_serving", "serving_output", "input_signature"):
        with pytest.raises(AttributeError, match=f"TFAlignModel has no {name}. Write model.export"):
            getattr(model, name)
    with pytest.raises(AttributeError, match="hf_compute_loss. compile.. without a loss"):
        model.compile(loss=model.hf_compute_loss)
    with pytest.raises(TypeError, match="TFAlignModel has no argument 'head_mask'. Leave it out"):
        model(pixel_values=np.zeros((1, 3, 32, 32), np.float32), head_mask=None)
    with pytest.raises(TypeError, match="no argument 'saved_model'. Write model.export"):
        model.save_pretrained("nowhere", saved_model=True)
    with pytest.raises(ValueError, match="tf_model.h5: expected a file .weights.h5.*kakao-models convert"):
        model.load_weights("nowhere/tf_model.h5")
    assert type(model).from_config(model.config).config.to_dict() == model.config.to_dict()
    variables = {id(variable): variable for variable in model.weights if "moving" not in variable.path}
    assert model.num_parameters() == sum(int(np.prod(variable.shape)) for variable in variables.values())


def test_dropout_is_where_the_original_has_it(monkeypatch):
    """Maps of the blocks with a skip, then BERT's embeddings, attention weights and both outputs."""
    seen = []

    def drop(layer, x, training=False):
        seen.append((tuple(x.shape), training))
        return x

    monkeypatch.setattr(keras.layers.Dropout, "call", drop)
    model = TFAlignModel(small_config())
    model(np.zeros((2, 7), np.int32), np.zeros((2, 3, 32, 32), np.float32), training=True)
    blocks = [shape for shape, _ in seen if len(shape) == 4 and shape[1] != 2]
    assert len(blocks) == sum(spec.skip for spec in model.config.vision_config.blocks()) > 0
    assert seen == [(shape, True) for shape in (*blocks, (2, 7, 32), (2, 2, 7, 7), (2, 7, 32), (2, 7, 32))]


def test_drop_connect_drops_whole_samples():
    config = small_config(drop_connect_rate=0.75).vision_config
    block = modeling_tf.TFAlignVisionBlock(config, config.blocks()[2])
    rate = block.drop_rate
    assert block.skip and rate == pytest.approx(0.75 * 2 / 3)
    kept = block.drop_connect(np.ones((4000, 2, 2, 3), np.float32), training=True).numpy().reshape(4000, -1)
    assert set(np.unique(kept).tolist()) == {0.0, 1 / (1 - rate)} and (kept == kept[:, :1]).all()
    assert (kept[:, 0] > 0).mean() == pytest.approx(1 - rate, abs=0.03)


# --- what runs it


@pytest.mark.parametrize("kernel, stride, size", [(3, 1, 9), (5, 2, 12), (3, 2, 11), (5, 1, 7)])
def test_formulations_of_depthwise_convolution_agree(kernel, stride, size, monkeypatch):
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(2, size, size + 1, 6)), random.normal(size=(kernel, kernel, 6, 1))
    results = []
    for shifted in (False, True):
        monkeypatch.setattr(depthwise_tf, "_compiled_for_cpu", lambda shifted=shifted: shifted)
        results.append(depthwise_tf.depthwise_convolution(tf.constant(x), tf.constant(weights), stride).numpy())
        padded = depthwise_tf.depthwise_convolution(tf.constant(x), tf.constant(weights), stride, kernel // 2)
        around = tf.constant(np.pad(x, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0))))
        assert error(padded, depthwise_tf.depthwise_convolution(around, tf.constant(weights), stride).numpy()) <= 1e-12
    rows = range(0, size - kernel + 1, stride)
    wanted = [(x[:, i : i + kernel, :kernel] * weights[:, :, :, 0]).sum((1, 2)) for i in rows]
    for got in results:
        assert error(got, results[0]) <= 1e-12 and error(got[:, :, 0], np.stack(wanted, 1)) <= 1e-12


def test_xla_gets_the_formulation_that_is_fast_there(small):
    folder, batch = small
    model, seen = TFAlignVisionModel.from_pretrained(folder), []
    pixels = float32(batch)["pixel_values"][:2]

    def tower(pixels):
        seen.append(depthwise_tf._compiled_for_cpu())
        return model(pixels).pooler_output

    wanted = tower(pixels)
    got = [tf.function(tower, jit_compile=jit)(tf.constant(pixels)) for jit in (False, True)]
    assert seen == [False, False, not tf.config.list_physical_devices("GPU")]
    for values in got:
        assert error(values, wanted.numpy()) <= 1e-5


def test_saved_model_and_litert(small, tmp_path):
    folder, batch = small
    model = TFAlignModel.from_pretrained(folder)
    pixels = float32(batch)["pixel_values"][:3]
    text = {name: batch[name][14:19].astype(np.int32) for name in TEXT[:2]}
    wanted = model(pixel_values=pixels, **text)
    features = model.get_image_features(pixels).pooler_output, model.get_text_features(**text).pooler_output
    model.export(tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    run = loaded.signatures
    assert {"image_features", "text_features", "logits"} <= set(run)
    tensors = {name: tf.constant(value) for name, value in text.items()}
    assert error(run["image_features"](pixel_values=tf.constant(pixels))["image_features"], features[0]) <= 1e-5
    assert error(run["text_features"](**tensors)["text_features"], features[1]) <= 1e-5
    logits = run["logits"](pixel_values=tf.constant(pixels), **tensors)["logits_per_image"]
    assert logits.shape == (3, 5) and error(logits, wanted.logits_per_image) <= TOLERANCE["logits_per_image"]
    model.export(tmp_path / "model.tflite", format="litert", signatures=["image_features", "text_features"])
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    got = interpreter.get_signature_runner("image_features")(pixel_values=pixels)["image_features"]
    assert error(got, features[0]) <= 1e-4
    got = interpreter.get_signature_runner("text_features")(**text)["text_features"]
    assert error(got, features[1]) <= 1e-4
    with pytest.raises(ValueError, match="no signature 'x'; it has image_features, text_features, logits"):
        model.export(tmp_path / "other", signatures=["x"])


def test_clear_errors_for_wrong_inputs(small):
    model = TFAlignModel.from_pretrained(small[0])
    with pytest.raises(ValueError, match="100 tokens, but there are 80 positions"):
        model.get_text_features(np.ones((1, 100), np.int32))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model.get_text_features()
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\), got \(1, 64, 64, 3\)"):
        model.get_image_features(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"Channels come first: transpose\(0, 3, 1, 2\)"):
        model.get_image_features(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"floating-point numbers in \[-1, 1\].* got uint8"):
        model.get_image_features(np.zeros((1, 3, 64, 64), np.uint8))
    with pytest.raises(TypeError, match="after a mapping of arguments, pass further arguments by name"):
        model({"input_ids": np.ones((1, 4), np.int32)}, np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(ValueError, match="got 1 images and 2 texts"):
        pixels, ids = np.zeros((1, 3, 32, 32), np.float32), np.ones((2, 4), np.int32)
        model(pixel_values=pixels, input_ids=ids, return_loss=True)


def test_towers_load_alone(small):
    folder, batch = small
    batch = float32(batch)
    whole = TFAlignModel.from_pretrained(folder)(batch, return_loss=True)
    assert whole.loss is not None  # arguments beside a dict count
    text = TFAlignTextModel.from_pretrained(folder)({name: batch[name] for name in TEXT})
    assert_equal = np.testing.assert_array_equal
    assert_equal(text.last_hidden_state, whole.text_model_output.last_hidden_state)
    vision = TFAlignVisionModel.from_pretrained(folder)(batch["pixel_values"])
    assert_equal(vision.pooler_output, whole.vision_model_output.pooler_output)
    assert TFAlignTextModel.from_pretrained(folder, add_pooling_layer=False).pooler is None
