"""What the classifiers of all models in Flax NNX have in common: outputs and loss."""

import jax
import jax.numpy as jnp

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
        single = labels.ndim == 1 or labels.shape[1:] == (1,)
        kind = self.config.problem_type
        if kind is None and self.num_labels == 1:
            kind = "regression"
        elif kind is None:
            whole = jnp.issubdtype(labels.dtype, jnp.integer)
            kind = "single_label_classification" if whole and single else "multi_label_classification"
        logits = logits.astype(wide_dtype(logits))
        if len(labels) != len(logits):
            raise ValueError(f"{type(self).__name__}: got labels of {len(labels)} images for {len(logits)} images")
        if kind == "single_label_classification" and single:
            labels = jnp.where(labels < 0, self.num_labels, labels)  # NaN, as of any class beyond; -1 were the last
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels.reshape(-1, 1), axis=-1).mean()
        if kind == "regression" and single and self.num_labels == 1:
            labels = labels.reshape(-1, 1)
        if kind == "single_label_classification" or labels.shape[1:] != logits.shape[1:]:
            raise ValueError(
                f"{type(self).__name__}: labels of shape {labels.shape} and type {labels.dtype} are none of {kind} "
                f"with {self.num_labels} classes. Expected whole numbers (batch,), or numbers in [0, 1] "
                f"(batch, {self.num_labels})"
            )
        if kind == "regression":
            return jnp.square(logits - labels).mean()
        labels = labels.astype(logits.dtype)
        each = -labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)
        return each.sum() / len(logits)
