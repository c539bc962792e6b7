"""ALIGN's fused towers.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  P projection
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kakao_models.align.blocks import BlockSpec, block_specs, output_channels, pools_by_mean, round_filters
from kakao_models.fused.layers import (
    Attention,
    ByteValues,
    Convolution,
    LayerNorm,
    Linear,
    activate,
    activation_of,
    check_pixels,
    constant,
)
from kakao_models.fused.weights import Weights


class SqueezeExcite(nn.Module):
    """Scales channels by what two small products make of their means; in place."""

    def __init__(self, weights: Weights, name: str, channels: int, inner: int, activation: str):
        super().__init__()
        self.reduce = Linear(weights, f"{name}.reduce", inner=channels, outer=inner, kernel=(1, 1))
        self.expand = Linear(weights, f"{name}.expand", inner=inner, outer=channels, kernel=(1, 1))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.expand(activate(self.reduce(x.mean((2, 3))), self.activation)).sigmoid()  # (B, C)
        return x.mul_(scale[:, :, None, None])


class Block(nn.Module):
    """An inverted-residual block of EfficientNet."""

    def __init__(self, weights: Weights, name: str, spec: BlockSpec, activation: str, eps: float):
        super().__init__()
        width, kernel = spec.expanded_channels, spec.kernel_size

        def folded(layer: str, conv: str, norm: str, *shape: int, **options) -> Convolution:
            return Convolution.folded(
                weights, f"{name}.{layer}.{conv}", f"{name}.{layer}.{norm}", shape, eps, **options
            )

        self.expand = None
        if spec.expand_ratio != 1:
            shape = width, spec.in_channels, 1, 1
            self.expand = folded("expansion", "expand_conv", "expand_bn", *shape, activation=activation)
        high = kernel // 2
        low = high - 1 if spec.stride == 2 and not spec.symmetric_padding else high
        options = dict(stride=spec.stride, pad=(low, high), groups=width, activation=activation)
        shape = width, 1, kernel, kernel
        self.depthwise = folded("depthwise_conv", "depthwise_conv", "depthwise_norm", *shape, **options)
        self.squeeze_excite = SqueezeExcite(weights, f"{name}.squeeze_excite", width, spec.se_channels, activation)
        self.project = folded("projection", "project_conv", "project_bn", spec.out_channels, width, 1, 1)
        self.skip = spec.skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.squeeze_excite(self.depthwise(y)))
        return y.add_(x) if self.skip else y


class AlignImageTower(nn.Module):
    """ALIGN's image tower and projection: pixels (B, C, H, W) → features (B, P), not normalised.

    Args:
        config: `AlignVisionConfig`.
        weights: keys begin with "vision_model.", as in a whole ALIGN.
        projection: width of the projection behind it; None if there is none.
        pixels: what `uint8` input stands for; without it only floating-point input, as the processor gives it, is taken.
    """

    def __init__(self, config: Any, weights: Weights, projection: int | None, pixels: ByteValues | None = None):
        super().__init__()
        self.channels, self.pools_by_mean = config.num_channels, pools_by_mean(config)
        eps, activation = config.batch_norm_eps, config.hidden_act
        activation_of(activation)
        name = "vision_model.embeddings."
        specs = block_specs(config)
        shape, options = (round_filters(config, 32), self.channels, 3, 3), dict(stride=2, pad=(0, 1))
        self.stem = Convolution.folded(
            weights, name + "convolution", name + "batchnorm", shape, eps, activation=activation, **options
        )
        self.byte_stem = None if pixels is None else ByteStem(self.stem, *pixels)
        self.blocks = nn.ModuleList(
            Block(weights, f"vision_model.encoder.blocks.{index}", spec, activation, eps)
            for index, spec in enumerate(specs)
        )
        self.width = output_channels(config)
        self.projection = None
        if projection is not None:
            self.projection = Linear(weights, "visual_projection", inner=self.width, outer=projection)

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last block's map (B, C', H', W')."""
        check_pixels(pixel_values, self.channels)
        x = self.byte_stem(pixel_values) if pixel_values.dtype == torch.uint8 else self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.hidden(pixel_values)
        x = x.mean((2, 3)) if self.pools_by_mean else x.amax((2, 3))
        return x if self.projection is None else self.projection(x)


class ByteStem(nn.Module):
    """A first convolution of bytes: their zero is subtracted, so that padding stays 0, and their scale is in the weights."""

    def __init__(self, stem: Convolution, scale: torch.Tensor, zero: torch.Tensor):
        super().__init__()
        weight = stem.weight
        self.convolution = Convolution(
            (weight.double() * scale.double()[None, :, None, None]).to(weight.dtype),
            stem.bias,
            stride=stem.stride,
            pad=stem.pad,
            activation=stem.activation,
        )
        self.zero = constant(zero.to(weight.dtype)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x.to(self.zero.dtype) - self.zero)


class TextLayer(nn.Module):
    """A layer of BERT: normalisation behind each sum."""

    def __init__(self, config: Any, weights: Weights, name: str):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        projections = tuple(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
        output = f"{name}.attention.output."
        self.attention = Attention(weights, projections, output + "dense", width, config.num_attention_heads)
        self.attention_norm = LayerNorm(weights, output + "LayerNorm", width, eps)
        self.intermediate = Linear(weights, f"{name}.intermediate.dense", inner=width, outer=inner)
        self.output = Linear(weights, f"{name}.output.dense", inner=inner, outer=width)
        self.output_norm = LayerNorm(weights, f"{name}.output.LayerNorm", width, eps)
        self.activation = activation_of(config.hidden_act)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, first: bool) -> torch.Tensor:
        attended = self.attention(x, mask, first)
        x = self.attention_norm((x[:, :1] if first else x) + attended)
        return self.output_norm(x + self.output(self.activation(self.intermediate(x))))


class AlignTextTower(nn.Module):
    """ALIGN's text tower and projection: token ids, mask (B, L) → features (B, P), not normalised.

    Args:
        config: `AlignTextConfig`.
        weights: of a whole ALIGN.
        projection: P.
    """

    def __init__(self, config: Any, weights: Weights, projection: int):
        super().__init__()
        name, width = "text_model.embeddings.", config.hidden_size
        tables = {"word": config.vocab_size, "position": config.max_position_embeddings}
        tables["token_type"] = config.type_vocab_size
        words, positions, types = (weights(f"{name}{t}_embeddings.weight", rows, width) for t, rows in tables.items())
        self.words, self.positions = constant(words), constant(positions + types[0])
        self.norm = LayerNorm(weights, name + "LayerNorm", width, config.layer_norm_eps)
        self.layers = nn.ModuleList(
            TextLayer(config, weights, f"text_model.encoder.layer.{index}") for index in range(config.num_hidden_layers)
        )
        self.projection = Linear(weights, "text_projection", inner=width, outer=projection)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Without a mask, every token counts."""
        length = input_ids.shape[1]
        if length > self.positions.shape[0]:
            raise ValueError(f"got texts of {length} tokens, expected at most {self.positions.shape[0]}")
        x = self.norm(F.embedding(input_ids, self.words) + self.positions[:length])
        mask = None if attention_mask is None else (attention_mask != 0)[:, None, None]  # (B, 1, 1, L)
        for layer in self.layers[:-1]:
            x = layer(x, mask, False)
        return self.projection(self.layers[-1](x, mask, True)[:, 0])
