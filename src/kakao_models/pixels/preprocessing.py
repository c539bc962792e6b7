"""Turns an image into the input of an image model, with numpy and PIL only.

The image processors that users name (`AlignImageProcessor`, `ViTImageProcessor`) add transformers' interface. Code that
only runs a model does without transformers, whose import takes longer than everything else.
"""

import copy
import difflib
import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from kakao_models.lazy import is_installed
from kakao_models.pixels.limits import MAX_PIXELS
from kakao_models.pixels.resize import center_box, resize_area, resize_bilinear, shorter_side_to

logger = logging.getLogger(__name__)

PREPROCESSINGS = ("hf", "tf")
_LEAST_OF_FRACTIONS = 0.1  # a rescale_factor from here on is meant for pixels in 0..1, a smaller one for 0..255
# What transformers writes into a preprocessor_config.json, or takes in a call, beside the fields
FOREIGN = frozenset(
    "auto_map data_format default_to_square device disable_grouping do_convert_rgb do_pad feature_extractor_type "
    "image_processor_type image_seq_length include_top input_data_format pad_size processor_class rescale_offset "
    "return_tensors".split()
)
# The same of a processor_config.json
_OF_PROCESSORS = ("image_processor", "tokenizer", "processor_class", "auto_map", "chat_template", "feature_extractor")
# Options of transformers' processors in a call → what to do instead
INSTEAD = {
    "data_format": "pixel_values are (batch, channels, height, width) for every framework; transpose the result",
    "input_data_format": "an array's channels are recognised on the first or last axis; leave it out",
    "device": "pixel_values are made on the CPU; move the result",
    "do_pad": "resize or crop instead",
    "pad_size": "resize or crop instead",
    "disable_grouping": "images are prepared one by one; leave it out",
}
_TF_RESIZE = {Image.Resampling.BILINEAR: resize_bilinear, Image.Resampling.BOX: resize_area}


class Preprocessing:
    """Resizes, crops, rescales and normalises images; see `ImageProcessor` for the fields."""

    fields: ClassVar[tuple[str, ...]] = (
        *("preprocessing", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    )
    # Defaults of transformers' class for the same, where ours differ: they hold for a file that leaves a field out.
    transformers_defaults: ClassVar[Mapping[str, Any]] = {}

    # Whether `pixel_values` is all that the object does: False of a class that prepares images in its own way when called.
    is_complete: ClassVar[bool] = True

    preprocessing = "hf"
    do_resize = True
    resample = Image.Resampling.BILINEAR
    do_center_crop = False
    crop_size = None
    do_rescale = True
    rescale_factor = 1 / 255
    rescale_offset = False
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    include_top = False

    def __init__(self, **kwargs: Any):
        for name in self.fields:
            value = kwargs.get(name)
            setattr(self, name, self._checked(name, getattr(type(self), name) if value is None else value))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The preprocessing that a preprocessor_config.json describes.

        Raises:
            ValueError: a field has no such value.
        """
        return cls(**{**cls.transformers_defaults, **cls._known(values)})

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a file that are set and known to the class; warns of unknown ones."""
        fields = {name: value for name, value in values.items() if value is not None}
        unknown = _unknown(fields, {*cls.fields, *FOREIGN})
        _warn_of("preprocessor_config.json", unknown, cls.fields)
        return {name: value for name, value in fields.items() if name not in unknown}

    @classmethod
    def _refuse(cls, values: Mapping[str, Any], *, near: bool = False) -> None:
        """Raises ValueError if one of `values` is not a field; with `near`, only if its name is close to a field's."""
        for name in _unknown(values, {*cls.fields, *FOREIGN}):
            hint = _meant(name, cls.fields)
            if hint or not near:
                more = f"; did you mean {hint!r}?" if hint else f". It has: {', '.join(cls.fields)}"
                raise ValueError(f"{cls.__name__} has no field {name!r}{more}")

    @property
    def decode_size(self) -> tuple[int, int] | None:
        """(height, width) that `load_image(size_hint=...)` may be given to read faster, or None if pictures must be decoded
        in full.

        Only antialiased resizing averages over all pixels, so that a JPEG decoded at reduced size gives nearly the same
        result. "tf" resizing takes single pixels of the full picture: from a reduced one it would take others, and
        being equal to the original implementation is the point of it.
        """
        if self.preprocessing == "tf" or not self.do_resize or self.resample == Image.Resampling.NEAREST:
            return None
        size = _size("size", self.size)
        shorter = size.get("shortest_edge")  # neither side becomes smaller than that
        return (shorter, shorter) if shorter else (size["height"], size["width"])

    @property
    def gives_bytes(self) -> bool:
        """Whether `pixels` and the arithmetic of `byte_values` together are the whole preprocessing."""
        return self.preprocessing == "hf" and self.takes_bytes

    @property
    def takes_bytes(self) -> bool:
        """See `rescales_bytes`."""
        return rescales_bytes(self.do_rescale, self.rescale_factor)

    @property
    def byte_values(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero), float64 (3,) each: per channel, a byte u becomes (u - zero) * scale."""
        options = self._changed({})
        factor = options.rescale_factor if options.do_rescale else 1
        scale, zero = np.full(3, float(factor)), np.zeros(3)
        if options.do_rescale and options.rescale_offset:
            zero += 1
        std = np.broadcast_to(np.float64(options.image_std), 3)
        if options.do_normalize:
            zero, scale = zero + options.image_mean, scale / std
        if options.include_top:
            scale = scale / std
        return scale, zero / factor

    def resizing(self) -> str:
        """Resizing and cropping, in words."""
        steps = []
        if self.do_resize:
            size = self.size
            if "height" in size:
                to = f"{size['height']} x {size['width']}"
            else:
                to = f"a shorter side of {size['shortest_edge']}"
            how = "tf.image.resize without antialiasing" if self.preprocessing == "tf" else "PIL, antialiased"
            steps.append(f"resize to {to} ({Image.Resampling(self.resample).name.lower()}, {how})")
        if self.do_center_crop:
            steps.append(f"crop the central {self.crop_size['height']} x {self.crop_size['width']}")
        return ", ".join(steps) or "no resizing"

    def in_words(self) -> str:
        """All steps, in the order in which they happen. Sizes are height x width."""
        steps = [self.resizing()]
        if self.do_rescale:
            steps.append(f"times 1/{1 / self.rescale_factor:g}" + (" minus 1" if self.rescale_offset else ""))
        if self.do_normalize:
            steps.append(f"mean {self.image_mean}, std {self.image_std}")
        if self.include_top:
            steps.append(f"divide by std {self.image_std}")
        return ", ".join(steps)

    def _changed(self, changes: dict) -> Self:
        """A copy with other values of some fields; all of its fields have been checked."""
        if unknown := changes.keys() - {*self.fields, "do_convert_rgb"}:  # the last is always done
            name = min(unknown)
            hint = _meant(name, self.fields)
            instead = INSTEAD.get(name) or (f"did you mean {hint!r}?" if hint else f"it has {', '.join(self.fields)}")
            raise TypeError(f"{type(self).__name__} has no option {name!r}; {instead}")
        changed = copy.copy(self)
        # Where they are not fields, a file may set them, and they mean nothing
        changed.rescale_offset = changed.include_top = False
        for name in self.fields:
            value = changes.get(name)
            setattr(changed, name, self._checked(name, getattr(self, name) if value is None else value))
        if changed.preprocessing == "tf" and changed.do_resize and changed.resample not in _TF_RESIZE:
            raise ValueError(
                f'preprocessing="tf" resizes with resample 2 (bilinear) or 4 (area), got {changed.resample}; '
                'for PIL\'s other filters use preprocessing="hf"'
            )
        if changed.do_center_crop and changed.crop_size is None:
            raise ValueError("do_center_crop needs a crop_size")
        return changed

    def _checked(self, name: str, value):
        if name == "preprocessing" and value not in PREPROCESSINGS:
            raise ValueError(f"preprocessing must be one of {PREPROCESSINGS}, got {value!r}")
        if name in ("size", "crop_size") and value is not None:
            return _size(name, value)
        if name in ("image_mean", "image_std", "rescale_factor"):
            single = isinstance(value, (int, float))
            numbers = [value] if single else list(value) if isinstance(value, (list, tuple, np.ndarray)) else []
            least = None if name == "image_mean" else 0
            right = all(isinstance(x, (int, float, np.number)) for x in numbers)
            right = right and all(np.isfinite(x) and (least is None or x > least) for x in map(float, numbers))
            if not right or not (single or len(numbers) == 3 and name != "rescale_factor"):
                raise ValueError(
                    f"{name}: got {value!r}, expected a number{'' if least is None else ' above 0'}, or three"
                )
            return value if single else list(map(float, numbers))
        if name == "resample":
            if value not in list(Image.Resampling):
                raise ValueError(f"resample: got {value!r}, expected one of PIL's filters, 0 to 5")
            return int(value)
        return value

    def _prepared(self, picture: Image.Image, fractions: bool) -> np.ndarray:
        scale = 1 / 255 if fractions and not self.takes_bytes else 1
        if self.preprocessing == "tf":
            return self._like_tf(picture, scale)
        return self._values(self._like_hf(picture), scale)

    def pixel_values(self, picture: Image.Image, fractions: bool = False) -> np.ndarray:
        """The model's input for an image, float32 (3, height, width).

        Args:
            fractions: whether the picture came as numbers in 0..1; see `has_fractions` and `takes_bytes`.
        """
        return self._changed({})._prepared(picture, fractions)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """An image resized and cropped, as bytes (height, width, 3), which `byte_values` explains. Only with
        `preprocessing="hf"`: the originals' resizing does not round."""
        return np.ascontiguousarray(self._changed({})._like_hf(picture))

    def fast_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Like `pixels`, for an array (H, W, 3) of bytes, resized by PyTorch's kernel for bytes: about four times as fast as
        PIL's. It rounds in other places, so that about one value in 300 differs by 1 of 255, rarely by 2. Without
        PyTorch, PIL resizes.
        """
        options = self._changed({})
        mode = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}.get(options.resample)
        if mode is None or not options.do_resize or not is_installed("torch"):
            return self.pixels(Image.fromarray(pixels))
        import torch

        size = _checked_size(options.size, *pixels.shape[:2])
        planes = torch.from_numpy(np.require(pixels, requirements="CW")).permute(2, 0, 1)[None]  # a view: channels last
        resized = torch.nn.functional.interpolate(planes, size, mode=mode, antialias=True)
        pixels = resized[0].permute(1, 2, 0).numpy()
        if options.do_center_crop:
            pixels = _center_crop(pixels, options.crop_size)
        return np.ascontiguousarray(pixels)

    def _like_hf(self, picture: Image.Image) -> np.ndarray:
        """Bytes (height, width, 3)."""
        if self.do_resize:
            height, width = _checked_size(self.size, picture.height, picture.width)
            picture = picture.resize((width, height), self.resample)
        pixels = np.asarray(picture)
        return _center_crop(pixels, self.crop_size) if self.do_center_crop else pixels

    def _values(self, pixels: np.ndarray, scale: float) -> np.ndarray:
        # A byte has 256 values: the arithmetic is done once for each of them, per channel.
        values = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
        table = self._affine(values if scale == 1 else np.float32(values * scale), np.float64)
        return np.stack([table[channel].take(pixels[:, :, channel]) for channel in range(3)])

    def _like_tf(self, picture: Image.Image, scale: float) -> np.ndarray:
        pixels = np.asarray(picture)
        height, width = pixels.shape[:2]
        if self.do_resize:
            height, width = _resized(self.size, height, width, truncated=False)
        box = (0, 0, height, width)
        if self.do_center_crop:
            box = center_box(height, width, self.crop_size["height"], self.crop_size["width"])
        if self.do_resize:
            pixels = _TF_RESIZE[self.resample](pixels, height, width, box)
        else:
            top, left, height, width = box
            pixels = pixels[top : top + height, left : left + width].astype(np.float32)
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return self._affine(pixels if scale == 1 else pixels * np.float32(scale), np.float32)

    def _affine(self, pixels: np.ndarray, precision: type) -> np.ndarray:
        """Rescaling and normalisation of (3, ...) pixels. The original implementations multiply in float32, transformers in
        float64; everything else is float32 in both."""
        if self.do_rescale:
            pixels = (pixels * precision(self.rescale_factor)).astype(np.float32, copy=False)
            if self.rescale_offset:
                pixels -= 1
        per_channel = (-1, *[1] * (pixels.ndim - 1))
        mean = np.float32(self.image_mean).reshape(per_channel)
        std = np.float32(self.image_std).reshape(per_channel)
        if self.do_normalize:
            pixels = (pixels - mean) / std
        if self.include_top:
            pixels = pixels / std
        return pixels


def rescales_bytes(do_rescale: bool, rescale_factor: float) -> bool:
    """Whether rescaling is meant for pixels in 0..255, so that fractions in 0..1 are multiplied by 255 before it.

    Without rescaling, or with a `rescale_factor` of 0.1 or more, pixels keep the scale in which they came.
    """
    return bool(do_rescale) and rescale_factor < _LEAST_OF_FRACTIONS


def warn_of_processor(values: Mapping[str, Any]) -> None:
    """Warns of fields of a processor_config.json that nothing reads."""
    _warn_of("processor_config.json", _unknown(values, _OF_PROCESSORS), _OF_PROCESSORS)


def _warn_of(file: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    for name in unknown:
        hint = _meant(name, known)
        _warn_once(
            f"{file}: the field {name!r} is not known and changes nothing"
            + (f"; did you mean {hint!r}?" if hint else "")
        )


def _meant(name: str, fields: Iterable[str]) -> str | None:
    """The field whose name is close to this one."""
    return next(iter(difflib.get_close_matches(name, list(fields), n=1, cutoff=0.8)), None)


def _unknown(values: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    return [name for name in values if name not in known and not name.startswith("_")]


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _center_crop(pixels: np.ndarray, size: Mapping[str, int]) -> np.ndarray:
    """The result of transformers' `center_crop` on (H, W, C): pixels outside of the image are 0."""
    height, width = size["height"], size["width"]
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    from transformers.image_transforms import center_crop

    return center_crop(pixels, (height, width), data_format="channels_last", input_data_format="channels_last")


def _size(name: str, value) -> dict[str, int]:
    """A size in any of transformers' forms, as height and width, or as shortest_edge."""
    if isinstance(value, int):
        value = {"height": value, "width": value}
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif isinstance(value, Mapping):
        value = {key: side for key, side in value.items() if side is not None}
    else:
        value = {"": value}
    allowed = [{"height", "width"}, {"shortest_edge"}][: 1 if name == "crop_size" else 2]
    if value.keys() not in allowed or not all(isinstance(side, int) and side > 0 for side in value.values()):
        raise ValueError(f"{name} must be a positive number of pixels or have the keys {allowed}, got {value}")
    if min(value.values()) * max(value.values()) > MAX_PIXELS:
        raise ValueError(f"{name} is {value}, more than {MAX_PIXELS} pixels")
    return value


def _resized(size: dict[str, int], height: int, width: int, truncated: bool) -> tuple[int, int]:
    if "height" in size:
        return size["height"], size["width"]
    shorter = size["shortest_edge"]
    if not truncated:
        return shorter_side_to(shorter, height, width)
    longer = int(shorter * max(height, width) / min(height, width))  # transformers' rounding
    return (longer, shorter) if width <= height else (shorter, longer)


def _checked_size(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    resized = _resized(size, height, width, truncated=True)
    if resized[0] * resized[1] > MAX_PIXELS:  # a line of pixels, whose shorter side becomes hundreds
        raise ValueError(
            f"an image of {width} x {height} becomes {resized[1]} x {resized[0]} at size {size}, more than {MAX_PIXELS} "
            "pixels: give size as height and width, or leave this image out"
        )
    return resized
