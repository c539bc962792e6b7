"""The base of the image processors of ALIGN and ViT: one image from any source in, one float32 array out."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from kakao_models.checkpoint.hub import PROCESSOR_FILES, MissingFile, fetch, fetch_all, hub_arguments, read_object
from kakao_models.pixels.images import has_fractions, is_one_image, load_image
from kakao_models.pixels.preprocessing import Preprocessing, warn_of_processor
from kakao_models.pixels.tensors import as_tensors


class ImageProcessorKwargs(ImagesKwargs, total=False):
    """Fields that may be given to `from_pretrained` and in a call."""

    preprocessing: str
    rescale_offset: bool
    include_top: bool


class ImageProcessor(Preprocessing, BaseImageProcessor):
    """Resize, centre crop, rescale, normalise; configured as transformers' image processors are.

    `preprocessing` chooses how:

    - "hf": what transformers does, to the same pixel: PIL's antialiased filters, rounded to integers.
    - "tf": as in the original code: `tf.image.resize` without antialiasing and without rounding. `resample` is
      PIL's BILINEAR (2) for bilinear, or BOX (4) for the area method.

    A file without the field is "hf". transformers loads a model's folder with "tf" too, with its own class, which knows only
    antialiased resizing: its Auto classes and pipelines give one answer, whatever of this package is imported.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    valid_kwargs = ImageProcessorKwargs
    transformers_type: str  # the class of transformers that does the same

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.is_complete = (cls.preprocess, cls.__call__) == (ImageProcessor.preprocess, ImageProcessor.__call__)

    def __init__(self, **kwargs: Any):
        Preprocessing.__init__(self, **kwargs)
        for name in self.fields:
            kwargs.pop(name, None)
        self._refuse(kwargs)
        if kwargs.get("do_pad"):
            raise ValueError(
                f"{type(self).__name__} does not pad (do_pad={kwargs['do_pad']!r}); resize or crop instead"
            )
        kwargs.pop("image_processor_type", None)
        BaseImageProcessor.__init__(self, **kwargs)

    def preprocess(self, images: Any, *, return_tensors: str | None = None, **changes: Any) -> BatchFeature:
        """Prepares one image, or several: in a list, another iterable, or a 4-dimensional array.

        Args:
            images: whatever `load_image` reads, in any mixture and of any sizes. Whatever the type of their pixels,
                pictures become 8-bit RGB first. Without rescaling (or with a `rescale_factor` of 0.1 or more) values keep
                the scale in which they came: 0..1 of arrays of floats in 0..1, 0..255 of all others. A smaller
                `rescale_factor` is meant for 0..255, and floats in 0..1 are multiplied by 255 before it.
            return_tensors: "np", "pt", "tf" or "jax"; None for a list of numpy arrays.
            changes: fields of the configuration, for this call.

        Returns:
            `pixel_values`, float32 (B, 3, height, width).
        """
        preprocessing = self._changed(changes)
        pictures = [preprocessing._prepared(load_image(source), has_fractions(source)) for source in _flat(images)]
        if not pictures:
            raise ValueError(f"{type(self).__name__} expected at least one image, got an empty {type(images).__name__}")
        shapes = {picture.shape for picture in pictures}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"images of different sizes (channels, height, width) cannot be stacked: {sorted(shapes)}. "
                "Leave do_resize on, crop, or leave return_tensors out"
            )
        return as_tensors({"pixel_values": pictures}, return_tensors)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """transformers' `from_pretrained`, which also takes the name of a checkpoint that ships with this package."""
        if os.path.isfile(source := pretrained_model_name_or_path):  # a file of another name
            read_object(Path(source))
            return super().from_pretrained(source, **kwargs)
        source, where = fetch_all(source, PROCESSOR_FILES, **hub_arguments(kwargs))
        for filename in PROCESSOR_FILES:
            with suppress(MissingFile):
                values = read_object(fetch(source, filename, **where))
                if filename == "processor_config.json":
                    warn_of_processor(values)
        return super().from_pretrained(source, **(kwargs | where))

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs: Any) -> Self:
        if not isinstance(image_processor_dict, dict):
            raise ValueError(
                f"{cls.__name__}: its settings must be a JSON object, got a {type(image_processor_dict).__name__}"
            )
        cls._refuse(kwargs, near=True)
        known = cls._known(image_processor_dict)
        result = super().from_dict({**cls.transformers_defaults, **known}, **kwargs)
        processor = result[0] if isinstance(result, tuple) else result
        for name in image_processor_dict.keys() - known.keys() - {*cls.fields}:
            setattr(processor, name, image_processor_dict[name])  # to be saved again
        return result

    def to_dict(self) -> dict:
        return super().to_dict() | {"image_processor_type": self.transformers_type}


def _flat(images) -> list:
    if isinstance(images, (list, tuple)):
        return [picture for part in images for picture in _flat(part)]
    return [images] if is_one_image(images) or not hasattr(images, "__iter__") else list(images)
