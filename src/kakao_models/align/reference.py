"""ALIGN's forward pass in numpy, on the tensors of an original checkpoint as they are named and laid out there.

The second opinion of a conversion: it shares neither the weight table nor a framework with the converted model. Layers of
the image tower are found by counting, as the original numbered them when it built them. Made to be read, not to be fast.

Axes: B batch  H, W rows, columns  C channels  L tokens  D width  N heads  K width per head  P projection
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kakao_models.align.config import AlignConfig

_IMAGE = "image_encoder/layer_with_weights-0/layer_with_weights-{}/"
_TEXT = "text_encoder/layer_with_weights-0/bert/"
Tensors = Mapping[str, np.ndarray]
Stages = Iterator[tuple[str, np.ndarray]]  # name of a stage, its output


def image_stages(original: Tensors, config: AlignConfig, pixels: np.ndarray) -> Stages:
    """Outputs of the stem, of every block, and the image features, each as soon as it is computed: only one is held in memory.

    Args:
        original: key (without the suffix of TensorFlow) → array.
        pixels: (B, H, W, 3) in [-1, 1]; its dtype is that of the computation.

    Yields:
        "stem", "block 0", ... (B, H, W, C), and "image features" (B, P), not normalised; with their names.
    """
    vision = config.vision_config
    activation = {"swish": swish, "silu": swish, "relu6": relu6}.get(vision.hidden_act)
    if activation is None:
        raise ValueError(
            f"vision_config: hidden_act is {vision.hidden_act!r}, expected swish or relu6 (the numpy reference has no others)"
        )
    number = iter(range(10_000))

    def layer() -> Callable[[str], np.ndarray]:
        prefix = _IMAGE.format(next(number))
        return lambda leaf: original[prefix + leaf].astype(pixels.dtype, copy=False)

    def batch_norm(x: np.ndarray) -> np.ndarray:
        get = layer()
        gamma, beta, mean, variance = (
            get(leaf).reshape(-1) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        x -= mean  # in place: the maps are large, and nothing else uses them
        x *= gamma / np.sqrt(variance + vision.batch_norm_eps)
        x += beta
        return x

    def conv_1x1(x: np.ndarray, bias: bool) -> np.ndarray:
        get = layer()
        x = times(x, get("kernel")[0, 0])
        return x + get("bias") if bias else x

    x = activation(batch_norm(_stem(pixels, layer()("kernel"))))
    yield "stem", x
    for position, spec in enumerate(vision.blocks()):
        y = x
        if spec.expand_ratio != 1:
            y = activation(batch_norm(conv_1x1(y, bias=False)))
        y = activation(batch_norm(_depthwise(y, layer()("depthwise_kernel"), spec.stride, spec.symmetric_padding)))
        scale = activation(conv_1x1(y.mean((1, 2), keepdims=True), bias=True))
        y *= sigmoid(conv_1x1(scale, bias=True))
        y = batch_norm(conv_1x1(y, bias=False))
        x = x + y if spec.skip else y
        yield f"block {position}", x
    features = x.mean((1, 2))
    if config.use_visual_projection:
        kernel, bias = (
            original[f"image_encoder/layer_with_weights-1/{leaf}"].astype(pixels.dtype) for leaf in ("kernel", "bias")
        )
        features = features @ kernel + bias
    yield "image features", features


def text_stages(
    original: Tensors,
    config: AlignConfig,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    dtype: type[np.floating] = np.float32,
) -> Stages:
    """Outputs of the embeddings, of every layer, and the text features, each as it is computed.

    Args:
        input_ids, attention_mask: (B, L); token types are all zero, as in the original pipeline.

    Yields:
        "embeddings", "keys 0", "layer 0", "keys 1", ... (B, L, D), "pooler" (B, D), and "text features" (B, P), not normalised; with their
        names.
    """
    text = config.text_config
    activation = {"gelu": gelu, "gelu_new": tanh_gelu, "gelu_pytorch_tanh": tanh_gelu}.get(text.hidden_act)
    if activation is None:
        raise ValueError(
            f"text_config: hidden_act is {text.hidden_act!r}, expected gelu or gelu_new (the numpy reference has no others)"
        )

    def get(key: str) -> np.ndarray:
        return original[key].astype(dtype, copy=False)

    def dense(x: np.ndarray, key: str) -> np.ndarray:
        return times(x, get(key + "/kernel")) + get(key + "/bias")

    def layer_norm(x: np.ndarray, key: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + text.layer_norm_eps) * get(key + "/gamma") + get(key + "/beta")

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], text.num_attention_heads, -1).swapaxes(1, 2)  # (B, N, L, K)

    x = original[_TEXT + "embeddings/weight"][input_ids].astype(dtype)  # rows first: the table is large
    x = x + get(_TEXT + "embeddings/embeddings")[: input_ids.shape[1]]
    x = x + get(_TEXT + "embeddings/token_type_embeddings")[0]
    x = layer_norm(x, _TEXT + "embeddings/LayerNorm")
    yield "embeddings", x
    mask = np.where(attention_mask[:, None, None] == 0, -10000, 0).astype(dtype)  # (B, 1, 1, L), as the original masks
    for position in range(text.num_hidden_layers):
        key = f"{_TEXT}encoder/layer/{position}"
        q, k, v = (dense(x, f"{key}/attention/self_attention/{name}") for name in ("query", "key", "value"))
        yield f"keys {position}", k  # softmax takes what their bias adds away again: later stages don't show it
        q, k, v = map(heads, (q, k, v))
        scores = q @ k.swapaxes(2, 3) / dtype(math.sqrt(q.shape[-1])) + mask  # (B, N, L, L)
        attended = (softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
        x = layer_norm(
            dense(attended, f"{key}/attention/dense_output/dense") + x, f"{key}/attention/dense_output/LayerNorm"
        )
        inner = activation(dense(x, f"{key}/intermediate/dense"))
        x = layer_norm(dense(inner, f"{key}/bert_output/dense") + x, f"{key}/bert_output/LayerNorm")
        yield f"layer {position}", x
    yield "pooler", np.tanh(dense(x[:, 0], _TEXT + "pooler/dense"))  # stored, and used by nothing
    yield "text features", dense(x[:, 0], "text_encoder/layer_with_weights-1")


def times(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`x @ kernel` as one product; numpy itself makes one of every row of a map, and fetches the kernel for each."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def swish(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), with room for one more map."""
    y = np.negative(x)
    np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)


def relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6)


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x * Phi(x)."""
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(x.dtype)
    return x * (1 + erf) / 2


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """GELU in the approximation of Hendrycks & Gimpel 2016."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def _stem(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    x, (height, width) = _padded(pixels, 3, stride=2, symmetric=False)
    taps = ((i, j) for i in range(3) for j in range(3))
    return sum(times(x[:, i::2, j::2][:, :height, :width], kernel[i, j]) for i, j in taps)


def _depthwise(x: np.ndarray, kernel: np.ndarray, stride: int, symmetric: bool) -> np.ndarray:
    size = len(kernel)
    x, (height, width) = _padded(x, size, stride, symmetric)
    taps = [(i, j) for i in range(size) for j in range(size)]
    y = np.empty((len(x), height, width, x.shape[-1]), x.dtype)
    for row in range(height):  # one at a time stays in the processor's cache
        rows = x[:, row * stride :]
        y[:, row] = sum(rows[:, i, j::stride][:, :width] * kernel[i, j, :, 0] for i, j in taps)
    return y


def _padded(x: np.ndarray, size: int, stride: int, symmetric: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """`x` padded for a kernel of `size`, and the height and width of the result of the convolution."""
    low = size // 2 if stride == 1 or symmetric else size // 2 - 1
    x = np.pad(x, ((0, 0), (low, size // 2), (low, size // 2), (0, 0)))
    return x, tuple((side - size) // stride + 1 for side in x.shape[1:3])
