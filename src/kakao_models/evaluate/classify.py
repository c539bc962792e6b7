"""Classifiers: top-1 and top-5, ImageNet-ReaL, and many labels per image.

Axes: N images  C classes  K best classes
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .knn import check_labels
from .tiles import check_at, check_finite

_ROWS = 4096  # images looked at at a time


@dataclass(frozen=True)
class Classification:
    """Shares are of the images that have a label, in 0..1."""

    top: dict[int, float]  # k → share of images whose label is among the k best classes
    per_class: dict[int, float]  # label → top-1, of labels that an image has
    mean_per_class: float
    predictions: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64, below 0 where missing
    classes: int
    images: int  # with a label

    def metrics(self) -> dict[str, float]:
        return {f"top{k}": value for k, value in self.top.items()} | {"mean_per_class": self.mean_per_class}

    def confusion(self) -> np.ndarray:
        """(C, C) int64: images of the class of the row that were taken for the class of the column."""
        known = self.labels >= 0
        flat = np.bincount(self.labels[known] * self.classes + self.predictions[known], minlength=self.classes**2)
        return flat.reshape(self.classes, self.classes)

    def most_confused(self, count: int = 20) -> list[tuple[int, int, int]]:
        """(label, prediction, images) of the most frequent mistakes."""
        wrong = (self.labels >= 0) & (self.labels != self.predictions)
        pairs, numbers = np.unique(self.labels[wrong] * self.classes + self.predictions[wrong], return_counts=True)
        order = np.lexsort((pairs, -numbers))[:count]
        return [(int(pairs[i] // self.classes), int(pairs[i] % self.classes), int(numbers[i])) for i in order]


@dataclass(frozen=True)
class MultiLabel:
    """Scores of a head with an independent sigmoid per class, as coyo-vit's pretraining.

    The names are those of coyo-vit's metrics where it has them (configs/metrics/multi_label_classification.yaml).
    """

    mean_average_precision: float  # mean over classes that an image has
    micro_average_precision: float  # of all (image, class) pairs as one list
    top1_prec: float  # share of images whose best class is one of theirs
    top1_acc: float  # share of images whose best class is the first of theirs
    top5_acc: float
    acc: float  # of all (image, class) pairs, a logit above 0 meaning yes
    bce: float  # mean binary cross entropy of all pairs
    macro_f1_score: float
    micro_f1_score: float
    per_class: dict[int, float]  # class → average precision
    images: int

    def metrics(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


def classification_scores(
    logits: np.ndarray, labels: np.ndarray, *, at: Sequence[int] = (1, 5), columns: Sequence[int] | None = None
) -> Classification:
    """Shares of images whose label is among the k largest logits. Of equal logits the first class wins.

    Args:
        logits: (N, C); may be memory-mapped.
        labels: (N,) integers; below 0 is missing: predicted, but not counted.
        columns: the classes that the data have, if these are a part of the model's (ImageNet-R, -A): logits of others
            are not looked at, and labels are places among `columns`.

    Raises:
        ValueError: wrong shapes, a logit that is not finite, a label that is not a class, or no labels at all.
    """
    check_at(at)
    logits = _check_logits(logits)
    labels = check_labels("labels", labels, logits)
    classes = logits.shape[1]
    if columns is not None:
        if not len(columns):
            raise ValueError("columns: got none, expected at least one class")
        if min(columns) < 0 or max(columns) >= classes or len(set(columns)) < len(columns):
            raise ValueError(
                f"columns: expected distinct numbers below {classes}, got {min(columns)} to {max(columns)}"
            )
        classes = len(columns)
    if labels.max() >= classes:
        raise ValueError(f"labels: row {labels.argmax()} is class {labels.max()}, but there are {classes} classes")
    return Classification(**tally(_best(logits, max(at), columns), labels, classes, at))


def real_scores(logits: np.ndarray, labels: Sequence[Sequence[int]], *, at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """ImageNet-ReaL (Beyer et al. 2020): the share of images one of whose labels is among the k best classes.

    Args:
        labels: a list of classes per image, as in real.json; images with an empty list are left out.

    Returns:
        real_top1, real_top5 and so on, and real_images, how many were counted.
    """
    check_at(at)
    logits = _check_logits(logits)
    truth = _multi_hot(labels, logits.shape)
    kept = truth.any(1)
    if not kept.any():
        raise ValueError("labels: no image has a label")
    right = np.take_along_axis(truth, _best(logits, max(at), None), 1)[kept]
    shares = {f"real_top{k}": float(right[:, :k].any(1).mean()) for k in at}
    return shares | {"real_images": int(kept.sum())}


def multilabel_scores(logits: np.ndarray, labels: np.ndarray | Sequence[Sequence[int]]) -> MultiLabel:
    """Average precision and coyo-vit's other metrics.

    Average precision is sum over thresholds of (recall - recall before) · precision, images of equal scores entering
    together, as in scikit-learn.

    Args:
        logits: (N, C), before the sigmoid.
        labels: (N, C), true where an image has a class, or a list of classes per image.

    Raises:
        ValueError: wrong shapes, a logit that is not finite, a label that is not a class, or no labels at all.
    """
    logits = _check_logits(logits)
    truth = _multi_hot(labels, logits.shape)
    known = np.flatnonzero(truth.any(0))
    if not len(known):
        raise ValueError("labels: no image has a label")
    per_class = {int(c): average_precision(logits[:, c], truth[:, c]) for c in known}
    counts, entropy = np.zeros((3, logits.shape[1])), 0.0  # true positives, predicted, positive; per class
    top1_prec, first_rank = np.zeros(len(logits), bool), np.zeros(len(logits), np.int64)
    for start in range(0, len(logits), _ROWS):
        part = slice(start, start + _ROWS)
        z, y = np.asarray(logits[part], np.float64), truth[part]
        counts += [(y & (z > 0)).sum(0), (z > 0).sum(0), y.sum(0)]
        entropy += (np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))).sum()
        row = np.arange(len(z))
        top1_prec[part] = y[row, z.argmax(1)]
        first = y.argmax(1)
        own = z[row, first][:, None]
        first_rank[part] = (z > own).sum(1) + ((z == own) & (np.arange(z.shape[1]) < first[:, None])).sum(1)
    hit, predicted, expected = counts
    f1 = 2 * hit / np.maximum(predicted + expected, 1)
    wrong = (predicted + expected - 2 * hit).sum()
    return MultiLabel(
        mean_average_precision=float(np.mean(list(per_class.values()))),
        micro_average_precision=average_precision(np.asarray(logits).ravel(), truth.ravel()),
        top1_prec=float(top1_prec.mean()),
        top1_acc=float((first_rank < 1).mean()),
        top5_acc=float((first_rank < 5).mean()),
        acc=float(1 - wrong / truth.size),
        bce=float(entropy / truth.size),
        macro_f1_score=float(f1.mean()),
        micro_f1_score=float(2 * hit.sum() / max((predicted + expected).sum(), 1)),
        per_class=per_class,
        images=len(logits),
    )


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of one class: scores (N,), and whether each image has it (N,) bool, at least one true."""
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1)  # last of those with an equal score
    recalled = np.diff(hits[ends], prepend=0) / hits[-1]
    return float((recalled * hits[ends] / (ends + 1)).sum())


def tally(ranked: np.ndarray, labels: np.ndarray, classes: int, at: Sequence[int]) -> dict:
    """The fields of a `Classification` from each image's best classes (N, K), the best first."""
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise ValueError("labels: all are missing (below 0)")
    right = ranked[known] == labels[known, None]
    per_class = {int(c): float(right[labels[known] == c, 0].mean()) for c in np.unique(labels[known])}
    top = {k: float(right[:, :k].any(1).mean()) for k in at}
    return dict(
        top=top,
        per_class=per_class,
        mean_per_class=float(np.mean(list(per_class.values()))),
        predictions=ranked[:, 0],
        labels=labels,
        classes=classes,
        images=len(known),
    )


def _best(logits: np.ndarray, k: int, columns: Sequence[int] | None) -> np.ndarray:
    """The k largest of each row, the largest first and of equal ones the first."""
    parts = []
    for start in range(0, len(logits), _ROWS):
        part = logits[start : start + _ROWS]
        part = np.array(part if columns is None else part[:, columns])  # a copy: what was taken is overwritten
        best = np.empty((len(part), min(k, part.shape[1])), np.int64)
        for place in range(best.shape[1]):
            best[:, place] = part.argmax(1)
            np.put_along_axis(part, best[:, place, None], -np.inf, axis=1)
        parts.append(best)
    return np.concatenate(parts)


def _check_logits(logits: np.ndarray) -> np.ndarray:
    logits = logits if isinstance(logits, np.ndarray) else np.asarray(logits)
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype.kind != "f":
        raise ValueError(f"logits: got {logits.dtype} of shape {logits.shape}, expected floats (images, classes)")
    check_finite("logits", logits)
    return logits


def _multi_hot(labels, shape: tuple[int, int]) -> np.ndarray:
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        if labels.shape != shape:
            raise ValueError(f"labels: got shape {labels.shape}, expected that of the logits, {shape}")
        return labels.astype(bool)
    if len(labels) != shape[0]:
        raise ValueError(f"labels: got {len(labels)} lists for {shape[0]} images")
    truth = np.zeros(shape, bool)
    for row, some in enumerate(labels):
        for c in some:
            if not 0 <= c < shape[1]:
                raise ValueError(f"labels: row {row} has the class {c}, expected 0..{shape[1] - 1}")
            truth[row, c] = True
    return truth
