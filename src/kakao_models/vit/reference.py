"""ViT's forward pass in numpy, on the tensors of an original checkpoint as they are named and laid out there.

The second opinion of a conversion: it shares neither the weight table nor a framework with the converted model. Made to be
read, not to be fast.

Axes: B batch  H, W rows, columns  L tokens  D width  N heads  K width per head
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kakao_models.checkpoint.config import as_pair
from kakao_models.vit.config import ViTConfig


def image_stages(
    original: Mapping[str, np.ndarray], config: ViTConfig, pixels: np.ndarray, prefix: str, head: str | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Outputs of the embeddings and of every layer, the features, and the logits where there is a head, each as it is
    computed: no more than one is held.

    Args:
        original: key (without the suffix of TensorFlow) → array.
        pixels: (B, H, W, 3) in [-1, 1], of the configured size; its dtype is that of the computation.
        prefix, head: what stands before the backbone's keys, and the key of the head (see `TPU_KEY_LAYOUTS`).

    Yields:
        "embeddings", "keys 0", "layer 0", "keys 1", ..., "norm" (B, L, D), "features" (B, D or representation_size), "logits" (B, classes);
        with their names.
    """
    dtype = pixels.dtype.type

    def get(key: str) -> np.ndarray:
        return original[key].astype(dtype, copy=False)

    def dense(x: np.ndarray, key: str) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])  # as one product, not one for every image
        return (rows @ get(key + "/kernel")).reshape(*x.shape[:-1], -1) + get(key + "/bias")

    def layer_norm(x: np.ndarray, key: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + dtype(config.layer_norm_eps)) * get(key + "/gamma") + get(key + "/beta")

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], config.num_attention_heads, -1).swapaxes(1, 2)  # (B, N, L, K)

    activation = activation_named(config.hidden_act)
    batch, height, width, channels = pixels.shape
    (rows, columns), (tall, wide) = config.grid, as_pair(config.patch_size)
    patches = pixels[:, : rows * tall, : columns * wide].reshape(batch, rows, tall, columns, wide, channels)
    patches = patches.swapaxes(2, 3).reshape(batch, rows * columns, -1)  # (B, L - 1, pixels of a patch)
    kernel = get(prefix + "embedding/kernel").reshape(patches.shape[-1], -1)
    x = patches @ kernel + get(prefix + "embedding/bias")
    x = np.concatenate([np.broadcast_to(get(prefix + "class_emb"), (batch, 1, x.shape[-1])), x], axis=1)
    x = x + get(prefix + "pos_emb")
    yield "embeddings", x
    for position in range(config.num_hidden_layers):
        key = f"{prefix}enc_layers/{position}"
        y = layer_norm(x, f"{key}/layernorm1")
        q, k, v = (dense(y, f"{key}/att/{name}_dense") for name in ("query", "key", "value"))
        yield f"keys {position}", k  # softmax takes what their bias adds away again: later stages don't show it
        q, k, v = map(heads, (q, k, v))
        scores = q @ k.swapaxes(2, 3) / dtype(math.sqrt(q.shape[-1]))  # (B, N, L, L)
        attended = (softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + dense(attended, f"{key}/att/combine_heads")
        y = activation(dense(layer_norm(x, f"{key}/layernorm2"), f"{key}/mlp/layer_with_weights-0"))
        x = x + dense(y, f"{key}/mlp/layer_with_weights-1")
        yield f"layer {position}", x
    x = layer_norm(x, prefix + "norm")
    yield "norm", x
    features = x[:, 0]
    if config.representation_size:
        features = np.tanh(dense(features, prefix + "representation"))
    yield "features", features
    if head:
        yield "logits", dense(features, head)


def softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def activation_named(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function that transformers calls so.

    Raises:
        ValueError: one that is not here.
    """
    known = {"gelu": gelu, "gelu_new": tanh_gelu, "gelu_pytorch_tanh": tanh_gelu, "relu": lambda x: np.maximum(x, 0)}
    if name not in known:
        raise ValueError(f"hidden_act is {name!r}, expected {' or '.join(known)} (the numpy reference has no others)")
    return known[name]


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x * Phi(x)."""
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(x.dtype)
    return x * (1 + erf) / 2


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """GELU in the approximation of Hendrycks & Gimpel 2016."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
