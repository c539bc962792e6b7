"""OpenVINO models of the towers, and exports in the layout of OpenVINO Model Server.

Axes: B batch, of any size  C channels  H, W height, width  L tokens, of any number
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kakao_models.export.contract import Contract
from kakao_models.export.exporter import SHEET, Place
from kakao_models.export.graphs import INPUTS, OUTPUT, exported, quiet
from kakao_models.export.samples import Run
from kakao_models.export.torch_functions import programs
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.runners import openvino_core

SERVER = "config.json"  # of OpenVINO Model Server
VERSION = "1"  # the folder of a version, which the server looks for under a model's own


def to_openvino(tower: nn.Module, what: str, image_size: tuple[int, int] | None = None, *, uint8: bool = False) -> Any:
    """An `openvino.Model` of a tower of `inference.fused.towers`; arguments as of `export.graphs.exported`.

    `openvino.save_model(model, "image.xml")` writes it (`compress_to_fp16=False` keeps its numbers as they are),
    `openvino.Core().compile_model(model, "CPU")` runs it. Inputs and output go by the names in `graphs.INPUTS` and
    `graphs.OUTPUT`.

    Raises:
        ImportError: OpenVINO is not installed; the message says what installs it.
    """
    program = exported(tower, what, image_size, uint8=uint8)
    shapes = [[-1, -1] if what == "text" else [-1, *value.shape[1:]] for value in program.example_inputs[0]]
    return _converted(program, dict(zip(INPUTS[what], shapes)), OUTPUT[what])


def _converted(program: torch.export.ExportedProgram, inputs: dict[str, list[int]], output: str) -> Any:
    """An `openvino.Model`; inputs by name with their shapes, -1 where a size is free."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ImportError(f"OpenVINO models need {error.name}: pip install 'kakao-models[openvino]'") from error
    with quiet():
        model = openvino.convert_model(program)
    shapes = {}
    for (name, shape), port in zip(inputs.items(), model.inputs, strict=True):
        port.get_tensor().set_names({name})
        shapes[name] = openvino.PartialShape(shape)
    model.outputs[0].get_tensor().set_names({output})
    model.reshape(shapes)
    model.validate_nodes_and_infer_types()
    return model


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, Place]:
    """NAME/1/model.xml and model.bin for each function, with what export.json says in their rt_info, and config.json, which
    names them to OpenVINO Model Server."""
    files = {}
    for name, program in programs(embedder, contract).items():
        function = contract.functions[name]
        shapes = {t.name: [-1 if isinstance(size, str) else size for size in t.shape] for t in function.inputs}
        model = _converted(program, shapes, function.output.name)
        import openvino  # which _converted has found

        if contract.quantize == "int8":
            model = _in_8_bits(model)
        described = contract.described()
        model.set_rt_info(json.dumps(described, ensure_ascii=False), ["kakao_models", SHEET])
        if "labels" in described:  # where OpenVINO's Model API looks
            model.set_rt_info(
                " ".join(label.replace(" ", "_") for label in described["labels"]), ["model_info", "labels"]
            )
        files[name] = Place(f"{name}/{VERSION}/model.xml")
        (folder / name / VERSION).mkdir(parents=True)
        openvino.save_model(model, folder / files[name].file, compress_to_fp16=contract.quantize == "float16")
    served = [{"config": {"name": name, "base_path": f"/models/{name}"}} for name in files]
    (folder / SERVER).write_text(json.dumps({"model_config_list": served}, indent=1) + "\n")
    return files


def load(folder: Path, contract: Contract, name: str) -> Run:
    """Runs a function out of its file, in OpenVINO on the processor, in float32."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors would compute in bfloat16
    compiled = openvino_core().compile_model(folder / name / VERSION / "model.xml", "CPU", options)
    output = contract.functions[name].output.name
    return lambda inputs: np.asarray(compiled(inputs)[output])


def _in_8_bits(model: Any) -> Any:
    """Matrices and kernels in 8 bits with a scale per row of outputs, by NNCF; they are widened when they are used."""
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise ImportError(f"--quantize int8 needs {error.name}: pip install 'kakao-models[export]'") from error
    nncf.set_log_level("ERROR")
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
