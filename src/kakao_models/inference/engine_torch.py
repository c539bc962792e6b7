"""Runs an unmodified PyTorch model for the `Embedder`: arrays in, float32 arrays out.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from kakao_models.inference.engine import Engine


class TorchEngine(Engine):
    """A model in PyTorch, always in evaluation mode.

    A model object is used as it is: `device="auto"` and `dtype=None` leave it where and what it is, and its training
    mode is put back after each batch.

    Args:
        device: "auto" (CUDA, else Apple's GPU, else the CPU), a name PyTorch knows, or a CUDA number.
        dtype: "float32", "bfloat16" or "float16"; of a checkpoint by default float32.
    """

    def __init__(self, model: nn.Module, *, device: str | int = "auto", dtype: str | None = None):
        self.check_kind(model)
        if device != "auto" or dtype is not None:
            model = model.to(
                device=torch_device(device) if device != "auto" else None, dtype=torch_dtype(dtype) if dtype else None
            )
        self.model = model
        self.config = model.config

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike, *, device: str | int = "auto", dtype: str | None = None, **where: Any
    ) -> "TorchEngine":
        with _quiet():
            model = cls.load_model(name_or_path, torch_dtype(dtype or "float32"), where)
        return cls(model.eval(), device=str(torch_device(device)))

    @property
    def classifies(self) -> bool:
        return hasattr(self.model, "classifier") and self.config.num_labels > 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def _pooled_width(self) -> int | None:
        pooler = getattr(self.model.base_model, "pooler", None)
        return None if pooler is None else pooler.dense.out_features

    @property
    def temperature(self) -> float:
        return self.model.temperature.item()

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        with self._evaluating():
            pixels = self._to_device(pixel_values)
            if self.reads_texts:
                return _to_numpy(self.model.get_image_features(pixels, return_dict=True).pooler_output)
            output = self.model.base_model(pixels, return_dict=True)
            pooled = output.pooler_output
            return _to_numpy(output.last_hidden_state[:, 0] if pooled is None else pooled)

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        with self._evaluating():
            tower = self.model.vision_model if self.reads_texts else self.model.base_model
            return _to_numpy(tower(self._to_device(pixel_values), return_dict=True).last_hidden_state)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        with self._evaluating():
            return _to_numpy(self.model(self._to_device(pixel_values), return_dict=True).logits)

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with self._evaluating():
            ids, mask = (torch.from_numpy(array).to(self.model.device) for array in (input_ids, attention_mask))
            output = self.model.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True)
            return _to_numpy(output.pooler_output)

    def _to_device(self, pixel_values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixel_values).to(self.model.device, self.model.dtype)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' progress bar for weights, which are mapped in a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def torch_device(name: str | int) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if isinstance(name, int):  # transformers' pipelines count CUDA devices, and -1 is the processor
        name = f"cuda:{name}" if name >= 0 else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # AssertionError where PyTorch is built without it
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {name!r} can't be used ({reason}): {_usable_devices()}") from error
    return device


def _usable_devices() -> str:
    """The devices of this machine that PyTorch can use, and what makes it use others."""
    names = ["'auto'", "'cpu'"]
    names += [f"'cuda:{number}'" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    names += ["'mps'"] if torch.backends.mps.is_available() else []
    hint = "" if len(names) > 2 else f". PyTorch {torch.__version__} finds no GPU here"
    return f"on this machine write {' or '.join([', '.join(names[:-1]), names[-1]])}{hint}"


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype {name!r}: expected 'float32', 'bfloat16' or 'float16'")
    return dtype
