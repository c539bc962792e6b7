"""Chooses the framework that runs a model: the one that is named, that of the model object, or the first that is installed."""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from kakao_models.lazy import is_installed

if TYPE_CHECKING:
    from kakao_models.inference.engine import Engine

# framework → module of its engine, class, the package it needs, the extra that installs it
_ENGINES = {
    "torch": ("kakao_models.inference.engine_torch", "TorchEngine", "torch", "torch"),
    "tf": ("kakao_models.inference.engine_tf", "KerasEngine", "tensorflow", "tensorflow"),
    "flax": ("kakao_models.inference.engine_flax", "FlaxEngine", "flax", "flax"),
}
FRAMEWORKS = tuple(_ENGINES)
_ALIASES = {"pt": "torch", "pytorch": "torch", "tensorflow": "tf", "keras": "tf", "jax": "flax"}


def engine_class(framework: str | None, model: Any) -> "type[Engine]":
    """The engine for a model object, or for one that is to be loaded.

    Args:
        framework: "torch", "tf" or "flax", or as transformers calls it ("pt", "jax"); by default that of the object, or
            the first of these that is installed.
        model: a model of any of them, or a name or path.

    Raises:
        ValueError: no such framework, or a model object of another one.
        ImportError: the framework is not installed; the message says what installs it.
    """
    framework = _ALIASES.get(framework or "", framework)
    if framework is not None and framework not in _ENGINES:
        engine = framework in ("onnx", "onnxruntime", "openvino", "compile")
        hint = (
            f". {framework} is an engine of PyTorch models: write engine={framework.removesuffix('runtime')!r}"
            if engine
            else ""
        )
        near = difflib.get_close_matches(str(framework).lower(), [*_ENGINES, *_ALIASES], n=1)
        hint = hint or (f"; did you mean {_ALIASES.get(near[0], near[0])!r}?" if near else "")
        raise ValueError(f"framework: got {framework!r}, expected one of {', '.join(_ENGINES)}{hint}")
    of_model = _framework_of(model)
    if framework and of_model and framework != of_model:
        raise ValueError(
            f"framework={framework!r}, but the model is a {type(model).__name__} ({of_model!r}): leave framework out, or pass "
            "the name of a checkpoint"
        )
    chosen = framework or of_model or next((name for name in _ENGINES if is_installed(_ENGINES[name][2])), "torch")
    module, name, package, extra = _ENGINES[chosen]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in (package, "keras", "jax"):
            raise
        raise ImportError(f"framework={chosen!r} needs {error.name}: pip install 'kakao-models[{extra}]'") from error


def _framework_of(model: Any) -> str | None:
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return next(
        (name for name, package in (("tf", "keras"), ("flax", "flax"), ("torch", "torch")) if package in packages), None
    )
