"""Tables, folders of images and tars, cut into the same ranges of rows every time they are opened."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kakao_models.data.images import list_images

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
        source: Parquet, CSV or JSON lines (file, pattern or folder), a folder of images, or WebDataset tars.
        columns: read these alone, where they are there; None reads all.

    Raises:
        ValueError: there is nothing, or nothing that is known.
    """

    def __init__(self, source: str | os.PathLike, columns: Sequence[str] | None = None):
        self.name, self.columns = os.fspath(source), columns
        path = Path(source)
        self._pictures = self._tars = self._table = None
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
        if tars:
            from kakao_models.train.shards import TarShards

            self._tars, self.files = TarShards(tars), list(map(str, tars))
            self.counts = list(self._tars.counts)
        elif path.is_dir() and (found := list_images(path)):
            self._pictures = [str(name.relative_to(path)) for name in found]
            self.files, self.counts = [self.name], [len(found)]
        else:
            from kakao_models.data.tables import files_of

            self.files = files_of(source)
            self._open_table()
        if not sum(self.counts):
            raise ValueError(f"{source}: there are no rows")
        self.folder = path if self._pictures else Path(self.files[0]).parent

    def _open_table(self) -> None:
        if self.files[0].lower().endswith(".parquet"):
            import pyarrow.parquet as pq

            self.counts = [pq.ParquetFile(path).metadata.num_rows for path in self.files]
        else:
            from kakao_models.data.tables import connect, open_table

            connection = connect(threads=1)
            connection.raw_sql("SET preserve_insertion_order = true")
            self._table = [open_table(connection, path).to_pyarrow() for path in self.files]
            self.counts = [len(table) for table in self._table]

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
            return [{"id": name, "image": name} for name in names]
        if self._tars is not None:
            samples = [self._tars.read(part.file, row) for row in range(part.start, part.stop)]
            return [{"id": s.key, "image": s.image, "text": " ".join(s.captions[:1]) or None} for s in samples]
        rows = self._read_table(part).to_pylist()
        first = sum(self.counts[: part.file]) + part.start
        return rows if rows and "id" in rows[0] else [{"id": first + n, **row} for n, row in enumerate(rows)]

    def _read_table(self, part: Part):
        if self._table is not None:
            return self._select(self._table[part.file].slice(part.start, part.stop - part.start))
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, begin, tables = pq.ParquetFile(self.files[part.file]), 0, []
        names = [name for name in file.schema_arrow.names if self.columns is None or name in self.columns]
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if end > part.start and begin < part.stop:
                table = file.read_row_group(group, names, use_threads=False)
                low, high = max(part.start - begin, 0), min(part.stop, end) - begin
                tables.append(table.slice(low, high - low))
            begin = end
        return pa.concat_tables(tables)

    def _select(self, table):
        names = [name for name in table.column_names if self.columns is None or name in self.columns]
        return table.select(names)


def image_of(row: dict[str, Any], folder: Path) -> Any:
    """What `load_image` reads of a row, None where it has none."""
    value = next((row[name] for name in IMAGES if row.get(name) is not None), None)
    if isinstance(value, dict):  # as `datasets` stores images
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return str(folder / value) if isinstance(value, str) and "://" not in value else value


def text_of(row: dict[str, Any]) -> str | None:
    return next((row[name] for name in TEXTS if row.get(name) is not None), None)
