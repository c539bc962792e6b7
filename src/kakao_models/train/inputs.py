"""The datasets and processors of the trainers: those of transformers' `Trainer`, and every source of samples."""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from kakao_models.align.preprocessing import MAX_TOKENS
from kakao_models.align.processing import AlignImageProcessor, AlignProcessor
from kakao_models.checkpoint.config import as_pair
from kakao_models.pixels.processor import ImageProcessor
from kakao_models.samples.columns import BY_NAME, as_sample
from kakao_models.samples.shards import Source
from kakao_models.samples.sources import open_source
from kakao_models.train.augment import InceptionCrop, RandomCrop
from kakao_models.train.data import UNUSABLE, StreamData, TrainData
from kakao_models.train.order import open_data
from kakao_models.train.transform import DataError, SampleTransform
from kakao_models.vit.processing import ViTImageProcessor

_PROBES = 16  # samples that are looked at before a run


class EvalData(Dataset):
    """The samples of a source in their order, prepared without augmentation; a broken one is a DataError.

    Args:
        labels: False leaves targets out, to predict classes of images that have no label.
    """

    def __init__(self, source: Source, transform: SampleTransform, labels: bool = True):
        self.source, self.labels = source, labels
        self.transform = copy.copy(transform)
        self.transform.augment = None

    def __len__(self) -> int:
        return sum(self.source.counts)

    def __getitem__(self, position: int) -> dict:
        key = f"sample {position}"
        random = np.random.default_rng([0, position])  # the same caption in every evaluation
        try:
            sample = self.source.read(*self.source.locate(position))
            key = sample.key
            if self.labels:
                return self.transform(sample, random)
            return {"pixel_values": self.transform.pixels(sample, random)}
        except UNUSABLE as error:
            raise DataError(f"evaluation data: {key}: {error}") from error

    def collate(self, items: list[dict]) -> dict:
        """A batch of the model's inputs: as `SampleTransform.collate`, without `keys`, `ids` and `failures`."""
        if not self.labels:
            return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
        batch = self.transform.collate(items)
        return {name: value for name, value in batch.items() if name not in ("keys", "ids", "failures")}


def is_prepared(dataset: Any) -> bool:
    """Whether the items of a dataset are the model's inputs already: dicts with `pixel_values`.

    Raises:
        ValueError: there is more than one dataset, or items are not dicts.
    """
    if isinstance(dataset, Mapping):
        raise ValueError(f"got several datasets ({', '.join(map(str, dataset))}): choose one")
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
        raise ValueError(f"got {dataset!r:.100}, expected a dataset, a list of dicts, or the path of either")
    columns, form = getattr(dataset, "column_names", None), getattr(dataset, "format", None) or {}
    if columns and form.get("type") != "custom":  # of `datasets`, without a transform
        return "pixel_values" in columns
    if not _is_stream(dataset) and not len(dataset):
        return False
    item = next(iter(dataset), {}) if _is_stream(dataset) else dataset[0]
    if isinstance(dataset, (list, tuple)) and not isinstance(item, Mapping):
        return False  # several sources
    if not isinstance(item, Mapping):
        raise ValueError(
            f"items are {type(item).__name__}, expected dicts: with 'image' and 'caption' or 'label', or with the inputs of "
            "the model ('pixel_values', ...). With other items pass a data_collator too"
        )
    return "pixel_values" in item


def _is_stream(dataset: Any) -> bool:
    """Whether a dataset can only be read in its order."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def train_data(
    dataset: Any, transform: Callable[[], SampleTransform], seed: int, window: int, batch: int, rank: int, world: int
) -> TrainData | StreamData:
    """Training data of images with captions or labels; some samples are looked at.

    Args:
        transform: makes the transform, once the dataset is open.
        seed, window: see `TrainData`. batch, rank, world: see `StreamData`.

    Raises:
        ValueError: there is nothing, or nothing that the transform can use.
    """
    if not is_source(dataset) and _is_stream(dataset):
        if not hasattr(dataset, "set_epoch"):
            raise ValueError(
                f"a {type(dataset).__name__} cannot be shuffled; pass a datasets.IterableDataset or a list"
            )
        made = transform()
        _check_classes(dataset, made)
        _check_targets([lambda: as_sample(next(iter(dataset)), "row 0")], made)
        return StreamData(dataset, made, batch, rank, world, seed)
    source, made = open_data(dataset), transform()
    _check_classes(dataset, made)
    check_source(source, made)
    return TrainData(source, made, seed, window)


def is_source(dataset: Any) -> bool:
    return isinstance(dataset, (str, os.PathLike)) or hasattr(dataset, "counts")


def eval_data(dataset: Any, transform: Callable[[], SampleTransform], predict: bool = False) -> EvalData:
    """The same for evaluation.

    Args:
        predict: samples of a classifier may be without labels.

    Raises:
        ValueError: see `train_data`; or a stream, which can be read only once.
    """
    if not is_source(dataset) and _is_stream(dataset):
        raise ValueError("a stream can be read only once: pass a list of some of its rows, list(stream.take(1000))")
    source, made = open_source(dataset), transform()
    labels = not predict or made.classes is None or bool(source.read(0, 0).labels)
    if labels:
        _check_classes(dataset, made)
        check_source(source, made)
    return EvalData(source, made, labels)


def check_source(source: Source, transform: SampleTransform) -> None:
    """Looks for targets in a few samples of the first shard, without reading images.

    Raises:
        ValueError: a label is out of range, or none of these samples can be used.
    """
    rows = np.unique(np.linspace(0, source.counts[0] - 1, _PROBES).astype(int)) if len(source.counts) else []
    _check_targets([lambda row=row: source.read(0, int(row)) for row in rows], transform)


def _check_targets(samples: list[Callable], transform: SampleTransform) -> None:
    reasons = []
    for number, read in enumerate(samples):
        key = f"sample {number}"
        try:
            sample = read()
            key = sample.key
            transform.target(sample, np.random.default_rng(0))
        except DataError:
            raise
        except UNUSABLE as error:
            reasons.append(f"{key}: {error}")
    if samples and len(reasons) == len(samples):
        raise DataError(f"all {len(samples)} samples are unusable. {reasons[0]}")


def _check_classes(dataset: Any, transform: SampleTransform) -> None:
    """
    Raises:
        ValueError: a `datasets.Dataset` has other classes than the model.
    """
    if transform.classes is None:
        return
    features = getattr(dataset, "features", None) or {}
    column = BY_NAME.find(features).label
    feature = getattr(features.get(column), "feature", features.get(column))  # in a list of labels: their feature
    names = list(getattr(feature, "names", None) or ())
    if names and len(names) != transform.classes:
        raise DataError(
            f"{column!r} has {len(names)} classes, but the model has {transform.classes}. Load it with num_labels={len(names)} "
            "and ignore_mismatched_sizes=True"
        )
    if names != list(transform.names) and sorted(names) == sorted(transform.names):
        raise DataError(
            f"{column!r} has the classes of the model in another order: 0 is {names[0]!r}, in the model "
            f"{transform.names[0]!r}. Load it with id2label=dict(enumerate(dataset.features[{column!r}].names))"
        )


def paired(processing_class: Any) -> Any:
    """A processor for a pair of an image processor and a tokenizer; anything else as it is."""
    if isinstance(processing_class, (list, tuple)) and len(processing_class) == 2:
        images, texts = sorted(processing_class, key=lambda part: not hasattr(part, "image_mean"))
        return AlignProcessor(images, texts)
    return processing_class


def align_transform(model: nn.Module, processing_class: Any) -> SampleTransform:
    """Images and captions for an `AlignModel`, augmented as the original does: a random crop, flipped half of the time.

    Raises:
        ValueError: `processing_class` is not a processor of images and texts.
    """
    images, tokenizer = getattr(processing_class, "image_processor", None), getattr(processing_class, "tokenizer", None)
    if images is None or tokenizer is None:
        raise ValueError(
            "images and captions are prepared by processing_class, an image processor with a tokenizer; got "
            f"{_name(processing_class)}. Pass AlignProcessor.from_pretrained(...), or (image_processor, tokenizer)"
        )
    processor = _ours(images, AlignImageProcessor)
    augment = RandomCrop(*sizes_of(processor), antialias=processor.preprocessing == "hf")
    tokens = min(MAX_TOKENS, model.config.text_config.max_position_embeddings)
    return SampleTransform(augment, processor, tokenizer=tokenizer, max_tokens=tokens)


def class_transform(model: nn.Module, processing_class: Any) -> SampleTransform:
    """Images and labels for a classifier, augmented as ViT's original does: a random part, flipped half of the time.

    Raises:
        ValueError: `processing_class` has no image processor, or one for images of another size; or the model has no
            classes.
    """
    images, config = getattr(processing_class, "image_processor", processing_class), model.config
    if not hasattr(images, "image_mean"):
        raise ValueError(
            f"images are prepared by processing_class, an image processor; got {_name(processing_class)}. Pass "
            "ViTImageProcessor.from_pretrained(...)"
        )
    if config.problem_type == "regression" or config.num_labels < 2:
        raise ValueError(
            f"the model has num_labels={config.num_labels} and problem_type={config.problem_type!r}, expected classes. For "
            "other targets pass a dataset of the model's inputs ('pixel_values' and 'labels')"
        )
    is_vit = hasattr(config, "patch_size")
    processor = _ours(images, ViTImageProcessor if is_vit else AlignImageProcessor)
    side = _side(processor)
    if is_vit and (side, side) != as_pair(config.image_size):
        height, width = as_pair(config.image_size)
        raise ValueError(
            f"processing_class makes images of {side} x {side} pixels, but the model takes {height} x {width}: load one of "
            f"the two with the other's size, for example ViTImageProcessor.from_pretrained(..., size={height})"
        )
    return SampleTransform(
        InceptionCrop(side, antialias=processor.preprocessing == "hf"),
        processor,
        classes=config.num_labels,
        multi_label=config.problem_type == "multi_label_classification",
        names=[config.id2label[number] for number in range(config.num_labels)],
    )


def _ours(images: Any, cls: type[ImageProcessor]) -> ImageProcessor:
    return images if isinstance(images, ImageProcessor) else cls.from_dict(images.to_dict())


def sizes_of(processor: ImageProcessor) -> tuple[int, int]:
    """Pixels of a side before a random crop, and of the crop, for images as a processor makes them.

    Raises:
        ValueError: they are no squares.
    """
    crop, size = _side(processor), processor.size.get("height", 0)
    # without a margin around the crop, as in the original code
    return size if processor.do_center_crop and size > crop else round(crop * 346 / 289), crop


def resized(processor: ImageProcessor, side: int) -> ImageProcessor:
    """The processor for images of another size, with the same margin around a centre crop."""
    changes = {"size": side}
    if processor.do_center_crop:
        resize, crop = sizes_of(processor)
        changes = {"size": round(side * resize / crop), "crop_size": side}
    return type(processor).from_dict(processor.to_dict() | changes)


def _side(processor: ImageProcessor) -> int:
    _, height, width = processor(images=Image.new("RGB", (64, 64)))["pixel_values"][0].shape
    if height != width:
        raise ValueError(
            f"processing_class makes images of {height} x {width} pixels; the augmentations make squares. Pass train_dataset as "
            "TrainData with an augmentation of your own"
        )
    return height


def _name(value: Any) -> str:
    return "None" if value is None else type(value).__name__
