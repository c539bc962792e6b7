"""Keras models as TensorFlow SavedModels and LiteRT files with named signatures."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"SavedModel and LiteRT need Keras with the backend tensorflow, got {keras.backend.backend()}")

import tensorflow as tf

Signatures = dict[str, tuple[Callable, dict]]  # name → (function of keywords, {input: (shape, dtype)})


def export_saved_model(model: keras.Model, folder: str | os.PathLike, *, signatures: list[str] | None = None) -> None:
    """Writes a SavedModel; `tf.saved_model.load(folder).signatures["image_features"](pixel_values=...)` runs it.

    Args:
        model: one of our Keras models.
        signatures: names out of `model.signatures()`; all of them by default.

    Raises:
        ValueError: a signature the model does not have.
    """
    variables = [variable.value for variable in model.weights]
    write_signatures(chosen(model, signatures), variables, folder)


def write_signatures(
    signatures: Signatures, variables: list[tf.Variable], folder: str | os.PathLike, assets: list[Path] = ()
) -> None:
    """Writes a SavedModel with these signatures, the first of which is also `serving_default`."""
    traced = {}
    for name, (function, inputs) in signatures.items():
        specs = {key: tf.TensorSpec(shape, dtype, name=key) for key, (shape, dtype) in inputs.items()}
        traced[name] = tf.function(function).get_concrete_function(**specs)
    module = tf.Module()
    module.variables_of_model = variables
    module.assets = [tf.saved_model.Asset(os.fspath(path)) for path in assets]
    first = next(iter(traced))
    tf.saved_model.save(module, os.fspath(folder), signatures=traced | {"serving_default": traced[first]})


def chosen(model: keras.Model, names: list[str] | None) -> Signatures:
    """The named signatures of a model; all by default."""
    available = model.signatures()
    if unknown := set(names or ()) - available.keys():
        raise ValueError(f"{type(model).__name__} has no signature {min(unknown)!r}; it has {', '.join(available)}")
    return {name: available[name] for name in names or available}


def export_litert(
    model: keras.Model,
    file: str | os.PathLike,
    *,
    signatures: list[str] | None = None,
    optimizations: list | None = None,
) -> None:
    """Writes a .tflite file; `Interpreter(file).get_signature_runner("image_features")` runs it.

    Args:
        signatures: see `export_saved_model`.
        optimizations: optimizations of `tf.lite.TFLiteConverter`; `[tf.lite.Optimize.DEFAULT]` makes the weights 8 bits wide.
    """
    variables = [variable.value for variable in model.weights]
    Path(file).write_bytes(converted(chosen(model, signatures), variables, optimizations=optimizations))


def converted(
    signatures: Signatures, variables: list, quantize: str | None = None, optimizations: list | None = None
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_signatures(signatures, variables, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.optimizations = optimizations or ([tf.lite.Optimize.DEFAULT] if quantize else [])
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        return converter.convert()
