"""One checkpoint, three frameworks: what one saves another loads and saves again bit by bit, and all take the same step."""

import json

import flax_arrays
import jax
import numpy as np
import pytest
import safetensors.torch
import tensorflow as tf
import tiny
import torch
from flax import nnx
from tolerances import TOLERANCE

from kakao_models import (
    AlignConfig,
    AlignForImageClassification,
    AlignModel,
    FlaxAlignForImageClassification,
    FlaxAlignModel,
    FlaxViTForImageClassification,
    TFAlignForImageClassification,
    TFAlignModel,
    TFViTForImageClassification,
    ViTForImageClassification,
)
from kakao_models.checkpoint.weightmap import permute
from kakao_models.train.lamb_flax import lamb
from kakao_models.train.lamb_tf import Lamb
from kakao_models.train.optim import LAMB, parameter_groups

CLASSES = {
    "align": {"torch": AlignModel, "keras": TFAlignModel, "flax": FlaxAlignModel},
    "classifier": {
        "torch": AlignForImageClassification,
        "keras": TFAlignForImageClassification,
        "flax": FlaxAlignForImageClassification,
    },
    "vit": {
        "torch": ViTForImageClassification,
        "keras": TFViTForImageClassification,
        "flax": FlaxViTForImageClassification,
    },
}
FRAMEWORKS = ("torch", "keras", "flax")
RATE = 2.0**-9  # the same number in float32, which Keras keeps rates in
# A key bias has a gradient of zero but for rounding, which layer adaptation would make a whole step of: decay outweighs it
DECAY = 1e-2


def align_config() -> AlignConfig:
    """As `tiny.short_align_config`, with two ghost batches in sixteen samples, no dropout."""
    config = tiny.short_align_config(temperature_init_value=0.25)
    config.vision_config.drop_connect_rate, config.vision_config.virtual_batch_size = 0.0, 8
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    return config


def bits(folder) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor, batch norm's counters among them: transformers expects these too."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    return {
        key: (value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind, framework → a random checkpoint and what that framework saved of it; the ViT in bfloat16."""
    root = tmp_path_factory.mktemp("three")
    align = tiny.fill(AlignModel(align_config()))
    hard = torch.tensor([-0.0, 1e-42, -1e-45, torch.inf, -torch.inf, torch.nan, 3.4028235e38, 1e-38])
    with torch.no_grad():  # numbers that arithmetic, but no copy, changes; 0xFFC12345 is a NaN with a message
        align.text_projection.weight[0, :8] = hard
        align.vision_model.embeddings.batchnorm.running_mean.view(torch.int32)[0] = 0xFFC12345 - 2**32
    align.save_pretrained(root / "align")
    tiny.align_classifier_folder(root / "classifier", **tiny.FEW_BLOCKS)
    tiny.fill(ViTForImageClassification(tiny.vit_config())).to(torch.bfloat16).save_pretrained(root / "vit")
    for kind, classes in CLASSES.items():
        for framework in FRAMEWORKS:
            model = classes[framework].from_pretrained(root / kind, dtype="bfloat16" if kind == "vit" else None)
            model.save_pretrained(root / f"{kind}-{framework}")
    return root


@pytest.mark.parametrize("second", FRAMEWORKS)
@pytest.mark.parametrize("first", FRAMEWORKS)
@pytest.mark.parametrize("kind", CLASSES)
def test_saved_in_one_and_loaded_in_another_is_bit_exact(kind, first, second, folders, tmp_path):
    source = folders / f"{kind}-{first}"
    assert bits(source) == bits(folders / kind)
    options = {"dtype": "auto"} if second == "torch" else {}
    CLASSES[kind][second].from_pretrained(source, **options).save_pretrained(tmp_path)
    assert bits(tmp_path) == bits(folders / kind)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [CLASSES[kind]["torch"].__name__]
    assert config["dtype"] == ("bfloat16" if kind == "vit" else "float32")


def test_a_bias_of_the_logits_is_in_all_three_and_in_their_logits(tmp_path):
    config = tiny.one_block_config()
    config.logit_bias_init_value = -2.0
    tiny.save_model("AlignModel", config, tmp_path / "torch")
    pixels, words = np.zeros((1, 3, 32, 32), np.float32), np.array([[2, 3]])
    found = {}
    for framework, convert in (("torch", torch.from_numpy), ("keras", tf.constant), ("flax", np.asarray)):
        model = CLASSES["align"][framework].from_pretrained(tmp_path / "torch")
        with torch.no_grad():
            found[framework] = float(model(convert(words), convert(pixels)).logits_per_image[0, 0])
        model.save_pretrained(tmp_path / framework)
        assert bits(tmp_path / framework) == bits(tmp_path / "torch") and "logit_bias" in bits(tmp_path / framework)
    plain = AlignConfig.from_pretrained(tmp_path / "torch", logit_bias_init_value=None)
    with pytest.raises(ValueError, match="unknown logit_bias"):
        AlignModel.from_pretrained(tmp_path / "torch", config=plain)
    stored = safetensors.torch.load_file(tmp_path / "torch" / "model.safetensors")
    bias = stored.pop("logit_bias").item()
    plain.save_pretrained(tmp_path / "plain")
    safetensors.torch.save_file(stored, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        without = AlignModel.from_pretrained(tmp_path / "plain")(torch.from_numpy(words), torch.from_numpy(pixels))
    for value in found.values():
        assert value == pytest.approx(without.logits_per_image.item() + bias, abs=1e-4)
    start = {"logit_bias_init_value": -3.0, "ignore_mismatched_sizes": True}
    assert AlignModel.from_pretrained(tmp_path / "plain", **start).logit_bias.item() == -3


# --- a training step


def torch_step(folder, batch: dict) -> dict[str, np.ndarray]:
    model = AlignModel.from_pretrained(folder, dtype=torch.float64).train()
    optimizer = LAMB(parameter_groups(model, RATE, DECAY), RATE)
    model(**{name: torch.from_numpy(value) for name, value in batch.items()}, return_loss=True).loss.backward()
    optimizer.step()
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def keras_step(folder, batch: dict) -> dict[str, np.ndarray]:
    model = TFAlignModel.from_pretrained(folder, dtype="float64")
    model.compile(optimizer=Lamb(RATE, weight_decay=DECAY).spare_batch_norms(model))
    model.fit(tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0)
    variables = model._variables()
    return {slot.key: permute(variables[slot.local_key].numpy(), slot.local_axes, slot.axes) for slot in model._slots()}


def flax_step(folder, batch: dict) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        model = FlaxAlignModel.from_pretrained(folder, dtype="float64")
        model.train()
        optimizer = nnx.Optimizer(model, lamb(model, RATE, weight_decay=DECAY), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, batch):
            optimizer.update(model, nnx.grad(lambda model: model(**batch, return_loss=True).loss)(model))

        step(model, optimizer, batch)
        return flax_arrays.canonical(model)


@pytest.mark.slow  # compiles the step in two frameworks
def test_a_step_of_lamb_gives_the_same_parameters(tmp_path):
    tiny.fill(AlignModel(align_config())).save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    batch = {
        "pixel_values": random.uniform(-1, 1, (16, 3, 32, 32)),
        "input_ids": random.integers(1, 50, (16, 7)),
        "attention_mask": (np.arange(7) < random.integers(3, 8, (16, 1))).astype(np.int64),
    }
    start = {key: value.numpy() for key, value in AlignModel.from_pretrained(tmp_path).state_dict().items()}
    wanted = torch_step(tmp_path, batch)
    for name, step in (("keras", keras_step), ("flax", flax_step)):
        got = step(tmp_path, batch)
        assert got.keys() == wanted.keys()
        for key in wanted:
            assert got[key].dtype == wanted[key].dtype == np.float64, (name, key)
            np.testing.assert_allclose(
                got[key], wanted[key], 0, TOLERANCE["lamb step float64"], err_msg=f"{name} {key}"
            )
    still = {key for key in wanted if np.array_equal(wanted[key], start[key])}
    assert still == {"text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}  # no part in the loss


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_images_or_texts_alone_give_their_embeddings(framework, align):
    model = CLASSES["align"][framework].from_pretrained(align)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    ids = np.array([[2, 50, 60, 3]])
    if framework == "torch":
        pixels, ids = torch.from_numpy(pixels), torch.from_numpy(ids)
    both = model(pixel_values=pixels, input_ids=ids)
    for given, field in ((dict(pixel_values=pixels), "image_embeds"), (dict(input_ids=ids), "text_embeds")):
        output = model(**given)
        values, expected = (getattr(part, field) for part in (output, both))
        np.testing.assert_allclose(
            *(np.asarray(getattr(x, "detach", lambda x=x: x)()) for x in (values, expected)), atol=1e-6
        )
        assert output.logits_per_image is None and output[0] is values
        with pytest.raises(
            ValueError, match="return_loss pairs image i with text i, got (2 images and 0|0 images and 1) texts"
        ):
            model(**given, return_loss=True)
    with pytest.raises(ValueError, match="takes either input_ids or inputs_embeds: got both or neither"):
        model()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_wrong_inputs_are_refused_alike(framework, align, vit):
    model, classifier = (CLASSES[kind][framework].from_pretrained(x) for kind, x in (("align", align), ("vit", vit)))
    array = torch.from_numpy if framework == "torch" else np.asarray
    ids, pixels = array(np.array([[2, 50, 60, 3]])), array(np.zeros((1, 3, 32, 32), np.float32))
    vectors = array(np.zeros((1, 4, 7), np.float32))
    for call, message in (
        (lambda: model.text_model(ids[0]), r"TextModel: input_ids must be \(batch, tokens\), got \(4,\)"),
        (lambda: model.text_model(input_ids=[[2, 3]]), "must be .*, got a list. Give the processor return_tensors="),
        (
            lambda: model.text_model(inputs_embeds=vectors),
            r"inputs_embeds must be \(batch, tokens, 32\), got \(1, 4, 7\)",
        ),
        (lambda: model.vision_model(array(np.zeros((1, 3, 32, 32), np.uint8))), r"numbers in \[-1, 1\], got uint8"),
        (lambda: classifier(array(np.zeros((1, 3, 32, 32), np.uint8))), r"numbers in \[-1, 1\], got uint8"),
        (lambda: classifier(pixels[0]), r"must be \(batch, 3, height, width\), got \(3, 32, 32\)"),
        (lambda: classifier(None), r"must be \(batch, 3, height, width\), got None"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if framework != "keras":  # whose models take a mapping
        for part in (model, classifier):
            with pytest.raises(ValueError, match=r"got a dict. Arguments go by name: model\(\*\*inputs\)"):
                part({"pixel_values": pixels})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_narrow_model_takes_what_the_processor_gives(framework, align, vit):
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    for kind, folder in (("align", align), ("vit", vit)):
        model = CLASSES[kind][framework].from_pretrained(folder, dtype="bfloat16")
        tower = model.vision_model if kind == "align" else model
        output = tower(torch.from_numpy(pixels) if framework == "torch" else pixels)
        assert "bfloat16" in str((output.pooler_output if kind == "align" else output.logits).dtype)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_unknown_activation_is_named_with_its_field(framework):
    config = tiny.vit_config(representation_size=8)
    config.pooler_act = "nope"
    build = {"rngs": nnx.Rngs(0)} if framework == "flax" else {}
    with pytest.raises(ValueError, match="pooler_act: got 'nope', expected one of .*gelu"):
        CLASSES["vit"][framework](config, **build)
    with pytest.raises(ValueError, match="hidden_act: got 'nope', expected one of .*gelu"):
        CLASSES["vit"][framework](tiny.vit_config(hidden_act="nope"), **build)
