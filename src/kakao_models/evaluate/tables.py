"""Tables of images: parquet files and what `datasets` reads, behind one small interface."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_SAVED = ("dataset_info.json", "dataset_dict.json")  # files that datasets.save_to_disk writes


class Table(ABC):
    """Rows with an image and more."""

    source: str
    columns: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def values(self, column: str) -> list:
        """All of a column, as Python values."""

    @abstractmethod
    def images(self, column: str, places: np.ndarray) -> Iterator:
        """Encoded images (bytes), or paths, of some rows."""

    @abstractmethod
    def names(self, column: str) -> list[str] | None:
        """File names of the images in `column`, if the table has them."""

    @abstractmethod
    def class_names(self, column: str) -> list[str] | None:
        """What the table's own description calls the labels 0, 1, ..."""

    def find(self, wanted: str | None, usual: Sequence[str], what: str) -> str:
        """The name of a column: the wanted one, or the first usual one there is."""
        found = next((name for name in ([wanted] if wanted else usual) if name in self.columns), None)
        if found is None:
            raise ValueError(
                f"{self.source}: found no column {wanted or ', '.join(usual)}; it has {', '.join(self.columns)}. "
                f"Say which one holds the {what} (--{what.rstrip('s')}-column)"
            )
        return found


def open_image_table(source: str, split: str | None = None) -> Table | None:
    """The table at `source`, or None if that is a folder of images.

    Raises:
        ImportError: pyarrow or datasets is not installed.
        OSError: no such file, folder or data set.
    """
    path = Path(source)
    if path.suffix == ".parquet":
        if not path.exists():
            raise FileNotFoundError(f"{source}: there is no such file")
        return _Parquet(source, [path])
    if path.is_dir():
        if any((path / name).exists() for name in _SAVED):
            return _Dataset(source, _load("load_from_disk", source), split)
        files = sorted(path.glob("*.parquet"))
        return _Parquet(source, files) if files else None
    parts = source.split("/")
    if path.exists() or len(parts) != 2 or not all(parts) or source.startswith("."):
        raise OSError(f"{source}: there is no such folder or .parquet file, and it is no name of a data set on the Hub")
    try:
        return _Dataset(source, _load("load_dataset", source, split=split or "test"), None)
    except OSError as error:
        raise OSError(f"{source}: there is no such folder here, and no such data set from the Hub: {error}") from error


class _Parquet(Table):
    def __init__(self, source: str, files: list[Path]):
        try:
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise ImportError(f"{source}: .parquet needs pyarrow: pip install 'kakao-models[evaluate]'") from error
        try:
            self._files = [parquet.ParquetFile(path) for path in files]
        except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
            raise OSError(f"{source} can't be read as parquet: {error}") from error
        self.source, self.columns = source, self._files[0].schema_arrow.names
        for path, file in zip(files, self._files):
            if (names := file.schema_arrow.names) != self.columns:
                raise ValueError(
                    f"{path} has the columns {', '.join(names)}, but {files[0]} {', '.join(self.columns)}: "
                    "wanted files of one table"
                )
        self._groups = [(file, group, file.metadata.row_group(group).num_rows) for file in self._files
                        for group in range(file.metadata.num_row_groups)]  # fmt: skip
        if not len(self):
            raise ValueError(f"{source}: the table has no rows")

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self._groups)

    def values(self, column: str) -> list:
        return [value for file in self._files for value in file.read([column])[column].to_pylist()]

    def images(self, column: str, places: np.ndarray) -> Iterator:
        """Row groups are read one at a time, again if the places go back and forth."""
        ends = np.cumsum([rows for _, _, rows in self._groups])
        current, values = -1, None
        for place in places:
            group = int(np.searchsorted(ends, place, side="right"))
            if group != current:
                file, number, rows = self._groups[group]
                values, current = file.read_row_group(number, columns=[column])[column], group
            value = values[int(place - ends[group] + self._groups[group][2])].as_py()
            yield _encoded(value, self.source, place)

    def names(self, column: str) -> list[str] | None:
        kind = self._files[0].schema_arrow.field(column).type
        if "file" in self.columns:
            return [Path(name).name for name in self.values("file")]
        if str(kind).startswith("struct") and kind.get_field_index("path") >= 0:
            paths = [path for file in self._files for path in
                     file.read([f"{column}.path"])[column].combine_chunks().field("path").to_pylist()]  # fmt: skip
            return [Path(path).name for path in paths] if all(paths) else None
        return None

    def class_names(self, column: str) -> list[str] | None:
        described = (self._files[0].schema_arrow.metadata or {}).get(b"huggingface")
        try:
            return json.loads(described or "{}")["info"]["features"][column]["names"]
        except (ValueError, KeyError, TypeError):
            return None


class _Dataset(Table):
    def __init__(self, source: str, data, split: str | None):
        if hasattr(data, "keys"):  # a DatasetDict
            if split not in data and len(data) > 1:
                raise ValueError(f"{source}: got split {split!r}, wanted one of {', '.join(data)} (--split)")
            data = data[split] if split in data else next(iter(data.values()))
        self.source, self.columns, self._data = source, data.column_names, data

    def __len__(self) -> int:
        return len(self._data)

    def values(self, column: str) -> list:
        return self._data[column][:]

    def images(self, column: str, places: np.ndarray) -> Iterator:
        import datasets

        data = self._data.select_columns([column])
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        for place in places:
            yield _encoded(data[int(place)][column], self.source, place)

    def names(self, column: str) -> list[str] | None:
        import datasets

        if not isinstance(self._data.features[column], datasets.Image):
            return None
        data = self._data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        paths = [row[column]["path"] for row in data]
        return [Path(path).name for path in paths] if all(paths) else None

    def class_names(self, column: str) -> list[str] | None:
        return getattr(self._data.features[column], "names", None)


def _encoded(value, source: str, place: int):
    if isinstance(value, dict):
        value = value.get("bytes") or (Path(value["path"]) if value.get("path") else None)
    if isinstance(value, str):
        value = Path(value)
    if not isinstance(value, (bytes, Path)):
        raise ValueError(f"{source}: row {place} has no image, but {type(value).__name__}")
    return value


def _load(how: str, source: str, **options):
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(f"{source}: reading it needs datasets: pip install datasets") from error
    return getattr(datasets, how)(source, **options)
