"""How ViT's pictures are prepared; see `ViTImageProcessor`."""

from kakao_models.data.preparation import Preparation


class ViTPreparation(Preparation):
    size = 224
