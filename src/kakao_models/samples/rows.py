"""Tables, folders of images and tars, cut into the same ranges of rows every time they are opened."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.pixels.images import list_images

IMAGES = ("image", "jpg", "url", "image_path", "file_name", "filepath", "path")
TEXTS = ("text", "caption", "txt", "title")


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one file."""

    number: int  # of all parts
    file: int
    start: int
    stop: int


class Rows:
    """The rows of a source in a fixed order.

    Args:
        source: Parquet, CSV or JSON lines (file, pattern or folder), a folder of images, or WebDataset tars. CSV and
            JSON lines are held in memory.
        columns: read these alone, where they are there; None reads all.

    Raises:
        ValueError: there is nothing, nothing that is known, or a column twice.
    """

    numbered = False  # whether ids are whole numbers: those of a column, or of the rows; otherwise they are text

    def __init__(self, source: str | os.PathLike, columns: Sequence[str] | None = None):
        self.name, self.columns = os.fspath(source), columns
        path = Path(source)
        self._pictures = self._tars = self._table = None
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
        if tars:
            from kakao_models.samples.shards import TarShards

            self._tars, self.files = TarShards(tars), list(map(str, tars))
            self.counts = list(self._tars.counts)
        elif path.is_dir() and (found := list_images(path)):
            self._pictures = [str(name.relative_to(path)) for name in found]
            self.files, self.counts = [self.name], [len(found)]
        else:
            from kakao_models.samples.tables import files_of

            self.files = files_of(source)
            self._open_table()
        if not sum(self.counts):
            raise ValueError(f"{source}: there are no rows")
        self.folder = path if self._pictures else Path(self.files[0]).parent

    @property
    def pictures(self) -> bool:
        """Whether the source is a folder of images."""
        return self._pictures is not None

    @property
    def tars(self) -> bool:
        return self._tars is not None

    def _open_table(self) -> None:
        if self.files[0].lower().endswith(".parquet"):
            import pyarrow.parquet as pq

            files = [pq.ParquetFile(path) for path in self.files]
            self.counts, schemas = [file.metadata.num_rows for file in files], [file.schema_arrow for file in files]
            self._group: tuple = (None, None)  # the last one read, and which it is
        else:
            from kakao_models.samples.tables import connect, open_table

            connection = connect(threads=1)
            connection.raw_sql("SET preserve_insertion_order = true")
            self._table = [open_table(connection, path).to_pyarrow() for path in self.files]
            self.counts, schemas = map(len, self._table), [table.schema for table in self._table]
            self.counts = list(self.counts)
        for schema in schemas:
            if double := next((name for name in self._wanted(schema.names) if schema.names.count(name) > 1), None):
                raise ValueError(f"{self.name}: has two columns {double!r}")
        self.numbered = all(_is_number(schema) for schema in schemas)

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
        facts = [(Path(path).name, *self._stat(path), count) for path, count in zip(self.files, self.counts)]
        return hashlib.sha256(json.dumps([facts, self._pictures]).encode()).hexdigest()

    def _stat(self, path: str) -> tuple:
        found = os.stat(path)
        return () if self._pictures else (found.st_size, found.st_mtime_ns)

    def read(self, part: Part) -> list[dict[str, Any]]:
        """The rows of a part; each has an `id`: the column of this name, the name of a file or sample, or its number."""
        if self._pictures is not None:
            names = self._pictures[part.start : part.stop]
            return [{"id": name, "image": name, "text": self._caption(name)} for name in names]
        if self._tars is not None:
            return [self._read_sample(part.file, row) for row in range(part.start, part.stop)]
        rows = _pylist(self._read_table(part))
        first = sum(self.counts[: part.file]) + part.start
        if rows and "id" not in rows[0]:
            return [{"id": first + n, **row} for n, row in enumerate(rows)]
        if not self.numbered:
            rows = [row | {"id": None if row["id"] is None else str(row["id"])} for row in rows]
        return rows

    def _read_sample(self, file: int, row: int) -> dict[str, Any]:
        try:
            sample = self._tars.read(file, row)
        except ValueError:  # a sample without a picture
            return {"id": f"{Path(self.files[file]).name}:{row}", "image": None}
        facts = self._tars.facts(file, row) if self.columns is None else {}
        own = {"__key__": sample.key, "image": sample.image, "text": " ".join(sample.captions[:1]) or None}
        return {"id": sample.key, **facts, **own}

    def _caption(self, name: str) -> str | None:
        """The first line of the .txt file beside a picture."""
        path = Path(self.name, name).with_suffix(".txt")
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        return next(filter(None, map(str.strip, text.split("\n"))), None)

    def _read_table(self, part: Part):
        if self._table is not None:
            table = self._table[part.file].slice(part.start, part.stop - part.start)
            return table.select(self._wanted(table.column_names))
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, begin, tables = pq.ParquetFile(self.files[part.file]), 0, []
        names = self._wanted(file.schema_arrow.names)
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if end > part.start and begin < part.stop:
                if self._group[0] != (part.file, group):  # as large as its writer liked, often several parts
                    self._group = (part.file, group), file.read_row_group(group, names, use_threads=False)
                table = self._group[1]
                low, high = max(part.start - begin, 0), min(part.stop, end) - begin
                tables.append(table.slice(low, high - low))
            begin = end
        return pa.concat_tables(tables)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.columns is None or name in self.columns]


def _is_number(schema) -> bool:
    import pyarrow as pa

    kind = schema.field("id").type if "id" in schema.names else pa.int64()
    return pa.types.is_integer(kind) and kind != pa.uint64()


def _pylist(table) -> list[dict[str, Any]]:
    """Rows as dicts; bytes that are no UTF-8 in a column of text, which some writers put there, are replaced."""
    import pyarrow as pa

    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        for place, field in enumerate(table.schema):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                raw = table.column(place).cast(pa.large_binary()).to_pylist()
                text = [None if value is None else value.decode(errors="replace") for value in raw]
                table = table.set_column(place, field.name, pa.array(text, pa.large_string()))
        return table.to_pylist()


def vectors_of(column, name: str | os.PathLike) -> np.ndarray:
    """A column of lists of numbers, none of them null, as float32 (rows, width).

    Raises:
        ValueError: they are no lists, or differ in length; all their numbers together may still be a multiple of the rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not any(
        is_kind(column.type) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        raise ValueError(f"{name}: the column of embeddings is of {column.type}, wanted lists of numbers")
    if len(widths := pc.unique(pc.list_value_length(column))) > 1:
        raise ValueError(f"{name}: holds embeddings of widths {widths[0]} and {widths[1]}")
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)


def image_of(row: dict[str, Any], folder: Path) -> Any:
    """What `load_image` reads of a row, None where it has none."""
    value = next((row[name] for name in IMAGES if row.get(name) is not None), None)
    if isinstance(value, dict):  # as `datasets` stores images
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return str(folder / value) if isinstance(value, str) and "://" not in value else value


def text_of(row: dict[str, Any]) -> str | None:
    return next((row[name] for name in TEXTS if row.get(name) is not None), None)
