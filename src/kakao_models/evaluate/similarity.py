"""Crisscrossed Captions (Parekh et al. 2021): do similarities of captions and images order pairs as people do?

STS compares captions, SIS images, SITS a caption and an image; ratings go from 0 to 5.

Axes: P rated pairs  N items  D width
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .retrieval import Ranking, first_ranks
from .tiles import MAX_MEMORY, check_rows, pair_similarities, unit_rows

COLUMNS = {"sts": ("caption1", "caption2"), "sis": ("image1", "image2"), "sits": ("caption", "image")}
POSITIVE = 3.0  # a pair rated at least this counts as a right answer in retrieval


@dataclass(frozen=True)
class Ratings:
    """The rated pairs of one file, by the data's own ids."""

    kind: str  # "sts", "sis" or "sits"
    left: list[str]  # image file names, or COCO_val2014:sentid:<number>
    right: list[str]
    scores: np.ndarray  # (P,) float64
    methods: list[str]  # how a pair was chosen


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation, in -1..1: over bootstrap samples, and of all pairs."""

    mean: float
    std: float
    all_pairs: float
    pairs: int
    samples: int

    def metrics(self, prefix: str) -> dict[str, float]:
        return {prefix: self.mean, f"{prefix}_std": self.std, f"{prefix}_all_pairs": self.all_pairs}


def read_ratings(path: str | os.PathLike) -> Ratings:
    """A published CSV file: sts_val.csv, sis_test.csv, ... The header says which kind it is.

    Raises:
        ValueError: another header, or a line that is no rated pair; it is named.
    """
    path = Path(path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    header = tuple(rows[0]) if rows else ()
    kind = next((kind for kind, columns in COLUMNS.items() if header[:3] == (*columns, "agg_score")), None)
    if kind is None:
        expected = "; ".join(",".join(columns) for columns in COLUMNS.values())
        raise ValueError(f"{path}: got the header {','.join(header)!r}, expected one of {expected}, then agg_score")
    scores = np.empty(len(rows) - 1)
    for number, row in enumerate(rows[1:]):
        try:
            scores[number] = float(row[2])
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}, line {number + 2}: expected two ids and a score, got {','.join(row)!r}"
            ) from None
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{path}: expected at least one pair, and finite scores")
    left, right = ([row[column] for row in rows[1:]] for column in (0, 1))
    return Ratings(kind, left, right, scores, [row[3] if len(row) > 3 else "" for row in rows[1:]])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two lists, equal values sharing their mean rank; 0 where one is constant."""
    a, b = ranks(a), ranks(b)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, of equal values their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


def similarity_scores(
    ratings: np.ndarray,
    similarities: np.ndarray,
    queries: Sequence | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Correlation:
    """Correlation of people's ratings (P,) with a model's similarities (P,).

    As in the paper: each of 1,000 samples draws half of the queries without replacement and one of each query's pairs,
    so that no query counts more than another; the result is the mean and the standard deviation over samples.

    Args:
        queries: (P,) what a pair was rated for, the first of its two. None draws half of the pairs instead.

    Raises:
        ValueError: lists of different lengths, fewer than four pairs, values that are not finite, pairs of a single query.
    """
    ratings, similarities = np.asarray(ratings, np.float64), np.asarray(similarities, np.float64)
    if ratings.ndim != 1 or ratings.shape != similarities.shape or len(ratings) < 4:
        raise ValueError(
            f"got ratings {ratings.shape} and similarities {similarities.shape}, expected the same number of each, at least 4"
        )
    if not (np.isfinite(ratings).all() and np.isfinite(similarities).all()):
        raise ValueError("ratings and similarities: expected finite numbers")
    if queries is None:
        place = np.arange(len(ratings))
    else:
        if len(queries) != len(ratings):
            raise ValueError(f"queries: got {len(queries)} for {len(ratings)} pairs")
        place = np.unique(np.asarray(queries), return_inverse=True)[1]
    if samples < 1:
        raise ValueError(f"samples: got {samples}, expected at least 1")
    if place.max() < 1:
        raise ValueError(
            "queries: all pairs have the same query, expected at least 2 queries, because a sample takes one pair of each"
        )
    order = np.argsort(place, kind="stable")
    counts = np.bincount(place)
    starts = np.cumsum(counts) - counts
    draw = np.random.default_rng(seed)
    half = max(2, len(counts) // 2) if len(counts) > 2 else len(counts)
    correlations = np.empty(samples)
    for sample in range(samples):
        chosen = draw.permutation(len(counts))[:half]
        pairs = order[starts[chosen] + draw.integers(0, counts[chosen])]
        correlations[sample] = spearman(ratings[pairs], similarities[pairs])
    whole = spearman(ratings, similarities)
    return Correlation(float(correlations.mean()), float(correlations.std()), whole, len(ratings), samples)


def rated_similarities(
    rated: Ratings,
    left: np.ndarray,
    right: np.ndarray,
    left_place: Mapping[str, int],
    right_place: Mapping[str, int],
) -> np.ndarray:
    """Cosine similarity (P,) of rated pairs.

    Args:
        left, right: embeddings (N, D) that the two columns of ids refer to.
        left_place, right_place: id → row.

    Raises:
        ValueError: an id that has no embedding; it is named.
    """
    left, right = check_rows("left", left), check_rows("right", right, left.shape[1])
    places = []
    for name, ids, place in (("left", rated.left, left_place), ("right", rated.right, right_place)):
        missing = [i for i in ids if i not in place]
        if missing:
            raise ValueError(
                f"{rated.kind}: {len(missing)} ids of the {name} column have no embedding, such as {missing[0]}"
            )
        places.append(np.array([place[i] for i in ids]))
    (i, r), (j, c) = (np.unique(side, return_inverse=True) for side in places)
    return pair_similarities(unit_rows("left", left[i], i), unit_rows("right", right[j], j), r, c)


def rated_retrieval(
    queries: np.ndarray,
    targets: np.ndarray,
    pairs: set[tuple[int, int]],
    *,
    within: bool = False,
    max_memory: int = MAX_MEMORY,
) -> Ranking:
    """One of the four retrieval tasks: the rank of each query's best right answer.

    Args:
        queries, targets: (N, D), (M, D).
        pairs: (query, right answer). Queries without one are left out.
        within: queries and targets are the same items; an item is never its own answer.
    """
    rows, columns = np.array(sorted(pair for pair in pairs if not within or pair[0] != pair[1])).reshape(-1, 2).T
    kept, row = np.unique(rows, return_inverse=True)
    if not len(kept):
        raise ValueError("rated retrieval: no query has a right answer")
    without = kept if within else None
    ranked = first_ranks(queries[kept], targets, row, columns, without=without, max_memory=max_memory)
    return Ranking.of(ranked, len(targets) - within)
