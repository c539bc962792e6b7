"""Data sets to evaluate on: labelled and captioned images, from any source.

Images are read when it is their turn: a data set may be larger than memory.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.samples.columns import Columns, Sample
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

    def __iter__(self) -> Iterator:  # Sequence's own takes an IndexError of a reader for the end
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int):
        place = self._places[index]
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
        """The images at these places, in their order."""
        names = None if self.names is None else [self.names[i] for i in places]
        return replace(self, images=self.images.take(places), labels=self.labels[places], names=names)

    def labelled(self) -> "Labelled":
        """The images that have a label."""
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
        source: anything that `open_source` takes, such as a folder with a folder of images per class (classes sorted by
            name, or by number where all names are numbers, as in ImageNet-V2), a table, shards, or a data set of the Hub.
        split: part of a data set of the Hub, or of one that `datasets` saved; "test" by default.
        image_column, label_column: columns of a table; by default, usual names are recognised. Labels are class numbers
            or names; one that is negative, empty or null is missing.

    Raises:
        ValueError: nothing there, a class without images, no such column, several labels of an image.
    """
    dataset = _open(source, split, Columns(image=image_column, label=label_column), "label")
    if isinstance(dataset, ImageFolder):
        _check_folders(dataset)
    numbers, names = [], []
    for row, (sample, labels) in enumerate(_scan(dataset)):
        if len(labels) > 1:
            raise ValueError(
                f"{source}: row {row} has the labels {list(sample.labels)!r:.80}, expected one. For several labels per image "
                "use --multi-label, for another column --label-column"
            )
        numbers.append(labels[0] if labels else -1)
        names.append(sample.file)
    keys, count = dataset.classes, max(numbers) + 1
    if count > _MOST_CLASSES or (keys and count > len(keys)):
        least = f"its {len(keys)} class names end before" if keys else f"expected class numbers below {_MOST_CLASSES:,}"
        raise ValueError(f"{source}: the labels reach {count - 1}, {least} (another column: --label-column)")
    if not count:
        raise ValueError(f"{source}: no image has a label. Choose another column with --label-column")
    keys = keys or [str(number) for number in range(count)]
    return Labelled(name_of(source), Images(dataset), np.array(numbers, np.int64), keys, names if all(names) else None)


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
    dataset = _open(source, split, columns, "label")
    labels = [numbers for _, numbers in _scan(dataset)]
    if max(map(len, labels)) < 2:
        raise ValueError(f"{source}: no image has several labels; expected a column of lists (--label-column)")
    return name_of(source), Images(dataset), labels


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
        source: anything that `open_source` takes, such as Karpathy's dataset_coco.json or dataset_flickr30k.json, a table
            or shards; rows with the same image, or the same `image_id`, are one image.
        split: part of Karpathy's files, of a data set of the Hub, or of one that `datasets` saved; "test" by default.
        images: the folder of the images that a .json names.
        per_image: number of captions of each image, the first ones; by default all.

    Raises:
        ValueError: no images, an image without captions, no such column.
    """
    source = os.fspath(source)
    columns = Columns(image=image_column, caption=caption_column)
    dataset = _open(source, split, columns, "caption", images=images, keep=("marks",))
    if images is None and source.endswith(".json") and "marks" in next(dataset.scan()).record:  # COCO's or Karpathy's
        raise ValueError(f"{source}: name the folder of its images with --images")
    captions: dict[Any, list[str]] = {}  # image id → all its captions
    first: dict[Any, tuple[int, Any]] = {}  # image id → its first row, and the ids of captions there
    for row, sample in enumerate(dataset.scan()):
        image = row if sample.group is None else sample.group
        first.setdefault(image, (row, sample.record.get("marks")))
        captions.setdefault(image, []).extend(sample.captions)
    flat = []
    for image, texts in captions.items():
        if not texts:
            raise ValueError(f"{source}: image {image!r} has no captions")
        if len(texts) < (per_image or 0):
            raise ValueError(f"{source}: image {image!r} has {len(texts)} captions, expected {per_image} of each")
        marks = first[image][1] or [f"{image}:{j}" for j in range(len(texts))]
        flat += [(text, image, mark) for text, mark in list(zip(texts, marks))[:per_image]]
    rows = np.array([row for row, _ in first.values()], np.int64)
    return Captioned(name_of(source), Images(dataset, rows), list(captions), *map(list, zip(*flat)))


def _open(source: str | os.PathLike, split: str | None, columns: Columns, need: str, **options) -> Source:
    return open_source(
        os.fspath(source), columns, ("image", need), split=split, default_split="test", merge=False, **options
    )


def _scan(dataset: Source) -> Iterator[tuple[Sample, list[int]]]:
    """Every sample with the numbers of its classes; -1 stands for a class that the data do not list."""
    place = {key: number for number, key in enumerate(dataset.classes or ())}
    for sample in dataset.scan():
        yield sample, [place.get(label, -1) if isinstance(label, str) else label for label in sample.labels]


def _check_folders(dataset: ImageFolder) -> None:
    folders = {path.name for path in dataset.root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if empty := sorted(folders - set(dataset.classes or ())):
        raise ValueError(f"{dataset.root / empty[0]}: the class {empty[0]!r} has no images")


def name_of(source: str | os.PathLike) -> str:
    """Name of a data set in results, from the name of its file or folder."""
    path = Path(source)
    return f"{path.parent.name}/{path.stem}" if path.suffix and path.parent.name else path.stem
