"""Losses with custom targets: texts that belong to several images, to none, or to a degree; and a teacher's
embeddings or class probabilities (Hinton et al. 2015).

Axes: R pictures, or whatever the rows are  C texts, or classes  D width of an embedding  K width of a teacher's
"""

import torch
from torch.nn import functional as F


def targeted_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    targets: torch.Tensor,
    ignored: torch.Tensor | None = None,
    label_smoothing: float = 0.1,
) -> torch.Tensor:
    """Cross entropy from images to texts plus that from texts to images, for the batch of this process, where any image
    may belong to any text. With the unit matrix as targets it is `align.modeling_torch.contrastive_loss`.

    The matrix of logits is held: this is for batches of some thousands.

    Args:
        image_embeds, text_embeds: (R, D) and (C, D), L2-normalised.
        temperature: scalar by which similarities are divided.
        targets: (R, C), not negative: how much a text belongs to a picture. Each row (and, the other way round, each
            column) is brought to a sum of 1; one that is all zeros has no part in the loss but as a negative of others.
        ignored: (R, C) bool: pairs that are neither right nor wrong; those with a target count nevertheless.
        label_smoothing: share of a target that is spread evenly over all texts (pictures) that are not ignored.
    """
    if targets.shape != (len(image_embeds), len(text_embeds)):
        raise ValueError(
            f"targeted_contrastive_loss: expected targets of {len(image_embeds)} images and {len(text_embeds)} texts, got "
            f"{tuple(targets.shape)}"
        )
    dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = image_embeds.to(dtype) @ text_embeds.to(dtype).t() / temperature  # (R, C)
    to_texts = soft_cross_entropy(logits, targets, ignored, label_smoothing)
    ignored = None if ignored is None else ignored.t()
    return to_texts + soft_cross_entropy(logits.t(), targets.t(), ignored, label_smoothing)


def soft_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, ignored: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross entropy with a distribution in each row of `targets` (R, C), brought to a sum of 1; mean over the rows that
    are not all zeros.

    Args:
        ignored: (R, C) bool: classes that are left out of the softmax; those with a target stay in it.
        smoothing: share of a target that is spread evenly over all classes that are not left out.
    """
    total = targets.sum(1, keepdim=True)
    has = total > 0  # (R, 1)
    out = None if ignored is None else ignored & (targets == 0)
    if out is not None:
        logits = logits.masked_fill(out, -torch.inf)
    targets = targets / total.where(has, 1)
    if smoothing:
        even = torch.ones_like(targets) if out is None else (~out).to(targets.dtype)
        targets = (1 - smoothing) * targets + smoothing * (has * even) / even.sum(1, keepdim=True).clamp_min(1)
    log_shares = logits.log_softmax(1).masked_fill(targets == 0, 0)  # 0 * -inf would be NaN
    return -(targets * log_shares).sum() / has.sum().clamp_min(1)


def relation_loss(
    embeds: torch.Tensor, teacher: torch.Tensor, temperature: float, student_temperature: float
) -> torch.Tensor:
    """Cross entropy of each sample's softmax over its similarities to the others, from the teacher's; mean over samples.

    Args:
        embeds: (R, D), L2-normalised.
        teacher: (R, K), of any length.
        temperature, student_temperature: by which the similarities of the teacher, and of the model, are divided.
    """
    if len(embeds) < 2:
        return 0 * embeds.sum()
    teacher = F.normalize(teacher.to(embeds.dtype), dim=-1)
    itself = torch.eye(len(embeds), dtype=torch.bool, device=embeds.device)
    theirs, ours = (
        (x @ x.t() / t)[~itself].view(len(x), -1) for x, t in ((teacher, temperature), (embeds, student_temperature))
    )
    return F.cross_entropy(ours, theirs.softmax(1))


def pair_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    student_temperature: torch.Tensor | float,
) -> torch.Tensor:
    """The contrastive loss both ways, in which each sample's target is shared out by the softmax of the teacher's similarities,
    its own included: texts of similar samples are no negatives.

    Args:
        image_embeds, text_embeds: (R, D), L2-normalised.
        teacher: (R, K), of any length.
    """
    teacher = F.normalize(teacher.to(image_embeds.dtype), dim=-1)
    shares = ((teacher @ teacher.t() - 1) / temperature).exp()  # rows, and columns, are brought to a sum of 1
    temperature = torch.as_tensor(student_temperature)
    return targeted_contrastive_loss(image_embeds, text_embeds, temperature, shares, None, 0.0)


def cosine_loss(embeds: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of each embedding and the teacher's, (R, D) both; mean over samples."""
    if embeds.shape != teacher.shape:
        raise ValueError(
            f"distill: loss 'cosine' needs a teacher of the model's dimension {embeds.shape[1]}, got {teacher.shape[1]}. "
            "'relations' takes any"
        )
    return (1 - F.cosine_similarity(embeds, teacher.to(embeds.dtype))).mean()


def class_loss(
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    probabilities: torch.Tensor,
    temperature: float,
    student_temperature: torch.Tensor | float,
) -> torch.Tensor:
    """Cross entropy of the softmax over classes from the teacher's; mean over images that have a probability of any of them.

    Args:
        image_embeds, class_embeds: (R, D) and (C, D), L2-normalised.
        probabilities: (R, C), brought to a sum of 1.
        temperature: the teacher's probabilities are raised to 1 / temperature.
        student_temperature: similarities of images and classes are divided by it.
    """
    logits = image_embeds @ class_embeds.t() / student_temperature
    return soft_cross_entropy(logits, probabilities.to(logits.dtype) ** (1 / temperature))
