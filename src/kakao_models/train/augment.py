"""Augmentations of training images, as in the original implementations.

Axes: H, W height and width of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

Picture = Image.Image | np.ndarray  # arrays are uint8 (H, W, 3)


class Augmentation(Protocol):
    decode_size: tuple[int, int] | None  # (height, width) for `load_image(size_hint=...)`
    arrays: bool  # whether it takes the array of `load_pixels`, which is read faster than a PIL image

    def __call__(self, picture: Picture, random: np.random.Generator) -> np.ndarray:
        """float32 (H, W, 3) in 0..255."""


@dataclass(frozen=True)
class RandomCrop:
    """ALIGN's augmentation: resizes to a square regardless of the shape, crops a random part, and flips half of the images.

    antialias: False resizes as the original, True as PIL, which is what a model with `preprocessing="hf"` will see.
    """

    resize: int = 346
    crop: int = 289
    flip: bool = True
    antialias: bool = False

    def __post_init__(self):
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"RandomCrop: crop must lie in 1..resize, got crop={self.crop}, resize={self.resize}")

    @property
    def decode_size(self) -> tuple[int, int] | None:
        return (self.resize, self.resize) if self.antialias else None

    @property
    def arrays(self) -> bool:
        return not self.antialias

    def __call__(self, picture: Picture, random: np.random.Generator) -> np.ndarray:
        top, left = random.integers(0, self.resize - self.crop, 2, endpoint=True)
        flipped = self.flip and random.random() < 0.5
        if self.antialias:  # only the crop is computed
            across, down = picture.width / self.resize, picture.height / self.resize
            box = (left * across, top * down, (left + self.crop) * across, (top + self.crop) * down)
            pixels = _resized_part(picture, self.crop, self.crop, box)
        else:
            pixels = _bilinear(_array(picture), self.resize, self.resize)
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        return pixels[:, ::-1] if flipped else pixels


@dataclass(frozen=True)
class InceptionCrop:
    """ViT's augmentation: a random part of random area and aspect ratio (Szegedy et al. 2015), resized to a square,
    flipped half of the time.

    area: smallest and largest share of the picture. ratio: smallest and largest width / height.
    Where ten draws do not fit into the picture, the whole of it is taken, as TensorFlow's
    `sample_distorted_bounding_box` does.
    """

    size: int = 224
    area: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    antialias: bool = False

    def __post_init__(self):
        if not (0 < self.area[0] <= self.area[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(
                f"InceptionCrop: expected 0 < area <= 1 and ratio > 0, smallest first, got area={self.area}, ratio={self.ratio}"
            )

    @property
    def decode_size(self) -> tuple[int, int] | None:
        """The size that may be decoded: None, the whole, as the part that is cut out may be small."""
        return None

    @property
    def arrays(self) -> bool:
        return not self.antialias

    def __call__(self, picture: Picture, random: np.random.Generator) -> np.ndarray:
        size = picture.shape[1::-1] if isinstance(picture, np.ndarray) else picture.size
        left, top, right, bottom = self._part(*size, random)
        flipped = self.flip and random.random() < 0.5
        if self.antialias:
            pixels = _resized_part(picture, self.size, self.size, (left, top, right, bottom))
        else:
            pixels = _bilinear(_array(picture)[top:bottom, left:right], self.size, self.size)
        return pixels[:, ::-1] if flipped else pixels

    def _part(self, width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):
            area, ratio = random.uniform(*self.area) * width * height, random.uniform(*self.ratio)
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left, top = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
                return left, top, left + w, top + h
        return 0, 0, width, height


@dataclass(frozen=True)
class Resolutions:
    """Augmentations for images of several sizes; all images of a batch have one size.

    crops: an augmentation for each size.
    by: "stage": one size follows the other, each for an equal part of the run's steps. "step": they take turns.
    """

    crops: Sequence["Augmentation"]
    by: str = "stage"

    def __post_init__(self):
        if not self.crops or self.by not in ("stage", "step"):
            raise ValueError(
                f"augment: expected at least one size, and by='stage' or 'step'; got {len(self.crops)} sizes and by={self.by!r}"
            )

    def number(self, step: int, steps: int) -> int:
        """The place in `crops` of the crop for a step, counted from 0, of a run of `steps`."""
        if self.by == "step":
            return step % len(self.crops)
        return min(step * len(self.crops) // steps, len(self.crops) - 1)


@dataclass(frozen=True)
class Distorted:
    """Another augmentation, with colours and sharpness changed: small data sets are learned by heart more slowly.

    crop: the other one.
    thumbnail: share of the pictures that are reduced and enlarged again before it, to a side of `thumbnail_sizes` pixels.
    sharpen: probability of sharpening fine detail up to three times.
    grey: share without colour. saturation, contrast: largest change of the factor, brightness: of what is added, as a
    share of half the range; all even on both sides.
    """

    crop: "Augmentation"
    thumbnail: float = 0.0
    thumbnail_sizes: tuple[int, int] = (22, 44)
    sharpen: float = 0.0
    grey: float = 0.0
    saturation: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0

    def __post_init__(self):
        for name in ("thumbnail", "sharpen", "grey", "saturation", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"distort: {name} must lie in 0..1, got {getattr(self, name)}")
        smallest, largest = self.thumbnail_sizes
        if not 0 < smallest <= largest:
            raise ValueError(f"distort: thumbnail_sizes: expected 0 < smallest <= largest, got {self.thumbnail_sizes}")

    @property
    def decode_size(self) -> tuple[int, int] | None:
        return self.crop.decode_size

    @property
    def arrays(self) -> bool:
        """False: PIL makes the thumbnails."""
        return False

    def __call__(self, picture: Image.Image, random: np.random.Generator) -> np.ndarray:
        chance = random.random(3)
        side = int(random.integers(*self.thumbnail_sizes, endpoint=True))
        colour, contrast, brightness = random.uniform(-1, 1, 3)
        detail = random.uniform(0, 2)
        if chance[0] < self.thumbnail:
            small = picture.resize((side, side), Image.Resampling.BILINEAR)
            picture = small.resize(picture.size, Image.Resampling.BILINEAR)
        pixels = self.crop(picture, random)
        if chance[1] < self.sharpen:
            pixels = pixels + detail * (pixels - _blurred(pixels))
        grey = pixels.mean(2, keepdims=True)
        saturation = 0.0 if chance[2] < self.grey else 1 + colour * self.saturation
        pixels = grey + (pixels - grey) * np.float32(saturation)
        mean = pixels.mean()
        pixels = mean + (pixels - mean) * np.float32(1 + contrast * self.contrast)
        return np.clip(pixels + np.float32(127.5 * brightness * self.brightness), 0, 255)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """Mean of each 3 x 3 neighbourhood; at the border the outermost pixels are repeated."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / np.float32(9)


def _array(picture: Picture) -> np.ndarray:
    return np.require(picture, requirements=["C", "W"])  # as PyTorch wants it; a copy only of what is not so


def _bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`pixels.resize.resize_bilinear` by PyTorch, in a third of the time even where a part of it is thrown away."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def _resized_part(picture: Image.Image, height: int, width: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """The box (left, top, right, bottom) of a picture, resized by PIL with antialiasing."""
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box)).astype(np.float32)


def affine_of(processor: Callable[..., Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), float32 (3,) each, by which an image processor turns pixels of 0..255 into `pixel_values`."""
    ends = [np.full((8, 8, 3), value, np.uint8) for value in (0, 255)]
    low, high = processor(images=ends, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"]
    low, high = (values[:, 0, 0].astype(np.float64) for values in (low, high))
    return ((high - low) / 255).astype(np.float32), low.astype(np.float32)
