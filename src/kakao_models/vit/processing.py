"""Image processor of ViT."""

from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from kakao_models.pixels.processor import ImageProcessor
from kakao_models.vit.preprocessing import ViTPreprocessing

from .config import ViTConfig


class ViTImageProcessor(ViTPreprocessing, ImageProcessor):
    """Pictures for ViT: resized to a square whatever their shape, in -1..1.

    Reads and writes the `preprocessor_config.json` of transformers' `ViTImageProcessor`, with one field more:
    `preprocessing="tf"` for the original programs' own resizing (see `ImageProcessor`). That of the fine-tuned models is
    `ViTImageProcessor(preprocessing="tf", size=384)`; that of the pretrained one
    `ViTImageProcessor(preprocessing="tf", size={"shortest_edge": 256}, resample=4, do_center_crop=True, crop_size=224)`.
    The originals also rounded the result to bfloat16, which is left to the model.
    """

    transformers_type = "ViTImageProcessor"


class RegisteredViTImageProcessor(ViTImageProcessor):
    """The same, under a name of its own for the Auto classes.

    They find registered classes by name too, and a dozen other models' files name `ViTImageProcessor`: those are to go
    on loading transformers' class, which can use torchvision.
    """


# Not AutoImageProcessor.register: that loads transformers' class, which without torchvision complains.
IMAGE_PROCESSOR_MAPPING.register(
    ViTConfig, dict.fromkeys(("pil", "torchvision"), RegisteredViTImageProcessor), exist_ok=True
)
