"""Calibration of probabilities: expected calibration error and the reliability diagram.

Axes: N predictions  B bins
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """Bins of equal width over 0..1, bin b holding confidences in (b/B, (b+1)/B], and 0 in the first.

    `ece` is the mean over predictions of |accuracy - confidence| of their bin, `mce` the largest of a bin that has any
    (Guo et al. 2017, On Calibration of Modern Neural Networks, equations 3 and 5).
    """

    ece: float
    mce: float
    accuracy: float
    mean_confidence: float
    counts: np.ndarray  # (B,) int64
    bin_accuracy: np.ndarray  # (B,) float64, NaN where a bin is empty
    bin_confidence: np.ndarray  # (B,) float64, likewise

    def metrics(self) -> dict[str, float]:
        names = ("ece", "mce", "accuracy", "mean_confidence")
        return {name: getattr(self, name) for name in names}


def calibration_scores(confidences: np.ndarray, correct: np.ndarray, *, bins: int = 15) -> Calibration:
    """Compares confidences with how often they are right.

    Args:
        confidences: (N,), the probability of the class that was predicted.
        correct: (N,) bool, whether it was the right one.

    Raises:
        ValueError: not the same number of each, none, or a confidence outside 0..1; the row is named.
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct)
    if confidences.ndim != 1 or confidences.shape != correct.shape or not len(confidences):
        raise ValueError(
            f"got confidences {confidences.shape} and correct {correct.shape}, expected the same number of each, at least one"
        )
    if correct.dtype != np.bool_:
        raise ValueError(f"correct: got {correct.dtype}, expected bool")
    if bins < 1:
        raise ValueError(f"bins: got {bins}, expected at least 1")
    outside = np.flatnonzero(~((confidences >= 0) & (confidences <= 1 + 1e-6)))  # NaN too
    if len(outside):
        raise ValueError(f"confidences: row {outside[0]} is {confidences[outside[0]]}, expected a probability in 0..1")
    edges = np.arange(1, bins) / bins
    place = np.searchsorted(edges, confidences, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(place, correct, bins) / counts
        confidence = np.bincount(place, confidences, bins) / counts
    gaps = np.abs(accuracy - confidence)[counts > 0]
    return Calibration(
        ece=float((gaps * counts[counts > 0]).sum() / len(confidences)),
        mce=float(gaps.max()),
        accuracy=float(correct.mean()),
        mean_confidence=float(confidences.mean()),
        counts=counts,
        bin_accuracy=accuracy,
        bin_confidence=confidence,
    )
