"""Where training samples come from: shards, `datasets`, folders and CSV files, by name.

A source is a list of shards of known sizes, and gives any row of any shard: so one number says where a run is, and any
process or worker can read any sample.
"""

import csv
import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kakao_models.files.lines import lines_of
from kakao_models.pixels.images import SUFFIXES, list_images
from kakao_models.samples.shards import (
    CAPTIONS,
    IMAGES,
    LABELS,
    ParquetShards,
    Sample,
    SampleSource,
    TarShards,
    TFRecordShards,
    as_sample,
    first_of,
)

_SLICE = 1 << 17  # rows of a shard of a source that has none of its own


class Records:
    """A map-style `datasets.Dataset`, or any sequence of dicts."""

    def __init__(self, records, folder: Path | None = None, name: str = "row"):
        features = getattr(records, "features", None) or {}
        for column, feature in features.items():
            if type(feature).__name__ == "Image":  # bytes now, decoding later and where `load_image` does it
                records = records.cast_column(column, type(feature)(decode=False))
        self.records, self.folder, self.name = records, folder, name
        rows = len(records)
        self.counts = [min(_SLICE, rows - start) for start in range(0, rows, _SLICE)]

    def read(self, shard: int, row: int) -> Sample:
        row += shard * _SLICE
        return as_sample(self.records[row], f"{self.name} {row}", self.folder)


def from_csv(path: str | os.PathLike) -> Records:
    """A row for each image, or several rows of one image with a caption each. `.tsv` is separated by tabs."""
    path = Path(path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        except csv.Error as error:
            raise ValueError(f"{path}: no table of comma-separated values ({error})") from error
    merged: dict[str, dict] = {}
    for row in rows:
        image, caption = first_of(row, IMAGES), first_of(row, CAPTIONS)
        record = merged.setdefault(image, {"image": image, "captions": [], "label": first_of(row, LABELS)})
        record["captions"] += [caption] if caption else []
    for record in merged.values():
        if isinstance(record["label"], str) and record["label"].lstrip("-").isdigit():
            record["label"] = int(record["label"])
    return Records(list(merged.values()), path.parent, path.name)


def from_folder(folder: str | os.PathLike) -> Records:
    """Images under a folder: the caption is in a .txt of the same name, a line each; the label is the folder's name."""
    folder, records = Path(folder), []
    for path in list_images(folder):
        text = path.with_suffix(".txt")
        captions = lines_of(text) if text.is_file() else []
        label = path.relative_to(folder).parts[0] if path.parent != folder else None
        records.append({"image": str(path.relative_to(folder)), "captions": captions, "label": label})
    return Records(records, folder, folder.name)


class Joined:
    """Several sources one after another."""

    def __init__(self, sources: Sequence[SampleSource]):
        self.sources = list(sources)
        self.counts = [count for source in self.sources for count in source.counts]
        self._first = np.cumsum([0, *(len(source.counts) for source in self.sources)])

    def hold(self, shards: int) -> None:
        for source in self.sources:
            if hasattr(source, "hold"):
                source.hold(shards)

    def read(self, shard: int, row: int) -> Sample:
        number = int(np.searchsorted(self._first, shard, side="right")) - 1
        return self.sources[number].read(shard - int(self._first[number]), row)


_SHARDED = {".tar": TarShards, ".tfrecord": TFRecordShards, ".tfrecords": TFRecordShards, ".parquet": ParquetShards}


def open_source(where) -> SampleSource:
    """A source by its name, or a list of them.

    Args:
        where: a file `.tar`, `.tfrecord`, `.parquet`, `.csv` or `.tsv`; a pattern of such (`*`, `{000..127}`); a folder
            of them, or of images; `hf://name`, `hf://name:split` or `hf://name/configuration:split`, a dataset of the
            Hub; a `datasets.Dataset`; or a list of any of these.

    Raises:
        ValueError: there is nothing, or nothing that is known.
    """
    if isinstance(where, (list, tuple)) and where and not isinstance(where[0], Mapping):
        sources = [open_source(part) for part in where]
        return sources[0] if len(sources) == 1 else Joined(sources)
    if hasattr(where, "read") and hasattr(where, "counts"):
        return where
    if not isinstance(where, (str, os.PathLike)):
        return _not_empty(Records(where), where)
    name = os.fspath(where)
    if name.startswith("hf://"):
        return _not_empty(Records(load_hub_dataset(name), name=name), name)
    paths = [Path(path) for part in _braces(name) for path in (sorted(glob.glob(part)) or [part])]
    if len(paths) == 1 and paths[0].is_dir():
        files = sorted(path for path in paths[0].iterdir() if _kind(path) in _SHARDED)
        if not files:
            return _not_empty(from_folder(paths[0]), name)
        paths = files
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"data: no such file, folder or pattern: {absent[0]}")
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"data: {name} has files of several kinds ({', '.join(sorted(kinds))}); name one kind")
    (kind,) = kinds
    if kind in _SHARDED:
        return _not_empty(_SHARDED[kind](paths), name)
    if kind in (".csv", ".tsv"):
        sources = [from_csv(path) for path in paths]
        return _not_empty(sources[0] if len(sources) == 1 else Joined(sources), name)
    raise ValueError(
        f"data: {name} is of no known kind ({kind or 'no ending'}); wanted {', '.join((*_SHARDED, '.csv', '.tsv'))}, a "
        "folder of images or hf://name"
    )


def load_hub_dataset(name: str, streaming: bool = False):
    """`datasets.load_dataset` of "hf://name/configuration:split"; the split is "train" if none is said."""
    import datasets

    path, _, split = name.removeprefix("hf://").partition(":")
    parts = path.split("/")
    configuration = parts[2] if len(parts) > 2 else None
    return datasets.load_dataset("/".join(parts[:2]), configuration, split=split or "train", streaming=streaming)


def _kind(path: Path) -> str:
    """The suffix that says what a file is: "train.tfrecord-00001-of-00128" is one of TFRecords."""
    suffix = re.match(r"\.[a-z]+", path.suffix.lower())
    return suffix.group() if suffix else ""


def _braces(name: str) -> list[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if not found:
        return [name]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [part for number in numbers for part in _braces(name[: found.start()] + number + name[found.end() :])]


def _not_empty(source: SampleSource, name) -> SampleSource:
    if not sum(source.counts):
        hint = f" Images end in {', '.join(SUFFIXES[:6])} ..." if isinstance(source, Records) else ""
        raise ValueError(f"data: {name!s:.200} has no samples.{hint}")
    return source
