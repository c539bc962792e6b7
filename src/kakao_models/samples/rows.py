"""The rows of a source, cut into the same ranges every time it is opened."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.samples.columns import BY_NAME, Columns, Sample, SampleError
from kakao_models.samples.paths import is_hub
from kakao_models.samples.sources import ImageFolder, open_source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one file."""

    number: int  # its place among all parts
    file: int
    start: int
    stop: int


class Rows:
    """The rows of a source in a fixed order, each with an id.

    Args:
        source, columns, needs, keep: see `open_source`.

    Raises:
        ValueError: the source is empty, of an unknown kind, or lacks a needed column.
    """

    def __init__(
        self,
        source: Any,
        columns: Columns = BY_NAME,
        needs: Iterable[str] = ("image",),
        keep: Iterable[str] | None = (),
    ):
        local = isinstance(source, (str, os.PathLike)) and not is_hub(os.fspath(source))
        self.where, self.columns = os.path.abspath(source) if local else source, columns  # to open it in another folder
        self.source = open_source(source, columns, needs, keep=keep, merge=False)
        self.name, self.files, self.numbered = self.source.name, self.source.files, self.source.numbered
        files = np.asarray(self.source.shard_files, np.int64)[: len(self.source.counts)]
        self.counts = np.bincount(files, self.source.counts, len(self.files)).astype(int).tolist()

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def plan(self) -> dict:
        """The columns chosen by name, as they stand in the plan of a folder."""
        chosen = {kind: getattr(self.columns, kind) for kind in self.columns.chosen}
        return {"columns": chosen} if chosen else {}

    def parts(self, size: int) -> list[Part]:
        """All rows in ranges of at most `size`; a range does not reach over the end of a file."""
        ranges = [
            (file, start, min(start + size, count))
            for file, count in enumerate(self.counts)
            for start in range(0, count, size)
        ]
        return [Part(number, *place) for number, place in enumerate(ranges)]

    def fingerprint(self) -> str:
        """Changes when the rows do: of the files' names, lengths, times and row counts."""
        files = [(Path(path).name, *self._stat(path), count) for path, count in zip(self.files, self.counts)]
        images = self.source.paths if isinstance(self.source, ImageFolder) else None
        content = json.dumps([files, images])
        return hashlib.sha256(content.encode()).hexdigest()

    def _stat(self, path: str) -> tuple:
        records = getattr(self.source, "records", None)
        if hasattr(records, "_fingerprint"):  # of `datasets`
            return (records._fingerprint,)
        stat = os.stat(path)
        return () if isinstance(self.source, ImageFolder) else (stat.st_size, stat.st_mtime_ns)

    def read(self, part: Part) -> list[Sample]:
        """The rows of a part, each with an `id`: its own, or the name of the file or sample, or its number. A row that
        can't be read says so in `error`."""
        first = sum(self.counts[: part.file])
        return [self._read(part.file, first, row) for row in range(part.start, part.stop)]

    def _read(self, file: int, first: int, row: int) -> Sample:
        name = f"{os.path.basename(self.files[file])}:{row}"
        try:
            sample = self.source.read(*self.source.locate(first + row))
        except SampleError as error:
            sample = error.sample
            sample.error = error.reason
        except (ValueError, OSError) as error:
            sample = Sample(name, None, error=str(error))
        if sample.id is None and not self.source.own_ids:
            sample.id = first + row if self.numbered else name
        elif sample.id is not None and not self.numbered:
            sample.id = _sound(str(sample.id))
        if sample.path is not None:
            sample.path = _sound(sample.path)
        sample.captions = tuple(map(_sound, sample.captions))
        sample.labels = tuple(_sound(label) if isinstance(label, str) else label for label in sample.labels)
        return sample


def _sound(text: str) -> str:
    """A text that can be stored: half of a character, which JSON can hold, as its digits."""
    return text.encode("utf-8", "backslashreplace").decode()


def vectors_of(column: "pa.ChunkedArray | pa.Array", name: str | os.PathLike) -> np.ndarray:
    """A column of lists of numbers, none of them null, as float32 (rows, width).

    Raises:
        ValueError: they are no lists, or differ in length; all their numbers together may still be a multiple of the rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not any(
        is_kind(column.type) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        raise ValueError(f"{name}: the column of embeddings has type {column.type}, expected lists of numbers")
    if len(widths := pc.call_function("list_value_length", [column]).unique()) > 1:
        raise ValueError(f"{name}: holds embeddings of dimensions {widths[0]} and {widths[1]}, expected one dimension")
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
