"""Reading what is evaluated on: labelled and captioned images, of any source.

Images are read when it is their turn: a data set may be larger than memory.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kakao_models.samples.columns import Columns
from kakao_models.samples.shards import Source
from kakao_models.samples.sources import ImageFolder, open_source

_MOST_CLASSES = 1_000_000  # a number beyond it is something else, and every class up to it would get a name


class Images(Sequence):
    """Images by number, without holding them: paths, addresses, or encoded bytes from a table."""

    def __init__(self, items: Sequence | Source, places: np.ndarray | None = None):
        self._items = items
        count = sum(items.counts) if isinstance(items, Source) else len(items)
        self._places = np.arange(count) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int):
        return self._read(self._places[index])

    def __iter__(self) -> Iterator:
        return map(self._read, self._places)

    def _read(self, place: int):
        if not isinstance(self._items, Source):
            return self._items[place]
        sample = self._items.read(*self._items.locate(place))
        if sample.image is None:
            raise ValueError(f"{self._items.name}: row {place} has no image")
        return sample.image

    def take(self, places: Sequence[int] | np.ndarray) -> "Images":
        return Images(self._items, self._places[np.asarray(places, np.int64)])


@dataclass(frozen=True)
class Labelled:
    """Images with a class each."""

    name: str
    images: Images
    labels: np.ndarray  # (N,) int64, places in `keys`; -1 where there is none
    keys: list[str]  # what the data call their classes: folder names, label names, or numbers
    names: list[str] | None  # file names of the images, where they are known

    def take(self, places: Sequence[int] | np.ndarray) -> "Labelled":
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
        expected = set(ids)
        kept = [j for j, owner in enumerate(self.caption_images) if owner in expected]
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
        source: as of `open_source`, such as a folder with a folder of images per class (classes sorted by name, or by number
            where all names are numbers, as in ImageNet-V2), a table, shards, or a data set of the Hub.
        split: of a data set of the Hub, or of one that `datasets` saved; "test" by default.
        image_column, label_column: of tables; found by name by default. Labels are class numbers or names; one that is
            negative, empty or null is missing.

    Raises:
        ValueError: nothing there, a class without images, no such column, several labels of an image.
    """
    found = _open(source, split, Columns(image=image_column, label=label_column), "label")
    if isinstance(found, ImageFolder):
        _check_folders(found)
    labels, names = [], []
    for row, sample in enumerate(found.scan()):
        if len(sample.labels) > 1:
            raise ValueError(
                f"{source}: row {row} has the labels {list(sample.labels)!r:.80}, expected one; several labels of an image are "
                "read with --multi-label, another column with --label-column"
            )
        labels.append(sample.labels[0] if sample.labels else -1)
        names.append(sample.file)
    keys = found.classes
    place = {key: number for number, key in enumerate(keys or ())}
    numbers = np.array([place.get(label, -1) if isinstance(label, str) else label for label in labels], np.int64)
    count = int(numbers.max()) + 1
    if count > _MOST_CLASSES or (keys and count > len(keys)):
        least = f"its {len(keys)} class names end before" if keys else f"expected class numbers below {_MOST_CLASSES:,}"
        raise ValueError(f"{source}: the labels reach {count - 1}, {least} (another column: --label-column)")
    if not count:
        raise ValueError(f"{source}: no image has a label; another column is named with --label-column")
    keys = keys or [str(number) for number in range(count)]
    return Labelled(_name(source), Images(found), numbers, keys, names if all(names) else None)


def read_many_labels(
    source: str | os.PathLike,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[str, Images, list[list[int]]]:
    """Name, images and the classes of each, from a source with lists of labels.

    Raises:
        ValueError: labels are not lists of class numbers or names.
    """
    columns = Columns(image=image_column, label=label_column, prefer=("labels",))
    found = _open(source, split, columns, "label")
    place = {key: number for number, key in enumerate(found.classes or ())}
    labels = [
        [place.get(label, -1) if isinstance(label, str) else label for label in sample.labels]
        for sample in found.scan()
    ]
    if max(map(len, labels)) < 2:
        raise ValueError(f"{source}: no image has several labels; expected a column of lists (--label-column)")
    return _name(source), Images(found), labels


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
        source: as of `open_source`, such as Karpathy's dataset_coco.json or dataset_flickr30k.json, a table or shards;
            rows with the same image, or the same `image_id`, are one image.
        split: of Karpathy's files, a data set of the Hub, or one that `datasets` saved; "test" by default.
        images: the folder of the images that a .json names.
        per_image: as many captions of each image, the first ones; by default all.

    Raises:
        ValueError: no images, an image without captions, no such column.
    """
    source = os.fspath(source)
    columns = Columns(image=image_column, caption=caption_column)
    found = _open(source, split, columns, "caption", images=images, keep=("marks",))
    if images is None and source.endswith(".json") and "marks" in next(found.scan()).record:  # COCO's or Karpathy's
        raise ValueError(f"{source}: say where its images are (--images)")
    groups, captions, marks = [], [], []
    for row, sample in enumerate(found.scan()):
        groups.append(row if sample.group is None else sample.group)
        captions.append(list(sample.captions))
        marks.append(sample.record.get("marks"))
    ids, places, captions = _joined(groups, captions)
    own = [
        marks[row] if marks[row] else [f"{i}:{j}" for j in range(len(texts))]
        for i, row, texts in zip(ids, places, captions)
    ]
    for i, texts in zip(ids, captions):
        if not texts:
            raise ValueError(f"{source}: image {i!r} has no captions")
    if per_image is not None and min(map(len, captions)) < per_image:
        few = min(range(len(ids)), key=lambda i: len(captions[i]))
        raise ValueError(
            f"{source}: image {ids[few]!r} has {len(captions[few])} captions, expected {per_image} of each"
        )
    flat = [(text, i, mark) for i, texts, marks in zip(ids, captions, own) for text, mark in
            list(zip(texts, marks))[:per_image]]  # fmt: skip
    return Captioned(_name(source), Images(found, places), ids, *(list(column) for column in zip(*flat)))


def _open(source: str | os.PathLike, split: str | None, columns: Columns, need: str, **options) -> Source:
    return open_source(
        os.fspath(source), columns, ("image", need), split=split, default_split="test", merge=False, **options
    )


def _check_folders(found: ImageFolder) -> None:
    folders = {path.name for path in found.root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if empty := sorted(folders - set(found.classes or ())):
        raise ValueError(f"{found.root / empty[0]}: the class {empty[0]!r} has no images")


def _joined(row_ids: list, captions: list[list[str]]) -> tuple[list, np.ndarray, list[list[str]]]:
    place, first, joined = {}, [], []
    for row, (i, texts) in enumerate(zip(row_ids, captions)):
        if i not in place:
            place[i] = len(first)
            first.append(row)
            joined.append([])
        joined[place[i]] += texts
    return list(place), np.array(first, np.int64), joined


def _name(source: str | os.PathLike) -> str:
    path = Path(source)
    return f"{path.parent.name}/{path.stem}" if path.suffix and path.parent.name else path.stem
