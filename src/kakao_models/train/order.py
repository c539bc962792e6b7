"""The order of training samples: which one stands where in an epoch, of one source or of a mixture of several."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kakao_models.samples.columns import BY_NAME, CAPTIONS, LABELS, Columns
from kakao_models.samples.shards import Source, locate
from kakao_models.samples.sources import Joined, open_source
from kakao_models.train.recipe import check_keys

_HELD = 3  # permutations that an order keeps: workers look one or two windows ahead
_BLOCK = 1 << 16  # positions of a mixture in which each source has its share


class Order:
    """The order of samples: shards shuffled, then the rows of every `window` consecutive shards among each other.

    Reading it in order opens `window` shards at a time. With all shards in one window the shuffle is a full one.
    """

    def __init__(self, counts: Sequence[int], seed: int | Sequence[int] = 0, window: int = 16):
        if window < 1:
            raise ValueError(f"shuffle window: expected at least 1 shard, got {window}")
        self.counts, self.window = np.asarray(counts, np.int64), window
        self.seeds = [seed] if isinstance(seed, int) else list(seed)
        self._epoch, self._held = None, {}

    def __len__(self) -> int:
        return int(self.counts.sum())

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(shard, row) of a position of 0..len-1; in each epoch every sample has one position."""
        if epoch != self._epoch:
            self._shards = np.random.default_rng([*self.seeds, epoch]).permutation(len(self.counts))
            self._firsts = np.cumsum([0, *self.counts[self._shards]])
            self._epoch = epoch
        place, _ = locate(self._firsts, position)
        number = place // self.window
        start, end = self._firsts[[number * self.window, min((number + 1) * self.window, len(self.counts))]]
        shuffled = _kept(self._held, (epoch, number), lambda: self._shuffled(epoch, number, int(end - start)))
        place, row = locate(self._firsts, start + shuffled[position - start])
        return int(self._shards[place]), row

    def _shuffled(self, epoch: int, window: int, rows: int) -> np.ndarray:
        return np.random.default_rng([*self.seeds, epoch, window]).permutation(rows)


class Mixture(Joined):
    """Several sources, from which samples are drawn by weights.

    Args:
        weights: above 0. A source's share of the samples is its weight divided by the sum of all.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        super().__init__(sources)
        self.weights = [float(weight) for weight in weights]
        if len(self.weights) != len(self.sources) or not all(0 < weight < np.inf for weight in self.weights):
            raise ValueError(
                f"a mixture needs a weight above 0 for each of its {len(self.sources)} sources, got {list(weights)}"
            )


class MixedOrder:
    """The order of samples of a mixture, a function of (seed, epoch, position) like `Order`.

    An epoch has as many positions as the sources have samples together. Each source has its share of them, to the next
    whole number, evenly spread over the epoch and in random order. A source is read in an order of its own: the whole
    of it before any sample comes a second time, across epochs too.
    """

    def __init__(self, source: Mixture, seed: int = 0, window: int = 16):
        self.seed, self.total = seed, sum(source.counts)
        self.orders = [Order(part.counts, (seed, number), window) for number, part in enumerate(source.sources)]
        self.first_shards = np.cumsum([0, *(len(part.counts) for part in source.sources)])
        shares = np.asarray(source.weights, np.float64) / sum(source.weights)
        self.shares = _whole(self.total * shares, self.total)  # positions of each source in an epoch
        if not self.shares.all():
            number = int(self.shares.argmin())
            raise ValueError(
                f"the mixture's source {number}, {source.sources[number].name}, has weight {source.weights[number]:g}, which is less "
                f"than one of the {self.total} samples of an epoch: leave it out, or raise its weight"
            )
        left, drawn = self.shares.copy(), [np.zeros_like(self.shares)]
        for size in self._sizes():
            drawn.append(_whole(left * (size / left.sum()), size))
            left = left - drawn[-1]
        self.drawn, self._held = np.cumsum(drawn, 0), {}  # (blocks + 1, sources): drawn before each block

    def _sizes(self) -> list[int]:
        return [min(_BLOCK, self.total - start) for start in range(0, self.total, _BLOCK)]

    def __len__(self) -> int:
        return self.total

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(shard, row) of a position of 0..len-1, the shard numbered among those of all sources."""
        block, place = divmod(position, _BLOCK)
        kinds = _kept(self._held, (epoch, block), lambda: self._kinds(epoch, block))
        number = int(kinds[place])
        before = self.drawn[block, number] + np.count_nonzero(kinds[:place] == number)
        order = self.orders[number]
        turn, row = divmod(epoch * int(self.shares[number]) + int(before), len(order))
        shard, row = order.locate(turn, row)
        return int(self.first_shards[number]) + shard, row

    def _kinds(self, epoch: int, block: int) -> np.ndarray:
        counts = self.drawn[block + 1] - self.drawn[block]
        kinds = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
        return np.random.default_rng([self.seed, epoch, block, 2]).permutation(kinds)


def _whole(parts: np.ndarray, total: int) -> np.ndarray:
    """Parts whose sum is `total`, each rounded up or down: the largest remainders are rounded up."""
    whole = np.floor(parts).astype(np.int64)
    up = np.argsort(whole - parts, kind="stable")[: total - int(whole.sum())]
    whole[up] += 1
    return whole


def _kept(held: dict, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
    if key not in held:
        while len(held) >= _HELD:
            del held[next(iter(held))]
        held[key] = make()
    return held[key]


def open_data(where: Any, columns: Columns = BY_NAME, needs: Sequence[str] = ("image",)) -> Source:
    """Training data: any source of `open_source`, or a mixture, `[{"path": source, "weight": 2}, ...]`.

    Raises:
        ValueError: nothing can be read, or the entries of a mixture have other keys than `path` and `weight`.
    """
    if not _is_mixture(where, columns):
        return open_source(where, columns, needs)
    for number, entry in enumerate(where):
        check_keys(f"data: entry {number} of the mixture", entry, ["path", "weight"])
        weight = entry.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < np.inf:
            raise ValueError(
                f"data: entry {number} of the mixture, {entry['path']!s:.80}: expected a weight above 0, got {weight!r}"
            )
    sources = [open_source(entry["path"], columns, needs) for entry in where]
    return Mixture(sources, [entry["weight"] for entry in where])


def _is_mixture(where: Any, columns: Columns) -> bool:
    """Whether data are entries with a path and a weight, misspelt or not, and no captions or labels, as rows have."""
    targets = {*CAPTIONS, *LABELS, columns.caption, columns.label}
    entries = where if isinstance(where, (list, tuple)) else ()
    return all(
        isinstance(entry, Mapping) and "path" in entry and targets.isdisjoint(entry) for entry in entries
    ) and any(difflib.get_close_matches(str(key), ["weight"]) for entry in entries for key in entry)
