"""Tables of text: CSV, TSV and JSON lines, read at any row without holding them in memory."""

import contextlib
import csv
import functools
import gzip
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kakao_models.samples.columns import BY_NAME, CAPTIONS, IMAGES, LABELS, Columns, Sample, as_sample
from kakao_models.samples.coyo import TYPES
from kakao_models.samples.paths import kind_of, suffix_of
from kakao_models.samples.shards import Source

SLICE = 1 << 17  # rows per shard of a source without shards
_SEPARATORS = (",", ";", "\t", "|")
_WHOLE = re.compile(r"-?\d+(\.0+)?")  # a class number; with zeros, as pandas writes columns with gaps
_CASTS = {"int64": int, "float64": float}


class TextTable(Source):
    """CSV, TSV and JSON lines. A file is read once when it is opened; then its rows are read where they lie.

    Cells of CSV are text: those of COYO's columns get their published types, ids and labels are whole numbers where all
    of a table's are.

    Args:
        merge: rows with the same image are one sample with all their captions.
    """

    def __init__(
        self, path: str | os.PathLike, columns: Columns = BY_NAME, needs: Collection[str] = (), merge: bool = False
    ):
        self.path = Path(path)
        super().__init__(os.fspath(path), [os.fspath(path)], self.path.parent)
        self._is_csv = kind_of(path) == "csv"
        self._reset()
        self._scan(self._file(), columns, needs, merge)
        self.counts, self.shard_files = slices(len(self._ends) - 1)

    def _scan(self, file: BinaryIO, columns: Columns, needs: Collection[str], merge: bool) -> None:
        """Finds where each row begins, the rows of each sample, and the types of columns."""
        if self._is_csv:
            self._read_head(file, columns if needs else None)
        else:
            self.names = dict.fromkeys(name for _, record in self._json_rows(file) for name in record)
            file.seek(0)
        self.fields = columns.find(self.names, needs, self.path)
        starts, ids, labels = [], True, True
        numbers: dict[str, int] = {}  # the sample of each image
        sample_of_row, count = [], 0
        for start, record in self._csv_rows(file) if self._is_csv else self._json_rows(file):
            image = record.get(self.fields.image)
            number = numbers.setdefault(image, count) if merge and isinstance(image, str) else count
            count += number == count
            if merge:
                sample_of_row.append(number)
            starts.append(start)
            ids = ids and _is_whole(record.get(self.fields.id))
            labels = labels and self._is_csv and bool(_WHOLE.fullmatch(record.get(self.fields.label) or "0"))
        self._starts = np.array([*starts, os.fstat(file.fileno()).st_size], np.int64)
        self.numbered, self.own_ids = ids, self.fields.id is not None
        self._casts = {name: _CASTS[TYPES[name]] for name in self.names if TYPES.get(name) in _CASTS}
        if labels and self.fields.label:
            self._casts[self.fields.label] = int
        if self.fields.id:
            self._casts.pop(self.fields.id, None)  # names are ids too
            self._casts |= {self.fields.id: int} if ids else {}
        # the rows of sample i are _order[_ends[i] : _ends[i + 1]]
        if count == len(starts):  # each row is a sample
            self._order, self._ends = range(count), range(count + 1)
        else:
            samples = np.array(sample_of_row, np.int64)
            self._order = samples.argsort(kind="stable")
            self._ends = np.concatenate([[0], np.bincount(samples).cumsum()])

    def _read_head(self, file: BinaryIO, columns: Columns | None) -> None:
        self._head = file.readline()
        head = self._decoded(self._head, 1)
        if "\r" in head.rstrip("\r\n"):
            raise ValueError(
                f"{self.path}: its lines end in a carriage return (CR). Save it with line feeds (LF or CRLF)"
            )
        if not head.strip():
            raise _no_head(self.path)
        self._separator = _separator(head, self.path, columns or Columns())
        with self._named_line(1):
            names = [name.strip() for name in next(csv.reader([head], delimiter=self._separator, strict=True), [])]
        self.names = dict.fromkeys(names)
        if len(self.names) < len(names):
            raise ValueError(f"{self.path}: has two columns {next(x for x in names if names.count(x) > 1)!r}")
        if columns and names and not _known(names, columns):
            raise ValueError(
                f"{self.path}: no known column among {', '.join(map(repr, names))}. Is the first line a row? A table begins "
                "with a line of names, such as image,caption; other names are chosen with --image-column, --caption-column "
                "and --label-column (in a recipe, columns)"
            )

    def _csv_rows(self, file: BinaryIO) -> Iterator[tuple[int, dict]]:
        position, number = len(self._head), 1

        def lines() -> Iterator[str]:
            nonlocal position, number
            for line in file:
                position, number = position + len(line), number + 1
                yield self._decoded(line, number)

        rows = csv.reader(lines(), delimiter=self._separator, strict=True)
        while True:
            start, line = position, number + 1
            with self._named_line(line):
                row = next(rows, None)
            if row is None:
                return
            if row:
                yield start, self._record(row, line)

    @contextlib.contextmanager
    def _named_line(self, line: int) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise ValueError(
                f"{self.path}: line {line} is badly quoted ({error}). A value with a separator, a quote or a line break in it "
                'needs quotes around it, and a quote within is written twice: ""'
            ) from error

    def _record(self, row: list[str], line: int) -> dict[str, Any]:
        if len(row) > len(self.names) and any(row[len(self.names) :]):
            raise ValueError(
                f"{self.path}: line {line} has {len(row)} values, but the columns are {', '.join(self.names)}. A value with "
                f"{self._separator!r} in it needs quotes around it"
            )
        return dict(zip(self.names, (*(cell or None for cell in row), *[None] * len(self.names))))

    def _json_rows(self, file: BinaryIO) -> Iterator[tuple[int, dict]]:
        position = 0
        for number, line in enumerate(file, 1):
            start, position = position, position + len(line)
            if line.strip():
                yield start, self._object(line, number)

    def _object(self, line: bytes, number: int) -> dict:
        try:
            record = json.loads(self._decoded(line, number))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{self.path}: line {number} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{self.path}: line {number} is {type(record).__name__}, expected a JSON object")
        return record

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: line {number} is not UTF-8 text ({error.reason} at byte {error.start}). Save the file as UTF-8"
            ) from error

    def _row(self, row: int) -> dict[str, Any]:
        start, end = self._starts[row : row + 2].tolist()
        data = os.pread(self._file().fileno(), end - start, start)
        if not self._is_csv:
            record = self._object(data, 2 if start else 1)
        else:
            lines = io.StringIO(self._decoded(data, 2), newline="")
            record = self._record(next(csv.reader(lines, delimiter=self._separator, strict=True)), row)
        for name, cast in self._casts.items():
            value = record.get(name)
            if isinstance(value, float) and cast is int and value.is_integer():  # as pandas writes columns with gaps
                record[name] = int(value)
            elif isinstance(value, str):
                try:
                    record[name] = _whole(value) if cast is int else cast(value)
                except (ValueError, OverflowError):
                    record[name] = value if name == self.fields.label else None
        return record

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        row += shard * SLICE
        name = f"{self.path.name} {row}"
        samples = [
            as_sample(self._row(place), name, self.fields, self.folder, with_image=with_image)
            for place in self._order[self._ends[row] : self._ends[row + 1]]
        ]
        if len(samples) > 1:
            samples[0].captions = tuple(text for sample in samples for text in sample.captions)
            samples[0].labels = tuple(dict.fromkeys(label for sample in samples for label in sample.labels))
        return samples[0]

    def row_number(self, shard: int, row: int) -> int:
        return int(self._order[self._ends[row + shard * SLICE]])

    @property
    def rows(self) -> int:
        return len(self._starts) - 1

    def _reset(self) -> None:
        self._file = functools.cache(self._open)

    def _open(self) -> BinaryIO:
        if not self.path.name.lower().endswith(".gz"):
            return open(self.path, "rb")
        file = tempfile.TemporaryFile()
        with gzip.open(self.path) as packed:
            try:
                shutil.copyfileobj(packed, file)
            except (OSError, EOFError) as error:
                raise ValueError(f"{self.path}: not a valid .gz file ({error})") from error
        file.seek(0)
        return file


def _is_whole(value: Any) -> bool:
    """Whether an id is a whole number of 64 bits, or missing."""
    text = str(value or 0)
    return bool(_WHOLE.fullmatch(text)) and -(2**63) <= int(text.partition(".")[0]) < 2**63


def _whole(value: str) -> int:
    """A whole number; of another one, the part before the point. float() would round numbers of 16 digits and more."""
    return int(value.partition(".")[0]) if _WHOLE.fullmatch(value) or "." not in value else int(float(value))


def slices(rows: int) -> tuple[list[int], list[int]]:
    """`counts` and `shard_files` of a source of one file that has no shards of its own."""
    counts = [min(SLICE, rows - start) for start in range(0, rows, SLICE)]
    return counts, [0] * len(counts)


def _known(names: Iterable[str], columns: Columns) -> int:
    chosen = [getattr(columns, kind).lower() for kind in columns.chosen]
    return sum(name.strip().lower() in (*IMAGES, *CAPTIONS, *LABELS, *chosen) for name in names)


def _separator(head: str, path: Path, columns: Columns = BY_NAME) -> str:
    """The separator by which a first line has most known names, or most names at all."""
    usual = "\t" if suffix_of(path) == ".tsv" else ","

    def score(separator: str) -> tuple:
        try:
            (names,) = csv.reader([head], delimiter=separator, strict=True)
        except (csv.Error, ValueError):
            return (-1,)
        return _known(names, columns), separator == usual and len(names) > 1, len(names), separator == usual

    return max(_SEPARATORS, key=score)


def separator_of(path: str | os.PathLike) -> str:
    """The separator of a CSV or TSV file: a comma, a semicolon, a tab or a bar."""
    with gzip.open(path) if os.fspath(path).lower().endswith(".gz") else open(path, "rb") as file:
        head = file.readline(2**20).decode("utf-8-sig", errors="replace")
    if not head.strip():
        raise _no_head(path)
    return _separator(head, Path(path))


def _no_head(path: str | os.PathLike) -> ValueError:
    return ValueError(f"{path}: its first line is empty, expected names of columns, such as image,caption")
