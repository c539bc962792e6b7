"""ONNX models of the towers, and exports for ONNX Runtime.

Axes: B batch, of any size  C channels  H, W height, width  L tokens, of any number
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kakao_models.export.contract import Contract
from kakao_models.export.exporter import SHEET, Place
from kakao_models.export.graphs import INPUTS, OUTPUT, exported, quiet
from kakao_models.export.samples import Run
from kakao_models.export.torch_functions import programs
from kakao_models.inference.embedder import Embedder

OPSET = 18


def to_onnx(tower: nn.Module, what: str, image_size: tuple[int, int] | None = None, *, uint8: bool = False) -> Any:
    """A `torch.onnx.ONNXProgram` of a tower of `inference.fused.towers`; arguments as of `export.graphs.exported`.

    `program.save("image.onnx")` writes it, with the weights inside as long as they are below 2 GB;
    `program.model_proto` is its message. Inputs and output go by the names in `graphs.INPUTS` and `graphs.OUTPUT`.

    Raises:
        ImportError: a package that writes ONNX is not installed; the message says what installs it.
    """
    shape = ("batch", "length") if what == "text" else None
    return _converted(exported(tower, what, image_size, uint8=uint8), INPUTS[what], OUTPUT[what], shape)


def _converted(
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
    log.setLevel(logging.ERROR)  # it warns that torchvision is not there, which nothing needs
    try:
        with quiet():
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


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, Place]:
    """A file for each function, NAME.onnx (and NAME.onnx.data where it is large), with what export.json says in its
    metadata."""
    files = {}
    for name, program in programs(embedder, contract).items():
        function = contract.functions[name]
        shapes = [tensor.shape for tensor in function.inputs]
        made = _converted(program, [tensor.name for tensor in function.inputs], function.output.name, shapes[0])
        from kakao_models.export import onnx_weights  # once it is known that onnx is installed

        proto = made.model_proto
        if contract.quantize == "int8-dynamic":
            proto = onnx_weights.quantize_products(proto, folder)
        elif contract.quantize is not None:
            onnx_weights.store_weights(proto, contract.quantize)
        _describe(proto, contract)
        files[name] = Place(f"{name}.onnx")
        onnx_weights.save(proto, folder / files[name].file)
    return files


def load(folder: Path, contract: Contract, name: str) -> Run:
    """Runs a function out of its file, in ONNX Runtime on the processor."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(folder / f"{name}.onnx"))
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    output = contract.functions[name].output.name
    return lambda inputs: session.run([output], inputs)[0]


def _describe(proto: Any, contract: Contract) -> None:
    """Replaces what the exporter notes of itself, as the names of PyTorch's modules, by what a caller needs."""
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]
    described = contract.described()
    properties = {SHEET: described} | {key: described[key] for key in ("labels", "temperature") if key in described}
    for key, value in properties.items():
        proto.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    proto.producer_name, proto.producer_version = "kakao-models", described["versions"]["kakao-models"]
