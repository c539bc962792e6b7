"""A contrastive loss with targets of one's own: texts that belong to several pictures, or to none, or a little.

Axes: R pictures, or whatever the rows are  C texts
"""

import torch


def targeted_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    targets: torch.Tensor,
    ignored: torch.Tensor | None = None,
    label_smoothing: float = 0.1,
) -> torch.Tensor:
    """Cross entropy from pictures to texts plus that from texts to pictures, of this process's batch, where any picture
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
            f"targeted_contrastive_loss: wanted targets of {len(image_embeds)} pictures and {len(text_embeds)} texts, got "
            f"{tuple(targets.shape)}"
        )
    dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = image_embeds.to(dtype) @ text_embeds.to(dtype).t() / temperature  # (R, C)
    if ignored is None:
        ignored = torch.zeros_like(targets, dtype=torch.bool)
    ignored = ignored & (targets == 0)
    return _cross_entropy(logits, targets, ignored, label_smoothing) + _cross_entropy(
        logits.t(), targets.t(), ignored.t(), label_smoothing
    )


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy with a distribution in each row of `targets` (R, C), brought to a sum of 1; mean over the rows that
    are not all zeros."""
    return _cross_entropy(logits, targets, None, 0.0)


def _cross_entropy(logits, targets, ignored, smoothing: float) -> torch.Tensor:
    total = targets.sum(1, keepdim=True)
    has = total > 0  # (R, 1)
    targets = targets / total.where(has, 1)
    if ignored is not None:
        logits = logits.masked_fill(ignored, -torch.inf)
        even = (~ignored).to(targets.dtype)
        targets = (1 - smoothing) * targets + smoothing * (has * even) / even.sum(1, keepdim=True).clamp_min(1)
    log_shares = logits.log_softmax(1).masked_fill(targets == 0, 0)  # 0 * -inf would be NaN
    return -(targets * log_shares).sum() / has.sum().clamp_min(1)
