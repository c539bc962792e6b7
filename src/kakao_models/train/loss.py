"""Losses of the global batch of images and texts, in tiles: no (N, N) matrix is ever held.

ALIGN's contrastive loss is a softmax over all samples. SigLIP's sigmoid loss (Zhai et al. 2023) decides of each pair on its own.

The logits S = I Tᵀ / t are computed tile by tile; a running log-sum-exp (Milakov & Gimelshein 2018) gives the softmax's
denominators of rows and columns in one pass, and backward computes the tiles again. What remains is linear in N:
label smoothing needs only the sum of all logits, which is (Σ I) · (Σ T) / t.

Axes: N samples of the global batch  n samples of this process  D width of an embedding
"""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Rows and columns of a tile. On CPUs a tile should stay in a core's cache; GPUs want large products.
TILE = {"cpu": 1024, "other": 8192}


def tiled_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    label_smoothing: float = 0.1,
    *,
    tile_size: int | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> torch.Tensor:
    """The loss of `align.modeling_torch.contrastive_loss` without its (N, N) matrices: image-to-text plus text-to-image
    cross entropy of the global batch, mean over its samples.

    Where torch.distributed runs, the batch is that of all processes of `group` (by default, all there are) and every
    text of every process is a negative. A process computes the tiles of its own images against all texts.

    Args:
        image_embeds, text_embeds: (n, D), L2-normalised, row i of one belonging to row i of the other. Computed in at
            least float32, regardless of their type, and outside autocast.
        temperature: scalar by which similarities are divided.
        label_smoothing: share of the target that is spread over all N samples.
        tile_size: rows and columns of a tile; memory beyond (n, D) is two or three tiles.
        group: processes that share the batch.

    Returns:
        The loss of the global batch, the same in every process. Gradients are exact, across processes too: those of the
        embeddings are complete, that of the temperature is this process's share. So the **sum** over processes of a
        parameter's gradients is its gradient in one process; DistributedDataParallel takes the mean, and wants the
        loss multiplied by the number of processes.

    Raises:
        ValueError: embeddings are not two matrices of one shape, or processes have different n.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"tiled_contrastive_loss: label_smoothing must lie in [0, 1), got {label_smoothing}")
    embeds, options = (image_embeds, text_embeds), (float(label_smoothing),)
    return _tiled("tiled_contrastive_loss", _TiledSoftmax, embeds, (temperature,), tile_size, group, *options)


def tiled_sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    bias: torch.Tensor,
    *,
    tile_size: int | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> torch.Tensor:
    """SigLIP's loss: -log sigmoid(z (I·T / temperature + bias)), z = 1 for a pair and -1 for all others, summed over all
    pairs of the global batch and divided by its samples. Processes, gradients and memory are as of `tiled_contrastive_loss`.

    Args:
        image_embeds, text_embeds: (n, D), L2-normalised, row i of one belonging to row i of the other.
        temperature, bias: scalars. SigLIP begins with 0.1 and -10.
        tile_size: rows and columns of a tile.
        group: processes that share the batch.

    Raises:
        ValueError: embeddings are not two matrices of one shape, or processes have different n.
    """
    return _tiled(
        "tiled_sigmoid_loss", _TiledSigmoid, (image_embeds, text_embeds), (temperature, bias), tile_size, group
    )


def _tiled(name: str, function, embeds: tuple, scalars: tuple, tile_size: int | None, group, *options) -> torch.Tensor:
    images, texts = embeds
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise ValueError(
            f"{name}: expected pairs of images and texts, both of shape (samples, dimension), got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        tensors = [x.to(dtype) for x in (*embeds, *scalars)]
        tile = tile_size or TILE.get(images.device.type, TILE["other"])
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1
        return function.apply(*tensors, *options, tile, _ALONE if alone else group)


_ALONE = object()  # one process: dist knows no such group, and None means all processes


class _TiledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, texts, temperature, smoothing: float, tile: int, group) -> torch.Tensor:
        _check_sizes(texts, group)
        all_texts = _gather(texts, group)  # (N, D)
        n, total = len(images), len(all_texts)
        row_lse, column_lse = _log_sum_exp(images, all_texts, temperature, tile)  # (n,), (N,)
        column_lse = _reduce_log_sum_exp(column_lse, group)
        sums = torch.cat([images.sum(0), (images * texts).sum()[None], row_lse.sum()[None]])  # (D + 2,)
        _all_reduce(sums, group)
        image_sum, diagonal, row_total = sums[:-2], sums[-2] / temperature, sums[-1]
        everything = image_sum @ all_texts.sum(0) / temperature  # the sum of all N * N logits
        loss = (row_total + column_lse.sum() - 2 * (1 - smoothing) * diagonal) / total
        loss = loss - 2 * smoothing / total**2 * everything
        ctx.save_for_backward(images, texts, temperature, row_lse, column_lse, image_sum)
        ctx.constants = smoothing, tile, group, n, total
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        images, texts, temperature, row_lse, column_lse, image_sum = ctx.saved_tensors
        smoothing, tile, group, n, total = ctx.constants
        all_texts = _gather(texts, group)  # not kept from forward: N rows would lie there during the towers' passes
        d_images, d_texts = _softmax_products(images, all_texts, temperature, row_lse, column_lse, tile)
        text_sum = all_texts.sum(0)
        d_texts = _reduce_to_owners(d_texts, n, group)  # (n, D), over the images of all processes
        # d loss / d S is (row softmax + column softmax - 2 * target) / N
        for own, others, other_sum in ((d_images, texts, text_sum), (d_texts, images, image_sum)):
            own.sub_(others, alpha=2 * (1 - smoothing)).sub_(other_sum, alpha=2 * smoothing / total)
            own.mul_(gradient / (total * temperature))
        d_temperature = -(images * d_images).sum() / temperature  # of S: Σ S dS = Σ I dI
        return d_images, d_texts, d_temperature, None, None, None


class _TiledSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, texts, temperature, bias, tile: int, group) -> torch.Tensor:
        _check_sizes(texts, group)
        all_texts = _gather(texts, group)  # (N, D)
        n, total = len(images), len(all_texts)
        # -log sigmoid(s) is softplus(s) - s, which a pair takes, and -log sigmoid(-s) is softplus(s)
        value = -(images * texts).sum() / temperature - n * bias
        (buffer,) = _buffers(images, 1, n, total, tile)
        for rows, columns in _tiles(n, total, tile):
            logits = _logits(images, all_texts, temperature, rows, columns, buffer)
            value = value + F.softplus(logits.add_(bias)).sum()
        _all_reduce(value, group)
        ctx.save_for_backward(images, texts, temperature, bias)
        ctx.constants = tile, group, n, total
        return value / total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        images, texts, temperature, bias = ctx.saved_tensors
        tile, group, n, total = ctx.constants
        all_texts = _gather(texts, group)
        d_images, d_texts = torch.zeros_like(images), torch.zeros_like(all_texts)
        d_bias = -bias.new_tensor(float(n))
        (buffer,) = _buffers(images, 1, n, total, tile)
        for rows, columns in _tiles(n, total, tile):
            shares = _logits(images, all_texts, temperature, rows, columns, buffer).add_(bias).sigmoid_()
            d_images[rows].addmm_(shares, all_texts[columns])
            d_texts[columns].addmm_(shares.t(), images[rows])
            d_bias += shares.sum()
        d_texts = _reduce_to_owners(d_texts, n, group)  # (n, D), over the images of all processes
        for own, others in ((d_images, texts), (d_texts, images)):
            own.sub_(others).mul_(gradient / (total * temperature))
        d_temperature = -(images * d_images).sum() / temperature
        return d_images, d_texts, d_temperature, d_bias * gradient / total, None, None


def _tiles(rows: int, columns: int, tile: int):
    """(rows, columns) of each tile as slices, row by row."""
    for i in range(0, rows, tile):
        for j in range(0, columns, tile):
            yield slice(i, min(i + tile, rows)), slice(j, min(j + tile, columns))


def _buffers(like: torch.Tensor, count: int, rows: int, columns: int, tile: int) -> list[torch.Tensor]:
    return [like.new_empty(min(tile, rows) * min(tile, columns)) for _ in range(count)]


def _logits(images, texts, temperature, rows: slice, columns: slice, buffer: torch.Tensor) -> torch.Tensor:
    """A tile of S, in the memory of `buffer`."""
    block = images[rows] / temperature
    out = buffer[: len(block) * (columns.stop - columns.start)].view(len(block), -1)
    return torch.mm(block, texts[columns].t(), out=out)


def _log_sum_exp(images, texts, temperature, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of the logits of `images` with `texts`: of each row (images,), and of each column (texts,)."""
    sizes = len(images), len(texts)
    highest = [images.new_full((size,), -torch.inf) for size in sizes]
    total = [images.new_zeros(size) for size in sizes]
    first, second = _buffers(images, 2, *sizes, tile)
    for place in _tiles(*sizes, tile):
        logits = _logits(images, texts, temperature, *place, first)
        for axis, where in enumerate(place):
            old = highest[axis][where]
            new = torch.maximum(old, logits.amax(1 - axis))
            # exp(-inf - (-inf)) never happens: a logit is finite, or NaN and then so is the loss
            shares = second[: logits.numel()].view_as(logits)
            torch.sub(logits, new.unsqueeze(1 - axis), out=shares).exp_()
            total[axis][where] = total[axis][where] * (old - new).exp() + shares.sum(1 - axis)
            highest[axis][where] = new
    return tuple(top + sums.log() for top, sums in zip(highest, total))


def _softmax_products(images, texts, temperature, row_lse, column_lse, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With P the softmax along rows plus the softmax along columns: P @ texts and Pᵀ @ images."""
    for_images, for_texts = torch.zeros_like(images), torch.zeros_like(texts)
    first, second = _buffers(images, 2, len(images), len(texts), tile)
    for rows, columns in _tiles(len(images), len(texts), tile):
        logits = _logits(images, texts, temperature, rows, columns, first)
        shares = second[: logits.numel()].view_as(logits)
        torch.sub(logits, column_lse[columns], out=shares).exp_()
        shares += logits.sub_(row_lse[rows, None]).exp_()
        for_images[rows].addmm_(shares, texts[columns])
        for_texts[columns].addmm_(shares.t(), images[rows])
    return for_images, for_texts


def _gather(x: torch.Tensor, group) -> torch.Tensor:
    """The rows (n, D) of all processes, (N, D), in the order of their ranks."""
    if group is _ALONE:
        return x
    parts = list(x.new_empty(dist.get_world_size(group), *x.shape))
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts)


def _check_sizes(x: torch.Tensor, group) -> None:
    if group is _ALONE:
        return
    sizes = x.new_zeros(dist.get_world_size(group), dtype=torch.long)
    sizes[dist.get_rank(group)] = len(x)
    dist.all_reduce(sizes, group=group)
    if (sizes != len(x)).any():
        raise ValueError(
            f"the loss of the global batch needs the same number of samples on every process, got {sizes.tolist()}. Does the "
            "loader drop the last, incomplete batch?"
        )


def _all_reduce(x: torch.Tensor, group) -> None:
    if group is not _ALONE:
        dist.all_reduce(x, group=group)


def _reduce_log_sum_exp(x: torch.Tensor, group) -> torch.Tensor:
    if group is _ALONE:
        return x
    highest = x.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    total = (x - highest).exp()
    dist.all_reduce(total, group=group)
    return highest + total.log()


def _reduce_to_owners(x: torch.Tensor, n: int, group) -> torch.Tensor:
    """Sum over processes of x (N, D), of which each keeps its own n rows."""
    if group is _ALONE:
        return x
    own = torch.empty_like(x[:n])
    if dist.get_backend(group) == "gloo":  # has no reduce_scatter
        dist.all_reduce(x, group=group)
        rank = dist.get_rank(group)
        own.copy_(x[rank * n : (rank + 1) * n])
    else:
        dist.reduce_scatter_tensor(own, x, group=group)
    return own
