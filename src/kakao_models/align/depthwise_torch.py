"""A depthwise convolution whose gradients in bfloat16 are not slower than in float32, for training on a CPU.

oneDNN has kernels in bfloat16 for the gradient of the maps where the stride is 1, and for that of 3 x 3 weights. PyTorch
takes several to twenty times as long for the others, 5 x 5 weights and a stride of 2, which are most of EfficientNet's. So
these are put in terms of what is fast.

Axes: B batch  C channels  H, W height, width of a map  k size of the kernel
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SMALL = 3  # the kernel whose gradient is fast


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d of one input channel for each output channel, no bias, the same stride and padding in both directions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if not self.training or x.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return super().forward(x)
        return depthwise_conv(x.to(dtype), self.weight.to(dtype), self.stride[0], self.padding[0])


def depthwise_conv(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """F.conv2d of x (B, C, H, W) with weight (C, 1, k, k), with other gradient kernels."""
    return _Depthwise.apply(x, weight, stride, padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride: int, padding: int):
        ctx.save_for_backward(x, weight)
        ctx.constants = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in ctx.saved_tensors)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx = _for_maps(gradient, x.shape, weight, *ctx.constants) if ctx.needs_input_grad[0] else None
        dw = _for_weight(gradient, x, weight, *ctx.constants) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def _for_maps(gradient, shape, weight, stride: int, padding: int) -> torch.Tensor:
    """The gradient of x (B, C, H, W): that of the result, with zeros between, convolved with the kernel turned round."""
    if stride > 1:
        size = (n + 2 * padding - weight.shape[-1] + 1 for n in shape[2:])  # of the result if the stride were 1
        spread = gradient.new_empty((*gradient.shape[:2], *size)).to(memory_format=torch.channels_last).zero_()
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, weight.shape[-1] - 1 - padding, groups=len(weight))


def _for_weight(gradient, x, weight, stride: int, padding: int) -> torch.Tensor:
    """The gradient of the kernel (C, 1, k, k), in parts of 3 x 3, which may overlap."""
    k, (height, width) = weight.shape[-1], gradient.shape[2:]
    size = min(k, _SMALL)
    starts = [min(start, k - size) for start in range(0, k, size)]
    x, small, dw = F.pad(x, (padding,) * 4), weight[:, :, :size, :size], torch.empty_like(weight)
    for i in starts:
        for j in starts:
            part = x[:, :, i : i + (height - 1) * stride + size, j : j + (width - 1) * stride + size]
            dw[:, :, i : i + size, j : j + size] = torch.ops.aten.convolution_backward(
                gradient, part, small, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], len(weight), [False, True, False]
            )[1]  # fmt: skip
    return dw
