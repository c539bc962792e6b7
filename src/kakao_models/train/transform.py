"""Prepares samples, and collates them into batches."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kakao_models.align.preprocessing import MAX_TOKENS
from kakao_models.pixels.images import load_image, load_pixels
from kakao_models.samples.columns import Sample
from kakao_models.train.augment import Augmentation, Resolutions, affine_of


class DataError(ValueError):
    """An error that no other sample can make up for: a label out of range, or a source without any usable sample."""


@dataclass
class SampleTransform:
    """Prepares a sample for a batch. Images are normalised like in the model's image processor.

    Args:
        augment: crops and resizes an image, to one of several sizes with `Resolutions`; None prepares it as
            `image_processor` does, for evaluation.
        image_processor: gives the range of `pixel_values`.
        tokenizer: the tokenizer of captions; None for an image classifier, whose samples need labels.
        max_tokens: captions are cut there.
        classes: number of classes, None for captions. A label outside is a DataError.
        multi_label: labels become a row of zeros and ones, and may be none or several.
        names: class names, where labels are names (of folders).
        pad_to: "longest" pads to the longest caption of a batch, "max_tokens" always to that (for torch.compile).
    """

    augment: Augmentation | Resolutions | None
    image_processor: Callable
    tokenizer: Callable | None = None
    max_tokens: int = MAX_TOKENS
    classes: int | None = None
    multi_label: bool = False
    names: Sequence[str] = ()
    pad_to: str = "longest"
    affine: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self):
        if (self.tokenizer is None) == (self.classes is None):
            raise ValueError("SampleTransform: give a tokenizer (captions) or a number of classes (labels), not both")
        if self.pad_to not in ("longest", "max_tokens"):
            raise ValueError(f"pad_to: got {self.pad_to!r}, expected 'longest' or 'max_tokens'")
        self.affine = affine_of(self.image_processor)
        self.tokenizer = copy.deepcopy(self.tokenizer)  # a call changes its settings, which would be saved
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def at(self, number: int | None) -> "SampleTransform":
        """The transform to one of its `Resolutions`; itself if it has none."""
        if not isinstance(self.augment, Resolutions):
            return self
        one = copy.copy(self)
        one.augment = self.augment.crops[number or 0]
        return one

    def __call__(self, sample: Sample, random: np.random.Generator) -> dict:
        target = self.target(sample, random)
        return {"pixel_values": self.pixels(sample, random), "target": target, "key": sample.key}

    def pixels(self, sample: Sample, random: np.random.Generator) -> torch.Tensor:
        """The model's input for an image, float32 (3, H, W)."""
        if sample.image is None:
            raise ValueError("no image")
        if self.augment is None:
            return torch.as_tensor(self.image_processor(images=sample.image)["pixel_values"][0])
        load = load_pixels if self.augment.arrays else load_image
        picture = load(sample.image, size_hint=self.augment.decode_size)
        scale, offset = (x[:, None, None] for x in self.affine)  # (3, 1, 1)
        pixels = np.ascontiguousarray(self.augment(picture, random).transpose(2, 0, 1))  # (3, H, W)
        pixels *= scale  # eight times as fast as on (H, W, 3), whose innermost loop is three numbers long
        pixels += offset
        return torch.from_numpy(pixels)

    def target(self, sample: Sample, random: np.random.Generator) -> Any:
        """The "target" that `collate` gets: one of the captions, or the numbers of the labels. For other targets override
        both.

        Raises:
            ValueError: the sample cannot be used, and another one takes its place.
        """
        if self.tokenizer is not None:
            if not sample.captions:
                raise ValueError("no caption")
            caption = sample.captions[int(random.integers(len(sample.captions)))]
            caption.encode()  # JSON can hold half of a character, on which the tokenizer of the whole batch would fail
            return caption
        labels = [self._number(sample, label) for label in sample.labels]
        if not self.multi_label and len(labels) != 1:
            raise ValueError(f"expected one label, got {len(labels)}")
        return labels

    def _number(self, sample: Sample, label: int | str) -> int:
        number = self._numbers.get(label) if isinstance(label, str) else label
        if number is None:
            there = f"the classes are {', '.join(self.names)}" if self.names else (
                "the recipe gives the number of classes, not their names: leave classes out, or name a file with one class per line"
            )  # fmt: skip
            raise DataError(f"{sample.key}: label {label!r} is not the name of a class; {there}")
        if not 0 <= number < self.classes:
            last = self.classes - 1
            raise DataError(f"{sample.key}: label {number} is out of range, the model has classes 0..{last}")
        return number

    def collate(self, items: list[dict]) -> dict:
        """A batch: `pixel_values`; `input_ids` and `attention_mask`, or `labels`; `keys`; `ids` (`Source.identify`);
        `failures` (key, reason)."""
        batch = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}  # (B, 3, H, W)
        targets = [item["target"] for item in items]
        if self.tokenizer is not None:
            padding = "longest" if self.pad_to == "longest" else "max_length"
            options = dict(padding=padding, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            tokens = self.tokenizer(targets, **options)
            batch |= {name: tokens[name] for name in ("input_ids", "attention_mask")}
        elif self.multi_label:
            batch["labels"] = torch.zeros(len(items), self.classes)
            for row, labels in zip(batch["labels"], targets):
                row[labels] = 1.0
        else:
            batch["labels"] = torch.tensor([labels[0] for labels in targets])
        batch["keys"] = [item["key"] for item in items]
        batch["ids"] = [item.get("id", (0, None)) for item in items]
        batch["failures"] = [failure for item in items for failure in item.get("failures", ())]
        return batch
