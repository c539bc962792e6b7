"""A tower on a processor: convolutions as single calls of oneDNN, weights laid out for them once.

PyTorch lays the weights of a convolution out anew in every call, and runs its activation as a pass of its own over the
largest arrays of the model. oneDNN does both inside the convolution; PyTorch's compiler calls it through
`torch.ops.mkldnn`, and so does this. Where a build of PyTorch has no oneDNN, or another version no such call, the tower
stays as it is.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from kakao_models.inference.fused import Convolution

_FUSED = {None: "none", "silu": "swish", "swish": "swish", "relu": "relu"}


class PackedConvolution(nn.Module):
    """A `Convolution` of images that are channels last."""

    def __init__(self, source: Convolution):
        super().__init__()
        low, high = self.pad = source.pad
        self.same = [low, low] if low == high else [0, 0]
        self.stride, self.groups, self.bias = [source.stride] * 2, source.groups, source.bias
        self.activation = _FUSED[source.activation]
        weight = source.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, self.same, self.stride, [1, 1], self.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.pad
        if low != high:
            x = F.pad(x, (low, high, low, high))
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.same, self.stride, [1, 1], self.groups, self.activation, [], ""
        )


def packed(tower: nn.Module) -> nn.Module:
    """A copy of a tower that shares all weights but the convolutions'; the tower itself where nothing can be gained."""
    convolutions = [module for module in tower.modules() if isinstance(module, Convolution)]
    if not convolutions or not _works(convolutions[0]) or any(c.activation not in _FUSED for c in convolutions):
        return tower
    return _copied(tower)


def _copied(module: nn.Module) -> nn.Module:
    if isinstance(module, Convolution):
        return PackedConvolution(module)
    twin = copy.copy(module)
    twin._modules = {name: child and _copied(child) for name, child in module._modules.items()}
    return twin


@torch.inference_mode()
def _works(convolution: Convolution) -> bool:
    """Whether these calls are there, and give what PyTorch's own convolution gives."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight = convolution.weight
    x = torch.linspace(-1, 1, weight.shape[1] * convolution.groups * 81, dtype=weight.dtype).reshape(1, -1, 9, 9)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        found, wanted = PackedConvolution(convolution)(x), convolution(x)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    rounding = 1e-4 if weight.dtype == torch.float32 else 5e-2
    return bool((found - wanted).abs().max() <= rounding * wanted.abs().max())
