"""Batches as arrays of a framework; no framework has to be installed."""

import importlib

import numpy as np
from transformers import BatchFeature


def as_tensors(values: dict, kind: str | None) -> BatchFeature:
    """The dict with its values as arrays of "np", "pt" (torch), "tf" or "jax"; as they are for None."""
    kind = getattr(kind, "value", kind)  # transformers' TensorType
    if kind is None:
        return BatchFeature(values)
    converters = {
        "np": ("numpy", "asarray"),
        "pt": ("torch", "from_numpy"),
        "tf": ("tensorflow", "convert_to_tensor"),
        "jax": ("jax.numpy", "asarray"),
    }
    if kind not in converters:
        raise ValueError(f"return_tensors must be None or one of {', '.join(converters)}, got {kind!r}")
    module, function = converters[kind]
    try:
        convert = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        extra, name = {"pt": "torch", "tf": "tensorflow", "jax": "flax"}[kind], module.partition(".")[0]
        raise ImportError(f"return_tensors={kind!r} needs {name}: pip install 'kakao-models[{extra}]'") from error
    arrays = {name: np.asarray(value) for name, value in values.items()}
    if kind in ("tf", "jax"):  # where int32 is the usual type of token ids
        arrays = {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in arrays.items()}
    return BatchFeature({name: convert(array) for name, array in arrays.items()})
