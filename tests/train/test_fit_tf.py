"""Keras' `fit`: in training mode, on one device and on two, on its other backends, with labels and weights in every form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf
import tiny

import kakao_models
from kakao_models import TFAlignModel, TFViTForImageClassification
from kakao_models.train.lamb_tf import Lamb, WarmupLinearDecay

SCRIPT = Path(__file__).with_name("fit_backend.py")


@pytest.mark.parametrize("eager", [True, False])
def test_fit_of_align_moves_batch_norm_s_averages(eager):
    model = TFAlignModel(tiny.short_align_config())
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=eager)  # else by XLA
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (16, 3, 32, 32)).astype(np.float32)
    batch = {"pixel_values": pixels, "input_ids": random.integers(1, 50, (16, 5))}
    stem = model.vision_model.embeddings
    maps = stem.convolution(np.pad(pixels.transpose(0, 2, 3, 1), ((0, 0), (0, 1), (0, 1), (0, 0)))).numpy()
    model.fit(tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0)
    share = 1 - model.config.vision_config.batch_norm_momentum
    wanted = {"moving_mean": share * maps.mean((0, 1, 2)), "moving_variance": 1 + share * (maps.var((0, 1, 2)) - 1)}
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(stem.batchnorm, name).numpy(), value, atol=1e-5)


def test_fit_of_a_classifier_drops_out():
    model = TFViTForImageClassification(tiny.vit_config(hidden_dropout_prob=0.5))
    model.classifier.kernel.assign(np.random.default_rng(0).standard_normal(model.classifier.kernel.shape))
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    pixels, labels = np.ones((2, 3, 32, 32), np.float32), np.array([0, 1])
    losses = {float(model.train_on_batch(pixels, labels, return_dict=True)["loss"]) for _ in range(2)}
    still = {float(model.test_on_batch(pixels, labels, return_dict=True)["loss"]) for _ in range(2)}
    assert len(losses) == 2 and len(still) == 1


def classifier(folder, **options) -> TFViTForImageClassification:
    model = TFViTForImageClassification.from_pretrained(folder, dtype="float64")
    model.compile(keras.optimizers.SGD(0.1), **({"jit_compile": False} | options))
    return model


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return tiny.vit_folder(tmp_path_factory.mktemp("vit"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (13, 3, 32, 32)), random.integers(0, 7, 13)


def test_two_replicas_train_a_classifier_as_one_device(vit, pictures):
    """The last batch, of one picture, leaves a replica without any."""
    one = classifier(vit)
    with replicas.mirrored().scope():
        two = classifier(vit)
    for model in (one, two):
        model.fit(*pictures, batch_size=6, shuffle=False, verbose=0)
    start = classifier(vit)._variables()
    for name, value in one._variables().items():
        np.testing.assert_allclose(two._variables()[name], value, rtol=0, atol=1e-10, err_msg=name)
    assert np.abs(one.classifier.kernel - start["classifier.kernel"]).max() > 1e-2


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[str, dict[str, np.ndarray]]:
    """A random checkpoint of one block, and a batch of sixteen."""
    folder = tmp_path_factory.mktemp("one")
    tiny.save_model("AlignModel", tiny.one_block_config(), folder)
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (16, 3, 32, 32)).astype(np.float32)
    return str(folder), {"pixel_values": pixels, "input_ids": random.integers(1, 50, (16, 5))}


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_fit_on_other_backends_of_keras(torch, backend, small, tmp_path):
    """In training mode: the loss is PyTorch's with ghost batches, and batch norm's averages move."""
    folder, batch = small
    np.savez(tmp_path / "batch.npz", **batch)
    command = [sys.executable, str(SCRIPT), folder, str(tmp_path / "batch.npz"), str(tmp_path / "saved")]
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    theirs = kakao_models.AlignModel.from_pretrained(folder).train()
    wanted = theirs(**{name: torch.from_numpy(value) for name, value in batch.items()}, return_loss=True).loss.item()
    assert result["backend"] == backend and result["loss"] == pytest.approx([wanted], rel=1e-5)
    assert result["predicted"] == {"image_embeds": [16, 16], "text_embeds": [16, 16]}
    # PyTorch's averages moved in the forward above
    saved = kakao_models.AlignModel.from_pretrained(tmp_path / "saved").state_dict()
    for name, value in theirs.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(saved[name], value, atol=1e-5, err_msg=name)
    idle = {name for name in result["still"] if "pooler" not in name}  # key biases have a gradient of zero
    assert idle <= {"text_model.encoder.layer.0.attention.self.key.bias"}


def test_accumulated_gradients_are_the_mean_of_small_batches(small):
    """Of which each has its own negatives: docs/tensorflow.md says so."""
    folder, batch = small
    halves = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 8), slice(8, 16))]
    still = TFAlignModel.from_pretrained(folder)
    variables = [variable.value for variable in still.trainable_variables]
    gradients = []
    for half in halves:
        with tf.GradientTape() as tape:
            loss = still(half, return_loss=True, training=True).loss
        gradients.append([tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)])
    model = TFAlignModel.from_pretrained(folder)
    model.compile(optimizer=keras.optimizers.SGD(0.5, gradient_accumulation_steps=2), run_eagerly=True)
    model.fit(batch, batch_size=8, shuffle=False, verbose=0)
    for variable, start, *both in zip(model.trainable_variables, variables, *gradients, strict=True):
        np.testing.assert_allclose(variable, start - 0.5 * (both[0] + both[1]) / 2, atol=1e-5, err_msg=variable.path)


@pytest.mark.parametrize("adapted", [True, False])  # where it is, the correction of its averages' start cancels
def test_lamb_accumulates_gradients(adapted):
    start, gradients = np.array([1.0, -2.0, 3.0]), np.random.default_rng(0).standard_normal((4, 3))
    one, two = (keras.Variable(start, dtype="float32") for _ in range(2))
    spared = [] if adapted else [0]
    small, large = Lamb(1e-2, gradient_accumulation_steps=2, spared=spared), Lamb(1e-2, spared=spared)
    for gradient in gradients:
        small.apply([keras.ops.convert_to_tensor(gradient, "float32")], [one])
    for pair in gradients.reshape(2, 2, 3):
        large.apply([keras.ops.convert_to_tensor(pair.mean(0), "float32")], [two])
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert np.abs(one - start).max() > 1e-3


def test_several_steps_an_execution_are_the_same_steps(vit, pictures):
    models = [classifier(vit, steps_per_execution=steps) for steps in (1, 2)]
    for model in models:
        model.fit(*pictures, batch_size=5, shuffle=False, verbose=0)  # of 5, 5 and 3
        assert np.asarray(model.optimizer.iterations) == 3
    for name, value in models[0]._variables().items():
        np.testing.assert_allclose(models[1]._variables()[name], value, rtol=0, atol=1e-12, err_msg=name)


def test_fit_in_mixed_precision(small):
    folder, batch = small
    model = TFAlignModel.from_pretrained(folder, dtype="mixed_bfloat16")
    before = {name: variable.numpy() for name, variable in model._variables().items()}
    model.compile(optimizer=Lamb(1e-2).spare_batch_norms(model), run_eagerly=True)
    losses = model.fit(batch, batch_size=16, epochs=4, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.05
    exact = TFAlignModel.from_pretrained(folder)(batch, return_loss=True, training=True).loss
    assert losses[0] == pytest.approx(float(exact), rel=2e-2)
    still = []
    for name, variable in model._variables().items():
        assert variable.dtype == "float32" and np.isfinite(variable).all(), name
        still += [name] * np.array_equal(variable, before[name])
    assert all("pooler" in name for name in still)


def test_two_replicas_train_align_on_an_uneven_batch():
    """As docs/tensorflow.md trains; seven samples in batches of four, of the last of which a replica gets one."""
    config = tiny.one_block_config()
    with replicas.mirrored().scope():
        model = TFAlignModel(config)
        rate = WarmupLinearDecay(1e-3, warmup_steps=1, steps=10)
        model.compile(optimizer=Lamb(rate).spare_batch_norms(model), jit_compile=False)
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (7, 3, 32, 32)).astype(np.float32)
    batch = {"pixel_values": pixels, "input_ids": random.integers(1, 50, (7, 4))}
    stem = model.vision_model.embeddings
    maps = stem.convolution(np.pad(pixels.transpose(0, 2, 3, 1), ((0, 0), (0, 1), (0, 1), (0, 0)))).numpy()
    history = model.fit(tf.data.Dataset.from_tensor_slices(batch).batch(4), shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0]) and np.asarray(model.optimizer.iterations) == 2
    for name, variable in model._variables().items():
        assert np.isfinite(variable).all(), name
    now = [maps[rows].mean((0, 1, 2)) for rows in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7))]
    # LAMB's first rate is 0: the kernel stands still
    wanted = 0.99 * 0.01 * (now[0] + now[1]) / 2 + 0.01 * (now[2] + now[3]) / 2
    np.testing.assert_allclose(stem.batchnorm.moving_mean, wanted, atol=1e-5)


def test_labels_in_every_form_train_alike(vit, pictures):
    pixels, labels = pictures[0][:4], pictures[1][:4]
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = np.array([0.0, 0.5, 1.0, 2.0])
    model, own = classifier(vit, run_eagerly=True), classifier(vit, run_eagerly=True, loss=entropy)
    loss = lambda model, *batch: float(model.test_on_batch(*batch))  # noqa: E731
    wanted = loss(own, pixels, labels)
    for batch in ((pixels, labels), (pixels, labels[:, None]), ({"pixel_values": pixels, "labels": labels},)):
        assert loss(model, *batch) == pytest.approx(wanted, rel=1e-6)
    assert loss(own, {"pixel_values": pixels, "labels": labels}) == pytest.approx(wanted, rel=1e-6)
    assert loss(model, pixels, labels, weights) == pytest.approx(loss(own, pixels, labels, weights), rel=1e-6)
    assert model.config.problem_type == "single_label_classification"  # as in transformers, what the first labels imply
    model.config.problem_type = None
    several = np.eye(7, dtype=int)[labels]
    binary = keras.losses.BinaryCrossentropy(from_logits=True)  # a mean over classes, where the original's is a sum
    assert loss(model, pixels, several) == pytest.approx(
        7 * loss(classifier(vit, loss=binary), pixels, several), rel=1e-6
    )
    assert model.config.problem_type == "multi_label_classification"
    with pytest.raises(ValueError, match=r"labels of shape \(4, 3\) and type .*Expected whole numbers \(batch,\)"):
        loss(model, pixels, several[:, :3])
    with pytest.raises(ValueError, match="fit and evaluate need labels"):
        loss(model, pixels)


def test_align_refuses_other_losses_and_predicts_embeddings(tmp_path):
    tiny.save_model("AlignModel", tiny.align_config(), tmp_path)
    model = TFAlignModel.from_pretrained(tmp_path)
    model.compile(run_eagerly=True)
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (5, 3, 32, 32)).astype(np.float32)
    batch = {"pixel_values": pixels, "input_ids": random.integers(1, 50, (5, 4))}
    for arguments in ((np.zeros(5),), (None, np.ones(5))):
        with pytest.raises(ValueError, match="trains with its own contrastive loss.*without labels and weights"):
            model.test_on_batch(batch, *arguments)
    predicted = model.predict(batch, batch_size=2, verbose=0)  # the last batch is smaller
    whole = model(batch)
    assert set(predicted) == {"image_embeds", "text_embeds"}
    for name, value in predicted.items():
        np.testing.assert_allclose(value, whole[name], atol=1e-5)
