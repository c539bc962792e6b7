"""k nearest neighbours by cosine similarity, exactly, and the classification they give.

With k = 1 this is `knn_score` of coyo-align (evaluate/eval_knn.py). With more, neighbours vote with the weight
exp(similarity / 0.07), as Wu et al. 2018 (Instance Discrimination, section 3.4) and DINO do.

Axes: Q queries  N training rows  D width  K neighbours  C classes
"""

from dataclasses import dataclass

import numpy as np

from .tiles import MAX_MEMORY, Tile, check_rows, margin, tiles

TEMPERATURE = 0.07
_BLOCK = 64  # rows of a tile that are searched at a time: they stay in the CPU's cache
_GROUP, _LEAST_GROUP = 256, 16  # columns whose largest product is looked at first


@dataclass(frozen=True)
class KnnResult:
    """`top1` is the share, in 0..1, of the labelled queries that get their own label."""

    top1: float
    per_class: dict[int, float]  # label → share, of labels that a query has
    mean_per_class: float
    k: int
    weighted: bool
    predictions: np.ndarray  # (Q,) labels
    queries: int  # labelled ones

    def metrics(self) -> dict[str, float]:
        return {"top1": self.top1, "mean_per_class": self.mean_per_class}


def nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, *, max_memory: int = MAX_MEMORY
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of each query, the most similar first; `tiles` explains the order of ties.

    Args:
        queries: (Q, D).
        rows: (N, D); may be memory-mapped: it is read once, in order.
        k: at most N are found.
        max_memory: bytes for tiles.

    Returns:
        Similarities (Q, K) float32 and places among `rows` (Q, K) int64.

    Raises:
        ValueError: wrong shapes, a row that is not finite or all zeros, k below 1.
    """
    queries = check_rows("queries", queries)
    rows = check_rows("rows", rows, queries.shape[1])
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    k = min(k, len(rows))
    best = _Best(np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64))
    for tile in tiles(queries, rows, max_memory):
        for start in range(0, len(tile.queries), _BLOCK):
            best.search(tile, start)
    return best.values, best.places


@dataclass
class _Best:
    """The most similar rows so far of each query, in order."""

    values: np.ndarray  # (Q, K)
    places: np.ndarray  # (Q, K)

    def search(self, tile: Tile, start: int) -> None:
        block = tile.product[start : start + _BLOCK]
        own = slice(tile.first_query + start, tile.first_query + start + len(block))
        error = margin(tile.queries.shape[1])
        row, column = _candidates(block, self.values[own, -1] - error, self.values.shape[1], error)
        if len(row):
            self._merge(own, row, tile.first_target + column, tile.exact(start + row, column))

    def _merge(self, own: slice, row: np.ndarray, place: np.ndarray, value: np.ndarray) -> None:
        touched = np.unique(row)
        k = self.values.shape[1]
        rows = np.concatenate([np.repeat(touched, k), row])
        values = np.concatenate([self.values[own][touched].ravel(), value])
        places = np.concatenate([self.places[own][touched].ravel(), place])
        order = np.lexsort((places, -values, rows))
        first = np.searchsorted(rows[order], touched)
        best = order[first[:, None] + np.arange(k)]
        self.values[own.start + touched] = values[best]
        self.places[own.start + touched] = places[best]


def _candidates(block: np.ndarray, limit: np.ndarray, k: int, error: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a block (q, t) of products that may be among the k most similar of their row.

    The k-th largest of any k products or more bounds what can be among the k most similar: two margins below it nothing is.
    The largest products of groups of columns give such a bound, and say which groups to look into, in one fast pass.

    Args:
        limit: (q,), below which nothing is by what is known already.
    """
    width = block.shape[1]
    size = min(_GROUP, width // (4 * k))
    if size < _LEAST_GROUP:  # few columns for so many neighbours
        candidates = block >= limit[:, None]
        crowded = np.flatnonzero(np.count_nonzero(candidates, axis=1) > 4 * k)
        if len(crowded) and width > k:
            kth = np.partition(block[crowded], width - k, axis=1)[:, width - k]
            limit[crowded] = np.maximum(limit[crowded], kth - 2 * error)
            candidates[crowded] = block[crowded] >= limit[crowded, None]
        row, column = np.nonzero(candidates)
        return row, column
    starts = np.arange(0, width, size)
    tops = np.maximum.reduceat(block, starts, axis=1)
    kth = np.partition(tops, len(starts) - k, axis=1)[:, len(starts) - k]
    limit = np.maximum(limit, kth - 2 * error)
    row, group = np.nonzero(tops >= limit[:, None])
    column = np.minimum(starts[group, None] + np.arange(size), width - 1)  # the last group may be shorter
    near = block[row[:, None], column] >= limit[row, None]
    near &= starts[group, None] + np.arange(size) < width
    which, place = np.nonzero(near)
    return row[which], column[which, place]


def knn_scores(
    train_embeds: np.ndarray,
    train_labels: np.ndarray,
    embeds: np.ndarray,
    labels: np.ndarray,
    *,
    k: int = 1,
    weighted: bool | None = None,
    temperature: float = TEMPERATURE,
    max_memory: int = MAX_MEMORY,
) -> KnnResult:
    """Labels by the votes of the k nearest training rows, and how many of them are right.

    Args:
        train_embeds, train_labels: (N, D) and (N,) integers; rows with a label below 0 are left out.
        embeds, labels: (Q, D) and (Q,); queries with a label below 0 get a prediction but are not counted.
        k: neighbours.
        weighted: votes weigh exp(similarity / temperature) (the default for k > 1), or 1. Of labels with equal
            votes the one of the nearest neighbour wins.

    Raises:
        ValueError: for the reasons of `nearest`; not as many labels as rows; no labelled rows; a temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, expected a number above 0")
    train_labels = check_labels("train_labels", train_labels, train_embeds)
    labels = check_labels("labels", labels, embeds)
    kept = np.flatnonzero(train_labels >= 0)
    if not len(kept) or not (labels >= 0).any():
        raise ValueError(f"knn: {'train_labels' if not len(kept) else 'labels'} are all missing (below 0)")
    rows = train_embeds if len(kept) == len(train_labels) else np.asarray(train_embeds)[kept]
    similarities, places = nearest(embeds, rows, k, max_memory=max_memory)
    weighted = k > 1 if weighted is None else weighted
    predictions = vote(train_labels[kept][places], similarities / temperature if weighted else None)
    known = np.flatnonzero(labels >= 0)
    right = predictions[known] == labels[known]
    per_class = {int(c): float(right[labels[known] == c].mean()) for c in np.unique(labels[known])}
    mean = float(np.mean(list(per_class.values())))
    return KnnResult(float(right.mean()), per_class, mean, k, weighted, predictions, len(known))


def vote(labels: np.ndarray, log_weights: np.ndarray | None = None) -> np.ndarray:
    """The label (Q,) with the largest sum of weights among neighbours' labels (Q, K), the nearest first.

    Weights are exp(log_weights), (Q, K), added in float64 from the nearest on; None is one vote each. Of equal sums
    the label with the nearest first neighbour wins.
    """
    if log_weights is None:
        weights = np.ones(labels.shape)
    else:
        log_weights = np.asarray(log_weights, np.float64)
        weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    totals = np.zeros(labels.shape)  # of the label of each neighbour
    for j in range(labels.shape[1]):
        totals += np.where(labels == labels[:, j : j + 1], weights[:, j : j + 1], 0)
    return labels[np.arange(len(labels)), totals.argmax(1)]


def check_labels(name: str, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`labels` as int64 (N,), one per row."""
    labels = np.asarray(labels)
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: got {labels.dtype} of shape {labels.shape}, expected {len(rows)} integers, one per row"
        )
    return labels.astype(np.int64)
