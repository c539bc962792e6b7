"""Chooses the framework that runs a model: the one that is named, that of the model object, or the first that is installed."""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from kakao_models.inference.runners import GRAPH_ENGINES, missing_package
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


def light_engine(framework: str | None, engine: str | None) -> str | None:
    """The engine that runs a checkpoint without PyTorch: "onnx", "openvino", or "auto" for the faster of these; None where a
    framework is to run it.

    Arguments are those of `Embedder`. An engine is used unasked only where no framework is installed.
    """
    if _ALIASES.get(framework or "", framework) not in (None, "torch"):
        return None
    if engine in GRAPH_ENGINES:
        return engine
    if framework is not None or is_installed("torch"):
        return None
    fast = starting_fast()
    if engine == "auto":
        return fast and engine
    return None if engine or any(is_installed(package) for _, _, package, _ in _ENGINES.values()) else fast


def starting_fast() -> str | None:
    """The installed engine that runs checkpoints without PyTorch and starts in the shortest time, if there is one."""
    return next((name for name in GRAPH_ENGINES if missing_package(name) is None), None)


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
        hint = f". {framework} is an engine: write engine={framework.removesuffix('runtime')!r}" if engine else ""
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
    light = ", or without a framework 'kakao-models[onnx]'" if chosen == "torch" and framework is None else ""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in (package, "keras", "jax"):
            raise
        raise ImportError(
            f"framework={chosen!r} needs {error.name}: pip install 'kakao-models[{extra}]'{light}"
        ) from error


def _framework_of(model: Any) -> str | None:
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return next(
        (name for name, package in (("tf", "keras"), ("flax", "flax"), ("torch", "torch")) if package in packages), None
    )
