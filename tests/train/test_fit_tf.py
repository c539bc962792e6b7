"""Keras' `fit` trains in training mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from kakao_models import TFAlignModel, TFViTForImageClassification


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
