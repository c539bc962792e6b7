"""Outputs and loss of all image classifiers in Flax NNX."""

import jax
import jax.numpy as jnp

from kakao_models.checkpoint.classification import problem_type_of
from kakao_models.checkpoint.flax import FlaxModelOutput, output_class, wide_dtype


@output_class
class FlaxImageClassifierOutput(FlaxModelOutput):
    """loss: scalar, with `labels`; logits (B, classes); hidden_states and attentions where asked for."""

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


class FlaxImageClassifier:
    """Mixin of a Flax model with `num_labels`: its loss."""

    def _loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """transformers' loss for `config.problem_type` (by default chosen by the labels), but for several labels
        an image the original's: binary cross entropy, summed over classes (transformers: their mean), mean over images.
        """
        problem_type = problem_type_of(self, labels.shape, str(labels.dtype), logits.shape)
        logits = logits.astype(wide_dtype(logits))
        if problem_type == "single_label_classification":
            labels = jnp.where(labels < 0, self.num_labels, labels)  # NaN, as of any class beyond; -1 were the last
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels.reshape(-1, 1), axis=-1).mean()
        labels = labels.reshape(logits.shape).astype(logits.dtype)
        if problem_type == "regression":
            return jnp.square(logits - labels).mean()
        each = -labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)
        return each.sum() / len(logits)
