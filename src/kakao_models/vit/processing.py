"""Image processor of ViT."""

from kakao_models.pixels.processor import ImageProcessor
from kakao_models.vit.preprocessing import ViTPreprocessing


class ViTImageProcessor(ViTPreprocessing, ImageProcessor):
    """Prepares images for ViT: resizes them to a square regardless of their shape, and scales to -1..1.

    Reads and writes the `preprocessor_config.json` of transformers' `ViTImageProcessor`, or of its `CLIPImageProcessor` where
    images are cropped (transformers 4's `ViTImageProcessor` does not crop). One field is added: `preprocessing="tf"` for the
    resizing of the original implementations (see `ImageProcessor`). The fine-tuned models use
    `ViTImageProcessor(preprocessing="tf", size=384)`; the pretrained one uses
    `ViTImageProcessor(preprocessing="tf", size={"shortest_edge": 256}, resample=4, do_center_crop=True, crop_size=224)`.
    The originals also rounded the result to bfloat16, which is left to the model.
    """

    @property
    def transformers_type(self) -> str:
        crops = self.do_center_crop or "shortest_edge" in self.size
        return "CLIPImageProcessor" if crops else "ViTImageProcessor"
