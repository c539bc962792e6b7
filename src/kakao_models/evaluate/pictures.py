"""Pictures of results: a confusion matrix, a reliability diagram."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .calibration import Calibration

_INK, _FAINT, _GRID, _BAR, _GAP = "#1f2933", "#7b8794", "#e4e8ec", "#2563eb", "#f3a6a6"
_SIDE = 640  # of the plot, in pixels
_EDGE = 60  # around it
_NAMED = 40  # of more classes, names would not be readable


def draw_confusion(matrix: np.ndarray, names: Sequence[str] | None = None) -> Image.Image:
    """Rows are true classes, columns predictions; darkness is the share of the row. (C, C) counts."""
    count = len(matrix)
    if matrix.shape != (count, count) or not count:
        raise ValueError(f"matrix: got shape {matrix.shape}, expected (classes, classes)")
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    low, high = np.array([255, 255, 255]), np.array([20, 60, 160])
    pixels = (low + (high - low) * np.sqrt(share)[..., None]).round().astype(np.uint8)
    cell = max(1, _SIDE // count)
    plot = Image.fromarray(pixels).resize((cell * count, cell * count), Image.Resampling.NEAREST)
    named = names is not None and count <= _NAMED
    font = ImageFont.load_default(12)
    room = max((int(font.getlength(_short(name))) for name in names), default=0) + 16 if named else _EDGE
    canvas = Image.new("RGB", (plot.width + room + _EDGE, plot.height + 2 * _EDGE), "white")
    draw = ImageDraw.Draw(canvas)
    canvas.paste(plot, (room, _EDGE))
    draw.rectangle((room - 1, _EDGE - 1, room + plot.width, _EDGE + plot.height), outline=_FAINT)
    draw.text((room, 16), f"true class (rows) by prediction (columns), {int(matrix.sum())} images", _INK, font)
    for number, name in enumerate(names if named else ()):
        middle = _EDGE + cell * number + cell // 2
        draw.text((room - 8, middle), _short(name), _INK, font, anchor="rm")
    if named and cell >= 24:
        for row, column in np.argwhere(matrix):
            ink = "white" if share[row, column] > 0.4 else _INK
            place = room + cell * column + cell // 2, _EDGE + cell * row + cell // 2
            draw.text(place, f"{matrix[row, column]}", ink, font, anchor="mm")
    return canvas


def draw_reliability(calibration: Calibration) -> Image.Image:
    """Accuracy of each bin of confidence; a perfect model's bars end at the diagonal."""
    bins = len(calibration.counts)
    canvas = Image.new("RGB", (_SIDE + 2 * _EDGE, _SIDE + 2 * _EDGE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)

    def place(x: float, y: float) -> tuple[float, float]:
        return _EDGE + x * _SIDE, _EDGE + (1 - y) * _SIDE

    for tick in range(6):
        value = tick / 5
        draw.line((place(0, value), place(1, value)), _GRID)
        draw.text((_EDGE - 8, place(0, value)[1]), f"{value:.1f}", _FAINT, font, anchor="rm")
        draw.text((place(value, 0)[0], _EDGE + _SIDE + 8), f"{value:.1f}", _FAINT, font, anchor="mt")
    for number, count in enumerate(calibration.counts):
        if not count:
            continue
        left, right = place(number / bins, 0)[0] + 2, place((number + 1) / bins, 0)[0] - 2
        accuracy, confidence = calibration.bin_accuracy[number], calibration.bin_confidence[number]
        bottom, top, ideal = (place(0, value)[1] for value in (0, accuracy, confidence))
        draw.rectangle((left, top, right, bottom), _BAR)
        draw.rectangle((left, min(top, ideal), right, max(top, ideal)), outline=_GAP, width=3)
    draw.line((place(0, 0), place(1, 1)), _FAINT, 2)
    title = f"ECE {100 * calibration.ece:.1f} %, accuracy {100 * calibration.accuracy:.1f} %, mean confidence "
    draw.text((_EDGE, 22), f"{title}{100 * calibration.mean_confidence:.1f} %", _INK, font)
    draw.text((_EDGE + _SIDE / 2, _EDGE + _SIDE + 40), "confidence", _INK, font, anchor="mm")
    return canvas


def _short(name: str) -> str:
    text = name if len(name) <= 24 else name[:23] + "..."
    return text.encode("latin-1", "replace").decode("latin-1")
