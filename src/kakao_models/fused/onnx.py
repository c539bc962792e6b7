"""ONNX models of the towers.

Axes: B batch, of any size  C channels  H, W height, width  L tokens, of any number
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kakao_models.fused.graphs import TOWER_INPUTS, TOWER_OUTPUT, exported, quiet_converters

OPSET = 18


def to_onnx(tower: nn.Module, what: str, image_size: tuple[int, int] | None = None, *, uint8: bool = False) -> Any:
    """A `torch.onnx.ONNXProgram` of a tower of `fused.towers`; arguments as of `export.graphs.exported`.

    `program.save("image.onnx")` writes it, with the weights inside as long as they are below 2 GB;
    `program.model_proto` is its message. Inputs and output go by the names in `graphs.TOWER_INPUTS` and `graphs.TOWER_OUTPUT`.

    Raises:
        ImportError: a package that writes ONNX is not installed; the message says what installs it.
    """
    shape = ("batch", "length") if what == "text" else None
    return converted(exported(tower, what, image_size, uint8=uint8), TOWER_INPUTS[what], TOWER_OUTPUT[what], shape)


def converted(
    program: torch.export.ExportedProgram, inputs: Sequence[str], output: str, shape: tuple | None = None
) -> Any:
    """A `torch.onnx.ONNXProgram`; inputs and output get these names, and the inputs' axes `shape`, or the first one "batch"."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"ONNX models need {error.name}: pip install 'kakao-models[onnx]'") from error
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that torchvision is missing, but nothing needs it
    try:
        with quiet_converters():
            made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
    finally:
        log.setLevel(level)
    graph = made.model.graph
    for name, value in zip(inputs, graph.inputs):
        value.name = name
        value.shape = type(value.shape)(shape or ("batch", *value.shape[1:]))
    graph.outputs[0].name = output
    graph.outputs[0].shape = type(graph.outputs[0].shape)(("batch", graph.outputs[0].shape[1]))
    return made
