"""Runs a Keras model for the `Embedder`: arrays in, float32 arrays out.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kakao_models.checkpoint.keras import TFPreTrainedModel
from kakao_models.inference.engine import Engine

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"framework='tf' needs Keras with the backend tensorflow, got {keras.backend.backend()}: unset KERAS_BACKEND"
    )

_DTYPES = ("float32", "bfloat16", "float16")


class KerasEngine(Engine):
    """A model in Keras on TensorFlow, always in evaluation mode; the interface of `TorchEngine`.

    What runs is a graph, made once for each size of image and for any size of batch. XLA is left out: on CPUs
    TensorFlow's own convolutions are faster, and every new shape would be compiled for minutes.

    A model object is used as it is: `device="auto"` and `dtype=None` leave it where and what it is.

    Args:
        device: "auto" (TensorFlow's choice: the first GPU, else the CPU), "cpu", "cuda", "gpu", "cuda:1", or the
            number of a GPU.
        dtype: "float32", "bfloat16" or "float16"; of a checkpoint by default float32.
    """

    prefix = "TF"

    def __init__(self, model: TFPreTrainedModel, *, device: str | int = "auto", dtype: str | None = None):
        self.check_kind(model)
        if dtype is not None and _dtype(dtype) != model.variable_dtype:
            raise ValueError(
                f"dtype {dtype!r}: the model has {model.variable_dtype}; load it with from_pretrained(..., dtype={dtype!r})"
            )
        self.model = model
        self.config = model.config
        self._device = None if device == "auto" else _device(device)
        self._graphs: dict[tuple, Callable] = {}

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike, *, device: str | int = "auto", dtype: str | None = None, **where: Any
    ) -> "KerasEngine":
        with tf.device(None if device == "auto" else _device(device)):
            model = cls.load_model(name_or_path, _dtype(dtype or "float32"), where)
        return cls(model, device=device)

    @property
    def device(self) -> str:
        return self._device or ("GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0")

    @property
    def dtype(self) -> str:
        return self.model.variable_dtype

    def _pooled_width(self) -> int | None:
        pooler = getattr(self.model.backbone(), "pooler", None)
        return None if pooler is None else pooler.dense.units

    @property
    def temperature(self) -> float:
        return float(self.model.temperature)

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._run(self._features, pixel_values.astype(np.float32, copy=False))

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._run(self._hidden, pixel_values.astype(np.float32, copy=False))

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        return self._run(self._logits, pixel_values.astype(np.float32, copy=False))

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._run(self._texts, input_ids.astype(np.int32), attention_mask.astype(np.int32))

    def _features(self, pixels):
        if self.reads_texts:
            return self.model.get_image_features(pixels, return_dict=True, training=False).pooler_output
        output = self.model.backbone()(pixels, return_dict=True, training=False)
        return output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output

    def _hidden(self, pixels):
        return self.model.backbone()(pixels, return_dict=True, training=False).last_hidden_state

    def _logits(self, pixels):
        return self.model(pixels, return_dict=True, training=False).logits

    def _texts(self, input_ids, attention_mask):
        output = self.model.get_text_features(input_ids, attention_mask, return_dict=True, training=False)
        return output.pooler_output

    def _run(self, function: Callable, *arrays: np.ndarray) -> np.ndarray:
        """`function` in a graph for batches of any size; of images the other sizes are fixed, of texts none are."""
        shapes = [(None, None) if array.ndim == 2 else (None, *array.shape[1:]) for array in arrays]
        key = (function, *shapes)
        if key not in self._graphs:
            specs = [tf.TensorSpec(shape, array.dtype) for shape, array in zip(shapes, arrays)]
            self._graphs[key] = tf.function(lambda *x: tf.cast(function(*x), tf.float32), input_signature=specs)
        with tf.device(self._device):
            return self._graphs[key](*map(tf.convert_to_tensor, arrays)).numpy()


def _device(name: str | int) -> str:
    if isinstance(name, int):  # as transformers' pipelines count: GPUs, and -1 is the processor
        name = f"gpu:{name}" if name >= 0 else "cpu"
    kind, _, number = str(name).replace("cuda", "gpu").upper().partition(":")
    devices = tf.config.list_logical_devices(kind)
    expected = f"{kind}:{number or 0}"
    if not any(device.name.endswith(expected) for device in devices):
        there = ", ".join(device.name.removeprefix("/device:").lower() for device in tf.config.list_logical_devices())
        raise ValueError(f"device {name!r} can't be used: TensorFlow sees {there}. Use one of these, or 'auto'")
    return expected


def _dtype(name) -> str:
    dtype = str(getattr(name, "name", name)).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {name!r}: expected {', '.join(map(repr, _DTYPES))}")
    return dtype
