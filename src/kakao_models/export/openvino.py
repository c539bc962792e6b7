"""Exports for OpenVINO, in the layout of OpenVINO Model Server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from kakao_models.export.contract import SHEET, Contract, Function
from kakao_models.export.samples import RunFunction
from kakao_models.export.torch_functions import programs, quiet_converters
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.runners import openvino_core

SERVER = "config.json"  # of OpenVINO Model Server
VERSION = "1"  # the folder of a version, which the server looks for under a model's own


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """NAME/1/model.xml and model.bin for each function, with what export.json says in their rt_info, and config.json, which
    names them to OpenVINO Model Server."""
    files = {}
    for name, program in programs(embedder, contract).items():
        function = contract.functions[name]
        shapes = {t.name: [-1 if isinstance(size, str) else size for size in t.shape] for t in function.inputs}
        model = _converted(program, shapes, function.output.name)
        if contract.quantize == "int8":
            model = _in_8_bits(model)
        model.set_rt_info(contract.described_json(), ["kakao_models", SHEET])
        if labels := contract.metadata.get("labels"):  # where OpenVINO's Model API looks
            model.set_rt_info(" ".join(label.replace(" ", "_") for label in labels), ["model_info", "labels"])
        files[name] = f"{name}/{VERSION}/model.xml"
        (folder / name / VERSION).mkdir(parents=True)
        openvino.save_model(model, folder / files[name], compress_to_fp16=contract.quantize == "float16")
    served = [{"config": {"name": name, "base_path": f"/models/{name}"}} for name in files]
    (folder / SERVER).write_text(json.dumps({"model_config_list": served}, indent=1) + "\n")
    return files


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function out of its file, in OpenVINO on the CPU, in float32."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs would compute in bfloat16
    compiled = openvino_core().compile_model(path, "CPU", options)
    return lambda inputs: np.asarray(compiled(inputs)[function.output.name])


def _converted(program: torch.export.ExportedProgram, inputs: dict[str, list[int]], output: str) -> Any:
    """An `openvino.Model`; inputs by name with their shapes, -1 where a size is free."""
    with quiet_converters():
        model = openvino.convert_model(program)
    shapes = {}
    for (name, shape), port in zip(inputs.items(), model.inputs, strict=True):
        port.get_tensor().set_names({name})
        shapes[name] = openvino.PartialShape(shape)
    model.outputs[0].get_tensor().set_names({output})
    model.reshape(shapes)
    model.validate_nodes_and_infer_types()
    return model


def _in_8_bits(model: Any) -> Any:
    """Matrices and kernels in 8 bits with a scale per row of outputs, by NNCF; they are widened when they are used."""
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise ImportError(f"--quantize int8 needs {error.name}: pip install 'kakao-models[export]'") from error
    nncf.set_log_level("ERROR")
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
