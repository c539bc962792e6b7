"""Outputs, loss and training by `fit` of all image classifiers in Keras 3."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kakao_models.checkpoint.classification import problem_type_of
from kakao_models.checkpoint.keras import ModelOutput, at_least_float32, global_count


class TFImageClassifierOutput(ModelOutput):
    """loss: scalar, with `labels`; logits (B, classes); hidden_states and attentions where asked for."""

    loss: Any
    logits: Any
    hidden_states: tuple
    attentions: tuple


class TFImageClassifier:
    """Mixin of a Keras model with `num_labels` that returns `TFImageClassifierOutput`: its loss, and `fit` with it.

    `compile` without a loss and `fit` on (images, labels) trains with the loss of `call(..., labels=)`; with a Keras loss
    or metrics those get the logits.
    """

    def _loss(self, logits, labels):
        """transformers' loss for `config.problem_type` (by default chosen by the labels), but for several labels
        an image the original's: binary cross entropy, summed over classes (transformers: their mean), mean over images.
        """
        return ops.mean(self._loss_of_each(logits, labels))

    def _loss_of_each(self, logits, labels):
        """(B, classes), labels → (B,)."""
        logits, labels = at_least_float32(logits), ops.convert_to_tensor(labels)
        dtype = keras.backend.standardize_dtype(labels.dtype)
        problem_type = problem_type_of(self, tuple(labels.shape), dtype, tuple(logits.shape))
        if problem_type == "single_label_classification":
            return ops.sparse_categorical_crossentropy(ops.reshape(labels, (-1,)), logits, from_logits=True)
        labels = ops.cast(ops.reshape(labels, (-1, self.num_labels)), logits.dtype)
        if problem_type == "regression":
            return ops.mean(ops.square(logits - labels), -1)
        return ops.sum(ops.relu(logits) - logits * labels + ops.softplus(-ops.abs(logits)), -1)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ):
        """This replica's share of the mean over the global batch: the shares of all replicas add up to it."""
        y = _labels(x, y)
        if y is None:
            raise ValueError("fit and evaluate need labels: (images, labels), or a dict that also has labels")
        if self.loss is not None:
            return super().compute_loss(x, y, y_pred.logits, sample_weight, training)
        losses = self._loss_of_each(y_pred.logits, y)
        if sample_weight is not None:
            losses = losses * ops.reshape(ops.cast(sample_weight, losses.dtype), (-1,))
        return ops.sum(losses) / ops.cast(global_count(losses), losses.dtype)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None):
        return super().compute_metrics(x, _labels(x, y), y_pred.logits, sample_weight)


def _labels(x, y):
    """Labels of a batch of `fit`: beside its inputs, or among them, as in datasets made for transformers 4."""
    return x.get("labels") if y is None and isinstance(x, Mapping) else y
