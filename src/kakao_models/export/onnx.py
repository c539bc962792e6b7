"""Exports for ONNX Runtime."""

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  PyTorch's exporter needs it
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from kakao_models.export.contract import SHEET, Contract, Function
from kakao_models.export.samples import RunFunction
from kakao_models.export.torch_functions import programs, quiet_converters
from kakao_models.inference.embedder import Embedder

OPSET = 18
# Bytes; one protobuf message holds no more than 2 GB, so larger weights lie in a file beside it.
_LARGEST = 1_500_000_000
_SMALL = 1024  # numbers; a smaller tensor stays as it is
_NARROW = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """A file for each function, NAME.onnx (and NAME.onnx.data where it is large), with what export.json says in its
    metadata."""
    files = {}
    for name, program in programs(embedder, contract).items():
        function = contract.functions[name]
        shapes = [tensor.shape for tensor in function.inputs]
        names = [tensor.name for tensor in function.inputs]
        proto = _converted(program, names, function.output.name, shapes[0]).model_proto
        if contract.quantize == "int8-dynamic":
            proto = _quantize_products(proto, folder)
        elif contract.quantize is not None:
            _store_weights(proto, contract.quantize)
        _describe(proto, contract)
        files[name] = f"{name}.onnx"
        _save(proto, folder / files[name])
    return files


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function out of its file, in ONNX Runtime on the CPU."""
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([function.output.name], inputs)[0]


def _converted(program: torch.export.ExportedProgram, inputs: Sequence[str], output: str, shape: list) -> Any:
    """A `torch.onnx.ONNXProgram`; inputs and output get these names, and the inputs' axes `shape`."""
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
        value.shape = type(value.shape)(shape)
    graph.outputs[0].name = output
    graph.outputs[0].shape = type(graph.outputs[0].shape)(("batch", graph.outputs[0].shape[1]))
    return made


def _describe(proto: onnx.ModelProto, contract: Contract) -> None:
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


def _save(proto: onnx.ModelProto, file: Path) -> None:
    """Writes FILE, and FILE.data where it would be too large for one message."""
    beside = proto.ByteSize() > _LARGEST
    onnx.save_model(proto, str(file), save_as_external_data=beside, location=f"{file.name}.data" if beside else None)


def _store_weights(proto: onnx.ModelProto, how: str) -> None:
    """Stores large float32 tensors in 16 bits, or matrices and kernels in 8 with a scale per row of outputs; the graph widens
    them again, so it computes in float32.
    """
    graph = proto.graph
    axes = _output_axes(graph)
    added = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=np.int64) < _SMALL:
            continue
        if how == "int8" and tensor.name not in axes:
            continue
        array, name = numpy_helper.to_array(tensor), tensor.name
        graph.initializer.remove(tensor)
        stored = f"{name}.stored"
        if how == "int8":
            axis = axes[name]
            others = tuple(i for i in range(array.ndim) if i != axis)
            scale = np.maximum(np.abs(array).max(others, keepdims=True), 1e-12) / 127
            values = np.rint(array / scale).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(values, stored))
            graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32).ravel(), f"{name}.scale"))
            added.append(helper.make_node("DequantizeLinear", [stored, f"{name}.scale"], [name], axis=axis))
        else:
            dtype = helper.tensor_dtype_to_np_dtype(_NARROW[how])
            graph.initializer.append(numpy_helper.from_array(array.astype(dtype), stored))
            added.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*added, *graph.node]  # a node comes after those whose outputs it takes
    del graph.node[:]
    graph.node.extend(nodes)


def _output_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """Tensor → the axis of outputs (or of rows, of a table), along which 8-bit weights have a scale each."""
    axes = {}
    for node in graph.node:
        if node.op_type == "Conv":
            axes[node.input[1]] = 0
        elif node.op_type == "Gather":
            axes[node.input[0]] = 0
        elif node.op_type == "MatMul":
            axes[node.input[1]] = 1
        elif node.op_type == "Gemm":
            axes[node.input[1]] = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return axes


def _quantize_products(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Matrix products in 8 bits, activations being quantised as they come: ONNX Runtime's dynamic quantisation."""
    with tempfile.TemporaryDirectory(dir=folder) as place:  # on the disk of the output: there may be gigabytes
        whole, quantized = Path(place, "whole.onnx"), Path(place, "quantized.onnx")
        _save(proto, whole)  # quantize_dynamic takes a message too, but then other numbers come out
        quantize_dynamic(
            whole, quantized, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
        )
        return onnx.load(str(quantized))
