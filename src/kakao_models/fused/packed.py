"""A tower on a CPU: convolutions as single calls of oneDNN, weights laid out for them once.

PyTorch lays the weights of a convolution out anew in every call, and runs its activation as a pass of its own over the
largest arrays of the model. oneDNN does both inside the convolution; PyTorch's compiler calls it through
`torch.ops.mkldnn`, and so does this. Where a build of PyTorch has no oneDNN, or another version no such call, the tower
stays as it is.

A convolution with a kernel of one pixel is a product of matrices, and runs as one: of 9 x 9 pixels and thousands of
channels, as at the end of B7, oneDNN's convolution takes twelve times as long as its product (measured on an AMD EPYC).
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from kakao_models.fused.layers import Convolution

# activation -> oneDNN's name of it, and its constants
_FUSED = {
    None: ("none", []),
    "silu": ("swish", []),
    "swish": ("swish", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}


class PackedConvolution(nn.Module):
    """A `Convolution` of images that are channels last."""

    def __init__(self, source: Convolution):
        super().__init__()
        low, high = self.pad = source.pad
        self.same = [low, low] if low == high else [0, 0]
        self.stride, self.groups, self.bias = [source.stride] * 2, source.groups, source.bias
        self.activation, self.constants = _FUSED[source.activation]
        weight = source.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, self.same, self.stride, [1, 1], self.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.pad
        if low != high:
            x = F.pad(x, (low, high, low, high))
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.same, self.stride, [1, 1], self.groups, self.activation, self.constants, ""
        )


class PackedProduct(nn.Module):
    """A `Convolution` with a kernel of one pixel, of images that are channels last."""

    def __init__(self, source: Convolution):
        super().__init__()
        self.bias = source.bias
        self.activation, self.constants = _FUSED[source.activation]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(source.weight.detach().flatten(1).contiguous(), None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)  # a view: the channels are last in memory
        x = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, self.constants, "")
        return x.permute(0, 3, 1, 2)


def packed(tower: nn.Module) -> nn.Module:
    """A copy of a tower that shares all weights but the convolutions'; the tower itself where nothing can be gained."""
    convolutions = [module for module in tower.modules() if isinstance(module, Convolution)]
    products = [convolution for convolution in convolutions if _is_product(convolution)]
    usual = all(convolution.activation in _FUSED for convolution in convolutions)
    if not (usual and products and _works(PackedConvolution, convolutions[0]) and _works(PackedProduct, products[0])):
        return tower
    return _copied(tower)


def _is_product(convolution: Convolution) -> bool:
    plain = convolution.stride == 1 and convolution.groups == 1 and convolution.pad == (0, 0)
    return plain and convolution.weight.shape[2:] == (1, 1)


def _copied(module: nn.Module) -> nn.Module:
    if isinstance(module, Convolution):
        return (PackedProduct if _is_product(module) else PackedConvolution)(module)
    twin = copy.copy(module)
    twin._modules = {name: child and _copied(child) for name, child in module._modules.items()}
    return twin


@torch.inference_mode()
def _works(kind: type[nn.Module], convolution: Convolution) -> bool:
    """Whether oneDNN's calls exist, and give the same outputs as PyTorch's convolution."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight = convolution.weight
    x = torch.linspace(-1, 1, weight.shape[1] * convolution.groups * 81, dtype=weight.dtype).reshape(1, -1, 9, 9)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        found, expected = kind(convolution)(x), convolution(x)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    rounding = 1e-4 if weight.dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= rounding * expected.abs().max())
