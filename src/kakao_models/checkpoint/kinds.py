"""The supported kinds of models, by the `model_type` of a config.json, and what their classes are called.

Names of public classes, without a framework's prefix, so that nothing is imported here. What a kind does in its own way is
code, and stands where it is done.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class ModelKind(NamedTuple):
    config: str
    models: tuple[str, ...]  # the first, unless config.json names another of them
    processor: str  # what makes a model's inputs
    folder: str  # in this package
    preprocessing: str  # its images' part without transformers; not public, in preprocessing.py of that folder
    # Prefix of the backbone's keys in a checkpoint of the whole model; a checkpoint of only the backbone lacks it
    backbone: str = ""
    reads_texts: bool = False


MODEL_KINDS = {
    "align": ModelKind(
        "AlignConfig", ("AlignModel",), "AlignProcessor", "align", "AlignPreprocessing", reads_texts=True
    ),
    "align_vision_model": ModelKind(
        "AlignVisionConfig",
        ("AlignVisionModel", "AlignForImageClassification"),
        "AlignImageProcessor",
        "align",
        "AlignPreprocessing",
        backbone="vision_model.",
    ),
    "vit": ModelKind(
        "ViTConfig",
        ("ViTModel", "ViTForImageClassification"),
        "ViTImageProcessor",
        "vit",
        "ViTPreprocessing",
        backbone="vit.",
    ),
}
_TEXT_TOWER = "align_text_model"


def kind_of(model_type: Any, name: Any) -> ModelKind:
    """The kind of a checkpoint or model that is called `name`.

    Raises:
        ValueError: another kind of model.
    """
    if model_type not in MODEL_KINDS:
        known = ", ".join(map(repr, MODEL_KINDS))
        hint = ". AlignTextModel.from_pretrained loads only a text tower" if model_type == _TEXT_TOWER else ""
        raise ValueError(f"{name}: model_type is {model_type!r}, expected one of {known}{hint}")
    return MODEL_KINDS[model_type]


def classes_of(model_type: Any) -> tuple[str, ...]:
    """Names of the classes that load a model_type, without a framework's prefix; none for other models."""
    if model_type == _TEXT_TOWER:
        return ("AlignTextModel",)
    return MODEL_KINDS[model_type].models if model_type in MODEL_KINDS else ()


def whole_keys(tensors: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The entries of a checkpoint by their keys in a checkpoint of the whole model, whether or not it holds the backbone
    alone."""
    prefix = MODEL_KINDS[model_type].backbone
    alone = not any(key.startswith(prefix) for key in tensors)
    return {prefix + key: value for key, value in tensors.items()} if alone else dict(tensors)


def model_class_name(config: Mapping, name: Any) -> str:
    """The class for a checkpoint that is called `name`, by the content of its config.json.

    Raises:
        ValueError: another kind of model.
    """
    default, *others = kind_of(config.get("model_type"), name).models
    named = config.get("architectures")
    return next((other for other in others if isinstance(named, list) and other in named), default)
