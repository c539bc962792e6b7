"""OpenVINO models of the towers.

Axes: B batch, of any size  C channels  H, W height, width  L tokens, of any number
"""

from typing import Any

import torch
from torch import nn

from kakao_models.fused.graphs import TOWER_INPUTS, TOWER_OUTPUT, exported, quiet_converters


def to_openvino(tower: nn.Module, what: str, image_size: tuple[int, int] | None = None, *, uint8: bool = False) -> Any:
    """An `openvino.Model` of a tower of `fused.towers`; arguments as of `export.graphs.exported`.

    `openvino.save_model(model, "image.xml")` writes it (`compress_to_fp16=False` keeps its numbers as they are),
    `openvino.Core().compile_model(model, "CPU")` runs it. Inputs and output go by the names in `graphs.TOWER_INPUTS` and
    `graphs.TOWER_OUTPUT`.

    Raises:
        ImportError: OpenVINO is not installed; the message says what installs it.
    """
    program = exported(tower, what, image_size, uint8=uint8)
    shapes = [[-1, -1] if what == "text" else [-1, *value.shape[1:]] for value in program.example_inputs[0]]
    return converted(program, dict(zip(TOWER_INPUTS[what], shapes)), TOWER_OUTPUT[what])


def converted(program: torch.export.ExportedProgram, inputs: dict[str, list[int]], output: str) -> Any:
    """An `openvino.Model`; inputs by name with their shapes, -1 where a size is free."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ImportError(f"OpenVINO models need {error.name}: pip install 'kakao-models[openvino]'") from error
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
