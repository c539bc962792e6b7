"""The two resizing methods of the original code, in numpy: bilinear without antialiasing, and area averages.

Both are those of `tf.image.resize`, whose pixel centres lie at one half; neither rounds, so the result is float32 in
the range of the input. PIL's filters of the same names are other functions: its bilinear widens with the reduction
(antialiasing), its box takes a pixel whole or not at all, and both round to integers.

Axes: H, W input height and width; h, w output; C channels.
"""

from collections.abc import Callable

import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width


def resize_bilinear(image: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Bilinear interpolation between the four nearest pixels, without antialiasing, as TensorFlow's.

    Args:
        image: (H, W, C), any numeric type.
        height, width: size of the whole resized image.
        box: the part of it to compute, top, left, height, width; nothing outside is read or computed.

    Returns:
        float32 (h, w, C): the size of `box`, or (height, width) without one.
    """
    return _resize(image, height, width, box, _bilinear_taps)


def resize_area(image: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Every output pixel is the mean of the input area under it, pixels on its border counting by the part covered.

    Arguments and result as in `resize_bilinear`; the method of `tf.image.resize(..., method="area")`.
    """
    return _resize(image, height, width, box, _area_taps)


def shorter_side_to(size: int, height: int, width: int) -> tuple[int, int]:
    """The (height, width) whose shorter side is `size`, at the same aspect ratio.

    The longer side is computed in float32 and rounded half to even, as in the original pretraining code.
    """
    ratio = np.float32(size) / np.float32(min(height, width))
    return int(np.round(np.float32(height) * ratio)), int(np.round(np.float32(width) * ratio))


def center_box(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    """The central part of a (height, width) image; where it cannot be central, nearer to the top left."""
    if crop_height > height or crop_width > width:
        raise ValueError(
            f"cannot crop {crop_height} x {crop_width} (height x width) out of {height} x {width}: "
            "give a crop_size that is not larger than size"
        )
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _resize(image: np.ndarray, height: int, width: int, box: Box | None, taps: Callable) -> np.ndarray:
    """Weighted sums of rows, then of columns: (H, W, C) -> (h, w, C)."""
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"an image must be (height, width, channels) and not empty, got shape {image.shape}")
    top, left, h, w = box = box or (0, 0, height, width)
    if min(h, w) < 1 or min(top, left) < 0 or top + h > height or left + w > width:
        raise ValueError(f"box {box} (top, left, height, width) must lie inside the {height} x {width} result")
    index, weight = taps(image.shape[1], width, left, w)
    first = index.min()
    image = image[:, first : index.max() + 1]  # only the columns that are needed go through the first pass
    image = _blend(image, *taps(image.shape[0], height, top, h), axis=0)  # (h, W, C)
    return _blend(image, index - first, weight, axis=1)  # (h, w, C)


def _bilinear_taps(size: int, resized: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights, (2, count) each, of resized pixels start, start + 1, ... along an axis."""
    # In float32, like the positions in the original code: at 4000 pixels they differ from exact ones by 1e-4.
    half = np.float32(0.5)
    position = (np.arange(start, start + count, dtype=np.float32) + half) * np.float32(size / resized) - half
    below = np.floor(position)
    weight = position - below
    index = np.stack([below, below + 1]).astype(np.intp)
    return np.clip(index, 0, size - 1), np.stack([1 - weight, weight])


def _area_taps(size: int, resized: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights like `_bilinear_taps`, with as many rows as input pixels that one resized pixel touches at most."""
    edge = np.arange(start, start + count + 1) * (size / resized)
    low, high = edge[:-1], edge[1:]
    index = np.floor(low).astype(np.intp) + np.arange(int(np.max(np.ceil(high) - np.floor(low))))[:, None]
    covered = np.minimum(high, index + 1) - np.maximum(low, index)
    return np.minimum(index, size - 1), (np.maximum(covered, 0) * (resized / size)).astype(np.float32)


def _blend(image: np.ndarray, index: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    weight = weight[:, :, None, None] if axis == 0 else weight[:, None, :, None]
    total = image.take(index[0], axis) * weight[0]
    for i, w in zip(index[1:], weight[1:]):
        total += image.take(i, axis) * w
    return total
