"""Runs a Flax model for the `Embedder`: arrays in, float32 arrays out.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kakao_models.checkpoint.flax import FlaxLoading
from kakao_models.inference.engine import Engine
from kakao_models.inference.padding import pad_rows, padded_length, padded_size

_DTYPES = "float32", "bfloat16", "float16"


class FlaxEngine(Engine):
    """A model in Flax, always in evaluation mode.

    Every shape of input is compiled once, which takes seconds to minutes. So batches are padded to powers of two, or to
    a larger size that has been compiled already, and texts to multiples of 16 tokens.

    A model object is used as it is, with the values it has now; `device="auto"` and `dtype=None` leave it where and what
    it is.

    Args:
        device: "auto" (JAX's default), "cpu", "gpu", "cuda", "tpu", one of several as "cuda:1", or its number.
        dtype: "float32", "bfloat16" or "float16"; of a checkpoint by default float32.
    """

    prefix = "Flax"

    def __init__(self, model: FlaxLoading, *, device: str | int = "auto", dtype: str | None = None):
        self.check_kind(model)
        self.model = model
        self.config = model.config
        evaluating = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
        if dtype is not None:
            evaluating.set_compute_dtype(None)  # the view's own, not the model's
        self._dtype = next(filter(None, (getattr(m, "dtype", None) for _, m in nnx.iter_modules(evaluating))), None)
        self._graph, state = nnx.split(evaluating)
        if dtype is not None:
            state = jax.tree.map(partial(_cast, dtype=_dtype(dtype)), state)
        self._state = jax.device_put(state, None if device == "auto" else _device(device))
        self._compiled: dict[tuple, set[int]] = {}  # what runs, on which shape of a row → sizes of batches
        self._jitted = {name: jax.jit(partial(self._run, function)) for name, function in FUNCTIONS.items()}

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike, *, device: str | int = "auto", dtype: str | None = None, **where: Any
    ) -> "FlaxEngine":
        return cls(cls.load_model(name_or_path, _dtype(dtype or "float32"), where), device=device)

    @property
    def device(self) -> jax.Device:
        return min(self._weight.devices(), key=lambda device: device.id)

    @property
    def dtype(self) -> np.dtype:
        return self._dtype or self._weight.dtype

    @property
    def _weight(self) -> jax.Array:
        return next(leaf for leaf in jax.tree.leaves(self._state) if jnp.issubdtype(leaf.dtype, jnp.floating))

    def _pooled_width(self) -> int | None:
        pooler = getattr(self.model.backbone(), "pooler", None)
        return None if pooler is None else pooler.dense.out_features

    @property
    def temperature(self) -> float:
        return float(self._state["temperature"].get_value())

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._batch("features", pixel_values)

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._batch("hidden", pixel_values)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._batch("logits", pixel_values)

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        length = input_ids.shape[1]
        more = padded_length(length, self.max_positions) - length
        widen = partial(np.pad, pad_width=((0, 0), (0, more)))  # masked tokens change nothing
        return self._batch("texts", *(widen(array.astype(np.int32)) for array in (input_ids, attention_mask)))

    def _batch(self, name: str, *arrays: np.ndarray) -> np.ndarray:
        """Pads the batch to a size that is, or will be, compiled, by repeating its last row."""
        count = len(arrays[0])
        size = padded_size(count, self._compiled.setdefault((name, arrays[0].shape[1:]), set()))
        padded = [pad_rows(array, size) for array in arrays]
        return np.asarray(self._jitted[name](self._state, *padded))[:count]

    def _run(self, function, state, *arrays) -> jax.Array:
        return function(nnx.merge(self._graph, state), *arrays).astype(jnp.float32)


def _features(model, pixels):
    if hasattr(model, "get_image_features"):
        return model.get_image_features(pixels, return_dict=True).pooler_output
    output = model.backbone()(pixels, return_dict=True)
    return output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output


def _hidden(model, pixels):
    return model.backbone()(pixels, return_dict=True).last_hidden_state


def _logits(model, pixels):
    return model(pixels, return_dict=True).logits


def _texts(model, ids, mask):
    return model.get_text_features(ids, mask, return_dict=True).pooler_output


FUNCTIONS = {"features": _features, "hidden": _hidden, "logits": _logits, "texts": _texts}


def _cast(array: jax.Array, dtype: str) -> jax.Array:
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _usable_devices() -> str:
    """The devices of this machine that JAX can use."""
    names = {f"{device.platform}:{device.id}" for device in (*jax.devices(), *jax.devices("cpu"))}
    return " or ".join(f"'{name}'" for name in sorted(names, reverse=True))


def _device(name: str | int) -> jax.Device:
    if isinstance(name, int):  # transformers' pipelines count accelerators, and -1 is the processor
        platform, number = (None, name) if name >= 0 else ("cpu", 0)
    else:
        platform, _, number = name.partition(":")
        number = int(number) if number.isdigit() else 0
    try:
        return jax.devices(platform)[number]
    except (RuntimeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device {name!r} can't be used ({reason}): on this machine use 'auto', {_usable_devices()}"
        ) from error


def _dtype(dtype: str) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected 'float32', 'bfloat16' or 'float16'")
    return dtype
