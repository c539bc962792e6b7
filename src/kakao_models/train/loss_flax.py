"""Losses over the global batch inside `jax.shard_map`, where each device sees its own share of the batch.

Under plain `jax.jit` a batch that is sharded over a mesh is one batch, and the models' own `loss` is the global one.

Axes: N samples of the global batch  n samples of this device  P projection  classes
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax


def global_contrastive_loss(
    image_embeds: jax.Array,
    text_embeds: jax.Array,
    temperature: jax.Array,
    label_smoothing: float = 0.1,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """ALIGN's loss with every sample of the global batch as a negative: image-to-text plus text-to-image cross entropy.

    A device compares its own images with all texts and its own texts with all images: (n, N) twice, not (N, N).

    Args:
        image_embeds, text_embeds: (n, P), L2-normalised; row i of one belongs to row i of the other.
        temperature: scalar by which similarities are divided.
        label_smoothing: the share of the target that is spread over all N samples; in [0, 1).
        axis_name: axis of the mesh along which the batch is split; None for a single device.

    Returns:
        The mean over the N samples, the same on every device. Its gradient with respect to replicated parameters is
        complete on every device: `jax.grad` inside `jax.shard_map` adds the devices' shares by itself.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            "global_contrastive_loss: expected pairs of images and texts, both of shape (samples, dimension), got "
            f"{image_embeds.shape} and {text_embeds.shape}"
        )
    wide = jnp.promote_types(image_embeds.dtype, jnp.float32)
    images, texts, temperature = (x.astype(wide) for x in (image_embeds, text_embeds, temperature))
    first = 0 if axis_name is None else lax.axis_index(axis_name) * len(images)

    def cross_entropy(own: jax.Array, other: jax.Array) -> jax.Array:
        everything = other if axis_name is None else lax.all_gather(other, axis_name, tiled=True)  # (N, P)
        labels = first + jnp.arange(len(own))
        return _cross_entropy(own @ everything.T / temperature, labels, label_smoothing)  # of (n, N)

    return _over_devices(cross_entropy(images, texts) + cross_entropy(texts, images), axis_name)


def classification_loss(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, *, axis_name: str | None = None
) -> jax.Array:
    """ViT's losses, mean over the images of the global batch.

    Args:
        logits: (n, classes).
        labels: (n,) class numbers: softmax cross entropy, as in fine-tuning (the original's smoothing: 0.1); a number that is
            not a class makes it NaN. Or (n, classes) numbers in [0, 1]: binary cross entropy summed over classes, as in
            pretraining (1e-4).
        label_smoothing: e; targets become (1 - e) * target + e / classes, with a sigmoid (1 - e) * target + e / 2.
        axis_name: see `global_contrastive_loss`.
    """
    if labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f"classification_loss: expected class numbers {logits.shape[:1]} or numbers in [0, 1] {logits.shape}, got labels "
            f"{labels.shape}"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if labels.ndim == 1:
        labels = jnp.where(labels < 0, logits.shape[1], labels)  # NaN, as of any class beyond; -1 would be the last
        return _over_devices(_cross_entropy(logits, labels, label_smoothing), axis_name)
    targets = labels.astype(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return _over_devices(optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1).mean(), axis_name)


def _cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    log_p = jax.nn.log_softmax(logits)
    hit = jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()
    return -((1 - label_smoothing) * hit + label_smoothing * log_p.mean())


def _over_devices(mean: jax.Array, axis_name: str | None) -> jax.Array:
    return mean if axis_name is None else lax.pmean(mean, axis_name)
