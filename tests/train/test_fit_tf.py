"""Keras' `fit`: in training mode, on one device and on two, with labels and weights in every form."""

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf
import tiny

from kakao_models import AlignModel, TFAlignModel, TFViTForImageClassification
from kakao_models.train.lamb_tf import Lamb, WarmupLinearDecay


@pytest.mark.parametrize("eager", [True, False])
def test_fit_of_align_moves_batch_norm_s_averages(eager):
    model = TFAlignModel(tiny.align_config())
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=eager)
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


def test_two_replicas_train_align_on_an_uneven_batch():
    """As docs/tensorflow.md trains; seven samples in batches of four, of the last of which a replica gets one."""
    whole = tiny.align_config()
    block = dict(
        kernel_sizes=[3], in_channels=[32], out_channels=[16], strides=[1], num_block_repeats=[1], expand_ratios=[1],
        hidden_dim=8, drop_connect_rate=0.0,
    )  # fmt: skip
    config = tiny.align_config(
        vision_config=whole.vision_config.to_dict() | block,
        text_config=whole.text_config.to_dict() | {"num_hidden_layers": 1},
        temperature_init_value=0.5,
    )
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
    several = np.eye(7, dtype=int)[labels]
    binary = keras.losses.BinaryCrossentropy(from_logits=True)  # a mean over classes, where the original's is a sum
    assert loss(model, pixels, several) == pytest.approx(
        7 * loss(classifier(vit, loss=binary), pixels, several), rel=1e-6
    )
    assert model.config.problem_type is None  # what labels look like once does not decide for all time
    with pytest.raises(ValueError, match=r"labels of shape \(4, 3\) and type .*Wanted whole numbers \(batch,\)"):
        loss(model, pixels, several[:, :3])
    with pytest.raises(ValueError, match="fit and evaluate need labels"):
        loss(model, pixels)


def test_align_refuses_other_losses_and_predicts_embeddings(tmp_path):
    tiny.fill(AlignModel(tiny.align_config())).save_pretrained(tmp_path)
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
