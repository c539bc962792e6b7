"""Exact search among vectors: a scan of 8-bit codes shows which rows can be among the best, and these are compared in float64.

The score of a row x for a query q of length 1 is <q, x>, with the products added in float64. A row is stored a second time
as x = offset + step * code + rest, with codes of 8 bits, and a query as q * step = unit * code + rest. faiss adds the products
of the two codes, which are whole numbers. By Cauchy and Schwarz the scores differ from those by at most |rest| of the one times
the length of the other. Every row that this bound doesn't exclude is compared as defined, so the result is that of comparing
all rows in float64, and equal rows are equal to the bit.

Axes: N rows  Q queries  D dimension of a vector
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
FEW = 4096  # so few rows are compared without codes
_BLOCK = 65_536  # rows that are compared, or coded, at a time
_QUERIES = 64  # queries of a scan
_ROUND = 2.0**-24  # largest relative error of rounding to float32
_BOUNDS = "bounds.npz"
_CODES = "codes.faiss"


@cache
def _faiss() -> Any:
    import faiss

    return faiss


@cache
def _pool() -> ThreadPoolExecutor:
    # A query is one thread's work for faiss: the rows are divided among threads here instead.
    return ThreadPoolExecutor(THREADS, "kakao-models-scan", initializer=lambda: _faiss().omp_set_num_threads(1))


if hasattr(os, "register_at_fork"):  # a fork has no threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@dataclass(frozen=True)
class Codes:
    """The codes of N vectors.

    index: faiss' index of the codes.
    offset, step: (D,) float64.
    rest: the largest length of a rest.
    length: the largest length of a row of codes.
    longest: the largest length of a vector.
    """

    index: Any
    offset: np.ndarray
    step: np.ndarray
    rest: float
    length: float
    longest: float

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Codes":
        """The codes of vectors (N, D)."""
        faiss = _faiss()
        low, high = vectors.min(0).astype(np.float64), vectors.max(0).astype(np.float64)
        offset, step = (low + high) / 2, (high - low) / 254
        index = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        rest = length = 0.0
        for start in range(0, len(vectors), _BLOCK // 8):
            shifted = vectors[start : start + _BLOCK // 8] - offset
            codes = np.rint(np.divide(shifted, step, out=np.zeros_like(shifted), where=step > 0))
            index.add(codes.astype(np.float32))
            rest = max(rest, float(np.linalg.norm(shifted - codes * step, axis=1).max()))
            length = max(length, float(np.linalg.norm(codes, axis=1).max()))
        return cls(index, offset, step, rest, length, longest(vectors))

    def save(self, folder: Path) -> None:
        _faiss().write_index(self.index, os.fspath(folder / _CODES))
        lengths = [self.rest, self.length, self.longest]
        np.savez(folder / _BOUNDS, offset=self.offset, step=self.step, lengths=lengths)

    @classmethod
    def load(cls, folder: Path, shape: tuple[int, ...]) -> "Codes":
        """The codes that `save` wrote, mapped into memory.

        Raises:
            ValueError: they are of other vectors than those of this shape (N, D).
            RuntimeError: the file is damaged.
        """
        faiss = _faiss()
        with np.load(folder / _BOUNDS, allow_pickle=False) as bounds:
            values = bounds["offset"], bounds["step"], *bounds["lengths"].tolist()
        index = faiss.read_index(os.fspath(folder / _CODES), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        if (index.ntotal, index.d) != shape or not len(values[0]) == len(values[1]) == index.d:
            raise ValueError(f"{folder}: has {index.ntotal} codes of {index.d}, expected {shape}")
        return cls(index, *values)

    def best(self, queries: np.ndarray, start: int, stop: int, alive: np.ndarray | None, most: int) -> "_Found":
        faiss = _faiss()
        weights = queries * self.step
        unit = np.abs(weights).max(1, keepdims=True) / 127
        unit[unit == 0] = 1
        codes = np.rint(weights / unit)
        rest = np.linalg.norm(weights - codes * unit, axis=1)
        # The sum of products is exact where it is added as whole numbers, and else rounded to float32 at each step.
        rounding = (queries.shape[1] + 2) * _ROUND * np.linalg.norm(codes, axis=1) * unit[:, 0]
        selector = faiss.IDSelectorRange(start, stop)
        if alive is not None and 2 * np.count_nonzero(alive[start:stop]) < stop - start:
            some = np.zeros(stop, bool)
            some[start:] = alive[start:stop]
            selector = faiss.IDSelectorBitmap(np.packbits(some, bitorder="little"))
        sums, rows = self.index.search(codes.astype(np.float32), most, params=faiss.SearchParameters(sel=selector))
        scores = np.where(rows < 0, -np.inf, (queries @ self.offset)[:, None] + unit * sums)
        errors = self.rest + (rest + rounding) * self.length + 1e-9
        highest = scores.min(1) + errors
        if alive is not None:  # a pass over all rows is quicker than one over the larger part of them
            scores[~alive[rows]] = -np.inf
        return _Found(scores, rows, errors, highest, most)


@dataclass(frozen=True)
class _Found:
    """The rows of a piece with the largest approximate scores, each within `errors` of the row's score.

    scores, rows: (Q, at most `most`); rows that are missing have the score -inf.
    errors: (Q,).
    highest: (Q,) no other row of the piece has a larger score; -inf where there is none.
    """

    scores: np.ndarray
    rows: np.ndarray
    errors: np.ndarray
    highest: np.ndarray
    most: int


class Vectors:
    """N vectors (N, D) float32 to search among, with their codes where there are any."""

    def __init__(self, values: np.ndarray, codes: Codes | None = None):
        self.values, self._codes = values, codes
        self._searches = 0
        self.longest = longest(values) if codes is None else codes.longest

    def coded(self) -> Codes | None:
        """The codes. They are made at the second search, as they cost more than one search without them."""
        self._searches += 1
        if self._codes is None and self._searches > 1 and len(self.values) > FEW:
            self._codes = Codes.of(self.values)
        return self._codes


@dataclass(frozen=True)
class _Piece:
    """The rows start..stop of vectors; alive: (N,) those that count."""

    part: int
    vectors: Vectors
    codes: Codes | None
    alive: np.ndarray | None
    start: int
    stop: int

    def best(self, queries: np.ndarray, most: int) -> _Found:
        if self.codes is not None and 4 * most < self.stop - self.start:
            return self.codes.best(queries, self.start, self.stop, self.alive, most)
        values, rows = self.vectors.values[self.start : self.stop], np.arange(self.start, self.stop)
        if self.alive is not None:
            rows = self.start + np.flatnonzero(self.alive[self.start : self.stop])
            values = self.vectors.values[rows]
        scores = queries.astype(np.float32) @ values.T
        errors = np.full(len(queries), _margin(queries.shape[1]) * self.vectors.longest)
        highest = np.full(len(queries), -np.inf)
        if most < len(rows):
            places = np.argpartition(scores, len(rows) - most, axis=1)[:, len(rows) - most :]
            scores, rows = np.take_along_axis(scores, places, 1), rows[places]
            highest = scores.min(1) + errors
        rows = np.broadcast_to(rows, scores.shape)
        return _Found(scores.astype(np.float64), rows, errors, highest, most)


def nearest(
    parts: Sequence[tuple[Vectors, np.ndarray | None]], queries: np.ndarray, k: int
) -> Iterator[list[tuple[float, int, int]]]:
    """The k rows with the largest scores of each query, and those equal to the last of them: (score, part, row), in no order.

    Args:
        parts: vectors, and which of their rows count, (N,) bool; None: all.
        queries: (Q, D) float64 of length 1.
    """
    pieces = list(_pieces(parts))
    most = max(256, 4 * k)
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        found = list(_pool().map(_Piece.best, pieces, repeat(some), repeat(most)))
        for query in range(len(some)):
            yield _settled(pieces, [(of, query) for of in found], some[query], k)


def _pieces(parts: Sequence[tuple[Vectors, np.ndarray | None]]) -> Iterator[_Piece]:
    for number, (vectors, alive) in enumerate(parts):
        total = len(vectors.values)
        live = total if alive is None else int(np.count_nonzero(alive))
        if not live:
            continue
        codes = vectors.coded() if live > FEW else None
        if codes is None and live <= FEW:
            yield _Piece(number, vectors, None, alive, 0, total)
            continue
        size = -(-total // THREADS) if codes is not None else _BLOCK
        for start in range(0, total, size):
            yield _Piece(number, vectors, codes, alive, start, min(start + size, total))


def _settled(pieces: list[_Piece], found: list[tuple[_Found, int]], query: np.ndarray, k: int) -> list:
    """The best rows of one query, once it is certain that no piece has others."""
    while True:
        low = np.concatenate([of.scores[at] - of.errors[at] for of, at in found] or [np.empty(0)])
        least = np.partition(low, len(low) - k)[len(low) - k] if len(low) >= k else -np.inf
        best: list[tuple[float, int, int]] = []
        for piece, (of, at) in zip(pieces, found):
            usable = (of.scores[at] + of.errors[at] >= least) & (of.scores[at] > -np.inf)
            rows = of.rows[at][usable]
            scores, rows = _scores(piece.vectors, rows, query, k)
            best += zip(scores.tolist(), [piece.part] * len(rows), rows.tolist())
        scores = np.array([score for score, _, _ in best])
        last = np.partition(scores, len(scores) - k)[len(scores) - k] if len(scores) >= k else -np.inf
        more = [number for number, (of, at) in enumerate(found) if -np.inf < of.highest[at] >= last]
        if not more:
            return [row for row in best if row[0] >= last]
        for number in more:
            found[number] = pieces[number].best(query[None], 4 * found[number][0].most), 0


def _scores(vectors: Vectors, rows: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, as defined, of those rows that can be among the k best of these, and the rows."""
    values = vectors.values[rows]
    if len(rows) > k:
        rough = values @ query.astype(np.float32)
        least = np.partition(rough, len(rows) - k)[len(rows) - k] - 2 * _margin(len(query)) * vectors.longest
        values, rows = values[rough >= least], rows[rough >= least]
    # Row by row: a matrix product may add the products of two equal rows in two orders.
    return (values.astype(np.float64) * query).sum(1), rows


def _margin(dim: int) -> float:
    """No float32 product of vectors of length 1 is further from the score than this (Higham 2002, section 3.1)."""
    return 1.01 * (dim + 8) * _ROUND


def longest(values: np.ndarray) -> float:
    """The largest length of a vector, of (N, D)."""
    parts = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
    return max((float(np.sqrt(np.einsum("nd,nd->n", part, part)).max()) * 1.0001 for part in parts), default=1.0)
