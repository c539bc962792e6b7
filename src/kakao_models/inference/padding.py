"""Padding to the shapes that a compiled graph exists for."""

import numpy as np

TOKEN_STEP = 16  # texts are padded to a multiple of this many tokens


def padded_length(length: int, most: int) -> int:
    """Tokens of a text after padding. It stays within `most`, the model's positions."""
    return max(length, min(-length % TOKEN_STEP + length, most))


def padded_size(count: int, known: set[int]) -> int:
    """Rows of a batch after padding: a power of two, or a larger size that is compiled already.

    `known` holds the compiled sizes and gets the result. Up to four times the work takes less time than compiling again.
    """
    larger = [size for size in known if count <= size <= 4 * count]
    size = min(larger, default=1 << (count - 1).bit_length())
    known.add(size)
    return size


def pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    """`array` with its last row repeated, to `size` rows."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
