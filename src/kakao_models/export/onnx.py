"""Exports for ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

from kakao_models.export.contract import SHEET, Contract, Function
from kakao_models.export.samples import RunFunction
from kakao_models.export.torch_functions import programs
from kakao_models.fused.onnx import converted
from kakao_models.inference.embedder import Embedder


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """A file for each function, NAME.onnx (and NAME.onnx.data where it is large), with what export.json says in its
    metadata."""
    files = {}
    for name, program in programs(embedder, contract).items():
        function = contract.functions[name]
        shapes = [tensor.shape for tensor in function.inputs]
        made = converted(program, [tensor.name for tensor in function.inputs], function.output.name, shapes[0])
        from kakao_models.export import onnx_weights  # once it is known that onnx is installed

        proto = made.model_proto
        if contract.quantize == "int8-dynamic":
            proto = onnx_weights.quantize_products(proto)
        elif contract.quantize is not None:
            onnx_weights.store_weights(proto, contract.quantize)
        _describe(proto, contract)
        files[name] = f"{name}.onnx"
        onnx_weights.save(proto, folder / files[name])
    return files


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function out of its file, in ONNX Runtime on the CPU."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([function.output.name], inputs)[0]


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
