"""The tiled loss beside the dense one, in one process and in several."""

from functools import partial

import pytest
import ranks
import torch
from tolerances import TOLERANCE
from torch.nn import functional as F

from kakao_models.align.modeling_torch import contrastive_loss
from kakao_models.train.loss import tiled_contrastive_loss, tiled_sigmoid_loss


def leaves(samples: int, width: int, temperature: float, dtype=torch.float64, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, samples, width, dtype=dtype, generator=random)
    rows[1] += rows[0]  # texts resemble their images
    return [x.requires_grad_() for x in (*F.normalize(rows, dim=-1).unbind(), torch.tensor(temperature, dtype=dtype))]


def dense(images, texts, temperature, smoothing):
    return contrastive_loss(images @ texts.T / temperature, smoothing)


def both(samples, width, temperature, smoothing, tile, dtype=torch.float64):
    """Loss and gradients of three times the loss, (ours, dense)."""
    results = []
    for function in (lambda *x: tiled_contrastive_loss(*x, tile_size=tile), dense):
        inputs = leaves(samples, width, temperature, dtype)
        loss = function(*inputs, smoothing)
        (3 * loss).backward()
        results.append([loss.detach(), *(x.grad for x in inputs)])
    return results


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("samples, tile", [(1, 4), (8, 8), (37, 8), (64, 16), (50, 1000)])
def test_float64_is_the_dense_loss_in_value_and_every_gradient(samples, tile, smoothing):
    for ours, theirs in zip(*both(samples, 24, 0.07, smoothing, tile)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE["tiled loss float64"])


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_float32_is_the_dense_loss_in_value_and_every_gradient(temperature):
    for ours, theirs in zip(*both(300, 64, temperature, 0.1, 64, torch.float32)):
        difference = (ours - theirs).abs().max()
        assert difference <= TOLERANCE["tiled loss float32, relative"] * max(1, theirs.abs().max())


def test_a_temperature_so_low_that_exponentials_would_overflow():
    """1 / temperature is 2000, far above the 88 where exp overflows in float32."""
    ours, theirs = both(40, 16, 5e-4, 0.1, 16, torch.float32)
    assert all(x.isfinite().all() for x in ours)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)


def test_gradients_by_differences():
    """Independent of the dense formula's own gradients."""
    torch.autograd.gradcheck(lambda *x: tiled_contrastive_loss(*x, 0.1, tile_size=3), leaves(7, 5, 0.5))


def test_bfloat16_embeddings_are_computed_in_float32():
    images, texts, temperature = (x.detach().bfloat16() for x in leaves(20, 16, 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiled_contrastive_loss(images, texts, temperature)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dense(images.float(), texts.float(), temperature.float(), 0.1))


def dense_sigmoid(images, texts, temperature, bias):
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -F.logsigmoid(signs * (images @ texts.T / temperature + bias)).sum() / len(images)


@pytest.mark.parametrize("samples, tile", [(1, 4), (37, 8), (50, 1000)])
def test_the_sigmoid_loss_is_the_dense_one_in_value_and_every_gradient(samples, tile):
    results = []
    for function in (partial(tiled_sigmoid_loss, tile_size=tile), dense_sigmoid):
        inputs = [*leaves(samples, 24, 0.1), torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)]
        loss = function(*inputs)
        (3 * loss).backward()
        results.append([loss.detach(), *(x.grad for x in inputs)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE["tiled loss float64"])
    inputs = [*leaves(7, 5, 0.5), torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)]
    torch.autograd.gradcheck(partial(tiled_sigmoid_loss, tile_size=3), inputs)


def test_the_sigmoid_loss_of_two_processes_is_that_of_one(tmp_path):
    inputs = [*leaves(8, 16, 0.1), torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)]
    loss = dense_sigmoid(*inputs)
    (3 * loss).backward()
    results = ranks.run(ranks.sigmoid_loss, 2, tmp_path, *(x.detach() for x in inputs))
    close = partial(torch.testing.assert_close, rtol=0, atol=TOLERANCE["tiled loss float64"])
    for number in (0, 1):  # of the samples: every process has those of its own
        close(torch.cat([result["gradients"][number] for result in results]), inputs[number].grad)
    for number in (2, 3):  # of the scalars: they add up
        close(sum(result["gradients"][number] for result in results), inputs[number].grad)
    assert all(result["loss"].item() == pytest.approx(loss.item(), abs=1e-12) for result in results)


def test_no_matrix_of_all_logits_is_ever_made():
    """4096 samples in tiles of 256: the largest tensor is far below 4096 * 4096 numbers."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.numbers = max(self.numbers, x.numel())
            return out

    inputs = leaves(4096, 8, 0.1, torch.float32)
    with Largest() as largest:
        tiled_contrastive_loss(*inputs, tile_size=256).backward()
    assert largest.numbers == 256 * 256


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_processes_together_are_one_process(world, tmp_path):
    images, texts, temperature = (x.detach() for x in leaves(24, 16, 0.07))
    results = ranks.run(ranks.contrastive_loss, world, tmp_path, images, texts, temperature, 0.1, 5)
    alone = leaves(24, 16, 0.07)
    loss = dense(*alone, 0.1)
    (3 * loss).backward()
    for result in results:
        torch.testing.assert_close(result["loss"], loss.detach(), rtol=0, atol=TOLERANCE["tiled loss float64"])
    parts = list(zip(*(result["gradients"] for result in results)))
    together = [torch.cat(parts[0]), torch.cat(parts[1]), torch.stack(parts[2]).sum(0)]
    for ours, leaf in zip(together, alone):
        torch.testing.assert_close(ours, leaf.grad, rtol=0, atol=TOLERANCE["tiled loss float64"])


def test_processes_of_different_sizes_are_refused_by_all(tmp_path):
    messages = ranks.run(ranks.uneven_contrastive_loss, 2, tmp_path)
    assert all("got [3, 4]" in message for message in messages)


@pytest.mark.parametrize(
    "images, texts, smoothing, message",
    [((4, 3), (5, 3), 0.1, r"got \(4, 3\) and \(5, 3\)"), ((0, 3), (0, 3), 0.1, "pairs"), ((4, 3), (4, 3), 1.0, "1.0")],
)
def test_what_cannot_be_paired_is_refused(images, texts, smoothing, message):
    with pytest.raises(ValueError, match=message):
        tiled_contrastive_loss(torch.ones(images), torch.ones(texts), torch.tensor(1.0), smoothing)


@pytest.mark.gpu
def test_cuda_is_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        inputs = [x.detach().to(device).requires_grad_() for x in leaves(300, 64, 0.07)]
        loss = tiled_contrastive_loss(*inputs, 0.1, tile_size=64)
        loss.backward()
        results.append([loss.detach().cpu(), *(x.grad.cpu() for x in inputs)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE["tiled loss float64"])
