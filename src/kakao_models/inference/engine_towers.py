"""Runs a checkpoint as fast as this machine can for the `Embedder`: the fused towers, each in the engine that was asked for or chosen.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from kakao_models import __version__
from kakao_models.inference.engine import Engine
from kakao_models.inference.engine_torch import torch_device
from kakao_models.inference.model_tensors import ModelTensors
from kakao_models.inference.runners import cache_folder, make_runner


class EngineChoice(NamedTuple):
    """The backend that runs a tower, and its dtype."""

    engine: str
    dtype: str

    def __str__(self) -> str:
        kind = {"mixed": "float32 and bfloat16"}.get(self.dtype, self.dtype)
        return self.engine if kind == "float32" else f"{self.engine} in {kind}"


class TowerEngine(Engine):
    """A model as towers of `fused`. Results are those of the weights when this was made.

    Args:
        source: the model.
        device: of PyTorch; as of `TorchEngine`.
        pixels: (scale, zero) of `ImageProcessor.byte_values`, if pixels are given as bytes.
        choices: "image" and "text" → what runs the tower.
        keep: whether what engines make is kept in the user's cache.
    """

    def __init__(
        self,
        source: ModelTensors,
        choices: dict[str, EngineChoice],
        *,
        device: str | int = "auto",
        pixels: tuple[np.ndarray, np.ndarray] | None = None,
        keep: bool = True,
    ):
        self.source, self.choices, self._device = source, choices, torch_device(device)
        self.checks: list[dict] = []  # what the self-check measured, see `inference.selfcheck`
        self._pixels = None if pixels is None else (torch.from_numpy(pixels[0]), torch.from_numpy(pixels[1]))
        # All that what engines make depends on, and the numbers that they give
        about = [source.fingerprint, __version__, None if pixels is None else [part.tolist() for part in pixels]]
        self.fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        self._folder = cache_folder() / self.fingerprint[:32] if keep else None
        self._runners: dict[tuple, Callable] = {}
        if any(choice.engine == "torch" for choice in choices.values()):
            self._towers  # noqa: B018  a checkpoint that does not fit is said now

    @cached_property
    def _towers(self) -> dict[str, torch.nn.Module]:
        return self.source.towers(self._pixels)

    @property
    def takes_bytes(self) -> bool:
        return self._pixels is not None

    @property
    def model(self) -> Any:
        """The model object, loaded when it is first asked for; it plays no part in what runs."""
        return self.source.plain.model

    @property
    def config(self) -> Any:
        return self.source.config

    @property
    def reads_texts(self) -> bool:
        return self.source.reads_texts

    @property
    def max_positions(self) -> int:
        return self.source.fields.text_config.max_position_embeddings

    @property
    def vocabulary(self) -> int:
        return self.source.fields.text_config.vocab_size

    @property
    def classifies(self) -> bool:
        return self.source.classifier is not None

    @property
    def dim(self) -> int:
        return self.source.dim

    @property
    def temperature(self) -> float:
        return self.source.temperature

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.choices["image"].dtype
        return torch.float32 if dtype == "mixed" else getattr(torch, dtype)

    @property
    def description(self) -> str:
        return ", ".join(f"{what}: {choice}" for what, choice in self.choices.items())

    def run(self, what: str, choice: EngineChoice, *arrays: np.ndarray) -> np.ndarray:
        """A tower's features (B, D), by any choice.

        Raises:
            EngineError: the engine is not available here.
        """
        like = arrays[0]
        # PyTorch takes every size and both kinds of pixels; the others are made for one of each.
        kind = (
            (what, choice) if choice.engine == "torch" or like.ndim == 2 else (what, choice, like.shape[1:], like.dtype)
        )
        if kind not in self._runners:
            folder = self._folder

            def tower() -> torch.nn.Module:
                return self._towers[what]

            self._runners[kind] = make_runner(choice.engine, tower, what, arrays, self._device, choice.dtype, folder)
            if not any(chosen.engine == "torch" for chosen in self.choices.values()):
                self.__dict__.pop("_towers", None)  # what was made of them has weights of its own
        return self._runners[kind](*arrays)

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.run("image", self.choices["image"], pixel_values)

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.run("text", self.choices["text"], input_ids, attention_mask)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        weight, bias = self._classifier
        return torch.nn.functional.linear(torch.from_numpy(self.features(pixel_values)), weight, bias).numpy()

    @cached_property
    def _classifier(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.source.classifier is not None, "the Embedder asks for `classifies` first"
        return self.source.classifier

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        """Always computed in PyTorch, whichever backend runs the towers."""
        pixels = torch.from_numpy(pixel_values)
        if pixels.dtype == torch.uint8:
            pixels = pixels.permute(0, 3, 1, 2)
        with torch.inference_mode():
            tower: Any = self._towers["image"].to(self._device)
            return tower.hidden(pixels.to(self._device)).float().cpu().numpy()
