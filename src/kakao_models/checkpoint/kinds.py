"""The kinds of models there are, by the `model_type` of a config.json, which is also the name of their folder, and what
their classes are called.

Names of public classes, without a framework's prefix, so that nothing is imported here. What a kind does in its own way is
code, and stands where it is done.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class ModelKind(NamedTuple):
    config: str
    models: tuple[str, ...]  # the first, unless config.json names another of them
    processor: str  # what makes a model's inputs
    preprocessing: str  # its images' part without transformers; not public, in preprocessing.py of the model's folder
    reads_texts: bool = False


MODEL_KINDS = {
    "align": ModelKind("AlignConfig", ("AlignModel",), "AlignProcessor", "AlignPreprocessing", reads_texts=True),
    "vit": ModelKind("ViTConfig", ("ViTModel", "ViTForImageClassification"), "ViTImageProcessor", "ViTPreprocessing"),
}


def kind_of(model_type: Any, name: Any) -> ModelKind:
    """The kind of a checkpoint or model that is called `name`.

    Raises:
        ValueError: another kind of model.
    """
    if model_type not in MODEL_KINDS:
        raise ValueError(f"{name}: model_type is {model_type!r}, wanted {' or '.join(map(repr, MODEL_KINDS))}")
    return MODEL_KINDS[model_type]


def model_class_name(config: Mapping, name: Any) -> str:
    """The class for a checkpoint that is called `name`, by the content of its config.json.

    Raises:
        ValueError: another kind of model.
    """
    default, *others = kind_of(config.get("model_type"), name).models
    named = config.get("architectures")
    return next((other for other in others if isinstance(named, list) and other in named), default)
