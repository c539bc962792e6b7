"""ViT's fused tower.

Axes: B batch  C channels  L tokens  D width  R width of the pre-logits
"""

from typing import Any

import torch
from torch import nn

from kakao_models.fused.layers import (
    Attention,
    ByteValues,
    LayerNorm,
    Linear,
    activation_of,
    check_pixels,
    constant,
)
from kakao_models.fused.weights import Weights, pair


class ViTLayer(nn.Module):
    """A layer of ViT: normalisation in front of each block."""

    def __init__(self, config: Any, weights: Weights, name: str):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        projections = tuple(f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))
        output = f"{name}.attention.output.dense"
        heads, bias = config.num_attention_heads, config.qkv_bias
        self.attention = Attention(weights, projections, output, width, heads, bias)
        self.before, self.after = (
            LayerNorm(weights, f"{name}.layernorm_{at}", width, eps) for at in ("before", "after")
        )
        self.intermediate = Linear(weights, f"{name}.intermediate.dense", inner=width, outer=inner)
        self.output = Linear(weights, f"{name}.output.dense", inner=inner, outer=width)
        self.activation = activation_of(config.hidden_act)

    def forward(self, x: torch.Tensor, first: bool) -> torch.Tensor:
        attended = self.attention(self.before(x), None, first)
        x = (x[:, :1] if first else x) + attended
        return x + self.output(self.activation(self.intermediate(self.after(x))))


class ViTTower(nn.Module):
    """ViT's backbone: pixels (B, C, H, W) → the pre-logits (B, R), or the final [CLS] (B, D) of a model without them.

    Args:
        config: `ViTConfig`.
        weights: keys begin with "vit."; a pooler is used if it exists.
        pixels: as of `AlignImageTower`.
    """

    def __init__(self, config: Any, weights: Weights, pixels: ByteValues | None = None):
        super().__init__()
        name, width = "vit.embeddings.", config.hidden_size
        self.size, self.patch = pair(config.image_size), pair(config.patch_size)
        self.channels = config.num_channels
        self.grid = self.size[0] // self.patch[0], self.size[1] // self.patch[1]
        of_patches = dict(inner=self.channels, outer=width, kernel=self.patch)
        self.patches = Linear(weights, name + "patch_embeddings.projection", **of_patches)
        self.byte_patches = None if pixels is None else _byte_patches(self.patches, *pixels)
        positions = weights(name + "position_embeddings", 1, 1 + self.grid[0] * self.grid[1], width)
        self.first_token = constant(weights(name + "cls_token", 1, 1, width) + positions[:, :1])
        self.positions = constant(positions[:, 1:])
        self.layers = nn.ModuleList(
            ViTLayer(config, weights, f"vit.encoder.layer.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = LayerNorm(weights, "vit.layernorm", width, config.layer_norm_eps)
        self.pooler, self.width = None, width
        if "vit.pooler.dense.weight" in weights:
            self.width = config.pooler_output_size or width
            self.pooler = Linear(weights, "vit.pooler.dense", inner=width, outer=self.width)
            self.pooler_act = activation_of(config.pooler_act)

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        check_pixels(pixels, self.channels, self.size)
        patches = self.byte_patches if pixels.dtype == torch.uint8 else self.patches
        (height, width), (rows, columns) = self.patch, self.grid
        x = pixels[:, :, : rows * height, : columns * width].to(patches.weight.dtype)
        x = (
            x.reshape(-1, self.channels, rows, height, columns, width)
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        x = patches(x) + self.positions  # (B, L - 1, D)
        return torch.cat([self.first_token.expand(x.shape[0], -1, -1), x], 1)  # (B, L, D)

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last hidden state (B, L, D)."""
        x = self._embedded(pixel_values)
        for layer in self.layers:
            x = layer(x, False)
        return self.norm(x)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self._embedded(pixel_values)
        for layer in self.layers[:-1]:
            x = layer(x, False)
        x = self.norm(self.layers[-1](x, True)[:, 0])
        return x if self.pooler is None else self.pooler_act(self.pooler(x))


def _byte_patches(patches: Linear, scale: torch.Tensor, zero: torch.Tensor) -> Linear:
    """Folds scale and zero into weights and bias; exact, since patches are not padded."""
    by_channel = (len(scale), -1)
    scaled = patches.weight.double().unflatten(1, by_channel) * scale.double()[None, :, None]
    shift = (scaled * zero.double()[None, :, None]).sum((1, 2))
    bias = -shift if patches.bias is None else patches.bias.double() - shift
    tensors = {"bytes.weight": scaled.flatten(1), "bytes.bias": bias}
    outer, inner = patches.weight.shape
    return Linear(Weights(tensors, lambda tensor: tensor.to(patches.weight.dtype)), "bytes", inner=inner, outer=outer)
