"""ViT in Keras against the recorded outputs of the original program, and against our PyTorch class in float64."""

import goldens
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from goldens import error
from tolerances import TOLERANCE

import kakao_models
from kakao_models import TFViTForImageClassification, TFViTModel
from kakao_models.checkpoint.weightmap import permute
from kakao_models.vit.modeling_tf import resize_position_embeddings

NANO = ["vit_nano_ckpt", "vit_nano_model_weights", "vit_nano_backbone_weights"]
FULL = [pytest.param(name, marks=pytest.mark.slow) for name in ("vit_c", "vit_d", "vit_e")]
POSITIONS = ["from4_to6", "from14_to24", "from14_to32", "from24_to14", "from14_to14"]


def pixels_of(golden, dtype: str = "float32") -> np.ndarray:
    images = (golden.images.astype(np.float32) - 127.5) / 127.5
    return images.transpose(0, 3, 1, 2).astype(dtype)


def load(golden_folder, name: str, **kwargs):
    has_head = not name.endswith("backbone_weights")
    return (TFViTForImageClassification if has_head else TFViTModel).from_pretrained(golden_folder(name), **kwargs)


def check(model, pixels: np.ndarray, recorded: dict, suffix: str = "") -> None:
    """`logits` are recorded for every `logits_step`-th class."""
    output = model.backbone()(pixels)
    pooled = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
    got = {"pre_logits": pooled}
    if "logits" in recorded:
        got["logits"] = model(pixels).logits[:, :: int(recorded.get("logits_step", 1))]
    for name, value in got.items():
        limit = TOLERANCE["vit float64" if suffix else f"vit {name}"]
        assert error(value, recorded[name + suffix]) <= limit, name


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *NANO, *FULL])
def test_golden_float32(name, golden_folder):
    golden = goldens.load(name)
    check(load(golden_folder, name), pixels_of(golden), golden.arrays)


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *FULL])
def test_golden_float64(name, golden_folder):
    golden = goldens.load(name)
    check(load(golden_folder, name, dtype="float64"), pixels_of(golden, "float64"), golden.arrays, "_f64")


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *NANO])
def test_golden_layer_by_layer(name, golden_folder):
    golden = goldens.load(name)
    backbone, pixels = load(golden_folder, name).backbone(), pixels_of(golden)
    first = backbone.layer[0]
    output = backbone(pixels, output_hidden_states=True)
    x = output.hidden_states[0]
    seen = {
        "embedding": backbone.embeddings.patch_embeddings.projection(pixels.transpose(0, 2, 3, 1)),
        "embeddings": x,
        "encoderblock_0/layernorm1": first.layernorm_before(x),
        "encoderblock_0/att": first.attention(first.layernorm_before(x))[0],
        **{f"encoderblock_{i}": state for i, state in enumerate(output.hidden_states[1:])},
        "norm": output.last_hidden_state,
        "extract_token": output.last_hidden_state[:, 0],
    }
    seen["encoderblock_0/layernorm2"] = first.layernorm_after(x + seen["encoderblock_0/att"])
    seen["encoderblock_0/mlp"] = first.mlp(seen["encoderblock_0/layernorm2"])
    assert set(seen) == set(golden.probes) - {"pre_logits", "logits"}
    for (layer, recorded), stats in zip(golden.probes.items(), golden.arrays["inter/stats"]):
        if layer in seen:
            got = np.asarray(seen[layer])
            assert error(goldens.probe(got), recorded) <= TOLERANCE["vit inter"], layer
            assert error([got.mean(), got.std(), got.min(), got.max()], stats) <= TOLERANCE["vit inter"], layer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.vit_folder(tmp_path_factory.mktemp("vit"), representation_size=24)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).uniform(-1, 1, (4, 3, 32, 32))


def test_outputs_and_gradients_are_pytorch_s(torch, folder, pixels):
    ours = TFViTForImageClassification.from_pretrained(folder, dtype="float64")
    theirs = kakao_models.ViTForImageClassification.from_pretrained(folder, dtype=torch.float64)
    labels = np.arange(4)
    options = dict(output_hidden_states=True, output_attentions=True)
    with tf.GradientTape() as tape:
        got = ours(pixels, labels=labels, **options)
    wanted = theirs(torch.from_numpy(pixels), labels=torch.from_numpy(labels), **options)
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        pairs = zip(got[name], value, strict=True) if isinstance(value, tuple) else [(got[name], value)]
        for a, b in pairs:
            assert error(a, b.detach().numpy()) <= 1e-12, name
    wanted.loss.backward()
    parameters = {name.replace("vit.layers", "vit.layer"): p for name, p in theirs.named_parameters()}
    variables = ours._variables()
    leaves = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    gradients = tape.gradient(got.loss, [variables[slot.local_key].value for slot in ours._slots()])
    for slot, gradient in zip(ours._slots(), gradients, strict=True):
        module, _, leaf = slot.local_key.rpartition(".")
        parameter = parameters[f"{module}.{leaves.get(leaf, leaf)}"]
        difference = error(permute(gradient.numpy(), slot.local_axes, slot.axes), parameter.grad.numpy())
        assert difference <= 1e-8, slot.key
    mask = np.ones((4, 17), np.int64)
    mask[:, 9:] = 0
    hidden = ours(pixels, attention_mask=mask, output_attentions=True)
    assert all(not weights.numpy()[..., 9:].any() for weights in hidden.attentions)
    masked = theirs(torch.from_numpy(pixels), attention_mask=torch.from_numpy(mask)).logits.detach().numpy()
    assert error(hidden.logits, masked) <= 1e-12
    tall = np.random.default_rng(1).uniform(-1, 1, (2, 3, 48, 40))
    resized = theirs(torch.from_numpy(tall), interpolate_pos_encoding=True).logits.detach().numpy()
    assert error(ours(tall, interpolate_pos_encoding=True).logits, resized) <= 1e-12
    with pytest.raises(ValueError, match=r"got images of 48\*40, expected 32\*32"):
        ours(tall)
    for wrong in (labels[:1], labels[:3]):  # one would stand for every image
        with pytest.raises(ValueError, match=f"got labels for {len(wrong)} images and logits for 4 images"):
            ours(pixels, labels=wrong)
    with pytest.raises(ValueError, match="pixel_values must be .*, got a list"):
        ours([pixels])


@pytest.mark.parametrize("entry", POSITIONS)
def test_position_embeddings_golden(entry):
    old, new = (int(side) for side in entry.removeprefix("from").split("_to"))
    after = goldens.load_arrays("vit_posemb")[entry]
    before = goldens.weight_formula.fill(f"interpolate/{old}/pos_emb", (1, old * old + 1, after.shape[2]), 1)
    got = resize_position_embeddings(tf.constant(before), (old, old), (new, new))
    assert error(got, after) <= TOLERANCE["vit positions"]


def test_a_resized_model_saves_and_loads(torch, folder, tmp_path):
    large = TFViTForImageClassification.from_pretrained(folder, image_size=[48, 64])
    assert large.vit.embeddings.position_embeddings.shape == (1, 49, 32) and large.config.image_size == [48, 64]
    large.save_pretrained(tmp_path)
    again, there = (
        TFViTForImageClassification.from_pretrained(tmp_path),
        kakao_models.ViTForImageClassification.from_pretrained(tmp_path),
    )
    pixels = np.random.default_rng(0).normal(size=(1, 3, 48, 64)).astype(np.float32)
    np.testing.assert_array_equal(again(pixels).logits, large(pixels).logits)
    small = TFViTForImageClassification.from_pretrained(folder)
    assert error(small(pixels, interpolate_pos_encoding=True).logits, large(pixels).logits.numpy()) <= 1e-6
    assert (
        error(again(pixels).logits, there(torch.from_numpy(pixels)).logits.detach().numpy())
        <= TOLERANCE["transformers"]
    )
    again.set_image_size(32)
    assert again.vit.embeddings.position_embeddings.shape == (1, 17, 32)
    assert len(again._variables()) == len(small._variables())


@pytest.mark.parametrize("name", ["vit_a", "vit_b"])
def test_losses_golden(name, golden_folder):
    golden = goldens.load(name)
    recorded, model = golden.arrays, load(golden_folder, name)
    labels = recorded["labels"]
    several = np.zeros((len(labels), model.config.num_labels), np.float32)
    np.put_along_axis(several, labels, 1.0, axis=1)
    output = model(pixels_of(golden), labels=tf.constant(labels[:, 0]))
    losses = {"loss_ce": output.loss}
    model.config.problem_type = "multi_label_classification"
    losses["loss_bce"] = model._loss(output.logits, tf.constant(several))
    losses["loss_bce_smooth"] = model._loss(output.logits, tf.constant(several * (1 - 1e-4) + 0.5e-4))
    for key, value in losses.items():
        assert float(value) == pytest.approx(float(recorded[key]), rel=TOLERANCE["vit loss, relative"]), key


def test_dropout_is_where_the_original_has_it(folder, monkeypatch):
    """After the positions, in the attention weights, after the attention and after the inner layer."""
    seen = []

    def drop(layer, x, training=False):
        seen.append((tuple(x.shape), training))
        return x

    monkeypatch.setattr(keras.layers.Dropout, "call", drop)
    model = TFViTForImageClassification.from_pretrained(folder)
    model(np.zeros((3, 3, 32, 32), np.float32), training=True)
    layer = [(3, 2, 17, 17), (3, 17, 32), (3, 17, 32)]
    assert seen == [(shape, True) for shape in ((3, 17, 32), *layer, *layer)]


def test_fit_trains_with_the_model_s_loss_or_another(folder):
    random = np.random.default_rng(0)
    pixels, labels = random.uniform(-1, 1, (16, 3, 32, 32)).astype(np.float32), random.integers(0, 7, 16)
    histories = []
    for loss in (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
        keras.utils.set_random_seed(0)
        model = TFViTForImageClassification.from_pretrained(folder)
        metrics = ["accuracy"] if loss else None
        model.compile(keras.optimizers.Adam(3e-3), loss=loss, metrics=metrics, run_eagerly=True)
        histories.append(model.fit(pixels, labels, batch_size=8, epochs=4, shuffle=False, verbose=0).history)
    assert histories[0]["loss"][-1] < 0.7 * histories[0]["loss"][0]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-4)
    assert histories[1]["accuracy"][-1] > histories[1]["accuracy"][0]
    with pytest.raises(ValueError, match="need labels"):
        model.fit(pixels, verbose=0)
    model.compile(keras.optimizers.Adam(3e-3), run_eagerly=True)  # again the model's own
    assert model.loss is None and model.fit(pixels, labels, verbose=0)
    assert model.predict(pixels, verbose=0)["logits"].shape == (16, 7)


def test_keras_ways_of_use(folder, pixels, tmp_path):
    """A functional model around it, a .keras file, XLA, and a SavedModel."""
    pixels = pixels.astype(np.float32)
    model = TFViTForImageClassification.from_pretrained(folder)
    wanted = model(pixels).logits.numpy()
    inputs = keras.Input((3, 32, 32))
    functional = keras.Model(inputs, model(inputs).logits)
    compiled = tf.function(lambda x: model(x), jit_compile=True)(tf.constant(pixels))
    model.save(tmp_path / "model.keras")
    custom = {"TFViTForImageClassification": TFViTForImageClassification}
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects=custom)
    model.export(tmp_path / "saved")
    signatures = tf.saved_model.load(str(tmp_path / "saved")).signatures
    saved = signatures["logits"](pixel_values=tf.constant(pixels))["logits"]
    for got in (functional(pixels), compiled.logits, again(pixels).logits, saved):
        assert error(got, wanted) <= 1e-5
    features = signatures["image_features"](pixel_values=tf.constant(pixels))["image_features"]
    assert error(features, model.vit(pixels).pooler_output.numpy()) <= 1e-5
