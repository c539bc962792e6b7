"""ViT in Flax against the recorded outputs of the original program, and against our PyTorch class."""

import flax_arrays
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from goldens import error
from safetensors.numpy import load_file
from tolerances import TOLERANCE

import kakao_models
from kakao_models import FlaxViTForImageClassification, FlaxViTModel, ViTConfig
from kakao_models.train.loss_flax import classification_loss
from kakao_models.vit.modeling_flax import resize_position_embeddings

NANO = ["vit_nano_ckpt", "vit_nano_model_weights", "vit_nano_backbone_weights"]
FULL = [pytest.param(name, marks=pytest.mark.slow) for name in ("vit_c", "vit_d", "vit_e")]


def pixels_of(golden, dtype=np.float32) -> np.ndarray:
    return ((golden.images.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2).astype(dtype)


def load(golden_folder, name: str, **kwargs):
    has_head = not name.endswith("backbone_weights")
    return (FlaxViTForImageClassification if has_head else FlaxViTModel).from_pretrained(golden_folder(name), **kwargs)


@flax_arrays.jitted
def run(model, pixel_values) -> dict:
    """Everything the fixtures recorded, by its name in the original."""
    backbone = getattr(model, "vit", model)
    output = backbone(pixel_values, output_hidden_states=True)
    first, states = backbone.layer[0], output.hidden_states
    seen = {"embedding": backbone.embeddings.patch_embeddings.projection(pixel_values.transpose(0, 2, 3, 1))}
    seen["embeddings"] = states[0]
    x = seen["encoderblock_0/layernorm1"] = first.layernorm_before(states[0])
    seen["encoderblock_0/att"] = first.attention(x, None)[0]
    x = seen["encoderblock_0/layernorm2"] = first.layernorm_after(states[0] + seen["encoderblock_0/att"])
    seen["encoderblock_0/mlp"] = first.mlp(x)
    seen |= {f"encoderblock_{i}": state for i, state in enumerate(states[1:])}
    seen["norm"] = output.last_hidden_state
    seen["extract_token"] = output.last_hidden_state[:, 0]
    seen["pre_logits"] = seen["extract_token"] if output.pooler_output is None else output.pooler_output
    if model is not backbone:
        seen["logits"] = model(pixel_values).logits
    return seen


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *NANO, *FULL])
def test_golden_float32(name, golden_folder):
    golden = goldens.load(name)
    got = run(load(golden_folder, name), pixel_values=pixels_of(golden))
    assert set(got) == set(golden.probes) | {"pre_logits"} | ({"logits"} & set(golden.arrays))
    step = int(golden.arrays.get("logits_step", 1))
    assert error(got["pre_logits"], golden.arrays["pre_logits"]) <= TOLERANCE["vit pre_logits"]
    if "logits" in got:
        assert error(got["logits"][:, ::step], golden.arrays["logits"]) <= TOLERANCE["vit logits"]
    for (layer, recorded), stats in zip(golden.probes.items(), golden.arrays["inter/stats"]):
        value = got[layer]
        assert error(goldens.probe(value), recorded) <= TOLERANCE["vit inter"], layer
        assert error([value.mean(), value.std(), value.min(), value.max()], stats) <= TOLERANCE["vit inter"], layer


@pytest.mark.parametrize("name", ["vit_a", "vit_b", *FULL])
def test_golden_float64(name, golden_folder):
    golden = goldens.load(name)
    with jax.enable_x64(True):
        got = run(load(golden_folder, name, dtype="float64"), pixel_values=pixels_of(golden, np.float64))
    step = int(golden.arrays.get("logits_step", 1))
    assert error(got["logits"][:, ::step], golden.arrays["logits_f64"]) <= TOLERANCE["vit float64"]
    assert error(got["pre_logits"], golden.arrays["pre_logits_f64"]) <= TOLERANCE["vit float64"]


@pytest.mark.parametrize("name", ["vit_a", "vit_b"])
def test_losses_golden(name, golden_folder):
    golden = goldens.load(name)
    model = load(golden_folder, name)
    logits = jnp.asarray(golden.arrays["logits"])
    labels = golden.arrays["labels"]
    several = np.zeros((len(labels), model.config.num_labels), np.float32)
    np.put_along_axis(several, labels, 1, axis=1)
    losses = {"loss_ce": model._loss(logits, jnp.asarray(labels[:, 0]))}
    model.config.problem_type = None  # the first labels have fixed it
    losses |= {
        "loss_bce": model._loss(logits, jnp.asarray(several)),
        "loss_ce_smooth": classification_loss(logits, jnp.asarray(labels[:, 0]), 0.1),
        "loss_bce_smooth": classification_loss(logits, jnp.asarray(several), 1e-4),
    }
    for key, value in losses.items():
        assert float(value) == pytest.approx(float(golden.arrays[key]), rel=TOLERANCE["vit loss, relative"]), key


@pytest.mark.parametrize("entry", ["from4_to6", "from14_to24", "from14_to32", "from24_to14", "from14_to14"])
def test_position_embeddings_golden(entry):
    old, new = (int(side) for side in entry.removeprefix("from").split("_to"))
    after = goldens.load_arrays("vit_posemb")[entry]
    before = goldens.weight_formula.fill(f"interpolate/{old}/pos_emb", (1, old * old + 1, after.shape[2]), 1)
    got = resize_position_embeddings(jnp.asarray(before), (old, old), (new, new))
    assert error(got, after) <= TOLERANCE["vit positions"]


# --- against PyTorch, small random models


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vit_flax")
    config = tiny.vit_config(representation_size=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return tiny.save_model("ViTForImageClassification", config, folder)


@pytest.fixture
def theirs(torch):
    """PyTorch's class."""
    return kakao_models.ViTForImageClassification


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 3, 32, 32))


LABELS = {
    "one": np.array([3, 0, 6]),
    "several": np.random.default_rng(1).integers(0, 2, (3, 7)).astype(np.float64),
}


@pytest.mark.parametrize("labels", LABELS)
def test_outputs_loss_and_gradients_are_pytorch_s(torch, theirs, labels, folder, pixels):
    options = dict(output_hidden_states=True, output_attentions=True)
    mask = np.ones((3, 17), np.int64)
    mask[1, 9:] = 0
    theirs = theirs.from_pretrained(folder, dtype=torch.float64)
    inputs = {"pixel_values": pixels, "labels": LABELS[labels], "attention_mask": mask}
    wanted = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()}, **options)
    wanted.loss.backward()

    def loss(model, inputs):
        output = model(**inputs, **options)
        return output.loss, output

    with jax.enable_x64(True):
        model = FlaxViTForImageClassification.from_pretrained(folder, dtype="float64")
        (_, got), gradients = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(model, inputs)
        gradients = flax_arrays.canonical(model, gradients)
    assert got.keys() == list(wanted.keys())
    for name in ("loss", "logits"):
        assert error(got[name], wanted[name].detach()) <= 1e-12, name
    for name in ("hidden_states", "attentions"):
        assert len(got[name]) == len(wanted[name])
        assert all(error(a, b.detach()) <= 1e-12 for a, b in zip(got[name], wanted[name])), name
    # names on disk, as save_pretrained writes them
    keys = load_file(folder + "/model.safetensors").keys()
    parameters = {key: parameter.grad for key, (_, parameter) in zip(*_in_order(keys, theirs))}
    assert gradients.keys() == parameters.keys()
    for name, gradient in parameters.items():
        assert error(gradients[name], gradient) <= TOLERANCE["gradients float64"], name


def _in_order(keys, model):
    """Keys on disk and parameters in memory, both in one order: the names of a layer's modules differ."""
    words = {
        "encoder.layer": "layers",
        "attention.attention.query": "attention.q_proj",
        "intermediate.dense": "mlp.fc1",
    }
    words |= {"attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj"}
    words |= {"attention.output.dense": "attention.o_proj", "output.dense": "mlp.fc2"}

    def in_memory(key: str) -> str:
        for on_disk, name in words.items():
            key = key.replace(on_disk, name)
        return key

    parameters = dict(model.named_parameters())
    assert {in_memory(key) for key in keys} == parameters.keys()
    return list(keys), [(key, parameters[in_memory(key)]) for key in keys]


def test_other_image_sizes(torch, theirs, folder, pixels, tmp_path):
    ours = FlaxViTForImageClassification.from_pretrained(folder)
    wide = pixels[:, :, :24, :16].astype(np.float32)
    with torch.no_grad():
        wanted = theirs.from_pretrained(folder)(torch.from_numpy(wide), interpolate_pos_encoding=True).logits
    assert error(ours(wide, interpolate_pos_encoding=True).logits, wanted) <= 1e-5
    with pytest.raises(ValueError, match=r"24\*16, expected 32\*32"):
        ours(wide)
    resized = FlaxViTForImageClassification.from_pretrained(folder, image_size=[24, 16])
    assert error(resized(wide).logits, wanted) <= 1e-5 and resized.vit.config.image_size == [24, 16]
    resized.save_pretrained(tmp_path)
    with torch.no_grad():
        again = theirs.from_pretrained(tmp_path)(torch.from_numpy(wide)).logits
    assert error(again, wanted) <= 1e-5


def test_pytorch_to_flax_to_file_is_bit_exact(torch, theirs, folder, tmp_path):
    backbone = kakao_models.ViTModel
    FlaxViTForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    assert len(list((tmp_path / "whole").glob("model-*.safetensors"))) > 1
    backbone.from_pretrained(folder).save_pretrained(tmp_path / "torch")
    FlaxViTModel.from_pretrained(tmp_path / "torch").save_pretrained(tmp_path / "base")
    for ours, source, kind in (("whole", folder, theirs), ("base", tmp_path / "torch", backbone)):
        a, b = (kind.from_pretrained(place).state_dict() for place in (tmp_path / ours, source))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert (
        load_file(tmp_path / "base/model.safetensors").keys() == load_file(tmp_path / "torch/model.safetensors").keys()
    )


def test_a_head_may_start_anew(folder, pixels):
    with pytest.raises(ValueError, match=r"classifier.weight: the file has \(7, 24\), the model expects \(3, 24\)"):
        FlaxViTForImageClassification.from_pretrained(folder, num_labels=3)
    model = FlaxViTForImageClassification.from_pretrained(
        folder, num_labels=3, representation_size=None, ignore_mismatched_sizes=True
    )
    assert model.vit.pooler is None and model(pixels).logits.shape == (3, 3)
    assert not np.asarray(model.classifier.kernel[...]).any() and not np.asarray(model.classifier.bias[...]).any()
    assert FlaxViTModel.from_pretrained(folder, representation_size=None).pooler is not None
    assert FlaxViTModel.from_pretrained(folder, add_pooling_layer=False)(pixels).pooler_output is None


def test_the_mask_token_stands_for_masked_patches(pixels):
    model = FlaxViTModel(tiny.vit_config(), use_mask_token=True, rngs=nnx.Rngs(0))
    model.eval()
    hidden = np.zeros((3, 16), bool)
    hidden[:, 3] = True
    model.embeddings.mask_token.set_value(jnp.ones((1, 1, 32)))
    plain, masked = (model(pixels, x, output_hidden_states=True).hidden_states[0] for x in (None, hidden))
    changed = np.abs(np.asarray(plain - masked)).max((0, 2)) > 0
    assert changed.tolist() == [i == 4 for i in range(17)]


def test_labels_of_every_form(folder, pixels, tmp_path):
    model, one = FlaxViTForImageClassification.from_pretrained(folder), LABELS["one"]
    loss = lambda labels: float(model(pixels, labels=labels).loss)  # noqa: E731
    several = np.eye(7)[one]
    with pytest.raises(ValueError, match=r"labels of shape \(3, 5\).*Expected whole numbers \(batch,\)"):
        loss(several[:, :5])
    of_one = loss(one)
    assert of_one == loss(one[:, None]) and model.config.problem_type == "single_label_classification"
    model.config.problem_type = None
    of_several = loss(several)
    assert of_several == loss(several.astype(int)) != of_one
    model.save_pretrained(tmp_path)  # scores are then by sigmoid, as in PyTorch
    assert ViTConfig.from_pretrained(tmp_path).problem_type == "multi_label_classification"
    model.config.problem_type = None
    for wrong in (one[:1], several[:1]):  # which would stand for every image
        with pytest.raises(ValueError, match="got labels for 1 images and logits for 3 images"):
            loss(wrong)
    assert np.isnan([loss(np.array([0, 1, -1])), loss(np.array([0, 1, 7]))]).all()
    with pytest.raises(ValueError, match=r"got a dict. Arguments go by name: model\(\*\*inputs\)"):
        model({"pixel_values": pixels})
    with pytest.raises(ValueError, match="needs a mask token. Create the model with use_mask_token=True"):
        model.vit(pixels, bool_masked_pos=np.zeros((3, 16)))


def test_bfloat16(folder, pixels):
    wanted = FlaxViTForImageClassification.from_pretrained(folder)(pixels).logits
    got = FlaxViTForImageClassification.from_pretrained(folder, dtype="bfloat16")(pixels).logits
    assert got.dtype == jnp.bfloat16 and error(got, wanted) <= 0.1 * float(wanted.std())


def test_mixed_precision(folder, pixels):
    """All maps are bfloat16 from the embeddings on; parameters and the loss are float32."""
    model = FlaxViTForImageClassification.from_pretrained(folder, dtype="bfloat16", param_dtype="float32")
    assert {variable.dtype for variable in model._variables().values()} == {jnp.dtype("float32")}
    output = nnx.eval_shape(lambda m, x: m(x, np.array([0, 1, 2]), output_hidden_states=True), model, pixels)
    assert {state.dtype for state in output.hidden_states} == {jnp.dtype("bfloat16")}
    assert output.loss.dtype == jnp.float32
    wanted = FlaxViTForImageClassification.from_pretrained(folder)(pixels).logits
    assert error(model(pixels).logits, wanted) <= 0.1 * float(wanted.std())


def test_dropout_is_where_the_original_has_it(folder, monkeypatch):
    """After the positions, in the attention weights, after the attention and after the inner layer."""
    seen = []

    def drop(layer, x):
        seen.append(x.shape)
        return x

    monkeypatch.setattr(nnx.Dropout, "__call__", drop)
    model = FlaxViTForImageClassification.from_pretrained(folder)
    nnx.eval_shape(lambda model: model(np.zeros((3, 3, 32, 32), np.float32)).logits, model)
    layer = [(3, 2, 17, 17), (3, 17, 32), (3, 17, 32)]
    assert seen == [(3, 17, 32), *layer, *layer]


def test_training_drops_out_and_evaluation_does_not(folder, pixels):
    model = FlaxViTForImageClassification.from_pretrained(folder, hidden_dropout_prob=0.5, rngs=nnx.Rngs(1))
    assert error(model(pixels).logits, model(pixels).logits) == 0
    model.train()
    a, b = model(pixels).logits, model(pixels).logits
    assert error(a, b) > 0.1
    again = FlaxViTForImageClassification.from_pretrained(folder, hidden_dropout_prob=0.5, rngs=nnx.Rngs(1))
    again.train()
    assert error(again(pixels).logits, a) == 0
    for _ in range(2):
        nnx.reseed(again, dropout=5)
        a, b = again(pixels).logits, a
    assert error(a, b) == 0


def test_types_that_would_become_others_are_refused(folder):
    for dtype, message in (("float64", "jax_enable_x64"), ("mixed_bfloat16", "Keras policy")):
        with pytest.raises(ValueError, match=message):
            FlaxViTModel.from_pretrained(folder, dtype=dtype)
