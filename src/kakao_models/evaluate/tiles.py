"""Cosine similarity of many rows with many rows: exact order, and never all similarities in memory.

The similarity of two rows is defined once, whatever the sizes of tiles: both rows are scaled to length 1 in float64 and
rounded to float32; their products are added in float64, in one fixed order; the sum is rounded to float32. Tiles are
computed by a float32 matrix product, whose error is bounded, and wherever that bound leaves an order open the
similarities are computed again as defined. So results do not depend on tiles, threads or the BLAS library, and equal
rows are equal to the bit. Of equal similarities the row that comes first wins, as in `tf.math.top_k`, by which the
original implementations rank.

Axes: Q queries  T targets  D width
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

MAX_MEMORY = 512 * 2**20  # bytes that tiles may take, beside embeddings and results
_PAIRS = 4096  # similarities computed as defined at a time
_SMALLEST, _LARGEST = 1e-200, 1e200  # sums of squares that lose nothing in float64
_ROWS = 256  # rows normalised at a time: they stay in the CPU's cache


def check_rows(name: str, rows: np.ndarray, width: int | None = None) -> np.ndarray:
    """`rows` as an array (N, D), or an error that says what is wrong with its shape.

    Raises:
        ValueError: not two axes, no rows, or not of the expected width.
    """
    rows = rows if isinstance(rows, np.ndarray) else np.asarray(rows)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name}: got shape {rows.shape}, expected (rows, dimension) with at least one of each")
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"{name}: got {rows.dtype}, expected numbers")
    if width is not None and rows.shape[1] != width:
        raise ValueError(
            f"{name}: rows have dimension {rows.shape[1]}, but the rows they are compared with have {width}. Are both from the same model?"
        )
    return rows


def check_finite(name: str, rows: np.ndarray, numbers: np.ndarray | None = None) -> None:
    """Raises ValueError for a row that is not finite; it is named by its place, or the one that `numbers` gives it."""
    for start in range(0, len(rows), _ROWS):
        wrong = np.flatnonzero(~np.isfinite(rows[start : start + _ROWS]).all(1))
        if len(wrong):
            row = start + wrong[0]
            row = row if numbers is None else numbers[row]
            raise ValueError(f"{name}: row {row} is not finite (NaN or infinity). Could its input be read?")


def check_at(at: Sequence[int]) -> None:
    """Raises ValueError unless `at`, the k of recall at k or top-k, are one or more whole numbers of at least 1."""
    if not len(at) or not all(isinstance(k, Integral) and k >= 1 for k in at):
        raise ValueError(f"at: got {list(at)}, expected whole numbers of at least 1")


def unit_rows(name: str, rows: np.ndarray, numbers: int | np.ndarray = 0) -> np.ndarray:
    """Rows scaled to length 1, float32; `numbers` are theirs (or the first one's), for errors.

    Raises:
        ValueError: a row that is not finite, or all zeros and so without a direction; it is named.
    """
    result = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        wide = np.array(rows[part], np.float64, order="C")
        squares = np.einsum("nd,nd->n", wide, wide)
        if _SMALLEST < squares.min() and squares.max() < _LARGEST:  # the usual case; not so with NaN
            wide /= np.sqrt(squares)[:, None]
            result[part] = wide
            continue
        largest = np.abs(wide).max(1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))
        if len(wrong):
            first = start + int(wrong[0])
            row = numbers[first] if isinstance(numbers, np.ndarray) else numbers + first
            zero = largest[wrong[0], 0] == 0
            problem = "is all zeros, which has no direction" if zero else "is not finite (NaN or infinity)"
            raise ValueError(f"{name}: row {row} {problem}. Could its input be read?")
        wide /= largest  # the squares of very large or small values would leave float64
        wide /= np.sqrt(np.square(wide).sum(1, keepdims=True))
        result[part] = wide
    return result


def pair_similarities(queries: np.ndarray, targets: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Similarities, as defined above, of queries[rows[i]] and targets[columns[i]]; both of length 1, float32."""
    result = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        product = queries[rows[part]].astype(np.float64)
        product *= targets[columns[part]]
        result[part] = product.sum(1)
    return result


def margin(width: int) -> np.float32:
    """No float32 matrix product of rows of length 1 is further from the similarity than this.

    Higham 2002, section 3.1: D·u/(1 - D·u) times the rows' lengths, u = 2^-24; plus the rounding of the result.
    """
    unit = 2.0**-24
    return np.float32(1.01 * (width * unit / (1 - width * unit) + 2 * unit))


@dataclass(frozen=True)
class Tile:
    """Some queries against some targets."""

    first_query: int
    first_target: int
    queries: np.ndarray  # (q, D) float32, of length 1
    targets: np.ndarray  # (t, D) float32, of length 1
    product: np.ndarray  # (q, t) float32, within `margin` of the similarities. Overwritten by the next tile

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return pair_similarities(self.queries, self.targets, rows, columns)


def tiles(queries: np.ndarray, targets: np.ndarray, max_memory: int = MAX_MEMORY) -> Iterator[Tile]:
    """Every query against every target: all queries against the first targets, then against the next ones.

    Embeddings may be memory-mapped arrays; they are normalised a tile at a time.

    Args:
        max_memory: bytes, of which tiles and what is computed on them take about as much at most.
    """
    width = queries.shape[1]
    q, t = tile_shape(len(queries), len(targets), width, max_memory)
    buffer = np.empty(q * t, np.float32)
    whole = unit_rows("queries", queries) if q >= len(queries) else None
    for first_target in range(0, len(targets), t):
        columns = unit_rows("targets", targets[first_target : first_target + t], first_target)
        for first_query in range(0, len(queries), q):
            rows = unit_rows("queries", queries[first_query : first_query + q], first_query) if whole is None else whole
            product = buffer[: len(rows) * len(columns)].reshape(len(rows), len(columns))
            np.matmul(rows, columns.T, out=product)
            yield Tile(first_query, first_target, rows, columns, product)


def tile_shape(queries: int, targets: int, width: int, max_memory: int) -> tuple[int, int]:
    """Rows and columns of a tile: half the memory for its values and its rows, the rest for what is done with them."""
    if max_memory < 2**20:
        raise ValueError(f"max_memory: got {max_memory} bytes, expected at least {2**20} (1 MiB)")
    room = max_memory // 2 // 4
    t = min(targets, max(1, room // (4 * width)), 16_384)
    q = min(queries, max(1, (room - width * t) // (t + width)), 2048)
    return q, t
