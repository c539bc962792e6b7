"""Gradients of a batch whose activations do not fit into memory: gradient caching (Gao et al. 2021).

A contrastive loss needs the embeddings of the whole batch, but not its activations. So the batch is embedded in chunks
without keeping any; the loss gives the gradients of the embeddings; and each chunk is embedded again, with activations,
to carry them on to the parameters. The gradients are those of the whole batch at the cost of one more forward pass.

Ghost batch normalisation makes this exact for the image tower too, as long as a chunk holds whole ghost batches.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

Inputs = Mapping[str, torch.Tensor]


def ghost_chunks(batch: int, chunk: int, ghost: int | None) -> list[torch.Tensor]:
    """Rows of the chunks of a batch, in which whole ghost batches stay together.

    Ghost batches are interleaved: of n = batch // ghost, number j is the rows j, j + n, j + 2n, ... A chunk's rows are
    ordered so that its own ghost batches, interleaved in the same way, are the same sets.

    Args:
        batch: rows in all.
        chunk: rows of a chunk; the last one may have fewer.
        ghost: rows of a ghost batch; None if no row's embedding depends on other rows (no batch norm is being trained).

    Raises:
        ValueError: `batch` or `chunk` is no multiple of `ghost`: then chunks could not be exact.
    """
    if chunk < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk}")
    if chunk >= batch:
        return [torch.arange(batch)]
    if ghost is None:
        return list(torch.arange(batch).split(chunk))
    if batch % ghost or chunk % ghost:
        raise ValueError(
            f"a batch of {batch} in chunks of {chunk}: both must be multiples of the image tower's virtual_batch_size "
            f"{ghost}, so that chunks hold whole ghost batches. Try {max(1, batch // ghost) * ghost} in chunks of "
            f"{max(1, chunk // ghost) * ghost}, or no chunks"
        )
    interleaved = torch.arange(batch).view(ghost, batch // ghost)  # column j is ghost batch j
    return [part.reshape(-1) for part in interleaved.split(chunk // ghost, dim=1)]


def chunked_step(
    embed: Callable[[Inputs], tuple[torch.Tensor, torch.Tensor]],
    inputs: Inputs,
    chunks: list[torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    temperature: torch.Tensor,
    *,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    parameters: Sequence[torch.Tensor] = (),
    statistics: "BatchNormStatistics | None" = None,
    no_sync: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    frozen: Mapping[nn.Module, Callable] | None = None,
) -> torch.Tensor:
    """Adds the gradients of `loss(image_embeds, text_embeds, temperature)` over all of `inputs` to the parameters.

    Args:
        embed: inputs of a chunk → embeddings of images and of texts, (rows, D) each. It is run twice for each chunk, the
            second time with the random numbers of the first, so that dropout drops the same.
        inputs: name → tensor, rows along the first axis.
        chunks: rows of each chunk, as of `ghost_chunks`.
        backward: takes the place of `Tensor.backward` on a chunk's scalar.
        parameters: what else `loss` reads and has a gradient, such as a bias.
        statistics: those of batch norms in training: they move once, as they would for the whole batch.
        no_sync: entered around every chunk but the last: `DistributedDataParallel.no_sync`.
        frozen: parts of the model that are in evaluation mode and have nothing to train → what to keep of their output.
            They are run once for each chunk; the second time `embed` gets what was kept.

    Returns:
        The loss, detached.
    """
    device = next(iter(inputs.values())).device
    states, parts = [], []
    with _run_once(frozen or {}) as again:
        with (
            torch.no_grad(),
            statistics.whole_batch(chunks) if statistics else contextlib.nullcontext(lambda: None) as next_,
        ):
            for rows in chunks:
                next_()
                states.append(_random_state(device))
                parts.append(embed(_rows(inputs, rows)))
        embeds = [torch.cat(side).requires_grad_() for side in zip(*parts)]
        value = loss(*embeds, temperature)
        read = [x for x in (temperature, *parameters) if x.requires_grad]
        # of which nothing is added to a parameter yet: it would be shared among processes before the towers' gradients
        *ends, d_read = _gradients(value, embeds, read)
        again()
        sizes = [len(rows) for rows in chunks]
        cached = list(zip(*(end.split(sizes) for end in ends)))
        with statistics.unchanged() if statistics else contextlib.nullcontext():
            for number, (rows, state, gradients) in enumerate(zip(chunks, states, cached)):
                last = number == len(chunks) - 1
                with contextlib.nullcontext() if last else no_sync():
                    _set_random_state(device, state)
                    embeds = embed(_rows(inputs, rows))
                    scalar = sum((x * gradient).sum() for x, gradient in zip(embeds, gradients))
                    if last:
                        scalar = sum((x * gradient).sum() for x, gradient in d_read) + scalar
                    if scalar.requires_grad:  # not if only the temperature is trained
                        backward(scalar)
    return value.detach()


def _gradients(value: torch.Tensor, embeds: list[torch.Tensor], read: list[torch.Tensor]) -> list:
    """The gradients of the embeddings, and last (tensor, gradient) of each of `read` that has one."""
    gradients = torch.autograd.grad(value, [*embeds, *read], allow_unused=True)
    ends = [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(embeds, gradients)]
    return [*ends, [pair for pair in zip(read, gradients[len(embeds) :]) if pair[1] is not None]]


@contextlib.contextmanager
def _run_once(parts: Mapping[nn.Module, Callable]) -> Iterator[Callable[[], None]]:
    """Yields a function after whose call the parts do not run any more, but give what was kept of their outputs, in
    the same order. It is their `forward` that is replaced, so that they may lie inside of any wrapper."""
    before = [part.__dict__.get("forward") for part in parts]
    repeating = False

    def replaced(run: Callable, keep: Callable) -> Callable:
        kept = collections.deque()

        def forward(*args, **kwargs):
            if repeating:
                return kept.popleft()
            output = run(*args, **kwargs)
            kept.append(keep(output))
            return output

        return forward

    def again() -> None:
        nonlocal repeating
        repeating = True

    for part, keep in parts.items():
        part.forward = replaced(part.forward, keep)
    try:
        yield again
    finally:
        for part, old in zip(parts, before):
            if old is None:
                del part.forward
            else:
                part.forward = old


def _rows(inputs: Inputs, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: x[rows.to(x.device)] for name, x in inputs.items()}


def _random_state(device: torch.device) -> list[torch.Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


class BatchNormStatistics:
    """Running statistics of all batch norms of a model that are being trained.

    A batch norm moves its statistics by momentum * (mean over ghost batches - statistics). That is linear in the mean,
    so the mean of what chunks would make of them, weighted by ghost batches, is what the whole batch makes of them.
    """

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self.values = [x for m in norms for x in (m.running_mean, m.running_var) if x is not None]
        self.counters = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]

    @contextlib.contextmanager
    def whole_batch(self, chunks: list[torch.Tensor]) -> Iterator[Callable[[], None]]:
        """Within, chunks are run one after another, each after a call of what is yielded; afterwards the statistics are
        those of the whole batch."""
        before, moved = _copy(self.values), [torch.zeros_like(x) for x in self.values]
        counted = _copy(self.counters)
        sizes = iter([None, *(len(rows) for rows in chunks)])
        total = sum(len(rows) for rows in chunks)

        def collect() -> None:
            size = next(sizes)
            if size and self.values:
                change = torch._foreach_sub(self.values, before)
                torch._foreach_add_(moved, change, alpha=size / total)
                torch._foreach_copy_(self.values, before)

        yield collect
        collect()
        if self.values:
            torch._foreach_add_(self.values, moved)
        for counter, old in zip(self.counters, counted):
            counter.copy_(old + 1)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within, the model may run; afterwards the statistics are as before."""
        everything = self.values + self.counters
        before = _copy(everything)
        yield
        for x, old in zip(everything, before):
            x.copy_(old)

    def average(self) -> None:
        """Mean over all processes, each of which has normalised as many samples: as the original on its replicas."""
        if self.values and dist.is_available() and dist.is_initialized():
            flat = torch.cat(self.values)
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            torch._foreach_copy_(self.values, list(flat.split([len(x) for x in self.values])))


def _copy(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().clone() for x in tensors]
