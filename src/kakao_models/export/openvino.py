"""OpenVINO models of the towers.

Axes: B batch, of any size  C channels  H, W height, width  L tokens, of any number
"""

from typing import Any

from torch import nn

from kakao_models.export.graphs import INPUTS, OUTPUT, exported, quiet


def to_openvino(tower: nn.Module, what: str, image_size: tuple[int, int] | None = None, *, uint8: bool = False) -> Any:
    """An `openvino.Model` of a tower of `inference.fused.towers`; arguments as of `export.graphs.exported`.

    `openvino.save_model(model, "image.xml")` writes it (`compress_to_fp16=False` keeps its numbers as they are),
    `openvino.Core().compile_model(model, "CPU")` runs it. Inputs and output go by the names in `graphs.INPUTS` and
    `graphs.OUTPUT`.

    Raises:
        ImportError: OpenVINO is not installed; the message says what installs it.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ImportError(f"OpenVINO models need {error.name}: pip install 'kakao-models[openvino]'") from error
    program = exported(tower, what, image_size, uint8=uint8)
    with quiet():
        model = openvino.convert_model(program)
    shapes = {}
    for name, port, value in zip(INPUTS[what], model.inputs, program.example_inputs[0]):
        port.get_tensor().set_names({name})
        fixed = [-1, -1] if what == "text" else [-1, *value.shape[1:]]
        shapes[name] = openvino.PartialShape(fixed)
    model.outputs[0].get_tensor().set_names({OUTPUT[what]})
    model.reshape(shapes)
    model.validate_nodes_and_infer_types()
    return model
