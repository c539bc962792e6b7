"""Reading what is evaluated on: folders of images, parquet, `datasets`, Karpathy's JSON.

Images are read when it is their turn: a data set may be larger than memory.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kakao_models.pixels.images import list_images

from .tables import Table, open_image_table

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "label_name")
_CAPTION_COLUMNS = ("captions", "caption", "text", "sentences")
_ID_COLUMNS = ("image_id", "imgid", "id", "filename")
_MOST_CLASSES = 1_000_000  # a number beyond it is something else, and every class up to it would get a name


class Images(Sequence):
    """Images by number, without holding them: paths, or encoded bytes from a table."""

    def __init__(self, items: Sequence | Table, column: str | None = None, places: np.ndarray | None = None):
        self._items, self._column = items, column
        self._places = np.arange(len(items)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int):
        return next(iter(self.take([index])))

    def __iter__(self) -> Iterator:
        if self._column is None:
            return (self._items[place] for place in self._places)
        return self._items.images(self._column, self._places)

    def take(self, places: Sequence[int]) -> "Images":
        return Images(self._items, self._column, self._places[np.asarray(places, np.int64)])


@dataclass(frozen=True)
class Labelled:
    """Images with a class each."""

    name: str
    images: Images
    labels: np.ndarray  # (N,) int64, places in `keys`; -1 where there is none
    keys: list[str]  # what the data call their classes: folder names, label names, or numbers
    names: list[str] | None  # file names of the images, where they are known

    def take(self, places: Sequence[int]) -> "Labelled":
        """Some of the images, in the order given."""
        names = None if self.names is None else [self.names[i] for i in places]
        return replace(self, images=self.images.take(places), labels=self.labels[places], names=names)

    def labelled(self) -> "Labelled":
        """Those that have a label."""
        return self.take(np.flatnonzero(self.labels >= 0))


@dataclass(frozen=True)
class Captioned:
    """Images with captions."""

    name: str
    images: Images
    image_ids: list  # (I,)
    captions: list[str]  # (C,)
    caption_images: list  # (C,) the image id of each
    caption_ids: list  # (C,) the captions' own ids, where the data have some

    def take(self, places: Sequence[int]) -> "Captioned":
        """Some of the images, with their captions."""
        ids = [self.image_ids[i] for i in places]
        wanted = set(ids)
        kept = [j for j, owner in enumerate(self.caption_images) if owner in wanted]
        columns = ("captions", "caption_images", "caption_ids")
        chosen = {name: [getattr(self, name)[j] for j in kept] for name in columns}
        return replace(self, images=self.images.take(places), image_ids=ids, **chosen)

    def __len__(self) -> int:
        return len(self.image_ids)


def read_labelled(
    source: str | os.PathLike,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Labelled:
    """A data set for classification.

    Args:
        source: a folder with a folder of images per class (ImageFolder; classes sorted by name, or by number where all
            names are numbers, as in ImageNet-V2); a parquet file or folder of them; a folder that `datasets` saved, or
            the Hub id of a data set.
        split: of a folder saved by `datasets`, or of the Hub.
        image_column, label_column: of tables; found by name if not given. Labels are integers or strings; one that is
            negative, empty or null is missing.

    Raises:
        ValueError: nothing there, a class without images, no such column.
    """
    source = os.fspath(source)
    if (table := open_image_table(source, split)) is None:
        return _image_folder(Path(source))
    image = table.find(image_column, _IMAGE_COLUMNS, "image")
    label = table.find(label_column, _LABEL_COLUMNS, "label")
    values = table.values(label)
    labels, keys = _numbered(values, table.class_names(label), source, label)
    if table.class_names(label) is None and values and isinstance(_first(values), int):
        beside = next((name for name in ("label_name", "class_name") if name in table.columns), None)
        keys = _keys_beside(labels, keys, table.values(beside)) if beside else keys
    names = table.names(image)
    return Labelled(_name(source), Images(table, image), labels, keys, names)


def read_many_labels(
    source: str | os.PathLike,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[str, Images, list[list[int]]]:
    """Name, images and the classes of each, from a table whose label column holds lists of integers."""
    source = os.fspath(source)
    if (table := open_image_table(source, split)) is None:
        raise ValueError(f"{source}: several labels per image come from a table, got a folder of images")
    column = table.find(label_column, ("labels", *_LABEL_COLUMNS), "label")
    labels = [[] if row is None else row for row in table.values(column)]
    wrong = next((row for row in labels if not isinstance(row, list) or not all(isinstance(c, int) for c in row)), None)
    if wrong is not None:
        raise ValueError(f"{source}: column {column!r} holds {wrong!r:.80}, wanted lists of integers")
    return _name(source), Images(table, table.find(image_column, _IMAGE_COLUMNS, "image")), labels


def read_captioned(
    source: str | os.PathLike,
    *,
    split: str | None = None,
    images: str | os.PathLike | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    per_image: int | None = None,
) -> Captioned:
    """A data set for retrieval.

    Args:
        source: Karpathy's dataset_coco.json or dataset_flickr30k.json, or a table as of `read_labelled` with a list of
            captions, or one caption, per row; rows with the same `image_id` are one image.
        split: of Karpathy's files test if not given.
        images: the folder of the images that Karpathy's file names.
        per_image: as many captions of each image, the first ones; by default all.

    Raises:
        ValueError: no images, an image without captions, no such column.
    """
    source = os.fspath(source)
    if source.endswith(".json"):
        ids, files, captions, own = _karpathy(Path(source), split or "test", images)
        found = Images(files)
    else:
        table = open_image_table(source, split)
        if table is None:
            raise ValueError(f"{source}: wanted a parquet file, a data set of `datasets`, or Karpathy's .json")
        image = table.find(image_column, _IMAGE_COLUMNS, "image")
        texts = table.values(table.find(caption_column, _CAPTION_COLUMNS, "captions"))
        captions = [[text] if isinstance(text, str) else list(text or ()) for text in texts]
        column = next((name for name in _ID_COLUMNS if name in table.columns), None)
        row_ids = table.values(column) if column else list(range(len(table)))
        ids, places, captions = _joined(row_ids, captions)
        found = Images(table, image, places)
        own = [[f"{i}:{j}" for j in range(len(texts))] for i, texts in zip(ids, captions)]
    for i, texts in zip(ids, captions):
        if not texts:
            raise ValueError(f"{source}: image {i!r} has no captions")
    if per_image is not None and min(map(len, captions)) < per_image:
        few = min(range(len(ids)), key=lambda i: len(captions[i]))
        raise ValueError(f"{source}: image {ids[few]!r} has {len(captions[few])} captions, wanted {per_image} of each")
    flat = [(text, i, mark) for i, texts, marks in zip(ids, captions, own) for text, mark in
            list(zip(texts, marks))[:per_image]]  # fmt: skip
    return Captioned(_name(source), found, ids, *(list(column) for column in zip(*flat)))


def _image_folder(folder: Path) -> Labelled:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder or file")
    keys = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not keys:
        raise ValueError(f"{folder}: wanted a folder of images per class, found no folders, and no parquet files")
    if all(key.isdigit() for key in keys):
        keys.sort(key=int)  # "10" is class 10, not the one after "1"
    paths, labels = [], []
    for label, key in enumerate(keys):
        found = list_images(folder / key)
        if not found:
            raise ValueError(f"{folder / key}: the class {key!r} has no images")
        paths += found
        labels += [label] * len(found)
    return Labelled(folder.name, Images(paths), np.array(labels), keys, [path.name for path in paths])


def _numbered(values: list, classes: list[str] | None, source: str, column: str) -> tuple[np.ndarray, list[str]]:
    first = _first(values)
    if isinstance(first, str):
        keys = sorted({value for value in values if value})
        place = {key: number for number, key in enumerate(keys)}
        return np.array([place.get(value, -1) for value in values], np.int64), keys
    if not isinstance(first, int):
        raise ValueError(
            f"{source}: column {column!r} holds {type(first).__name__}, wanted integers or strings as labels"
        )
    labels = np.array([-1 if value is None or value < 0 else value for value in values], np.int64)
    count = int(labels.max()) + 1
    if count > _MOST_CLASSES:
        raise ValueError(f"{source}: column {column!r} has the label {count - 1}, wanted numbers of classes")
    if classes is not None and count > len(classes):
        raise ValueError(
            f"{source}: column {column!r} has the label {count - 1}, but its {len(classes)} names end before"
        )
    return labels, classes or [str(number) for number in range(count)]


def _keys_beside(labels: np.ndarray, keys: list[str], names: list) -> list[str]:
    found = list(keys)
    for label, name in zip(labels, names):
        if label >= 0 and name:
            found[label] = name
    return found


def _karpathy(path: Path, split: str, images) -> tuple[list, list[Path], list[list[str]], list[list]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        known = sorted({entry["split"] for entry in entries})
        chosen = [
            (
                str(entry["filename"]),
                str(entry.get("filepath", "")),
                [str(sentence["raw"]) for sentence in entry["sentences"]],
                [sentence["sentid"] for sentence in entry["sentences"]],
            )
            for entry in entries
            if entry["split"] == split
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is none of Karpathy's files ({error!r}): wanted images with split, filename and sentences"
        ) from error
    if not chosen:
        raise ValueError(f"{path}: no images of split {split!r}; there are {', '.join(known) or 'none at all'}")
    if images is None:
        raise ValueError(f"{path} names images: say where they are (--images)")
    names, folders, captions, own = map(list, zip(*chosen))
    return names, [_existing(Path(images), *place) for place in zip(folders, names)], captions, own


def _existing(folder: Path, inside: str, name: str) -> Path:
    places = [folder / name, folder / inside / name]
    return next((path for path in places if path.is_file()), places[0])


def _joined(row_ids: list, captions: list[list[str]]) -> tuple[list, np.ndarray, list[list[str]]]:
    place, first, joined = {}, [], []
    for row, (i, texts) in enumerate(zip(row_ids, captions)):
        if i not in place:
            place[i] = len(first)
            first.append(row)
            joined.append([])
        joined[place[i]] += texts
    return list(place), np.array(first, np.int64), joined


def _first(values: list):
    return next((value for value in values if value is not None), None)


def _name(source: str) -> str:
    path = Path(source)
    return f"{path.parent.name}/{path.stem}" if path.suffix and path.parent.name else path.stem
