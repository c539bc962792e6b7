"""Configuration of ViT, one for all frameworks. Every config.json of a Hub checkpoint loads unchanged."""

from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig

from kakao_models.checkpoint.config import StrictConfig, as_pair

# (layers, width, heads); the inner layer has four times the width. Ti and S: Touvron et al. 2020; B and L: Dosovitskiy
# et al. 2020. The released COYO-ViT is L with patches of 16.
VIT_SIZES = {"ti": (12, 192, 3), "s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16)}


@strict
class ViTConfig(StrictConfig, transformers.ViTConfig):
    r"""
    Configuration of a ViT such as [kakaobrain/vit-large-patch16-384](https://huggingface.co/kakaobrain/vit-large-patch16-384).
    Fields are those of `transformers.ViTConfig`, where `hidden_act` and `layer_norm_eps` default to the original's
    tanh-approximated GELU and 1e-6 (every config.json that transformers wrote states both), and:

    representation_size (`int`, *optional*):
        Width of the pre-logits, a Dense layer with tanh between the class token and the head, as the pretraining model
        has it (1024). `None` or 0: there is none. On disk it is `vit.pooler.dense`, so setting it sets
        `pooler_output_size` and `pooler_act` too, and transformers' `ViTModel` computes the same. Its
        `ViTForImageClassification` has no such layer: a head on top of the pre-logits is beyond it.
    """

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    representation_size: int | None = None

    def __setattr__(self, name, value):
        if name == "representation_size":
            value = value or None
        super().__setattr__(name, value)
        if name == "representation_size" and value:
            self.pooler_output_size, self.pooler_act = value, "tanh"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row of an image of the configured size."""
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @classmethod
    def vit(cls, size: str, **kwargs: Any) -> "ViTConfig":
        """A published size: "ti", "s", "b" or "l". The pretraining model is
        `ViTConfig.vit("l", representation_size=1024, num_labels=21841)`, a fine-tuned one `ViTConfig.vit("l", image_size=384)`.
        """
        if size not in VIT_SIZES:
            raise ValueError(f"ViT has no size {size!r}, expected one of {', '.join(VIT_SIZES)}")
        layers, width, heads = VIT_SIZES[size]
        sizes = dict(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
        )
        return cls(**(sizes | kwargs))


AutoConfig.register("vit", ViTConfig, exist_ok=True)
