"""Charts of results: a confusion matrix, a reliability diagram."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .calibration import Calibration

_SIDE, _EDGE = 640, 60  # pixels of a plot, and around it
_NAMED = 40  # of more classes, names would not be readable


def draw_confusion(matrix: np.ndarray, names: Sequence[str] | None = None) -> Image.Image:
    """Rows are true classes, columns predictions; darkness is the share of the row. (C, C) counts."""
    count = len(matrix)
    if matrix.shape != (count, count) or not count:
        raise ValueError(f"matrix: got shape {matrix.shape}, expected (classes, classes)")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    named = names is not None and count <= _NAMED
    title = f"true class (rows) by prediction (columns), {int(matrix.sum())} images"
    canvas, axes = _plot(title, left=240 if named else _EDGE, side=max(_SIDE, count))  # at least a pixel per class
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    if named:
        short = [name if len(name) <= 24 else name[:23] + "..." for name in names]
        axes.set_yticks(range(count), short, parse_math=False)
        for row, column in np.argwhere(matrix) if count <= 24 else ():
            ink = "white" if share[row, column] > 0.4 else "black"
            axes.text(column, row, f"{matrix[row, column]}", color=ink, ha="center", va="center")
    return _image(canvas)


def draw_reliability(calibration: Calibration) -> Image.Image:
    """Accuracy of each bin of confidence; a perfect model's bars end at the diagonal."""
    ece, accuracy, mean = (100 * x for x in (calibration.ece, calibration.accuracy, calibration.mean_confidence))
    canvas, axes = _plot(f"ECE {ece:.1f} %, accuracy {accuracy:.1f} %, mean confidence {mean:.1f} %", left=_EDGE)
    bins = len(calibration.counts)
    places = (np.arange(bins) + 0.5) / bins
    gap = calibration.bin_confidence - calibration.bin_accuracy
    axes.bar(places, calibration.bin_accuracy, 0.98 / bins, color="#2563eb")
    axes.bar(places, gap, 0.98 / bins, calibration.bin_accuracy, color="none", edgecolor="#f3a6a6", linewidth=2)
    axes.plot([0, 1], [0, 1], color="#7b8794")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
    return _image(canvas)


def _plot(title: str, left: int, side: int = _SIDE) -> tuple[FigureCanvasAgg, Axes]:
    """Axes of `side` x `side` pixels, `left` pixels from the left of the canvas."""
    width, height = left + side + _EDGE, side + 2 * _EDGE
    canvas = FigureCanvasAgg(Figure(figsize=(width / 100, height / 100), dpi=100))
    axes = canvas.figure.add_axes((left / width, _EDGE / height, side / width, side / height))
    axes.set_title(title, loc="left")
    return canvas, axes


def _image(canvas: FigureCanvasAgg) -> Image.Image:
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
