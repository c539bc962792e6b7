"""Samples by the name of what holds them: shards, tables, `datasets`, folders of images, COCO's and Karpathy's JSON.

A source is a list of shards of known sizes, and gives any row of any shard: so one number says where a run is, and any
process or worker can read any sample.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kakao_models.checkpoint.hub import pin_data_set
from kakao_models.files.lines import lines_of
from kakao_models.files.pointers import refuse_pointers
from kakao_models.pixels.formats import SUFFIXES, list_images
from kakao_models.samples.columns import BY_NAME, Columns, Sample, as_sample, class_names
from kakao_models.samples.paths import (
    KINDS,
    METADATA,
    SAVED,
    SHARDS,
    distinct_names,
    files_in,
    files_of,
    in_utf8,
    is_hub,
    matches,
    one_suffix,
)  # fmt: skip
from kakao_models.samples.shards import ParquetShards, Source, TarShards, TFRecordShards, locate
from kakao_models.samples.text import SLICE, TextTable, slices

_TRIED = 20  # items in which the fields of a data set without columns are looked for


class Records(Source):
    """A map-style `datasets.Dataset`, or any sequence of dicts."""

    def __init__(
        self,
        records: Any,
        folder: Path | None = None,
        name: str = "row",
        columns: Columns = BY_NAME,
        needs: Iterable[str] = (),
        files: Sequence[str] = (),
    ):
        super().__init__(name, files or [name], folder)
        self.features = getattr(records, "features", None) or {}
        for column, feature in self.features.items():
            if type(feature).__name__ == "Image":  # bytes now, decoding later and where `load_image` does it
                records = records.cast_column(column, type(feature)(decode=False))
        self.records = records
        names = list(self.features) or _names(records, name)
        self.fields = columns.find(names, needs if len(records) else (), name)
        kind = getattr(self.features.get(self.fields.id), "dtype", "int64")
        self.numbered = str(kind).startswith("int") if self.features else self.fields.id is None
        self.own_ids = self.fields.id is not None
        self.counts, self.shard_files = slices(len(records))

    def described(self) -> list[str] | None:
        feature = self.features.get(self.fields.label)
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
        return list(inner.names) if hasattr(inner, "names") else None

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        row += shard * SLICE
        return self._sample(self.records[row], row, with_image)

    def scan(self) -> Iterator[Sample]:
        records, image = self.records, self.fields.image
        paths = _paths_of_images(records, image) if self.features and image else None
        if paths is not None:
            others = records.select_columns([name for name in self.features if name != image])
            records = ({**record, image: {"bytes": None, "path": path}} for record, path in zip(others, paths))
        for row, record in enumerate(records):
            yield self._sample(record, row, False)

    def _sample(self, record: Mapping, row: int, with_image: bool) -> Sample:
        return as_sample(record, f"{self.name} {row}", self.fields, self.folder, with_image=with_image)


def _names(records: Any, source: str) -> dict[str, None]:
    """The fields of a list of dicts; of a data set that makes its items when they are asked for, those of its first ones.

    Raises:
        ValueError: there are no items by number, or they are not dicts.
    """
    if not hasattr(records, "__getitem__") or not hasattr(records, "__len__"):
        raise ValueError(
            f"got {type(records).__name__}, expected a path, a list of dicts, a datasets.Dataset, a data set with __len__ and "
            "__getitem__, or a Source"
        )
    if isinstance(records, Mapping):
        raise ValueError(f"got several data sets ({', '.join(map(str, records))}): choose one")
    names: dict[str, None] = {}
    for number in range(len(records) if isinstance(records, (list, tuple)) else min(len(records), _TRIED)):
        record = records[number]
        if not isinstance(record, Mapping):
            raise ValueError(f"{source} {number}: expected a dict with an image, got {type(record).__name__}")
        names |= dict.fromkeys(record)
    return names


def _paths_of_images(data, column: str) -> list[str | None] | None:
    """The paths of images stored by `datasets`, without reading the images; None where that is not possible."""
    chunks = data.data.column(column).chunks
    if data._indices is not None or not chunks or not str(chunks[0].type).startswith("struct"):
        return None
    if len(data.features) == 1:  # no other column would say how many rows there are
        return None
    return [path for chunk in chunks for path in chunk.field("path").to_pylist()]


class Adapted(Source):
    """An object of any class with `counts`, rows of each shard, and `read(shard, row)`, which gives a `Sample` or a dict."""

    def __init__(self, source: Any, columns: Columns = BY_NAME):
        super().__init__(str(getattr(source, "name", type(source).__name__)), [type(source).__name__], None)
        self.source, self.columns = source, columns
        self.counts, self.shard_files = list(source.counts), [0] * len(source.counts)

    def described(self) -> list[str] | None:
        return getattr(self.source, "classes", None)

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        found = self.source.read(shard, row)
        if isinstance(found, Sample):
            return found if with_image else replace(found, image=None)
        names = [name for name, value in found.items() if value is not None]
        key = f"{self.name} {self.row_number(shard, row)}"
        return as_sample(found, key, self.columns.find(names, optional=True), with_image=with_image)


class ImageFolder(Source):
    """Images under a folder: captions are in a .txt of the same name, a line each; the label is the folder's name."""

    def __init__(self, folder: str | os.PathLike, needs: Iterable[str] = ()):
        self.root = Path(folder)
        super().__init__(os.fspath(folder), [os.fspath(folder)], self.root)
        self.unlisted: list[Path] = []  # folders whose images are not known
        self.paths = [str(path.relative_to(folder)) for path in list_images(folder, self.unlisted)]
        self.counts, self.shard_files = [len(self.paths)] if self.paths else [], [0]
        if "caption" in needs and self.paths and not any(map(self._text, self.paths)):
            raise ValueError(f"{folder}: no image has a .txt file of the same name with captions{self._tables()}")
        if "label" in needs and self.paths and not self.classes:
            raise ValueError(
                f"{folder}: no folders of classes; each class needs a folder of its own with images{self._tables()}"
            )

    @cached_property
    def classes(self) -> list[str] | None:
        return class_names(label for path in self.paths for label in _folder_of(in_utf8(path))) or None

    def _tables(self) -> str:
        """A hint for messages where there are tables beside the images."""
        tables = files_in(self.root, KINDS, deep=False)
        return f". To read a table in it, name the table: {', '.join(tables[:3])}" if tables else ""

    def _text(self, path: str) -> Path | None:
        text = (self.root / path).with_suffix(".txt")
        return text if text.is_file() else None

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        path = self.paths[row]
        text, name = self._text(path), in_utf8(path)
        return Sample(
            key=name,
            image=self.root / path if with_image else None,
            captions=tuple(lines_of(text)) if text else (),
            labels=_folder_of(name),
            id=name,
            group=in_utf8(os.path.join(self.root, path)),
            file=os.path.basename(name),
        )


def _folder_of(path: str) -> tuple[str, ...]:
    parts = Path(path).parts
    return parts[:1] if len(parts) > 1 else ()


class Joined(Source):
    """Several sources one after another. Where their classes differ, labels become names.

    name: the name of one source in several files. Without it, this is a list of sources, and each has ids of its own.
    """

    def __init__(self, sources: Sequence[Source], name: str = ""):
        self.sources, self.is_list = list(sources), not name
        files = [file for source in self.sources for file in source.files]
        super().__init__(name or self.sources[0].name, files, self.sources[0].folder)
        self.counts = [count for source in self.sources for count in source.counts]
        self.numbered = all(source.numbered for source in self.sources)
        self.own_ids = any(source.own_ids for source in self.sources)
        first_files = itertools.accumulate((len(source.files) for source in self.sources), initial=0)
        self.shard_files = [
            first + file for source, first in zip(self.sources, first_files) for file in source.shard_files
        ]
        self._first_shards = list(itertools.accumulate((len(source.counts) for source in self.sources), initial=0))
        files = [os.path.join(s.files[0], "") if isinstance(s, ImageFolder) else s.files[0] for s in self.sources]
        self._folders = [] if self.is_list else distinct_names(list(map(os.path.dirname, files)))

    def hold(self, shards: int) -> None:
        for source in self.sources:
            source.hold(shards)

    @cached_property
    def _names(self) -> list[list[str] | None] | None:
        """The classes of each source, None where they are the same."""
        names = [source.classes for source in self.sources]
        return None if all(part == names[0] for part in names) else names

    @cached_property
    def classes(self) -> list[str] | None:
        if self._names is None:
            return self.sources[0].classes
        if unnamed := [source.name for source, names in zip(self.sources, self._names) if names is None]:
            raise ValueError(f"{unnamed[0]}: its classes have no names, but those of other sources do")
        return class_names(name for names in self._names for name in names or ())

    def row_number(self, shard: int, row: int) -> int:
        number, shard = locate(self._first_shards, shard)
        return self._first_rows[number] + self.sources[number].row_number(shard, row)

    @property
    def rows(self) -> int:
        return self._first_rows[-1]

    @cached_property
    def _first_rows(self) -> list[int]:
        return list(itertools.accumulate((source.rows for source in self.sources), initial=0))

    def identify(self, sample: Sample, shard: int, row: int) -> tuple[int, str | None]:
        if not self.is_list:
            return super().identify(sample, shard, row)
        number, shard = locate(self._first_shards, shard)
        return number, self.sources[number].identify(sample, shard, row)[1]

    def read(self, shard: int, row: int, with_image: bool = True) -> Sample:
        number, shard = locate(self._first_shards, shard)
        sample = self.sources[number].read(shard, row, with_image)
        names = self.__dict__.get("_names")  # nothing is read for it unless `classes` was asked for
        return self._in_whole(sample, number, names)

    def scan(self) -> Iterator[Sample]:
        names = self._names
        for number, source in enumerate(self.sources):
            for sample in source.scan():
                yield self._in_whole(sample, number, names)

    def _in_whole(self, sample: Sample, number: int, names: list[list[str] | None] | None) -> Sample:
        """A sample of the source of this number as one of all: the names of files in its id are unique in the source only."""
        if self._folders and isinstance(sample.id, str) and not self.sources[number].own_ids:
            sample.id = f"{self._folders[number]}/{sample.id}"
        own = names[number] if names else None
        return _with_names(sample, own) if own else sample


def _with_names(sample: Sample, names: Sequence[str]) -> Sample:
    sample.labels = tuple(label if isinstance(label, str) else names[label] for label in sample.labels)
    return sample


def open_source(
    where: Any,
    columns: Columns = BY_NAME,
    needs: Iterable[str] = ("image",),
    *,
    split: str | None = None,
    default_split: str | None = None,
    images: str | os.PathLike | None = None,
    keep: Iterable[str] | None = (),
    merge: bool = True,
) -> Source:
    """A source by its name, or a list of them.

    Args:
        where: a file `.tar`, `.tfrecord`, `.parquet`, `.csv`, `.tsv`, `.jsonl` (the last three also as `.gz`); a pattern
            of such (`*`, `{000..127}`); a folder of them, of images, of images with metadata.csv or metadata.jsonl, or
            one that `datasets` saved; a `.json` of COCO's captions or of Karpathy's splits; `hf://name`,
            `hf://name:split` or `hf://name/configuration:split`, a dataset of the Hub; a `datasets.Dataset`, or any sequence of
            dicts; an object with `counts` and `read` (`Source`, `Adapted`); or a list of these.
        columns: columns chosen by name; the others are found by their usual names.
        needs: kinds of columns that must be there: "image", "caption", "label".
        split: part of a data set of the Hub, of what `datasets` saved, or of Karpathy's files (several with commas).
        images: folder of the images that a .json names.
        keep: further columns to read into a sample's `record`; None reads all.
        merge: rows of a CSV or JSON lines table with the same image are one sample with several captions.

    Raises:
        ValueError: the source is empty, of an unknown kind, or lacks a needed column; the message lists what there is.
        OSError: a data set of the Hub can't be read.
    """
    options: dict[str, Any] = dict(split=split, default_split=default_split, images=images, keep=keep, merge=merge)
    if isinstance(where, (list, tuple)) and where and not isinstance(where[0], Mapping):
        sources = [open_source(part, columns, needs, **options) for part in where]
        return sources[0] if len(sources) == 1 else Joined(sources)
    if isinstance(where, Source):
        return where
    if isinstance(where, (str, os.PathLike)):
        source = _open(os.fspath(where), columns, tuple(needs), **options)
    else:
        own = hasattr(where, "counts") and hasattr(where, "read")
        source = Adapted(where, columns) if own else Records(where, columns=columns, needs=needs)
    if not sum(source.counts):
        hint = f" Images end in {', '.join(SUFFIXES[:6])} ..." if isinstance(source, ImageFolder) else ""
        raise ValueError(f"{where!s:.200} has no samples.{hint}")
    return source


def _open(name: str, columns: Columns, needs: Sequence[str], *, split, default_split, images, keep, merge) -> Source:
    if is_hub(name):
        data = load_hub_dataset(name, split=split or default_split)
        return Records(data, None, name, columns, needs)
    paths = matches(name)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        folder = paths[0]
        if any(os.path.exists(os.path.join(folder, saved)) for saved in SAVED):
            return Records(_load_saved(folder, split, default_split), None, name, columns, needs, [folder])
        metadata = [path for path in (os.path.join(folder, file) for file in METADATA) if os.path.isfile(path)]
        paths = metadata[:1] or files_in(folder, SHARDS, deep=False)
        if not paths:
            folder_of_images = ImageFolder(folder, needs)
            paths = [] if folder_of_images.paths else files_in(folder, KINDS)
            if not paths:
                if columns.chosen:
                    option = getattr(columns, columns.chosen[0])
                    raise ValueError(f"{name}: is a folder of images, which has no column {option!r}")
                _refuse(name, split or images)
                return folder_of_images
    elif len(paths) > 1 and all(map(os.path.isdir, paths)):
        options: dict[str, Any] = dict(split=split, default_split=default_split, images=images, keep=keep, merge=merge)
        return Joined([_open(path, columns, needs, **options) for path in paths], name)
    paths = paths or files_of(name, KINDS)
    suffix = one_suffix(paths, name, KINDS)
    refuse_pointers(paths)
    if suffix == ".json" and (records := _read_json(paths, split or default_split, split)) is not None:
        needs = tuple(need for need in needs if need != "caption")
        folder = Path(images or os.path.dirname(paths[0]))
        return Records(_placed(records, folder), folder, Path(paths[0]).name, columns, needs, paths)
    _refuse(name, images or split)
    if KINDS[suffix] == "parquet":
        return ParquetShards(paths, columns, needs, keep)
    if KINDS[suffix] == "tar":
        return TarShards(paths, columns, needs, whole=keep is None)
    if KINDS[suffix] == "tfrecord":
        return TFRecordShards(paths, columns, needs)
    tables = [TextTable(path, columns, needs, merge) for path in paths]
    return tables[0] if len(tables) == 1 else Joined(tables, name)


def _refuse(name: str, option: Any) -> None:
    if option:
        raise ValueError(f"{name}: --split and --images need a .json file or a data set of the Hub")


def load_hub_dataset(name: str, streaming: bool = False, split: str | None = None):
    """`datasets.load_dataset` of "hf://name/configuration:split"; the split is "train" by default.

    Raises:
        OSError: there is no such data set, or the Hub can't be reached.
    """
    path, _, own = name.removeprefix("hf://").partition(":")
    parts = path.split("/")
    repo = "/".join(parts[:2])
    # The Hub is asked first: `datasets` tries for half a minute, and does not say for which data set.
    options = {"split": own or split or "train", "revision": pin_data_set(repo)}
    return _datasets().load_dataset(repo, *parts[2:3], **options, **({"streaming": True} if streaming else {}))


def _load_saved(folder: str, split: str | None, default_split: str | None):
    data = _datasets().load_from_disk(folder)
    if not hasattr(data, "keys"):  # not a DatasetDict
        return data
    chosen = split or (default_split if default_split in data else next(iter(data)) if len(data) == 1 else "train")
    if chosen not in data:
        raise ValueError(f"{folder}: no split {chosen!r}, expected one of {', '.join(data)} (--split)")
    return data[chosen]


def _datasets():
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError("data sets of the Hub need datasets: pip install datasets") from error
    return datasets


def _read_json(paths: Sequence[str], split: str | None, asked: str | None) -> list[dict] | None:
    """Records of COCO's captions, of Karpathy's splits, or of a list of objects; None for JSON lines."""
    path = Path(paths[0])
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.pos:  # an object a line
            return None
        raise ValueError(f"{path}: not JSON ({error})") from error
    if len(paths) > 1:
        raise ValueError(
            f"{path}: got {len(paths)} .json files, expected one. Name one, or convert them to JSON lines (.jsonl)"
        )
    if isinstance(content, dict) and "images" not in content:  # records by number, as SugarCrepe's files have
        content = list(content.values())
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        return content
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(
            f"{path}: expected a list of objects, or an object with a list `images`, as COCO's and Karpathy's files have"
        )
    if asked and "annotations" in content:
        raise ValueError(f"{path}: COCO's files have no splits: leave --split out")
    try:
        records = _coco(content) if "annotations" in content else _karpathy(content, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: neither COCO's captions nor Karpathy's splits: an entry has no {error}, or names an image that is not "
            "listed"
        ) from error
    if not records:
        known = sorted({str(image.get("split")) for image in content["images"]})
        raise ValueError(f"{path}: no images of split {split!r}; its splits: {', '.join(known) or 'none'}")
    return records


def _placed(records: list[dict], folder: Path) -> list[dict]:
    """Images of Karpathy's files may lie in the folder itself: where the first one lies, the others are expected too."""
    name = records[0].get("image")
    if isinstance(name, str) and not (folder / name).is_file() and (folder / os.path.basename(name)).is_file():
        return [record | {"image": os.path.basename(record["image"])} for record in records]
    return records


def _coco(content: dict) -> list[dict]:
    captions: dict = {image["id"]: [] for image in content["images"]}
    marks: dict = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
        marks[annotation["image_id"]].append(annotation.get("id"))
    return [
        {"image": image["file_name"], "image_id": image["id"]}
        | {"captions": captions[image["id"]], "marks": marks[image["id"]]}
        for image in content["images"]
    ]


def _karpathy(content: dict, split: str | None) -> list[dict]:
    splits = set(map(str.strip, split.split(","))) if split else None
    return [
        {
            "image": os.path.join(image.get("filepath", ""), image["filename"]),
            "image_id": str(image["filename"]),
            "captions": [str(sentence["raw"]) for sentence in image["sentences"]],
            "marks": [sentence.get("sentid") for sentence in image["sentences"]],
        }
        for image in content["images"]
        if splits is None or image["split"] in splits
    ]
