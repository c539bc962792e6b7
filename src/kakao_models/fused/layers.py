"""Layers of the fused towers: plain operations, on tensors taken from a checkpoint by their keys.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  N heads  K width per head
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kakao_models.fused.weights import Weights, folded_norm, heads_of

ByteValues = tuple[torch.Tensor, torch.Tensor]  # scale, zero, (C,) each: a byte u stands for (u - zero) * scale

_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation_of(name: str):
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name!r} has no fused form, expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


class Convolution(nn.Module):
    """A convolution with the batch normalisation behind it folded in, padded by `low` and `high` pixels on both axes."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        stride: int = 1,
        pad: tuple[int, int] = (0, 0),
        groups: int = 1,
        activation: str | None = None,
    ):
        super().__init__()
        self.weight, self.bias = constant(weight), constant(bias)
        self.stride, self.pad, self.groups, self.activation = stride, pad, groups, activation

    @classmethod
    def folded(cls, weights: Weights, conv: str, norm: str, shape: tuple, eps: float, **options: Any) -> "Convolution":
        weight = weights(conv + ".weight", *shape)
        leaves = ("running_mean", "running_var", "weight", "bias")
        scale, shift = folded_norm(*(weights(f"{norm}.{leaf}", shape[0]).double() for leaf in leaves), eps)
        return cls(weight * scale[:, None, None, None].to(weight.dtype), shift.to(weight.dtype), **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.pad
        if low != high:
            x = F.pad(x, (low, high, low, high))
        x = F.conv2d(x, self.weight, self.bias, self.stride, low if low == high else 0, groups=self.groups)
        return x if self.activation is None else activate(x, self.activation)


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    return F.silu(x, inplace=True) if name in ("silu", "swish") else activation_of(name)(x)


class Linear(nn.Module):
    """A product and a bias; of several names, their results side by side.

    Args:
        inner, outer: width of the input, and of one result.
        kernel: of a convolution that is a product in truth.
        bias: whether there is one.
    """

    def __init__(
        self, weights: Weights, *names: str, inner: int, outer: int, kernel: tuple[int, ...] = (), bias: bool = True
    ):
        super().__init__()
        matrices = [weights(name + ".weight", outer, inner, *kernel).flatten(1) for name in names]
        self.weight = constant(torch.cat(matrices) if len(matrices) > 1 else matrices[0])
        biases = [weights(name + ".bias", outer) for name in names if bias]
        self.bias = constant(torch.cat(biases) if len(biases) > 1 else biases[0]) if biases else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, weights: Weights, name: str, width: int, eps: float):
        super().__init__()
        self.weight, self.bias = (constant(weights(f"{name}.{leaf}", width)) for leaf in ("weight", "bias"))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Self-attention. With `first`, of the first token only: (B, 1, D)."""

    def __init__(
        self,
        weights: Weights,
        projections: tuple[str, str, str],
        output: str,
        width: int,
        heads: int,
        bias: bool = True,
    ):
        super().__init__()
        self.heads = heads_of(width, heads)
        self.project = Linear(weights, *projections, inner=width, outer=width, bias=bias)
        self.output = Linear(weights, output, inner=width, outer=width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, first: bool) -> torch.Tensor:
        width = x.shape[-1]
        if first:
            w, b = self.project.weight, self.project.bias
            q = F.linear(x[:, :1], w[:width], None if b is None else b[:width])
            k, v = F.linear(x, w[width:], None if b is None else b[width:]).chunk(2, -1)
        else:
            q, k, v = self.project(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, self.heads).transpose(1, 2) for part in (q, k, v))  # (B, N, L, K)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(x.transpose(1, 2).flatten(2))


def check_pixels(pixels: torch.Tensor, channels: int, size: tuple[int, int] | None = None) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != channels or (size and pixels.shape[2:] != size):
        expected = f"(batch, {channels}, {', '.join(map(str, size or ('height', 'width')))})"
        raise ValueError(f"pixel_values must be {expected}, got {tuple(pixels.shape)}")
