"""The page's results as HTML. Everything that comes from elsewhere is escaped here."""

from collections.abc import Sequence
from html import escape

import numpy as np

_LONGEST = 700  # characters of a message: an error may quote what it is about
SHOWN = 30  # labels with bars


def message(text: str) -> str:
    """A message that a screen reader announces at once."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return f'<p class="km-message" role="alert">{escape(text)}</p>'


def note(text: str) -> str:
    """A line below a result."""
    return f'<p class="km-note">{escape(text)}</p>'


def bars(results: Sequence[tuple[str, list[dict]]]) -> str:
    """A table of labels with a bar for each model's score, in the first model's order.

    Args:
        results: (name of a model, its `[{"label": ..., "score": ...}, ...]`, the best first), of one model, or of several
            with the same labels.
    """
    if not results:
        return ""
    others = [{entry["label"]: entry["score"] for entry in entries} for _, entries in results[1:]]
    rows = []
    for entry in results[0][1][:SHOWN]:  # a classifier's labels may name two classes alike
        scores = [entry["score"], *(other[entry["label"]] for other in others)]
        cells = "".join(
            f'<td><span class="km-bar km-model-{place}" style="--share:{score:.4f}"></span><span>{score:.1%}</span></td>'
            for place, score in enumerate(scores)
        )
        rows.append(f'<tr><th scope="row">{escape(entry["label"])}</th>{cells}</tr>')
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in results)
    rest = len(results[0][1]) - len(rows)
    more = note(f"and {rest:,} labels with lower scores") if rest else ""
    head = f'<thead><tr><th scope="col">label</th>{names}</tr></thead>'
    return f'<table class="km-bars">{head}<tbody>{"".join(rows)}</tbody></table>{more}'


def strip(
    names: Sequence[str], pictures: Sequence[str], captions: Sequence[str] = (), faded: Sequence[bool] = ()
) -> str:
    """Photographs as buttons, numbered from 0 in `data-number`.

    Args:
        names: what a screen reader calls them, and a mouse that rests on them.
        pictures: their URIs.
        captions: lines below them.
        faded: which of them are drawn in grey.
    """
    captions, faded = captions or [""] * len(names), faded or [False] * len(names)
    buttons = "".join(
        f'<li{" class=km-faded" if grey else ""}><button type="button" data-number="{number}" '
        f'aria-label="{escape(name)}" title="{escape(name)}">'
        f'<img src="{escape(picture)}" alt="">{f"<span>{escape(caption)}</span>" if caption else ""}</button></li>'
        for number, (name, picture, caption, grey) in enumerate(zip(names, pictures, captions, faded))
    )
    return f'<ul class="km-strip{" km-captioned" if any(captions) else ""}">{buttons}</ul>'


def scatter(points: np.ndarray, names: Sequence[str], pictures: Sequence[str]) -> str:
    """A map of photographs: each grows under the mouse, and when it has the keyboard's focus.

    Args:
        points: (N, 2), of any scale.
        names: names of the photographs.
        pictures: their URIs.
    """
    low, high = points.min(0), points.max(0)
    places = (points - low) / np.where(high > low, high - low, 1)  # 0..1
    side = float(np.clip(40 / np.sqrt(len(points)), 2.5, 11))  # per cent of the map's width
    items = []
    for (x, y), name, picture in zip(places, names, pictures):
        items.append(
            f'<li tabindex="0" style="left:{100 * x:.2f}%;top:{100 - 100 * y:.2f}%;--x:{x:.3f};--y:{1 - y:.3f}">'
            f'<img src="{escape(picture)}" alt="{escape(name)}"><span>{escape(name)}</span></li>'
        )
    return f'<ul class="km-map" style="--side:{side:.2f}%" aria-label="Map of photographs">{"".join(items)}</ul>'
