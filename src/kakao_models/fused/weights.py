"""Tensors of a checkpoint for the fused models: numpy arrays or PyTorch tensors."""

from collections.abc import Callable, Mapping
from typing import Any


class Weights:
    """Tensors by their keys in model.safetensors: each is checked for its shape, and which ones were used is known.

    Args:
        convert: converts each tensor, for example to another dtype; by default they keep theirs.
    """

    def __init__(self, tensors: Mapping[str, Any], convert: Callable[[Any], Any] | None = None):
        self._tensors, self._convert, self._used = tensors, convert, set()

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def __call__(self, key: str, *shape: int) -> Any:
        if key not in self._tensors:
            raise ValueError(f"missing {key}")
        tensor = self._tensors[key]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{key}: the file has {tuple(tensor.shape)}, the model expects {shape}")
        self._used.add(key)
        return tensor if self._convert is None else self._convert(tensor)

    def check_all_used(self) -> None:
        """Raises a ValueError where a tensor was not used, and is not one that no fused model reads."""
        unknown = [key for key in self._tensors.keys() - self._used if not key.endswith(_UNREAD)]
        if unknown:
            raise ValueError(f"unknown {min(unknown)}, and {len(unknown) - 1} more")


# What a checkpoint holds and nothing here reads: BERT's pooler, what the logits are made with, tables and counters of training
_UNREAD = (
    *(
        "text_model.pooler.dense.weight",
        "text_model.pooler.dense.bias",
        "temperature",
        "logit_bias",
        "num_batches_tracked",
    ),
    *("embeddings.position_ids", "embeddings.token_type_ids", "vit.embeddings.mask_token"),
)


def folded_norm(mean: Any, variance: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any]:
    """The scale and the shift (C,) that a batch normalisation is; all in float64."""
    scale = gamma / (variance + eps) ** 0.5
    return scale, beta - mean * scale


def heads_of(width: int, heads: int) -> tuple[int, int]:
    """The number of an attention's heads, and the width of each.

    Raises:
        ValueError: the heads do not divide the width.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"the dimension {width} is not a multiple of the {heads} heads")
    return heads, width // heads


def pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """(height, width) of a size in a configuration, where one number stands for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
