"""Keras models as TensorFlow SavedModels with named signatures, and the layout that TensorFlow Serving reads."""

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kakao_models.checkpoint.keras_export import Signatures, write_signatures
from kakao_models.export.contract import Contract, Function, ImageInput
from kakao_models.export.samples import RunFunction
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.engine_tf import KerasEngine

VERSION = "1"  # the folder of a version, which TensorFlow Serving looks for under a model's own


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """One SavedModel, 1/, with a signature for each function; export.json and labels.txt are among its assets."""
    model = contract.source_model(embedder, KerasEngine)
    signatures, variables = functions(model, contract, contract.quantize)
    with tempfile.TemporaryDirectory() as assets:
        for name, text in contract.assets().items():
            Path(assets, name).write_text(text, encoding="utf-8")
        write_signatures(signatures, variables, folder / VERSION, sorted(Path(assets).iterdir()))
    return dict.fromkeys(contract.functions, VERSION)


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function by its signature, as TensorFlow Serving does."""
    saved = tf.saved_model.load(os.fspath(path))
    output = function.output.name

    def run(inputs: dict[str, np.ndarray], saved=saved) -> np.ndarray:  # the signatures hold no reference to it
        return saved.signatures[output](**{key: tf.constant(value) for key, value in inputs.items()})[output].numpy()

    return run


def functions(model: keras.Model, contract: Contract, dtype: str | None = None) -> tuple[Signatures, list[tf.Variable]]:
    """The signatures of a contract, named like their outputs, and the variables they use, matrices in `dtype`."""
    variables, lend = _stored(model, dtype)
    available, signatures = model.signatures(), {}
    for function in contract.functions.values():
        inner, _ = available[function.output.name]
        inputs = {
            tensor.name: ([None if isinstance(size, str) else size for size in tensor.shape], tensor.dtype)
            for tensor in function.inputs
        }
        signatures[function.output.name] = (_around(inner, contract, lend), inputs)
    return signatures, variables


def _around(inner: Callable, contract: Contract, lend: Callable) -> Callable:
    """A model's own signature with what the contract puts before and after it."""

    def called(**inputs):
        if "images" in inputs:
            inputs = {"pixel_values": _prepare(inputs["images"], contract.pixels)}
        with lend():
            outputs = inner(**inputs)
        if contract.normalize:
            outputs = {key: _l2_normalize(value) for key, value in outputs.items()}
        return outputs

    return called


def _prepare(images: tf.Tensor, pixels: ImageInput) -> tf.Tensor:
    """(B, H, W, C) bytes → pixel values (B, C, H, W)."""
    x = tf.cast(images, tf.float32)
    if pixels.kind == "picture":
        top, left, height, width = pixels.box
        x = tf.image.resize(x, pixels.resized, "bilinear", antialias=False)
        x = x[:, top : top + height, left : left + width]
    return tf.transpose(
        x * tf.constant(pixels.scale, tf.float32) + tf.constant(pixels.offset, tf.float32), (0, 3, 1, 2)
    )


def _l2_normalize(x: tf.Tensor) -> tf.Tensor:
    return x / tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(x), -1, keepdims=True), 1e-12))


def _stored(model: keras.Model, dtype: str | None) -> tuple[list[tf.Variable], Callable]:
    """The variables to save, and a context in which the model uses them.

    Args:
        dtype: what matrices and kernels are stored in; they are widened when they are used.
    """
    if dtype is None:
        return [variable.value for variable in model.weights], nullcontext
    narrow = [
        tf.Variable(tf.cast(variable.value, dtype if len(variable.shape) > 1 else variable.dtype), trainable=False)
        for variable in model.weights
    ]

    def lend():
        pairs = zip(model.weights, narrow)
        return keras.StatelessScope([(variable, tf.cast(value, variable.dtype)) for variable, value in pairs])

    return narrow, lend
