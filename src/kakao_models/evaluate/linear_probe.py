"""Linear probe: a logistic regression on frozen features, its strength chosen on a part of the training data.

Axes: N training rows  M test rows  D width
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import StratifiedShuffleSplit

from .intervals import wilson
from .knn import check_labels
from .tiles import check_finite, check_rows, unit_rows

STRENGTHS = tuple(10.0**power for power in range(-3, 4))  # C of the loss C · sum of cross entropies + |weights|²/2
VTAB_TRAIN, VTAB_VALIDATION = 800, 200  # Zhai et al. 2019, A Large-scale Study of Representation Learning


@dataclass(frozen=True)
class LinearProbe:
    """Accuracies are shares in 0..1, of the test rows that have a label."""

    accuracy: float  # mean over seeds
    std: float  # over seeds, with n - 1; 0 for one seed
    interval: tuple[float, float]  # 95 %: Wilson's over test rows and Student's over seeds, widths added in quadrature
    mean_per_class: float
    per_seed: list[float]
    strengths: list[float]  # chosen, per seed
    validation: list[dict[float, float]]  # per seed: strength → accuracy on the validation part
    train: int
    test: int

    def metrics(self) -> dict[str, float]:
        low, high = self.interval
        shares = {"accuracy": self.accuracy, "std": self.std, "ci95_low": low, "ci95_high": high}
        return shares | {"mean_per_class": self.mean_per_class}


def linear_probe_scores(
    train_embeds: np.ndarray,
    train_labels: np.ndarray,
    test_embeds: np.ndarray,
    test_labels: np.ndarray,
    *,
    solver: str = "lbfgs",
    strengths: Sequence[float] = STRENGTHS,
    seeds: Sequence[int] = (0, 1, 2),
    validation: float = 0.2,
    split: tuple[np.ndarray, np.ndarray] | None = None,
    scale: str = "standard",
    max_iterations: int = 1000,
) -> LinearProbe:
    """Trains and tests a linear probe for each seed: the regularisation is chosen on a validation part, then all training
    rows are trained on, then the test rows are scored once.

    Args:
        train_embeds, train_labels: (N, D), (N,) integers; rows with a label below 0 are left out, here and in the test.
        solver: "lbfgs", or "sgd" for more rows than fit an exact solution.
        strengths: tried ones; of equally good ones the smallest, the most regularised, is taken.
        seeds: random seeds of the split (stratified where every class has two rows) and of SGD.
        validation: share of the training rows.
        split: places of training and validation rows, instead of drawing them.
        scale: "standard": zero mean and unit variance of the training rows; "l2": rows of length 1; "none".

    Raises:
        ValueError: wrong shapes, rows that are not finite, no labels, an unknown solver or scale.
    """
    x, y = _known("train", train_embeds, train_labels)
    test_x, test_y = _known("test", check_rows("test_embeds", test_embeds, x.shape[1]), test_labels)
    if solver not in ("lbfgs", "sgd"):
        raise ValueError(f"solver: got {solver!r}, expected 'lbfgs' or 'sgd'")
    if not seeds or not strengths or min(strengths) <= 0:
        raise ValueError(
            f"got seeds {seeds} and strengths {strengths}, expected at least one of each, and strengths above 0"
        )
    x, test_x = _scaled(x, test_x, scale)
    per_seed, chosen, tried, per_class = [], [], [], []
    for seed in seeds:
        train, held = _split(y, validation, seed) if split is None else split
        scores = {}
        for strength in sorted(strengths):
            model = _fit(x[train], y[train], solver, strength, seed, max_iterations)
            scores[strength] = float((model(x[held]) == y[held]).mean()) if len(held) else 0.0
        best = max(scores, key=lambda strength: (scores[strength], -strength))
        right = _fit(x, y, solver, best, seed, max_iterations)(test_x) == test_y
        per_seed.append(float(right.mean()))
        per_class.append(np.mean([right[test_y == c].mean() for c in np.unique(test_y)]))
        chosen.append(best)
        tried.append(scores)
    return _result(per_seed, per_class, chosen, tried, len(y), len(test_y))


def vtab_scores(
    train_embeds: np.ndarray,
    train_labels: np.ndarray,
    test_embeds: np.ndarray,
    test_labels: np.ndarray,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> LinearProbe:
    """VTAB-1k's protocol for a linear probe: 800 rows to train and 200 to choose the strength, then all 1,000; 3 seeds.

    Args:
        train_embeds, train_labels: exactly 1,000 labelled rows: the first 800 train, the last 200 validate. Of more,
            each seed draws its own 1,000. Seeds also drive SGD; with "lbfgs" and exactly 1,000 rows all give the same.
        options: further arguments of `linear_probe_scores`.

    Raises:
        ValueError: fewer than 1,000 labelled rows, and for the reasons of `linear_probe_scores`.
    """
    x, y = _known("train", train_embeds, train_labels)
    expected = VTAB_TRAIN + VTAB_VALIDATION
    if len(y) < expected:
        raise ValueError(f"VTAB-1k: got {len(y)} labelled training rows, expected at least {expected}")
    split = np.arange(VTAB_TRAIN), np.arange(VTAB_TRAIN, expected)
    runs = []
    for seed in seeds:
        kept = np.arange(expected) if len(y) == expected else np.random.default_rng(seed).permutation(len(y))[:expected]
        sides = (x[kept], y[kept], test_embeds, test_labels)
        runs.append(linear_probe_scores(*sides, seeds=(seed,), split=split, **options))
    per_seed, per_class = [run.accuracy for run in runs], [run.mean_per_class for run in runs]
    chosen, tried = [run.strengths[0] for run in runs], [run.validation[0] for run in runs]
    return _result(per_seed, per_class, chosen, tried, expected, runs[0].test)


def _result(
    per_seed: list[float], per_class: list[float], chosen: list[float], tried: list[dict], train: int, test: int
) -> LinearProbe:
    """The mean over seeds; every list has one entry per seed."""
    mean, std = float(np.mean(per_seed)), float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else 0.0
    interval = _interval(mean, std, len(per_seed), test)
    return LinearProbe(mean, std, interval, float(np.mean(per_class)), per_seed, chosen, tried, train, test)


def _interval(mean: float, std: float, seeds: int, rows: int) -> tuple[float, float]:
    over_seeds = float(student.ppf(0.975, seeds - 1)) * std / math.sqrt(seeds) if seeds > 1 else 0.0
    low, high = wilson(mean, rows)
    return max(0.0, mean - math.hypot(mean - low, over_seeds)), min(1.0, mean + math.hypot(high - mean, over_seeds))


def _known(name: str, embeds, labels) -> tuple[np.ndarray, np.ndarray]:
    embeds = check_rows(f"{name}_embeds", embeds)
    labels = check_labels(f"{name}_labels", labels, embeds)
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise ValueError(f"{name}_labels: all are missing (below 0)")
    rows = np.asarray(embeds[kept], np.float32)
    check_finite(f"{name}_embeds", rows, kept)
    return rows, labels[kept]


def _scaled(x: np.ndarray, test: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    if scale == "l2":
        return unit_rows("train_embeds", x), unit_rows("test_embeds", test)
    if scale == "standard":
        mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        std[std == 0] = 1
        return tuple(((part - mean) / std).astype(np.float32) for part in (x, test))
    if scale == "none":
        return x, test
    raise ValueError(f"scale: got {scale!r}, expected 'standard', 'l2' or 'none'")


def _split(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < share < 1:
        raise ValueError(f"validation: got {share}, expected a share between 0 and 1")
    held, counts = max(1, round(share * len(y))), np.unique(y, return_counts=True)[1]
    if counts.min() >= 2 and held >= len(counts) and len(y) - held >= len(counts):
        return next(StratifiedShuffleSplit(1, test_size=held, random_state=seed).split(y, y))
    order = np.random.default_rng(seed).permutation(len(y))
    return (order[held:], order[:held]) if len(y) > 1 else (order, order[:0])


def _fit(x: np.ndarray, y: np.ndarray, solver: str, strength: float, seed: int, max_iterations: int):
    """A function from rows to labels."""
    if len(np.unique(y)) == 1:
        return lambda rows: np.full(len(rows), y[0])
    if solver == "lbfgs":
        model = LogisticRegression(C=strength, max_iter=max_iterations)
    else:
        model = SGDClassifier("log_loss", alpha=1 / (strength * len(y)), max_iter=max_iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation part judges what was reached
        return model.fit(x, y).predict
