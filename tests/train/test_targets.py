"""Losses with targets of one's own, and a teacher's, against plain loops."""

import math

import pytest
import torch
from tolerances import TOLERANCE
from torch.nn import functional as F

from kakao_models.align.modeling_torch import contrastive_loss
from kakao_models.train.targets import (
    class_loss,
    cosine_loss,
    pair_loss,
    relation_loss,
    soft_cross_entropy,
    targeted_contrastive_loss,
)


def embeds(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 5, generator=random, dtype=torch.float64) for n in (rows, columns))
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1), torch.tensor(0.2, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_the_unit_matrix_it_is_aligns_loss(smoothing):
    images, texts, temperature = embeds(6, 6)
    ours = targeted_contrastive_loss(images, texts, temperature, torch.eye(6).double(), None, smoothing)
    assert ours.item() == pytest.approx(contrastive_loss(images @ texts.t() / temperature, smoothing).item(), abs=1e-12)


def one_way(logits, targets, ignored, smoothing) -> float:
    """By loops over rows."""
    losses = []
    for row, wanted, out in zip(logits, targets, ignored):
        if sum(wanted) == 0:
            continue
        seen = [j for j in range(len(row)) if wanted[j] > 0 or not out[j]]
        total = math.log(sum(math.exp(row[j]) for j in seen))
        shares = [(1 - smoothing) * wanted[j] / sum(wanted) + smoothing / len(seen) for j in seen]
        losses.append(-sum(share * (row[j] - total) for share, j in zip(shares, seen)))
    return sum(losses) / max(1, len(losses))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_any_targets_are_cross_entropies_both_ways(smoothing):
    images, texts, temperature = embeds(5, 8)
    random = torch.Generator().manual_seed(1)
    targets = torch.rand(5, 8, generator=random).double() * (torch.rand(5, 8, generator=random) < 0.4)
    targets[3], targets[:, 2] = 0, 0  # a picture and a text that belong to nothing are negatives of others
    ignored = torch.rand(5, 8, generator=random) < 0.3
    assert (ignored & (targets > 0)).any()  # which counts nevertheless
    logits = images @ texts.t() / temperature
    wanted = sum(
        one_way(*(x.tolist() for x in way), smoothing)
        for way in ((logits, targets, ignored), (logits.t(), targets.t(), ignored.t()))
    )
    ours = targeted_contrastive_loss(images, texts, temperature, targets, ignored, smoothing)
    assert ours.item() == pytest.approx(wanted, abs=1e-12)
    words = soft_cross_entropy(logits, targets)
    nothing = torch.zeros_like(ignored)
    assert words.item() == pytest.approx(one_way(logits.tolist(), targets.tolist(), nothing.tolist(), 0.0), abs=1e-12)


def test_what_is_ignored_has_no_gradient_and_nothing_to_learn_is_zero():
    images, texts, temperature = embeds(2, 3)
    texts.requires_grad_()
    targets, ignored = torch.tensor([[1.0, 0, 0], [1, 0, 0]]).double(), torch.tensor([[False, True, False]] * 2)
    targeted_contrastive_loss(images, texts, temperature, targets, ignored, 0.1).backward()
    assert texts.grad[1].abs().max() == 0 and texts.grad[2].abs().max() > 0
    assert targeted_contrastive_loss(images, texts, temperature, torch.zeros(2, 3).double()).item() == 0


def test_targets_of_another_shape_are_refused():
    images, texts, temperature = embeds(2, 3)
    with pytest.raises(ValueError, match=r"targets of 2 images and 3 texts, got \(3, 2\)"):
        targeted_contrastive_loss(images, texts, temperature, torch.ones(3, 2))


N, D, K = 5, 6, 4


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and texts, not yet normalised, and a teacher's rows, positive."""
    random = torch.Generator().manual_seed(0)
    images, texts, teacher = (torch.randn(N, size, generator=random, dtype=torch.float64) for size in (D, D, K))
    return images.requires_grad_(), texts.requires_grad_(), teacher.abs()


def softmax(values: list) -> list:
    exponentials = [math.e**value if isinstance(value, float) else value.exp() for value in values]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def cross_entropy(targets: list, shares: list) -> torch.Tensor:
    return -sum(t * s.log() for t, s in zip(targets, shares))


def unit(x: torch.Tensor) -> list[torch.Tensor]:
    return [row / row.square().sum().sqrt() for row in x]


def relations(images, texts, teacher, hot, cold):
    ours, theirs, total = unit(images), unit(teacher), 0
    for i in range(N):
        others = [j for j in range(N) if j != i]
        targets = softmax([(theirs[i] @ theirs[j]).item() / hot for j in others])
        total = total + cross_entropy(targets, softmax([ours[i] @ ours[j] / cold for j in others]))
    return total / N


def pairs(images, texts, teacher, hot, cold):
    image, text, theirs, total = unit(images), unit(texts), unit(teacher), 0
    for i in range(N):
        targets = softmax([(theirs[i] @ theirs[j]).item() / hot for j in range(N)])
        total = total + cross_entropy(targets, softmax([image[i] @ text[j] / cold for j in range(N)]))
        total = total + cross_entropy(targets, softmax([text[i] @ image[j] / cold for j in range(N)]))
    return total / N


def classes(images, texts, teacher, hot, cold):
    image, prompts, total = unit(images), unit(texts)[:K], 0
    for i in range(N):
        sharpened = [value.item() ** (1 / hot) for value in teacher[i]]
        targets = [value / sum(sharpened) for value in sharpened]
        total = total + cross_entropy(targets, softmax([image[i] @ prompt / cold for prompt in prompts]))
    return total / N


def cosine(images, texts, teacher, hot, cold):
    teacher = torch.cat([teacher, teacher[:, :2]], 1)
    return sum(1 - a @ b for a, b in zip(unit(images), unit(teacher))) / N


@pytest.mark.parametrize("reference", [relations, pairs, classes, cosine])
def test_losses_and_gradients_are_those_of_plain_loops(reference):
    images, texts, teacher = tensors()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    image, text = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    ours = {
        relations: lambda: relation_loss(image, teacher, 0.5, temperature),
        pairs: lambda: pair_loss(image, text, teacher, 0.5, temperature),
        classes: lambda: class_loss(image, text[:K], teacher, 0.5, temperature),
        cosine: lambda: cosine_loss(image, torch.cat([teacher, teacher[:, :2]], 1)),
    }[reference]()
    theirs = reference(images, texts, teacher, 0.5, temperature)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)
    leaves = (images, texts, temperature)
    gradients = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (ours, theirs)]
    assert gradients[0][0].abs().max() > 1e-3
    for a, b in zip(*gradients):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE["tiled loss float64"])
