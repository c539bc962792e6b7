"""Rows of an index that are on the disk or in memory: their vectors, and a table of what is known about each.

Axes: N rows  Q queries  D dimension of a vector
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.files.atomic import flush
from kakao_models.search.scan import Codes, Vectors, nearest

if TYPE_CHECKING:
    import pyarrow as pa

KEY, VECTOR = "sha256", "vector"
SEQUENCE, META = "_seq", "$meta"  # Milvus Lite's columns: when a row was written, and a JSON object of further columns
BATCH = 16_384  # rows that are copied, or filtered, at a time
_FILTERS = 16  # results of filters that are kept
_VECTORS, _TABLE = "vectors.npy", "rows.arrow"

Part = tuple[np.ndarray, "pa.Table"]  # vectors (n, D) float32, and the other columns


@dataclass(frozen=True)
class Segment:
    """Rows that do not change, and which of them count: (N,) bool, or None for all.

    table: the columns but the vector.
    folder: where `write` put them.
    """

    vectors: Vectors
    table: "pa.Table"
    alive: np.ndarray | None = None
    folder: Path | None = None
    _matching: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Segment":
        """A segment in memory."""
        import pyarrow as pa

        vectors, tables = zip(*parts)
        return cls(Vectors(np.concatenate(vectors)), pa.concat_tables(tables))

    @classmethod
    def write(cls, folder: Path, count: int, parts: Iterable[Part]) -> "Segment":
        """A segment in files, written part by part."""
        import pyarrow as pa

        folder.mkdir()
        values, writer, start = None, None, 0
        with pa.OSFile(str(folder / _TABLE), "wb") as file:
            for vectors, table in parts:
                if values is None or writer is None:
                    shape = (count, vectors.shape[1])
                    values = np.lib.format.open_memmap(folder / _VECTORS, "w+", np.float32, shape)
                    writer = pa.ipc.new_file(file, table.schema)
                values[start : start + len(vectors)] = vectors
                writer.write_table(table, max_chunksize=BATCH)
                start += len(vectors)
            if values is None or writer is None or start != count:
                raise ValueError(f"{folder}: got {start} rows, expected {count}")
            writer.close()
        values.flush()
        Codes.of(values).save(folder)
        for path in folder.iterdir():
            flush(path)
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> "Segment":
        """A segment that `write` wrote, mapped into memory."""
        import pyarrow as pa

        values = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
        table = pa.ipc.open_file(pa.memory_map(str(folder / _TABLE))).read_all()
        return cls(Vectors(values, Codes.load(folder, values.shape)), table, folder=folder)

    def __len__(self) -> int:
        return len(self.vectors.values)

    @property
    def count(self) -> int:
        """Number of rows that count."""
        return len(self) if self.alive is None else int(np.count_nonzero(self.alive))

    @functools.cached_property
    def sequences(self) -> np.ndarray:
        return self.table[SEQUENCE].to_numpy()

    def without(self, dead: np.ndarray) -> "Segment":
        """The segment without the rows where `dead` (N,) is true."""
        if not dead.any():
            return self
        alive = ~dead if self.alive is None else self.alive & ~dead
        return Segment(self.vectors, self.table, alive, self.folder, self._matching)

    def parts(self) -> Iterator[Part]:
        """The rows that count."""
        for start in range(0, len(self), BATCH):
            rows = slice(start, start + BATCH)
            values, table = self.vectors.values[rows], self.table.slice(start, BATCH)
            if self.alive is not None:
                values, table = values[self.alive[rows]], table.filter(self.alive[rows])
            if len(values):
                yield values, table

    def matching(self, filter: str, compiled: Any) -> np.ndarray:
        """Marks the rows that count and match a filter, (N,) bool. The filter is text, and what Milvus Lite compiled of it."""
        matches = self._matching.get(filter)
        if matches is None:
            from milvus_lite.search.filter import evaluate_mask

            batches = (self.table.slice(start, BATCH) for start in range(0, len(self), BATCH))
            matches = np.concatenate([evaluate_mask(compiled, batch) for batch in batches])
            while len(self._matching) >= _FILTERS:
                self._matching.pop(next(iter(self._matching)), None)
            self._matching[filter] = matches
        return matches if self.alive is None else matches & self.alive

    def id(self, row: int) -> str:
        return self.table[KEY][row].as_py()

    def records(self, rows: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Columns of rows; "*" names all but the vector, "vector" that one."""
        everything = "*" in columns
        names = self.table.column_names if everything else [name for name in columns if name != VECTOR]
        starts, batches = self._batches
        at = np.searchsorted(starts, rows, "right") - 1
        records: list[dict[str, Any]] = [{}] * len(rows)
        for number in np.unique(at):
            (places,) = np.nonzero(at == number)
            found = batches[number].select(names).take(_indices(rows[places] - starts[number]))
            for place, record in zip(places, found.to_pylist()):
                records[place] = record
        for row, record in zip(rows, records):
            if everything:
                record |= json.loads(record.pop(META, None) or "{}") | record
                record.pop(SEQUENCE, None)
            if VECTOR in columns:
                record[VECTOR] = self.vectors.values[row]
        return records

    @functools.cached_property
    def _batches(self) -> "tuple[np.ndarray, list[pa.RecordBatch]]":
        """The table's batches, and the rows that they start at: to take rows from a batch is ten times as fast."""
        batches = self.table.to_batches()
        return np.cumsum([0, *map(len, batches[:-1])]), batches


class FilterRefused(ValueError):
    """A filter that Milvus does not understand."""


class Rows:
    """The rows of an index at one point in time.

    Args:
        schema: Milvus Lite's schema of the collection, by which filters are understood.
    """

    def __init__(self, segments: Sequence[Segment], schema: Any):
        self.segments, self._schema = [segment for segment in segments if segment.count], schema

    @property
    def count(self) -> int:
        return sum(segment.count for segment in self.segments)

    def search(self, queries: np.ndarray, k: int, filter: str = "") -> list[list[tuple[dict[str, Any], float]]]:
        """The k rows with the largest scores of each query, and the scores; of equal ones the smallest ids come first.

        Args:
            queries: (Q, D) of any length but zero.
            filter: an expression of Milvus.

        Raises:
            FilterRefused: a filter that Milvus does not understand.
        """
        queries = queries.astype(np.float64)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        parts = [(segment.vectors, alive) for segment, alive in zip(self.segments, self._alive(filter))]
        results = []
        for found in nearest(parts, queries, k):
            ordered = sorted((-score, self.segments[part].id(row), part, row) for score, part, row in found)[:k]
            records = self._records(np.array([place for _, _, *place in ordered]).reshape(-1, 2), ("*",))
            results.append([(record, -best[0]) for record, best in zip(records, ordered)])
        return results

    def pages(
        self, filter: str, columns: Sequence[str], limit: int | None, size: int
    ) -> Iterator[list[dict[str, Any]]]:
        """Rows in the order of their ids, with the columns that `Segment.records` takes."""
        import pyarrow as pa
        import pyarrow.compute as pc

        places, ids = [np.empty((0, 2), np.int64)], []
        for number, (segment, alive) in enumerate(zip(self.segments, self._alive(filter))):
            rows = np.arange(len(segment)) if alive is None else np.flatnonzero(alive)
            places.append(np.stack([np.full(len(rows), number), rows], 1))
            ids.append(segment.table[KEY].take(_indices(rows)))
        order = pc.sort_indices(pa.chunked_array([chunk for part in ids for chunk in part.chunks], pa.string()))
        ordered = np.concatenate(places)[order.to_numpy()[:limit]]
        for start in range(0, len(ordered), size):
            yield self._records(ordered[start : start + size], columns)

    def _records(self, places: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows at places (n, 2): numbers of segments, and rows in them."""
        found: list[dict[str, Any]] = [{}] * len(places)
        for number in np.unique(places[:, 0]):
            (at,) = np.nonzero(places[:, 0] == number)
            for place, record in zip(at, self.segments[number].records(places[at, 1], columns)):
                found[place] = record
        return found

    def _alive(self, filter: str) -> list[np.ndarray | None]:
        if not filter:
            return [segment.alive for segment in self.segments]
        from milvus_lite.search.filter import FilterError, compile_filter

        try:
            compiled = compile_filter(filter, self._schema)
            return [segment.matching(filter, compiled) for segment in self.segments]
        except FilterError as error:
            raise FilterRefused(str(error)) from error


def _indices(rows: np.ndarray) -> "pa.Array":
    """Row numbers for `take`, made without `pyarrow.array`: that imports pandas, which takes a third of a second."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows, np.int64))])
