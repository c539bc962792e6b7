"""Samples in files: WebDataset tars, TFRecords, Parquet. Files are read where they are, never as a whole."""

import dataclasses
import itertools
import json
import os
import tarfile
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.samples.columns import BY_NAME, CAPTIONS, LABELS, Columns, Sample, as_sample, class_names
from kakao_models.samples.paths import distinct_names
from kakao_models.samples.tfrecord import index_records, parse_example, read_record

_BLOCK = 512  # bytes of a tar that a file in it takes at the least
_OPEN = 32  # files, and indices of files, that a process keeps
_TEXTS = {*CAPTIONS, *LABELS}
_TRIED = 20  # samples in which needed columns are looked for


class Source(ABC):
    """Samples in shards of known sizes; any row of any shard can be read.

    name: its name in messages. files: its files, in the order of the rows. folder: where its relative paths
    start, None where it has none. counts: rows of each shard. shard_files: the place in `files` of each shard.
    numbered: whether ids are whole numbers (those of a column, or of the rows); otherwise they are text. own_ids: whether
    there is a column of them.
    """

    numbered = own_ids = False
    counts: Sequence[int]
    shard_files: Sequence[int]

    def __init__(self, name: str, files: Sequence[str], folder: Path | None):
        self.name, self.files, self.folder = name, list(files), folder

    @abstractmethod
    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        """Any row. ValueError or OSError: it cannot be read."""

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self.read(shard, row) for shard, count in enumerate(self.counts) for row in range(count))

    def scan(self) -> Iterator[Sample]:
        """All samples in order, without their images."""
        for shard, count in enumerate(self.counts):
            for row in range(count):
                yield self.read(shard, row, with_image=False)

    def row_number(self, shard: int, row: int) -> int:
        """The number of a row in the whole source; where several rows of a table are one sample, that of the first."""
        return self._firsts[shard] + row

    def locate(self, number: int) -> tuple[int, int]:
        """The shard and the row of a sample by its number among all samples."""
        return locate(self._firsts, number)

    @property
    def rows(self) -> int:
        """Number of rows that `row_number` counts."""
        return sum(self.counts)

    @cached_property
    def _firsts(self) -> list[int]:
        return list(itertools.accumulate(self.counts, initial=0))

    def identify(self, sample: Sample, shard: int, row: int) -> tuple[int, str | None]:
        """The number of the sample's source in a list of sources, and the id that `kakao-models data embed` writes for it: its
        own, or else the number of its row; None if others have one and this one does not."""
        own = self.row_number(shard, row) if sample.id is None and not self.own_ids else sample.id
        return 0, None if own is None else str(own)

    def hold(self, shards: int) -> None:  # noqa: B027
        """Sets how many shards are read in turns: as many stay in memory where a row costs reading its shard."""

    @cached_property
    def classes(self) -> list[str] | None:
        """Names of the classes by number, None where labels are numbers without names.

        They are described by the source, or there is a column of them, or labels are names: then in the order of
        `class_names`. Where labels are not described, this reads all of them.
        """
        if described := self.described():
            return described
        names: set[str] = set()
        numbers: set[int] = set()
        numbered: dict[int, str] = {}
        for sample in self.scan():
            for label in sample.labels:
                names.add(label) if isinstance(label, str) else numbers.add(label)
            if sample.class_name and len(sample.labels) == 1 and isinstance(sample.labels[0], int):
                numbered.setdefault(sample.labels[0], sample.class_name)
        if names and numbers:
            raise ValueError(
                f"{self.name}: labels are names, such as {min(names)!r}, and numbers, such as {min(numbers)}, expected one "
                "kind. Choose another column with --label-column (in a recipe, columns.label)"
            )
        if names:
            return class_names(names)
        if not numbered or (count := max(numbered) + 1) > 10**6:
            return None
        return [numbered.get(number, str(number)) for number in range(count)]

    def described(self) -> list[str] | None:
        """Class names that the source itself describes."""
        return None

    def _reset(self) -> None:  # noqa: B027
        """Makes the caches, which each process has for itself."""

    def __getstate__(self) -> dict:  # to a worker that is spawned rather than forked
        return {name: value for name, value in vars(self).items() if not hasattr(value, "cache_info")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def _check(self, columns: Columns, needs: Iterable[str], names_of: Callable[[int, int], Iterable[str]]) -> None:
        """Looks for needed and chosen columns in the first samples, where each sample has fields of its own.

        Raises:
            ValueError: none of the samples has one of them.
        """
        expected, names = {*needs, *columns.chosen}, {}
        for shard, count in enumerate(self.counts):
            for row in range(min(count, _TRIED - len(names))):
                try:
                    names |= dict.fromkeys(names_of(shard, row))
                except (ValueError, OSError):  # broken samples are reported when they are read
                    continue
            if names:
                columns.find(names, expected, self.name)
                return


def locate(firsts: Sequence[int], number: int) -> tuple[int, int]:
    """The part in which a number lies, and its place in that part.

    Args:
        firsts: the first number of each part, in ascending order from 0.
    """
    part = bisect_right(firsts, number) - 1
    return part, int(number - firsts[part])


def _manifest_classes(folder: Path | None) -> list[str] | None:
    """The classes that the manifest of `data shard` beside its shards lists."""
    if folder is None:
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return list(map(str, manifest["classes"])) or None if manifest["kind"] == "shards" else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


class _Shards(Source):
    """Files of samples that lie one after another."""

    def __init__(self, paths: Sequence[str | os.PathLike], columns: Columns = BY_NAME, needs: Iterable[str] = ()):
        self.paths, self.columns = [Path(path) for path in paths], columns
        super().__init__(str(self.paths[0] if len(paths) == 1 else self.paths[0].parent), list(map(str, paths)), None)
        self.names = distinct_names(self.paths)  # in ids of samples
        self.counts, self.shard_files = [self._count(path) for path in self.paths], range(len(self.paths))
        self._reset()
        self._check(columns, needs, self._names)

    @staticmethod
    @abstractmethod
    def _read_index(path: Path) -> Sequence[Any] | np.ndarray:
        """Reads the place of each sample in a file."""

    @abstractmethod
    def _names(self, shard: int, row: int) -> Iterable[str]:
        """The fields of a sample."""

    def _reset(self) -> None:
        self._index = lru_cache(_OPEN)(lambda shard: self._read_index(self.paths[shard]))
        self._file = lru_cache(_OPEN)(lambda shard: open(self.paths[shard], "rb", buffering=0))

    def _count(self, path: Path) -> int:
        return len(self._read_index(path))

    def described(self) -> list[str] | None:
        return _manifest_classes(self.paths[0].parent)


class TarShards(_Shards):
    """WebDataset tars: files of one name are one sample, and the suffix after the first dot is their kind: `.jpg` (`.png`,
    ...), `.txt`, `.json` with captions and labels, `.cls`. img2dataset writes these. Hidden files are skipped.

    Beside `00000.tar`, the `successes` of img2dataset's `00000_stats.json` spare counting.

    whole: read all files of a sample, and all of its JSON, into `record`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        columns: Columns = BY_NAME,
        needs: Iterable[str] = (),
        whole: bool = False,
    ):
        self.whole = whole
        super().__init__(paths, columns, needs)

    def _count(self, path: Path) -> int:
        stats, tar = path.with_name(f"{path.stem}_stats.json"), path.stat()
        if stats.is_file() and stats.stat().st_mtime >= tar.st_mtime:
            try:
                count = json.loads(stats.read_text(encoding="utf-8"))["successes"]
            except (ValueError, KeyError, TypeError, RecursionError):
                count = None
            if isinstance(count, int) and 0 <= count <= tar.st_size // _BLOCK:
                return count
        return super()._count(path)

    @staticmethod
    def _read_index(path: Path) -> list[tuple[str, dict[str, tuple[int, int]]]]:
        samples: dict[str, dict] = {}
        key = ""
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not member.isfile() or member.issparse():  # a sparse file's size is not its size in the tar
                        continue
                    parts = [part for part in member.name.split("/") if part not in ("", ".")]
                    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
                        continue
                    stem, _, kind = parts[-1].partition(".")
                    key = "/".join([*parts[:-1], stem])
                    if (kind := kind.lower()) in samples.setdefault(key, {}):
                        raise ValueError(
                            f"{path}: has two files {member.name}: which of them is the sample's? Pack it again"
                        )
                    samples[key][kind] = (member.offset_data, member.size)
                tar.fileobj.seek(tar.offset)
                block = tar.fileobj.read(_BLOCK)
            # tarfile stops without a word where the file ends, and at a header that it can't read; blocks of zeros are a tar's end
            if not block or any(block):
                raise tarfile.ReadError("a damaged header" if any(block) else "the file ends before the tar does")
        except tarfile.TarError as error:
            if not samples:
                raise ValueError(f"{path}: not a tar file ({error})") from error
            raise ValueError(
                f"{path}: damaged after {len(samples)} samples, in or after {key} ({error}), and the rest is lost. "
                "Download the file again"
            ) from error
        return list(samples.items())

    def _names(self, shard: int, row: int) -> list[str]:
        _, parts = self._entry(shard, row)
        named = _object(self._bytes(shard, parts["json"])) if "json" in parts else {}
        return [*parts, *_texts(named, self.columns)]

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        key, parts = self._entry(shard, row)
        json_record = _object(self._bytes(shard, parts["json"])) if "json" in parts else {}
        texts = _texts(json_record, self.columns)
        fields = self.columns.find((*parts, *texts), optional=True)  # images are files of the tar, never in the JSON
        used = (fields.caption, fields.label, fields.image if with_image else None)
        record = dict(json_record if self.whole else texts)
        for kind, place in parts.items():
            if kind in used or (self.whole and kind not in ("json", fields.image)):
                record[kind] = self._bytes(shard, place)
        if fields.label in parts:
            record[fields.label] = _class_numbers(record[fields.label])
        name = f"{self.names[shard]}:{key}"
        sample = as_sample(record, name, fields, with_image=with_image)
        sample.id, sample.file = name, f"{key}.{fields.image}" if fields.image else None
        return sample

    def _entry(self, shard: int, row: int) -> tuple[str, dict[str, tuple[int, int]]]:
        index = self._index(shard)
        if row >= len(index):
            raise ValueError(f"{self.paths[shard]}: has {len(index)} samples, but its _stats.json says more")
        return index[row]

    def _bytes(self, shard: int, place: tuple[int, int]) -> bytes:
        return os.pread(self._file(shard).fileno(), place[1], place[0])

    def image_bytes(self, name: str, most: int) -> bytes | None:
        """The image of a sample of the first tar by its key, or by "key:suffix"; None if there is none, or it has more bytes
        than `most`."""
        index, (key, _, suffix) = dict(self._index(0)), name.rpartition(":")
        parts, option = (index[name], None) if name in index else (index.get(key, {}), suffix)
        image = Columns(image=option).find(parts, optional=True).image
        return self._bytes(0, parts[image]) if image and parts[image][1] <= most else None


def _texts(record: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Captions and labels in a sample's JSON."""
    chosen = (columns.caption, columns.label)
    return {
        name: value
        for name, value in record.items()
        if (name in _TEXTS or name.lower() in _TEXTS or name in chosen) and value not in (None, "", [])
    }


def _class_numbers(data: bytes) -> list[int] | bytes:
    """The numbers in a .cls; a name stays as it is."""
    try:
        return [int(number) for number in data.replace(b",", b" ").split()]
    except ValueError:
        return data


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object in a sample's .json; an empty one for other JSON, such as a list.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        record = json.loads(text.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("its .json is nested too deeply") from error
    return record if isinstance(record, dict) else {}


class TFRecordShards(_Shards):
    """TFRecords of Examples with the features `jpg` and `txt`, as the original read them, or others of the known names."""

    _read_index = staticmethod(index_records)

    def _example(self, shard: int, row: int) -> dict[str, list]:
        start, length = self._index(shard)[row]
        data = read_record(self._file(shard).fileno(), int(start), int(length), self.paths[shard])
        return {name: values for name, values in parse_example(data).items() if values}

    def _names(self, shard: int, row: int) -> Iterable[str]:
        return self._example(shard, row)

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        example = self._example(shard, row)
        fields = self.columns.find(example, optional=True)
        several = (fields.caption, fields.label)
        record = {name: values if name in several else values[0] for name, values in example.items()}
        name = f"{self.names[shard]}:{row}"
        sample = as_sample(record, name, fields, with_image=with_image)
        sample.id = name
        return sample


class ParquetShards(Source):
    """Row groups of Parquet files. An image is its encoded bytes, a struct that has them as `bytes`, a path or an address.

    A row costs reading its whole group, so the last few groups stay in memory: see `hold`.

    keep: further columns to read into `record`; None reads all.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        columns: Columns = BY_NAME,
        needs: Iterable[str] = (),
        keep: Iterable[str] | None = (),
    ):
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = [Path(path) for path in paths]
        super().__init__(str(paths[0] if len(paths) == 1 else paths[0].parent), list(map(str, paths)), paths[0].parent)
        self._held, self.schemas = 1, []
        self._places, self.counts, self.shard_files, self._columns, self._fields = [], [], [], [], []
        self.numbered = True
        for number, path in enumerate(paths):
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:  # pyarrow's errors are of both kinds
                raise ValueError(f"{path} can't be read as Parquet: {error}") from error
            schema = file.schema_arrow
            fields = columns.find(schema.names, needs, path)
            used = [*filter(None, dataclasses.astuple(fields)), *(keep or ())]
            names = [name for name in schema.names if keep is None or name in used]
            if twice := next((name for name in names if schema.names.count(name) > 1), None):
                raise ValueError(f"{path}: has two columns {twice!r}")
            if fields.id and (not pa.types.is_integer(kind := schema.field(fields.id).type) or kind == pa.uint64()):
                self.numbered = False
            self.own_ids = self.own_ids or fields.id is not None
            self.schemas.append(schema)
            self._columns.append(names)
            self._fields.append(fields)
            for group in range(file.num_row_groups):
                self._places.append((number, group))
                self.counts.append(file.metadata.row_group(group).num_rows)
                self.shard_files.append(number)
        self._reset()

    def described(self) -> list[str] | None:
        schema, label = self.schemas[0], self._fields[0].label
        described = (schema.metadata or {}).get(b"huggingface")
        try:
            feature = json.loads(described or "{}")["info"]["features"][label]
            feature = feature[0] if isinstance(feature, list) else feature.get("feature") or feature
            return list(feature["names"])
        except (ValueError, KeyError, TypeError, IndexError):
            return _manifest_classes(self.folder)

    def hold(self, shards: int) -> None:
        self._held = max(self._held, shards)
        self._reset()

    def _reset(self) -> None:
        self._groups = lru_cache(self._held)(
            lambda shard: self._read_group(shard, self._columns[self._places[shard][0]])
        )

    def _read_group(self, shard: int, names: Sequence[str]):
        import pyarrow.parquet as pq

        file, group = self._places[shard]
        table = pq.ParquetFile(self.files[file]).read_row_group(group, names, use_threads=False)
        return _sound_text(table)

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        return self._sample(self._groups(shard).slice(row, 1).to_pylist()[0], shard, row, with_image)

    def scan(self) -> Iterator[Sample]:
        for shard in range(len(self.counts)):
            file = self._places[shard][0]
            fields, schema = self._fields[file], self.schemas[file]
            names = [name for name in self._columns[file] if name != fields.image]
            if fields.image:
                kind = schema.field(fields.image).type
                if str(kind).startswith("struct") and kind.get_field_index("path") >= 0:
                    names.append(f"{fields.image}.path")
                elif "string" in str(kind):
                    names.append(fields.image)
            table = self._read_group(shard, names)
            count = self.counts[shard]
            for row, record in enumerate(table.to_pylist() if table.num_columns else [{}] * count):
                yield self._sample(record, shard, row, False)

    def _sample(self, record: dict, shard: int, row: int, with_image: bool) -> Sample:
        file, group = self._places[shard]
        name = f"{os.path.basename(self.files[file])}:{group}:{row}"
        folder = Path(self.files[file]).parent
        return as_sample(record, name, self._fields[file], folder, with_image=with_image)


def _sound_text(table):
    """A table whose text is UTF-8: other bytes, which some writers put into columns of text, are replaced."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            try:
                table.column(place).validate(full=True)
            except pa.ArrowInvalid:
                raw = table.column(place).cast(pa.large_binary()).to_pylist()
                text = [None if value is None else value.decode(errors="replace") for value in raw]
                table = table.set_column(place, field.name, pa.array(text, pa.large_string()))
    return table
