"""The input of a conversion, in any format: tensors with the keys and layout of the original checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kakao_models.align.config import AlignConfig, AlignVisionConfig
from kakao_models.checkpoint.tensors import LazyTensors
from kakao_models.checkpoint.weightmap import Slot
from kakao_models.pixels.processor import ImageProcessor
from kakao_models.vit.config import ViTConfig


@dataclass(frozen=True)
class SourceCheckpoint:
    """A checkpoint of the original code, or one that is presented with the keys and layout of such a checkpoint."""

    family: str  # "align", "vit", or "efficientnet" for only ALIGN's image tower
    config: AlignConfig | ViTConfig | AlignVisionConfig
    slots: list[Slot]
    tensors: LazyTensors
    key_layout: str | None = None  # of ViT's keys, see TPU_KEY_LAYOUTS
    weights: str = "raw"  # or "average": which were taken
    has_averages: bool = False
    dtypes: Mapping[str, int] = field(default_factory=dict)  # dtype in the files, if known → number of tensors
    skipped: dict[str, int] = field(default_factory=dict)  # kind of key → how many were left out
    files: list[Path] = field(default_factory=list)
    kind: str = "the original code's checkpoint"
    names: Mapping[str, str] = field(default_factory=dict)  # key → its name in the files, where that is another
    # Written beside the weights: the source's own, or the original implementation's; None for a folder without one
    image_processor: ImageProcessor | None = None
    tokenizer: Path | None = None  # folder with the tokenizer of the source
    # Fields of the configuration that the source does not show and the caller did not state
    assumed: tuple[str, ...] = ()
    # Fields of the model card; all three original implementations published under this license.
    license: Mapping[str, str] = field(default_factory=lambda: {"license": "apache-2.0"})
