"""The loss of all image classifiers in PyTorch."""

from typing import Any

import torch
from torch.nn import functional as F

from kakao_models.checkpoint.classification import problem_type_of


class ImageClassifier:
    """Mixin of a `PreTrainedModel` with `num_labels`: its loss."""

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """transformers' loss for `config.problem_type` (by default chosen by the labels), but for several labels
        an image the original's: binary cross entropy, summed over classes (transformers: their mean), mean over images.

        Args:
            logits: (B, classes).
            labels: (B,) class numbers, or (B, classes) numbers in [0, 1].
            num_items_in_batch: labels of all micro-batches of a step, as transformers' Trainer counts them.
        """
        problem_type = problem_type_of(self, tuple(labels.shape), str(labels.dtype), tuple(logits.shape))
        if problem_type == "single_label_classification" and not labels.is_floating_point():
            labels = labels.long()  # of uint8 and the like, which cross entropy does not take
        if problem_type != "multi_label_classification":
            loss = self.loss_function(labels, logits, self.config, num_items_in_batch=num_items_in_batch, **kwargs)
            means = problem_type == "regression" and num_items_in_batch is not None  # it leaves the count out
            return loss * labels.numel() / num_items_in_batch if means else loss
        images = len(logits) if num_items_in_batch is None else num_items_in_batch / self.num_labels
        labels = labels.to(logits.device, logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / images
