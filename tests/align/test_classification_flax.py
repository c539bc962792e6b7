"""ALIGN's image tower as a classifier in Flax, against PyTorch."""

import classifiers
import flax_arrays
import jax
import numpy as np
import pytest
import tiny
from classifiers import GRADIENTS, LABELS, LOGITS, PIXELS, TOLERANCE, differ
from flax import nnx

from kakao_models import AlignImageProcessor, Embedder, FlaxAlignForImageClassification, FlaxAlignVisionModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifiers.folder(tmp_path_factory.mktemp("classifier"))


@nnx.jit
def run(model, pixels, labels):
    def loss(model):
        output = model(pixels, labels=labels, output_hidden_states=True)
        return output.loss, output

    (_, output), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
    return output, gradients


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_and_gradients_are_pytorch_s(folder, dtype):
    wanted, wanted_gradients = classifiers.reference(folder, dtype)
    with jax.enable_x64(dtype == "float64"):
        model = FlaxAlignForImageClassification.from_pretrained(folder, dtype=dtype)
        got, gradients = run(model, PIXELS.astype(dtype), LABELS["single_label_classification"])
        gradients = flax_arrays.canonical(model, gradients)
    assert got.keys() == list(wanted) == ["loss", "logits", "hidden_states"]
    assert max(differ(got[name], wanted[name]) for name in ("loss", "logits")) <= TOLERANCE[dtype]
    for state, expected in zip(got.hidden_states, wanted["hidden_states"], strict=True):
        assert differ(state, expected) <= TOLERANCE[dtype]
    assert gradients.keys() == wanted_gradients.keys()
    for key, gradient in gradients.items():
        assert np.abs(gradient - wanted_gradients[key]).max() <= GRADIENTS[dtype], key


def test_losses_of_every_kind_are_pytorch_s(folder):
    with jax.enable_x64(True):
        model = FlaxAlignForImageClassification.from_pretrained(folder, dtype="float64")
        logits = jax.numpy.asarray(LOGITS)
        for kind, wanted in classifiers.losses(folder).items():
            model.config.problem_type = kind
            assert float(model._loss(logits, LABELS[kind])) == pytest.approx(wanted, rel=1e-12), kind
        with pytest.raises(
            ValueError, match="FlaxAlignForImageClassification: got labels for 2 images and logits for 4 images"
        ):
            model._loss(logits, LABELS["single_label_classification"][:2])


def test_it_takes_the_tower_of_an_align_and_starts_a_head_at_zero(folder, tmp_path):
    align = tiny.align_folder(tmp_path / "align", config=tiny.short_align_config())
    with pytest.raises(ValueError, match=r"missing classifier\.bias"):
        FlaxAlignForImageClassification.from_pretrained(align, num_labels=3)
    new = FlaxAlignForImageClassification.from_pretrained(align, num_labels=3, ignore_mismatched_sizes=True)
    assert new.classifier.kernel.shape[1] == 3 and not np.any(new.classifier.kernel[...])
    trained = FlaxAlignForImageClassification.from_pretrained(folder)
    alone = FlaxAlignVisionModel.from_pretrained(folder)  # which leaves the classifier in the file
    for model, tower in ((new, FlaxAlignVisionModel.from_pretrained(align)), (trained, alone)):
        weights = tower._variables()
        assert weights.keys() == model.vision_model._variables().keys()
        for path, variable in model.vision_model._variables().items():
            np.testing.assert_array_equal(variable[...], weights[path][...])


def test_a_configuration_without_dicts_gives_tuples_and_is_run_all_the_same(folder):
    model = FlaxAlignForImageClassification.from_pretrained(folder, return_dict=False)
    pixels, labels = PIXELS.astype(np.float32), LABELS["single_label_classification"]
    loss, logits = nnx.jit(lambda model, pixels, labels: model(pixels, labels=labels))(model, pixels, labels)
    assert loss.shape == () and logits.shape == (4, 7)
    got = Embedder(model, processor=AlignImageProcessor.from_pretrained(folder))
    wanted, photo = Embedder(folder, framework="torch").class_logits([tiny.picture(0)]), tiny.picture(0)
    np.testing.assert_allclose(got.class_logits([photo]), wanted, atol=1e-5)
