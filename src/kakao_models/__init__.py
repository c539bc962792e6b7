"""Kakao Brain's ALIGN and COYO-ViT in PyTorch, TensorFlow and Flax, and what people do with such models.

Importing this package imports no framework: every public name is loaded on first use (PEP 562).
"""

import importlib

__version__ = "0.1.0"

# public name -> module that defines it
_MODULES = {
    "kakao_models.align.config": ("AlignConfig", "AlignTextConfig", "AlignVisionConfig"),
    "kakao_models.align.processing": ("AlignImageProcessor", "AlignProcessor"),
    "kakao_models.align.modeling_torch": ("AlignModel", "AlignTextModel", "AlignVisionModel"),
    "kakao_models.vit.config": ("ViTConfig",),
    "kakao_models.vit.processing": ("ViTImageProcessor",),
    "kakao_models.vit.modeling_torch": ("ViTForImageClassification", "ViTModel"),
    "kakao_models.inference.embedder": ("Embedder",),
    "kakao_models.inference.pipelines": ("pipeline",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_FRAMEWORKS = {"torch": "torch"}  # framework -> the extra that installs it

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'kakao_models' has no attribute {name!r}. It has: {', '.join(__all__)}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in _FRAMEWORKS:
            raise
        extra = _FRAMEWORKS[error.name]
        raise ImportError(f"{name} needs {error.name}: pip install 'kakao-models[{extra}]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
