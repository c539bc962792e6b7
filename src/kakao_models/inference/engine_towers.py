"""Runs a checkpoint as fast as this machine can for the `Embedder`: each fused tower in the requested or chosen engine.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import hashlib
import json
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kakao_models.fused.graph import Graph
from kakao_models.inference.engine import Engine
from kakao_models.inference.model_tensors import ModelTensors
from kakao_models.inference.runners import GRAPH_ENGINES, EngineError, check_engine, make_runner

if TYPE_CHECKING:
    import torch


class EngineChoice(NamedTuple):
    """The backend that runs a tower, and its dtype."""

    engine: str
    dtype: str

    def __str__(self) -> str:
        kind = {"mixed": "float32 and bfloat16"}.get(self.dtype, self.dtype)
        return self.engine if kind == "float32" else f"{self.engine} in {kind}"


class TowerEngine(Engine):
    """A model as towers of `fused`. Results are those of the weights when this was made.

    PyTorch is needed where it runs a tower, or where the source is not light.

    Args:
        source: the model.
        device: of PyTorch; as of `TorchEngine`. A light source runs on the CPU.
        pixels: (scale, zero) of `ImageProcessor.byte_values`, if pixels are given as bytes.
        choices: "image" and "text" → what runs the tower.
    """

    def __init__(
        self,
        source: ModelTensors,
        choices: dict[str, EngineChoice],
        *,
        device: str | int = "auto",
        pixels: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.source, self.choices, self._pixels = source, choices, pixels
        self.checks: list[dict] = []  # what the self-check measured, see `inference.selfcheck`
        self._runners: dict[tuple, Callable] = {}
        self._making = threading.Lock()
        self._graphs: dict[tuple[str, bool], Graph] = {}  # those that no runner was made of yet
        if source.light:
            self._device = _cpu(device)
        else:
            from kakao_models.inference.engine_torch import torch_device

            self._device = torch_device(device)
        for choice in choices.values():
            check_engine(choice.engine, self._device, choice.dtype)
        if any(choice.engine == "torch" for choice in choices.values()):
            self._towers  # noqa: B018  a checkpoint that does not fit is said now
        elif choices:
            self._build_graphs("image", self.takes_bytes)

    @cached_property
    def fingerprint(self) -> str:
        """Text that changes with everything that determines the embeddings, but for the engine."""
        about = [self.source.fingerprint, None if self._pixels is None else [part.tolist() for part in self._pixels]]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @cached_property
    def _towers(self) -> "dict[str, torch.nn.Module]":
        import torch

        pixels = self._pixels
        return self.source.towers(
            None if pixels is None else (torch.from_numpy(pixels[0]), torch.from_numpy(pixels[1]))
        )

    def _build_graphs(self, what: str, in_bytes: bool) -> None:
        hidden = what == "hidden"
        built = self.source.graphs(self._pixels if in_bytes else None, hidden=hidden)
        if hidden:
            built = {"hidden": built["image"]}
        self._graphs |= {(name, name != "text" and in_bytes): graph for name, graph in built.items()}

    def _part(self, what: str, engine: str, in_bytes: bool) -> Any:
        """The tower or the graph for a runner."""
        if engine not in GRAPH_ENGINES:
            return self._towers[what]
        if (what, in_bytes) not in self._graphs:
            self._build_graphs(what, in_bytes)
        return self._graphs.pop((what, in_bytes))

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
    def fields(self) -> Any:
        return self.source.fields

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
        return self.source.classifies

    @property
    def dim(self) -> int:
        return self.source.dim

    @property
    def temperature(self) -> float:
        return self.source.temperature

    @property
    def device(self) -> Any:
        """A `torch.device`, or "cpu" where PyTorch plays no part."""
        return self._device

    @property
    def dtype(self) -> Any:
        """A `torch.dtype`, or its name where PyTorch plays no part."""
        dtype = self.choices["image"].dtype
        dtype = "float32" if dtype == "mixed" else dtype
        if self.source.light:
            return dtype
        import torch

        return getattr(torch, dtype)

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
        with self._making:  # several threads may use one `Embedder`
            if kind not in self._runners:
                part = self._part(what, choice.engine, like.dtype == np.uint8)
                self._runners[kind] = make_runner(choice.engine, part, self._device, choice.dtype)
                self._forget_towers()
        return self._runners[kind](*arrays)

    def settle(self, choices: dict[str, EngineChoice]) -> None:
        """Sets what runs the towers, and lets go of what else was tried."""
        self.choices = choices
        self._runners = {kind: runner for kind, runner in self._runners.items() if choices.get(kind[0]) == kind[1]}
        self._graphs = {}
        self._forget_towers()

    def _forget_towers(self) -> None:
        """Lets go of PyTorch's towers, unless something may still be made of them: runners have weights of their own."""
        if self.choices and not any(choice.engine == "torch" for choice in self.choices.values()):
            self.__dict__.pop("_towers", None)

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.run("image", self.choices["image"], pixel_values)

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.run("text", self.choices["text"], input_ids, attention_mask)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        weight, bias = self.source.classifier
        return self.features(pixel_values) @ weight.T + bias

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        """Computed in float32; in PyTorch, unless the source is light."""
        if self.source.light:
            engine = self.choices["image"].engine
            return self.run("hidden", EngineChoice(engine, "float32"), pixel_values)
        import torch

        pixels = torch.from_numpy(pixel_values)
        if pixels.dtype == torch.uint8:
            pixels = pixels.permute(0, 3, 1, 2)
        with torch.inference_mode():
            tower: Any = self._towers["image"].to(self._device)
            return tower.hidden(pixels.to(self._device)).float().cpu().numpy()


def _cpu(device: str | int) -> str:
    """The device of a light source.

    Raises:
        EngineError: another one was requested.
    """
    if device in ("auto", "cpu", -1):
        return "cpu"
    raise EngineError(
        f"device={device!r}: ONNX Runtime and OpenVINO run models on the CPU here. Leave device out, or install PyTorch "
        "(pip install 'kakao-models[torch]') and use engine='torch' or 'compile'"
    )
