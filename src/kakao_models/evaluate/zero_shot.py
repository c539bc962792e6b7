"""Zero-shot classification: the class whose prompts are nearest to the image.

Axes: N images  C classes  P templates  D width
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from kakao_models.inference.labels import LabelEmbeddings, TextEmbedder

from .class_names import repeated_names
from .classify import Classification, tally
from .knn import check_labels, nearest
from .tiles import MAX_MEMORY, check_at, check_rows, unit_rows

logger = logging.getLogger(__name__)

_CLASSES = 256  # whose prompts are embedded at a time


@dataclass(frozen=True)
class ZeroShot(Classification):
    """A `Classification` with the probability of each predicted class if a temperature was given."""

    confidences: np.ndarray | None = None  # (N,) float64


def class_embeddings(embedder: TextEmbedder, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """(C, D), each row of length 1: the mean of the normalised embeddings of a class's prompts, normalised again
    (Radford et al. 2021, section 3.1.4).

    Classes of the same name, such as the two cranes of ImageNet, have equal rows: they score equally, and the first one is
    predicted. A warning names them.

    Args:
        embedder: an `Embedder` of an ALIGN, or a `CachedEmbedder`.
        templates: with one {} each.

    Raises:
        ValueError: no names, or an empty name.
    """
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"class {number} has no name: got {name!r}")
    if repeated := repeated_names(names):
        shown = "; ".join(f"{name!r} (classes {', '.join(map(str, places))})" for name, places in repeated[:5])
        _warn(shown + (f"; and {len(repeated) - 5} more" if len(repeated) > 5 else ""))
    unique = list(dict.fromkeys(names))  # each name is embedded once: rows of equal names are equal to the bit
    parts = range(0, max(1, len(unique)), _CLASSES)  # no names: the error of LabelEmbeddings
    make = LabelEmbeddings(embedder)
    rows = np.concatenate([make(unique[start : start + _CLASSES], templates) for start in parts])
    place = {name: row for row, name in enumerate(unique)}
    return rows[[place[name] for name in names]]


@cache  # once, even if a model is evaluated repeatedly during training
def _warn(repeated: str) -> None:
    logger.warning(
        f"some classes have the same name, so they score equally and the first one is predicted: {repeated}. "
        "To tell them apart, give them different names"
    )


def zero_shot_scores(
    image_embeds: np.ndarray,
    class_embeds: np.ndarray,
    labels: np.ndarray,
    *,
    at: Sequence[int] = (1, 5),
    temperature: float | None = None,
    max_memory: int = MAX_MEMORY,
) -> ZeroShot:
    """Shares of images that are nearest to their own class.

    Args:
        image_embeds: (N, D).
        class_embeds: (C, D), as `class_embeddings` gives them. Of equally similar classes the first wins.
        labels: (N,) integers, places among the classes; below 0 is missing: predicted, but not counted.
        at: the k of top-k; with fewer classes than k, all images count as right.
        temperature: the model's temperature; gives `confidences`, softmax(similarity / temperature) at the predicted class.

    Raises:
        ValueError: wrong shapes, a row that is not finite, a label that is not a class, or no labels at all.
    """
    check_at(at)
    images = check_rows("image_embeds", image_embeds)
    classes = check_rows("class_embeds", class_embeds, images.shape[1])
    labels = check_labels("labels", labels, images)
    if labels.max() >= len(classes):
        raise ValueError(f"labels: row {labels.argmax()} is class {labels.max()}, but there are {len(classes)} classes")
    similarities, ranked = nearest(images, classes, max(at), max_memory=max_memory)
    scores = tally(ranked, labels, len(classes), at)
    confidences = None
    if temperature is not None:
        confidences = _confidences(images, classes, similarities[:, 0], temperature, max_memory)
    return ZeroShot(**scores, confidences=confidences)


def _confidences(images, classes, best: np.ndarray, temperature: float, max_memory: int) -> np.ndarray:
    """exp(best / t) / sum over classes of exp(similarity / t), added in float64."""
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, expected a number above 0")
    columns = unit_rows("class_embeds", classes).T
    result = np.empty(len(images))
    step = max(1, min(4096, max_memory // (32 * columns.shape[1])))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        gaps = (unit_rows("image_embeds", images[part], start) @ columns).astype(np.float64)
        gaps -= best[part, None]
        # the best class's own term is exactly 1; rounding could make it a little more or less
        result[part] = 1 / np.maximum(np.exp(gaps / temperature).sum(1), 1)
    return result
