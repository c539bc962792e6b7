"""Batch normalisation over ghost batches and SiLU in one autograd function, for training on a CPU.

Autograd would keep two maps, what comes into the norm and what comes into the SiLU; this keeps the first and makes the
second again. All goes in blocks of samples that stay in the processor's cache, and writes into one new map: on a CPU,
fetching maps from memory, and getting fresh memory for them from the system, takes longer than computing them. Sums of
blocks are added in float64; PyTorch's own kernel for channels-last maps adds 16 x 145 x 145 numbers in float32 one by one,
and is wrong by 1e-4.

In bfloat16, which is coarser than that, PyTorch's kernels are what is used, in half the time: they widen numbers in
registers, where blocks would be copied to float32 and back.

Axes: B batch  C channels  H, W height, width of a map  G ghost batches
"""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kakao_models.checkpoint.torch import wide_dtype

_BLOCK = 2**19  # numbers in a block, for each thread


def ghost_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, silu: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalises samples j, j + groups, j + 2 * groups, ... together, for each j below `groups`; then SiLU, if expected.

    Computed in at least float32, regardless of the types of x and the parameters.

    Returns:
        The result (B, C, H, W), and each group's means and biased variances, (G, C), through which no gradient goes.
    """
    function = _GhostNorm if x.dtype == wide_dtype(x) else _NarrowGhostNorm
    return function.apply(x, weight.to(wide_dtype(x)), bias.to(wide_dtype(x)), groups, eps, silu)


class _GhostNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups: int, eps: float, silu: bool):
        y = torch.empty_like(x)
        means, variances = torch.empty((2, groups, len(weight)), dtype=wide_dtype(x))  # (G, C)
        for j in range(groups):
            blocks = list(_blocks(j, groups, x, y))
            numbers = sum(part.numel() for part, _ in blocks) / len(weight)
            means[j] = sum(_sum(part) for part, _ in blocks) / numbers
            mean = _per_channel(means[j])
            work = _like(blocks[0][0], mean.dtype)
            squares = (torch.sub(part, mean, out=work[: len(part)]).square_() for part, _ in blocks)
            variances[j] = sum(map(_sum, squares)) / numbers
            scale, shift = _affine(means[j], variances[j], weight, bias, eps)
            for part, out in blocks:
                made = out if out.dtype == work.dtype else work[: len(part)]
                torch.addcmul(shift, part, scale, out=made)
                if silu:
                    F.silu(made, inplace=True)
                if made is not out:
                    out.copy_(made)
        ctx.save_for_backward(x, weight, bias, means, variances)
        ctx.constants = groups, eps, silu
        ctx.mark_non_differentiable(means, variances)
        return y, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        x, weight, bias, means, variances = ctx.saved_tensors
        groups, eps, silu = ctx.constants
        dx = torch.empty_like(x)
        for_weight, for_bias = torch.zeros((2, len(weight)), dtype=torch.float64)
        for j in range(groups):
            blocks = list(_blocks(j, groups, x, gradient, dx))
            numbers = sum(part.numel() for part, *_ in blocks) / len(weight)
            scale, shift = _affine(means[j], variances[j], weight, bias, eps)
            mean, inverse = _per_channel(means[j]), (variances[j].double() + eps).rsqrt()
            work, dy = (_like(blocks[0][0], mean.dtype) for _ in range(2))
            total = product = 0.0  # of dy, and of dy times x - mean; dy is before SiLU
            for part, own, out in blocks:
                made, before = dy[: len(part)], work[: len(part)]
                if silu:
                    torch.addcmul(shift, part, scale, out=before)
                    torch.ops.aten.silu_backward.grad_input(own.to(made.dtype), before, grad_input=made)
                else:
                    made.copy_(own)
                total = total + _sum(made)
                out.copy_(made)
                product = product + _sum(torch.sub(part, mean, out=before).mul_(made))
            for_weight += product * inverse
            for_bias += total
            # d x = scale * (dy - total / numbers - (x - mean) * inverse² * product / numbers)
            slope = -scale.double().flatten() * inverse.square() * product / numbers
            start = -scale.double().flatten() * total / numbers - slope * means[j].double()
            slope, start = (_per_channel(value.to(mean.dtype)) for value in (slope, start))
            for part, _, out in blocks:
                made = torch.addcmul(start, part, slope, out=work[: len(part)])
                out.copy_(made.addcmul_(out, scale))
        return dx, for_weight.to(weight.dtype), for_bias.to(bias.dtype), None, None, None


class _NarrowGhostNorm(torch.autograd.Function):
    """The same for maps of 16 bits; parameters and statistics have 32."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups: int, eps: float, silu: bool):
        means, variances = torch.empty((2, groups, len(weight)))  # (G, C)
        parts = []
        for j in range(groups):
            means[j], variances[j] = _statistics([part for (part,) in _blocks(j, groups, x)])
            y = F.batch_norm(x[j::groups], means[j], variances[j], weight, bias, eps=eps)
            parts.append(F.silu(y, inplace=True) if silu else y)
        ctx.save_for_backward(x, weight, bias, means, variances)
        ctx.constants = groups, eps, silu
        ctx.mark_non_differentiable(means, variances)
        return _interleaved(parts, x), means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        x, weight, bias, means, variances = ctx.saved_tensors
        groups, eps, silu = ctx.constants
        parts, sums = [], torch.zeros((2, len(weight)))  # of the gradients of weight and bias
        for j in range(groups):
            part, dy = x[j::groups], gradient[j::groups]
            if silu:
                before = F.batch_norm(part, means[j], variances[j], weight, bias, eps=eps)
                dy = torch.ops.aten.silu_backward.grad_input(dy, before, grad_input=before)
            inverse = (variances[j] + eps).rsqrt()
            dx, *gradients = torch.ops.aten.native_batch_norm_backward(
                dy, part, weight, None, None, means[j], inverse, True, eps, [True] * 3
            )
            parts.append(dx)
            sums += torch.stack(gradients)
        return _interleaved(parts, x), *sums, None, None, None


def _statistics(blocks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and biased variances (C,) of all blocks together: of each by PyTorch, and these as Chan et al. 1979."""
    channels = blocks[0].shape[1]
    unused = torch.empty(2, channels)  # running statistics; without them, those of a block come in the type of x
    means, variances = (
        torch.stack(values).double()
        for values in zip(*(torch.batch_norm_update_stats(block, *unused, 0.0) for block in blocks))
    )  # (blocks, C)
    share = torch.tensor([[len(block)] for block in blocks], dtype=torch.float64)
    share /= share.sum()
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _interleaved(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The whole batch, of which parts[j] is samples j, j + G, j + 2 * G, ..."""
    if len(parts) == 1:
        return parts[0]
    whole = torch.empty_like(like)
    for j, part in enumerate(parts):
        whole[j :: len(parts)] = part
    return whole


def _blocks(j: int, groups: int, *maps: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of some samples of group j at a time, the same of each of `maps`."""
    size = max(1, _BLOCK * torch.get_num_threads() // maps[0][0].numel())
    return zip(*(x[j::groups].split(size) for x in maps))


def _like(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An empty one; `torch.empty_like` forgets the layout of every n-th sample."""
    last = block[:1].is_contiguous(memory_format=torch.channels_last) and not block[:1].is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(block.shape, dtype=dtype, memory_format=layout)


def _sum(block: torch.Tensor) -> torch.Tensor:
    return block.sum((0, 2, 3), dtype=wide_dtype(block)).double()  # (C,)


def _per_channel(value: torch.Tensor) -> torch.Tensor:
    return value.view(-1, 1, 1)


def _affine(mean, variance, weight, bias, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C, 1, 1) that normalise a map."""
    scale = weight.double() * (variance.double() + eps).rsqrt()
    shift = bias.double() - mean.double() * scale
    return _per_channel(scale.to(mean.dtype)), _per_channel(shift.to(mean.dtype))
