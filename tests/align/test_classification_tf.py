"""ALIGN's image tower as a classifier in Keras, against PyTorch."""

import classifiers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from classifiers import GRADIENTS, LABELS, LOGITS, PIXELS, TOLERANCE, differ

from kakao_models import AlignImageProcessor, Embedder, TFAlignForImageClassification, TFAlignVisionModel
from kakao_models.checkpoint.weightmap import permute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifiers.folder(tmp_path_factory.mktemp("classifier"))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_and_gradients_are_pytorch_s(folder, dtype):
    wanted, wanted_gradients = classifiers.reference(folder, dtype)
    model = TFAlignForImageClassification.from_pretrained(folder, dtype=dtype)
    labels = LABELS["single_label_classification"]
    with tf.GradientTape() as tape:
        got = model(PIXELS.astype(dtype), labels=labels, output_hidden_states=True)
    assert list(got) == list(wanted) == ["loss", "logits", "hidden_states"]
    assert max(differ(got[name], wanted[name]) for name in ("loss", "logits")) <= TOLERANCE[dtype]
    for state, expected in zip(got.hidden_states, wanted["hidden_states"], strict=True):
        assert differ(state, expected) <= TOLERANCE[dtype]
    slots = [slot for slot in model._slots() if slot.key in wanted_gradients]  # averages have none
    assert len(slots) == len(wanted_gradients)
    variables = model._variables()
    gradients = tape.gradient(got.loss, [variables[slot.local_key].value for slot in slots])
    for slot, gradient in zip(slots, gradients):
        difference = permute(gradient.numpy(), slot.local_axes, slot.axes) - wanted_gradients[slot.key]
        assert np.abs(difference).max() <= GRADIENTS[dtype], slot.key


def test_losses_of_every_kind_are_pytorch_s(folder):
    model = TFAlignForImageClassification.from_pretrained(folder, dtype="float64")
    logits = tf.constant(LOGITS)
    for kind, wanted in classifiers.losses(folder).items():
        model.config.problem_type = kind
        assert float(model._loss(logits, LABELS[kind])) == pytest.approx(wanted, rel=1e-12), kind
    with pytest.raises(
        ValueError, match="TFAlignForImageClassification: got labels for 2 images and logits for 4 images"
    ):
        model._loss(logits, LABELS["single_label_classification"][:2])
    model.config.problem_type = None
    model._loss(logits, LABELS["multi_label_classification"])
    assert model.config.problem_type == "multi_label_classification"  # which is saved, and asks for sigmoid


def test_it_takes_the_tower_of_an_align_and_starts_a_head_at_zero(align, folder, tmp_path):
    with pytest.raises(ValueError, match=r"missing classifier\.bias"):
        TFAlignForImageClassification.from_pretrained(align, num_labels=3)
    new = TFAlignForImageClassification.from_pretrained(align, num_labels=3, ignore_mismatched_sizes=True)
    assert new(PIXELS).logits.shape == (4, 3) and not np.any(new(PIXELS).logits)
    tower = TFAlignVisionModel.from_pretrained(align)
    np.testing.assert_array_equal(new.vision_model(PIXELS).pooler_output, tower(PIXELS).pooler_output)
    trained = TFAlignForImageClassification.from_pretrained(folder)
    alone = TFAlignVisionModel.from_pretrained(folder)  # which leaves the classifier in the file
    np.testing.assert_array_equal(trained.vision_model(PIXELS).pooler_output, alone(PIXELS).pooler_output)
    alone.save_pretrained(tmp_path)
    again = TFAlignForImageClassification.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    np.testing.assert_array_equal(again.vision_model(PIXELS).pooler_output, alone(PIXELS).pooler_output)


def test_a_configuration_without_dicts_gives_tuples_and_is_run_all_the_same(folder):
    model = TFAlignForImageClassification.from_pretrained(folder, return_dict=False)
    labels = LABELS["single_label_classification"]
    loss, logits = model(PIXELS, labels=labels)
    named = model(PIXELS, labels=labels, return_dict=True)
    assert float(loss) == float(named.loss) and np.array_equal(logits, named.logits)
    processor, photo = AlignImageProcessor.from_pretrained(folder), tiny.picture(0)
    got = Embedder(model, processor=processor)
    wanted = Embedder(folder, framework="torch")
    for run in ("images", "class_logits"):
        np.testing.assert_allclose(getattr(got, run)([photo]), getattr(wanted, run)([photo]), atol=1e-5)
    assert set(model.signatures()) == {"image_features", "logits"}


def test_fit_of_a_linear_probe_trains_the_head_alone(folder):
    model = TFAlignForImageClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    model.vision_model.trainable = False
    before = {path: variable.numpy() for path, variable in model._variables().items()}
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    history = model.fit(PIXELS.astype(np.float32), np.array([0, 1, 2, 0]), epochs=3, verbose=0).history["loss"]
    assert history[0] == pytest.approx(np.log(3), abs=1e-5) and history[-1] < history[0]
    changed = {path for path, variable in model._variables().items() if not np.array_equal(variable, before[path])}
    assert changed == {"classifier.kernel", "classifier.bias"}
