"""Backends that run a tower: PyTorch, its compiler, OpenVINO, ONNX Runtime.

A runner is made of a tower and called with arrays: bytes (B, H, W, C) or floats (B, C, H, W) of images, ids and mask
(B, L) of texts. float32 (B, D) comes out.
"""

import copy
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.fused.graph import Graph
from kakao_models.inference.padding import pad_rows, padded_length, padded_size
from kakao_models.lazy import is_installed

if TYPE_CHECKING:
    import torch

ENGINES = ("torch", "compile", "openvino", "onnx")
# These run a graph of a tower, on the CPU and without PyTorch; the first starts in the shorter time
GRAPH_ENGINES = ("onnx", "openvino")
PACKAGES = {"torch": "torch", "compile": "torch", "openvino": "openvino", "onnx": "onnxruntime"}


class EngineError(ValueError):
    """Raised for an engine that is not available here, or whose outputs differ from the model's."""


def missing_package(engine: str) -> str | None:
    """A package that the engine needs and that is not installed."""
    name = PACKAGES[engine]
    return None if is_installed(name) else name


def make_runner(engine: str, part: Any, device: Any, dtype: str) -> Callable[..., np.ndarray]:
    """A runner of a tower, for batches of any size.

    Args:
        engine: of `ENGINES`.
        part: a tower of `fused.towers`, in float32; for `GRAPH_ENGINES` one of `fused.graph_towers`.
        device: a `torch.device`; OpenVINO and ONNX Runtime run on the CPU.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        EngineError: this engine can't do that here; the message says what to do.
    """
    check_engine(engine, device, dtype)
    runners = {"torch": TorchRunner, "compile": CompiledRunner}
    if engine in runners:
        return runners[engine](part, device, dtype)
    return (OpenVINORunner if engine == "openvino" else OnnxRunner)(part, dtype)


def check_engine(engine: str, device: Any, dtype: str) -> None:
    """Raises an EngineError for what an engine can't do here; the message says what to do."""
    if name := missing_package(engine):
        raise EngineError(f"engine={engine!r} needs {name}: pip install 'kakao-models[{engine}]'")
    if engine not in GRAPH_ENGINES:
        return
    if not str(device).startswith("cpu"):
        raise EngineError(f"engine={engine!r} runs on the CPU, not on {device}: use engine='compile' there")
    if engine == "onnx" and dtype != "float32":
        raise EngineError(f"dtype={dtype!r}: ONNX Runtime runs in float32 only on a CPU; use engine='openvino'")
    if engine == "openvino" and dtype == "float16":
        raise EngineError("dtype='float16' is not supported by OpenVINO on a CPU: use 'bfloat16' or 'float32'")


class TorchRunner:
    """A tower in PyTorch: on a CPU with oneDNN's fused convolutions, else as it is; images are channels last."""

    _drops_masks = True  # a mask that hides nothing

    def __init__(self, tower: "torch.nn.Module", device: "torch.device", dtype: str):
        import torch

        self._torch, self._device, self._dtype = torch, device, getattr(torch, dtype)
        tower = copy.deepcopy(tower) if self._dtype != next(tower.parameters()).dtype else tower
        tower = tower.to(device, self._dtype)
        if device.type == "cpu":
            from kakao_models.fused.packed import packed

            tower = packed(tower)
        elif device.type == "cuda":
            tower = tower.to(memory_format=torch.channels_last)
        self._tower = tower

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        if arrays[0].ndim == 2 and self._drops_masks and arrays[1].all():
            arrays = arrays[:1]
        with self._torch.inference_mode():
            return self._tower(*map(self._tensor, arrays)).float().cpu().numpy()

    def _tensor(self, array: np.ndarray):
        torch = self._torch
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        elif self._device.type != "cpu":
            tensor = tensor.to(self._device)
        if array.dtype == np.uint8:
            return tensor.permute(0, 3, 1, 2)  # channels last as it is
        if array.ndim == 4:
            return tensor.to(self._dtype, memory_format=torch.channels_last)
        return tensor


# What the user chose. Later PyTorch itself may have set it, to a folder of temporary files.
_INDUCTOR = os.environ.get("TORCHINDUCTOR_CACHE_DIR")


class CompiledRunner(TorchRunner):
    """A tower compiled by `torch.compile`: with weights packed into the code on a CPU, with CUDA graphs and tuned
    kernels on a GPU. What is compiled is kept in the user's cache, so that the next process only looks it up.

    Every shape is compiled once: batches are padded to powers of two, or to a larger size that has been compiled already,
    and texts to multiples of 16 tokens.
    """

    _drops_masks = False  # it would be compiled twice

    def __init__(self, tower: "torch.nn.Module", device: "torch.device", dtype: str):
        import torch

        if _INDUCTOR is None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "inductor")
        self._torch, self._device, self._dtype = torch, device, getattr(torch, dtype)
        tower = copy.deepcopy(tower).to(device, self._dtype)
        if device.type == "cpu":
            self._tower = torch.compile(tower, dynamic=False, options={"freezing": True})
        else:
            self._tower = torch.compile(tower.to(memory_format=torch.channels_last), dynamic=False, mode="max-autotune")
        self._sizes: dict[tuple, set[int]] = {}

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        count = len(arrays[0])
        if arrays[0].ndim == 2:
            length = arrays[0].shape[1]
            more = padded_length(length, len(self._tower.positions)) - length
            arrays = tuple(np.pad(array, ((0, 0), (0, more))) for array in arrays)
        size = padded_size(count, self._sizes.setdefault(arrays[0].shape[1:], set()))
        return super().__call__(*(pad_rows(array, size) for array in arrays))[:count]


@functools.cache
def openvino_core() -> Any:
    """The process's one `openvino.Core`, never dropped.

    A core gives the thread that compiles with it a stack for signal handlers (an mmap of its own), which it unmaps when
    the last that uses it is gone. Where that happens in another thread, the first keeps the address, and its next signal,
    Ctrl-C among them, ends the process as a segmentation fault.
    """
    import openvino

    return openvino.Core()


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU, without converting each number to float32 and back."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINORunner:
    """A tower in OpenVINO, on the CPU.

    Of ALIGN's image tower, dtype "mixed" computes the blocks on maps of an eighth of the image's side and larger in
    float32, the rest in bfloat16: the rest has most of the products and a third of bfloat16's error.
    """

    def __init__(self, graph: Graph, dtype: str):
        core = openvino_core()
        if dtype in ("bfloat16", "mixed") and not computes_bfloat16():
            raise EngineError(f"dtype={dtype!r}: OpenVINO does not compute in bfloat16 on this CPU")
        options = {"INFERENCE_NUM_THREADS": threads(), "PERFORMANCE_HINT": "LATENCY"}
        with graph.readable() as source:
            model = core.read_model(source)
            parts = zip(_halves(model), ("f32", "bf16")) if dtype == "mixed" else [(model, _PRECISIONS[dtype])]
            self._parts = [
                core.compile_model(part, "CPU", options | {"INFERENCE_PRECISION_HINT": precision})
                for part, precision in parts
            ]
        self._alone = threading.Lock()

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        values = _inputs(arrays)
        with self._alone:  # a second thread's call would be refused
            for part in self._parts:
                values = [part(values, share_inputs=True)[0]]
        return np.asarray(values[0], np.float32)


_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def _halves(model: Any) -> tuple[Any, Any]:
    """An image tower of ALIGN as two `openvino.Model`s, one for the maps up to an eighth of the image's side."""
    from openvino import Model
    from openvino.op import Parameter

    strided = [node for node in model.get_ordered_ops() if _strides(node)]
    if len(strided) < 4:
        raise EngineError("dtype='mixed' is for ALIGN's image towers only")
    node = strided[3].input_value(0).get_node()  # of the depthwise convolution that makes maps of a sixteenth
    while node.get_type_name() != "Convolution":  # back through the activation, whose bounds are constants
        inputs = (value.get_node() for value in node.input_values())
        node = next(before for before in inputs if before.get_type_name() != "Constant")
    cut = node.input_value(0)
    front = Model([cut], model.get_parameters()).clone()
    begin = Parameter(cut.get_element_type(), cut.get_partial_shape())
    for consumer in cut.get_target_inputs():
        consumer.replace_source_output(begin.output(0))
    return front, Model(model.get_results(), [begin])


def _strides(node: Any) -> bool:
    """Whether it is a convolution that halves its map."""
    return "Convolution" in node.get_type_name() and max(node.get_attributes()["strides"]) > 1


class OnnxRunner:
    """A tower in ONNX Runtime, on the CPU, in float32."""

    def __init__(self, graph: Graph, dtype: str):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3
        with graph.readable() as source:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._names = list(graph.inputs)

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        return self._session.run(None, dict(zip(self._names, _inputs(arrays))))[0]


def _inputs(arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    if arrays[0].dtype == np.uint8:
        return [np.ascontiguousarray(arrays[0].transpose(0, 3, 1, 2))]
    return list(arrays)


def threads() -> int:
    """Number of threads that PyTorch would use: OMP_NUM_THREADS, else the cores that this process may use."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(setting) if setting.isdigit() and setting != "0" else cores


def cache_folder() -> Path:
    """Folder of compiled engines: kakao-models/engines in the user's cache (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kakao-models", "engines")
