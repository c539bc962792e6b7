"""Image-text retrieval: recall at 1, 5, 10 and ranks, both ways.

A rank is the place, counted from 1, of the first right answer among all answers, the most similar first; how equal
similarities are ordered is described in `tiles`. Recall at k is the share of queries with a rank of at most k. This is
`retrieval_score` of coyo-align (evaluate/eval_retrieval.py), which ranks by `tf.math.top_k`.

Axes: I images  C captions  Q queries  T targets  D width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import bootstrap
from .tiles import MAX_MEMORY, Tile, check_at, check_rows, margin, pair_similarities, tiles, unit_rows

RECALL_AT = (1, 5, 10)
_BLOCK = 64  # rows of a tile that are compared at a time: they stay in the CPU's cache


@dataclass(frozen=True)
class Ranking:
    """One direction of retrieval."""

    recall: dict[int, float]  # k → share of the queries, in 0..1
    mean_rank: float
    median_rank: float
    queries: int
    targets: int
    ranks: np.ndarray  # (Q,) int64, from 1

    @classmethod
    def of(cls, ranks: np.ndarray, targets: int, at: Sequence[int] = RECALL_AT) -> "Ranking":
        recall = {k: float(np.mean(ranks <= k)) for k in at}
        return cls(recall, float(ranks.mean()), float(np.median(ranks)), len(ranks), targets, ranks)


@dataclass(frozen=True)
class Retrieval:
    """Scores of retrieval in both directions, captions of images and images of captions."""

    image_to_text: Ranking
    text_to_image: Ranking

    def metrics(self) -> dict[str, float]:
        """Flat names: image_to_text_r1, ..., text_to_image_median_rank."""
        result = {}
        for direction, ranking in vars(self).items():
            result |= {f"{direction}_r{k}": value for k, value in ranking.recall.items()}
            result |= {f"{direction}_mean_rank": ranking.mean_rank, f"{direction}_median_rank": ranking.median_rank}
        return result


def retrieval_scores(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    image_ids: Sequence | np.ndarray,
    text_ids: Sequence | np.ndarray,
    *,
    at: Sequence[int] = RECALL_AT,
    max_memory: int = MAX_MEMORY,
) -> Retrieval:
    """Ranks of the captions of each image, and of the image of each caption.

    Args:
        image_embeds: (I, D), of any length but zero.
        text_embeds: (C, D).
        image_ids: (I,), integers or strings.
        text_ids: (C,): the image that a caption describes. An image counts as found with any caption of its id.
        max_memory: bytes for tiles; see `tiles.tiles`. Both directions share one pass.

    Raises:
        ValueError: wrong shapes, rows that are not finite or all zeros, an image without a caption or the reverse.
    """
    check_at(at)
    images = check_rows("image_embeds", image_embeds)
    texts = check_rows("text_embeds", text_embeds, images.shape[1])
    of_images, of_texts = _numbered(image_ids, text_ids, len(images), len(texts))
    rows, columns = _matching(of_images, of_texts)
    if (missing := _first_missing(rows, len(images))) is not None:
        raise ValueError(f"image {missing} (id {image_ids[missing]!r}) has no caption: no text has its id")
    if (missing := _first_missing(columns, len(texts))) is not None:
        raise ValueError(f"text {missing} belongs to image {text_ids[missing]!r}, which is not among the images")
    image_ranks, text_ranks = _ranks(images, texts, rows, columns, max_memory, both=True)
    return Retrieval(Ranking.of(image_ranks, len(texts), at), Ranking.of(text_ranks, len(images), at))


def recall_intervals(
    scores: Retrieval, image_ids: Sequence | np.ndarray, text_ids: Sequence | np.ndarray
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each recall, by the names of `Retrieval.metrics`: over 1,000 bootstrap samples of the images as
    queries, each with all of its captions, among the same answers."""
    of_images, of_texts = _numbered(image_ids, text_ids, scores.image_to_text.queries, scores.text_to_image.queries)
    result = {}
    for (direction, ranking), groups in zip(vars(scores).items(), (of_images, of_texts)):
        hits = [ranking.ranks <= k for k in ranking.recall]
        result |= {f"{direction}_r{k}": interval for k, interval in zip(ranking.recall, bootstrap(hits, groups))}
    return result


def first_ranks(
    queries: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    without: np.ndarray | None = None,
    max_memory: int = MAX_MEMORY,
) -> np.ndarray:
    """Rank (Q,), from 1, of the best of each query's right answers.

    Args:
        rows, columns: targets[columns[i]] is a right answer to queries[rows[i]]; each query has at least one.
        without: (Q,) the target that a query is not ranked against: itself, where queries are among the targets.
    """
    queries = check_rows("queries", queries)
    targets = check_rows("targets", targets, queries.shape[1])
    if (missing := _first_missing(rows, len(queries))) is not None:
        raise ValueError(f"query {missing} has no right answer")
    return _ranks(queries, targets, rows, columns, max_memory, both=False, without=without)[0]


def folds(image_ids: Sequence, size: int = 1000) -> list[np.ndarray]:
    """Consecutive parts of the images, as COCO's five folds of 1,000: their places, the remainder left out."""
    if size < 1:
        raise ValueError(f"folds: got a size of {size}, expected at least 1")
    if len(image_ids) < size:
        raise ValueError(f"folds: got {len(image_ids)} images, expected at least one fold of {size}")
    return [np.arange(start, start + size) for start in range(0, len(image_ids) - size + 1, size)]


def fold_scores(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    image_ids: Sequence,
    text_ids: Sequence,
    *,
    size: int = 1000,
    **options: Any,
) -> tuple[dict[str, float], list[Retrieval]]:
    """The mean of the metrics over folds of `size` images and their captions (COCO 1K), and each fold's result."""
    of_images, of_texts = _numbered(image_ids, text_ids, len(image_embeds), len(text_embeds))
    parts = []
    for places in folds(image_ids, size):
        texts = np.flatnonzero(np.isin(of_texts, of_images[places]))
        ids = of_images[places], of_texts[texts]
        parts.append(retrieval_scores(image_embeds[places], text_embeds[texts], *ids, **options))
    each = [part.metrics() for part in parts]
    return {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}, parts


def _numbered(image_ids, text_ids, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    for name, ids, expected in (("image_ids", image_ids, images), ("text_ids", text_ids, texts)):
        if len(ids) != expected:
            raise ValueError(f"{name}: got {len(ids)} for {expected} rows")
    place = {}
    numbers = [np.array([place.setdefault(i, len(place)) for i in np.asarray(ids).tolist()]) for ids in
               (image_ids, text_ids)]  # fmt: skip
    return numbers[0], numbers[1]


def _matching(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with left[i] == right[j], by i and then j."""
    order = np.argsort(right, kind="stable")
    start, end = (np.searchsorted(right[order], left, side) for side in ("left", "right"))
    counts = end - start
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(left)), counts), order[np.repeat(start, counts) + offsets]


def _first_missing(present: np.ndarray, count: int) -> int | None:
    missing = np.setdiff1d(np.arange(count), present)
    return int(missing[0]) if len(missing) else None


def _ranks(queries, targets, rows, columns, max_memory, *, both: bool, without: np.ndarray | None = None):
    """Ranks of the best right answers, of queries and, with `both`, of targets: counted in one pass over the tiles."""
    values = _pairs(queries, targets, rows, columns)
    sides = [_Side(rows, columns, values, len(queries))]
    if both:
        sides.append(_Side(columns, rows, values, len(targets)))
    for tile in tiles(queries, targets, max_memory):
        for start in range(0, len(tile.queries), _BLOCK):
            for axis, side in enumerate(sides):
                side.count(tile, start, axis)
        if without is not None:
            sides[0].leave_out(tile, without)
    return [side.better + 1 for side in sides]


def _pairs(queries, targets, rows, columns, at_a_time: int = 65_536) -> np.ndarray:
    values = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), at_a_time):
        part = slice(start, start + at_a_time)
        (i, r), (j, c) = (np.unique(side[part], return_inverse=True) for side in (rows, columns))
        values[part] = pair_similarities(unit_rows("queries", queries[i], i), unit_rows("targets", targets[j], j), r, c)
    return values


class _Side:
    """The best right answer of each query (or, seen from the other side, target), and how many others precede it."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, count: int):
        order = np.lexsort((columns, -values, rows))
        first = order[np.searchsorted(rows[order], np.arange(count))]
        self.value, self.place = values[first], columns[first]
        self.better = np.zeros(count, np.int64)

    def count(self, tile: Tile, start: int, axis: int) -> None:
        """Counts in `_BLOCK` rows of a tile from `start`; `axis` is that of this side: 0 rows, 1 columns."""
        block = tile.product[start : start + _BLOCK]
        first = (tile.first_query + start, tile.first_target)
        own = slice(first[axis], first[axis] + block.shape[axis])
        best, error = np.expand_dims(self.value[own], 1 - axis), margin(tile.queries.shape[1])
        surely, maybe = block > best + error, block >= best - error
        better = surely.sum(1 - axis)
        maybe ^= surely  # the open ones
        if maybe.any():
            row, column = np.nonzero(maybe)
            value = tile.exact(start + row, column)
            mine, other = (row, column) if axis == 0 else (column, row)
            self._add(better, own, mine, first[1 - axis] + other, value, 1)
        self.better[own] += better

    def leave_out(self, tile: Tile, without: np.ndarray) -> None:
        """Takes back what each query's one target that is no answer added."""
        own = slice(tile.first_query, tile.first_query + len(tile.queries))
        column = without[own] - tile.first_target
        row = np.flatnonzero((column >= 0) & (column < len(tile.targets)))
        column = column[row]
        self._add(self.better[own], own, row, tile.first_target + column, tile.exact(row, column), -1)

    def _add(self, better: np.ndarray, own: slice, mine: np.ndarray, others: np.ndarray, value, sign: int) -> None:
        best = self.value[own][mine]
        before = (value > best) | ((value == best) & (others < self.place[own][mine]))
        better += sign * np.bincount(mine[before], minlength=len(better))
