"""Keras models as TensorFlow SavedModel and LiteRT, each with the model's named signatures."""

import os
import tempfile
from pathlib import Path

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"SavedModel and LiteRT need Keras' backend tensorflow, it is {keras.backend.backend()}")

import tensorflow as tf


def export_saved_model(model: keras.Model, folder: str | os.PathLike, *, signatures: list[str] | None = None) -> None:
    """Writes a SavedModel; `tf.saved_model.load(folder).signatures["image_features"](pixel_values=...)` runs it.

    Args:
        model: one of our Keras models.
        signatures: names out of `model.signatures()`; all of them by default.

    Raises:
        ValueError: a signature the model does not have.
    """
    functions = {}
    for name, (function, inputs) in _chosen(model, signatures).items():
        specs = {key: tf.TensorSpec(shape, dtype, name=key) for key, (shape, dtype) in inputs.items()}
        functions[name] = tf.function(function).get_concrete_function(**specs)
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.weights]
    first = next(iter(functions))
    tf.saved_model.save(module, os.fspath(folder), signatures=functions | {"serving_default": functions[first]})


def export_litert(
    model: keras.Model,
    file: str | os.PathLike,
    *,
    signatures: list[str] | None = None,
    optimizations: list | None = None,
) -> None:
    """Writes a .tflite file; `Interpreter(file).get_signature_runner("image_features")` runs it.

    Args:
        signatures: as for `export_saved_model`.
        optimizations: of `tf.lite.TFLiteConverter`; `[tf.lite.Optimize.DEFAULT]` makes the weights 8 bits wide.
    """
    with tempfile.TemporaryDirectory() as folder:
        export_saved_model(model, folder, signatures=signatures)
        names = list(_chosen(model, signatures))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=names)
        converter.optimizations = optimizations or []
        Path(file).write_bytes(converter.convert())


def _chosen(model: keras.Model, names: list[str] | None) -> dict[str, tuple]:
    available = model.signatures()
    if unknown := set(names or ()) - available.keys():
        raise ValueError(
            f"{type(model).__name__} has no signature {sorted(unknown)[0]!r}; it has {', '.join(available)}"
        )
    return {name: available[name] for name in names or available}
