"""Samples, and files of them: WebDataset tars, TFRecords, Parquet. Files are read where they are, never as a whole."""

import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kakao_models.samples.tfrecord import index_records, parse_example, read_record

# What the columns of a table, the files of a tar sample or the features of an Example are called.
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_path", "file_name", "filepath", "path")
CAPTIONS = ("captions", "caption", "txt", "text", "sentences", "raw", "title")
LABELS = ("labels", "label", "cls", "class")
KEYS = ("__key__", "key", "image_id", "id", "uid")

_BLOCK = 512  # bytes of a tar that a file in it takes at the least
_OPEN = 32  # files, indices of files or row groups that a process keeps


@dataclass(frozen=True)
class Sample:
    key: str  # names it in messages
    image: Any  # whatever `load_image` reads
    captions: tuple[str, ...]  # may be empty
    labels: tuple[int | str, ...]  # class numbers, or names of folders; may be empty


class SampleSource(Protocol):
    counts: Sequence[int]  # rows of each shard

    def read(self, shard: int, row: int) -> Sample:
        """Any row. ValueError or OSError: it cannot be read."""


def as_sample(record: Mapping[str, Any], key: str, folder: Path | None = None) -> Sample:
    """A sample of a record, whose fields may be called any of `IMAGES`, `CAPTIONS`, `LABELS` and `KEYS`.

    Args:
        folder: what relative paths of images are relative to.

    Raises:
        ValueError: there is no image.
    """
    image = first_of(record, IMAGES)
    if isinstance(image, Mapping):  # as `datasets` stores images
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if image is None:
        raise ValueError(f"no image: wanted one of {', '.join(IMAGES)}, there are {', '.join(map(str, record))}")
    if isinstance(image, str) and folder is not None and "://" not in image:
        image = folder / image
    captions = first_of(record, CAPTIONS)
    captions = [] if captions is None else captions if isinstance(captions, (list, tuple, np.ndarray)) else [captions]
    texts = (text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in captions if text)
    labels = first_of(record, LABELS)
    labels = [] if labels is None else labels if isinstance(labels, (list, tuple, np.ndarray)) else [labels]
    numbers = tuple(label if isinstance(label, str) else int(label) for label in labels)
    if strange := [number for number in numbers if not isinstance(number, str) and not -(2**63) <= number < 2**63]:
        raise ValueError(f"a label is {strange[0]:.3g}, which is no class number")
    name = first_of(record, KEYS)
    name = name.decode(errors="replace") if isinstance(name, bytes) else name
    return Sample(
        key=key if name is None else f"{key} ({name})",
        image=image,
        captions=tuple(text.strip() for text in texts if text.strip()),
        labels=numbers,
    )


def first_of(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


class _Kept:
    """The last few results of a function of one number; `close` is called on those that fall out."""

    def __init__(self, make, close=lambda value: None, most: int = _OPEN):
        self.make, self.close, self.most, self.values = make, close, most, OrderedDict()

    def __call__(self, number: int):
        if number in self.values:
            self.values.move_to_end(number)
        else:
            self.values[number] = self.make(number)
            if len(self.values) > self.most:
                self.close(self.values.popitem(last=False)[1])
        return self.values[number]


class _Shards:
    """Files of samples that lie one after another."""

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self.paths = [Path(path) for path in paths]
        self.counts = [self._count(path) for path in self.paths]
        self._reset()

    def _reset(self) -> None:
        self._index = _Kept(lambda shard: self._read_index(self.paths[shard]))
        self._file = _Kept(lambda shard: os.open(self.paths[shard], os.O_RDONLY), os.close)

    def _count(self, path: Path) -> int:
        return len(self._read_index(path))

    def __getstate__(self) -> dict:  # to a worker that is spawned rather than forked
        return {"paths": self.paths, "counts": self.counts}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()


class TarShards(_Shards):
    """WebDataset tars: consecutive files of one name are one sample, what follows the first dot says what they are:
    `.jpg` (`.png`, `.webp`), `.txt`, `.json` with `caption` or `captions`, `.cls`. img2dataset writes these.

    Beside `00000.tar`, the `successes` of img2dataset's `00000_stats.json` spare counting.
    """

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
        samples: list[tuple[str, dict]] = []
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if (
                        not member.isfile() or member.issparse()
                    ):  # the size of a sparse file is not what lies in the tar
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if not samples or samples[-1][0] != key:
                        samples.append((key, {}))
                    samples[-1][1][kind.lower()] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            if not samples:
                raise ValueError(f"{path}: no tar file ({error})") from error
            samples.pop()  # it is cut short, and so may be the last sample
        return samples

    def read(self, shard: int, row: int) -> Sample:
        key, data = self._parts(shard, row)
        record = _object(data.pop("json", b"{}"))
        record = {name: record[name] for name in ("captions", "caption", "label", "labels") if record.get(name)}
        if "cls" in data:
            record["labels"] = [int(number) for number in data.pop("cls").decode().replace(",", " ").split()]
        return as_sample(record | data, f"{self.paths[shard].name}:{key}")

    def facts(self, shard: int, row: int) -> dict[str, Any]:
        """What a sample's .json says."""
        return _object(self._parts(shard, row, ("json",))[1].get("json", b"{}"))

    def _parts(self, shard: int, row: int, kinds: Sequence[str] | None = None) -> tuple[str, dict[str, bytes]]:
        index = self._index(shard)
        if row >= len(index):
            raise ValueError(f"{self.paths[shard]}: has {len(index)} samples, its _stats.json says more")
        key, parts = index[row]
        file = self._file(shard)
        return key, {
            kind: os.pread(file, size, offset)
            for kind, (offset, size) in parts.items()
            if kinds is None or kind in kinds
        }


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; of anything else in a sample's .json, such as a list, nothing is known.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("its .json is nested deeper than anybody writes it") from error
    return record if isinstance(record, dict) else {}


class TFRecordShards(_Shards):
    """TFRecords of Examples with the features `jpg` and `txt`, as the original read them, or others of `IMAGES` ..."""

    _read_index = staticmethod(index_records)

    def read(self, shard: int, row: int) -> Sample:
        start, length = self._index(shard)[row]
        data = read_record(self._file(shard), int(start), int(length), self.paths[shard])
        example = parse_example(data)
        single = (*IMAGES, *KEYS)
        record = {name: value[0] if name in single else value for name, value in example.items() if value}
        return as_sample(record, f"{self.paths[shard].name}:{row}")


class ParquetShards:
    """Row groups of Parquet files. An image is its encoded bytes, or a struct that has them as `bytes`.

    A row costs reading its whole group, so the last few groups stay in memory: see `hold`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        import pyarrow.parquet as pq

        self._held = 8
        self._places, self.counts, self._columns = [], [], {}
        known = {*IMAGES, *CAPTIONS, *LABELS, *KEYS}
        for path in map(Path, paths):
            facts = pq.ParquetFile(path)
            self._columns[path] = [name for name in facts.schema_arrow.names if name in known]
            for group in range(facts.num_row_groups):
                self._places.append((path, group))
                self.counts.append(facts.metadata.row_group(group).num_rows)
        self._reset()

    def hold(self, shards: int) -> None:
        """Keeps so many row groups in memory: as many as are read in turns, or each row would cost reading a group."""
        self._held = max(self._held, shards)
        self._reset()

    def _reset(self) -> None:
        self._groups = _Kept(self._read_group, most=self._held)

    def _read_group(self, shard: int):
        import pyarrow.parquet as pq

        path, group = self._places[shard]
        return pq.ParquetFile(path).read_row_group(group, self._columns[path], use_threads=False)

    def read(self, shard: int, row: int) -> Sample:
        path, group = self._places[shard]
        record = self._groups(shard).slice(row, 1).to_pylist()[0]
        return as_sample(record, f"{path.name}:{group}:{row}", path.parent)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_groups"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()
