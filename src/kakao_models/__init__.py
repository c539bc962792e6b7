"""Kakao Brain's ALIGN and COYO-ViT in PyTorch, TensorFlow and Flax, and tools to use, evaluate and train them.

Importing this package imports no framework: every public name is loaded on first use (PEP 562).
"""

from typing import TYPE_CHECKING

from kakao_models.lazy import attach

__version__ = "0.1.0"

if TYPE_CHECKING:  # the names of `_MODULES`, for type checkers and editors
    from kakao_models import evaluate as evaluate
    from kakao_models.align.classification_flax import (
        FlaxAlignForImageClassification as FlaxAlignForImageClassification,
    )
    from kakao_models.align.classification_tf import TFAlignForImageClassification as TFAlignForImageClassification
    from kakao_models.align.classification_torch import AlignForImageClassification as AlignForImageClassification
    from kakao_models.align.config import (
        AlignConfig as AlignConfig,
        AlignTextConfig as AlignTextConfig,
        AlignVisionConfig as AlignVisionConfig,
    )
    from kakao_models.align.modeling_flax import (
        FlaxAlignModel as FlaxAlignModel,
        FlaxAlignTextModel as FlaxAlignTextModel,
        FlaxAlignVisionModel as FlaxAlignVisionModel,
    )
    from kakao_models.align.modeling_tf import (
        TFAlignModel as TFAlignModel,
        TFAlignTextModel as TFAlignTextModel,
        TFAlignVisionModel as TFAlignVisionModel,
    )
    from kakao_models.align.modeling_torch import (
        AlignModel as AlignModel,
        AlignTextModel as AlignTextModel,
        AlignVisionModel as AlignVisionModel,
    )
    from kakao_models.align.processing import (
        AlignImageProcessor as AlignImageProcessor,
        AlignProcessor as AlignProcessor,
    )
    from kakao_models.inference.embedder import Embedder as Embedder
    from kakao_models.inference.pipelines import pipeline as pipeline
    from kakao_models.train.arguments import TrainArguments as TrainArguments
    from kakao_models.train.trainer import AlignTrainer as AlignTrainer, ViTTrainer as ViTTrainer
    from kakao_models.vit.config import ViTConfig as ViTConfig
    from kakao_models.vit.modeling_flax import (
        FlaxViTForImageClassification as FlaxViTForImageClassification,
        FlaxViTModel as FlaxViTModel,
    )
    from kakao_models.vit.modeling_tf import (
        TFViTForImageClassification as TFViTForImageClassification,
        TFViTModel as TFViTModel,
    )
    from kakao_models.vit.modeling_torch import (
        ViTForImageClassification as ViTForImageClassification,
        ViTModel as ViTModel,
    )
    from kakao_models.vit.processing import ViTImageProcessor as ViTImageProcessor


# module -> public names that it defines
_MODULES = {
    "kakao_models.align.config": ("AlignConfig", "AlignTextConfig", "AlignVisionConfig"),
    "kakao_models.align.processing": ("AlignImageProcessor", "AlignProcessor"),
    "kakao_models.align.modeling_torch": ("AlignModel", "AlignTextModel", "AlignVisionModel"),
    "kakao_models.align.modeling_tf": ("TFAlignModel", "TFAlignTextModel", "TFAlignVisionModel"),
    "kakao_models.align.modeling_flax": ("FlaxAlignModel", "FlaxAlignTextModel", "FlaxAlignVisionModel"),
    "kakao_models.align.classification_torch": ("AlignForImageClassification",),
    "kakao_models.align.classification_tf": ("TFAlignForImageClassification",),
    "kakao_models.align.classification_flax": ("FlaxAlignForImageClassification",),
    "kakao_models.vit.config": ("ViTConfig",),
    "kakao_models.vit.processing": ("ViTImageProcessor",),
    "kakao_models.vit.modeling_torch": ("ViTForImageClassification", "ViTModel"),
    "kakao_models.vit.modeling_tf": ("TFViTForImageClassification", "TFViTModel"),
    "kakao_models.vit.modeling_flax": ("FlaxViTForImageClassification", "FlaxViTModel"),
    "kakao_models.inference.embedder": ("Embedder",),
    "kakao_models.inference.pipelines": ("pipeline",),
    "kakao_models.train.arguments": ("TrainArguments",),
    "kakao_models.train.trainer": ("AlignTrainer", "ViTTrainer"),
}
_EXTRAS = {  # module of a framework -> its package, and the extra that installs it
    "torch": ("torch", "torch"),
    "tensorflow": ("tensorflow", "tensorflow"),
    "keras": ("tensorflow", "tensorflow"),
    "jax": ("jax", "flax"),
    "flax": ("flax", "flax"),
}

__getattr__, __dir__, __all__ = attach(__name__, _MODULES, subpackages=("evaluate",), extras=_EXTRAS)
