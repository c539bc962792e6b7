"""Preprocessing of ViT's images; see `ViTImageProcessor`."""

from kakao_models.pixels.preprocessing import Preprocessing


class ViTPreprocessing(Preprocessing):
    size = 224
