"""Keras' EfficientNet (keras.applications, B0 to B7), a weights file .h5: the image tower alone.

Layers are found by the names Keras gave them (stem_conv, block1a_dwconv, ...): the format has nothing else. They are
presented under the keys of the original ALIGN's image tower, which is the same network, so that everything after is the same.

Keras pads a convolution of stride 2 by (k//2 - 1, k//2) where its input is even and by (k//2, k//2) where it is odd, at the
size that the model was built for; `depthwise_padding` of the configuration lists the latter.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from kakao_models.align.config import EFFICIENTNET_SIZES, AlignVisionConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.hdf5 import read_datasets
from kakao_models.checkpoint.tensors import LazyTensors, TensorEntry, check_keys
from kakao_models.conversion.recognize import IMAGE_TOWER, efficientnet_config
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.pixels.processor import ImageProcessor

# (width, depth) of B0 to B7 -> image size; Tan & Le 2019
IMAGE_SIZES = dict(zip(EFFICIENTNET_SIZES.values(), (224, 240, 260, 300, 380, 456, 528, 600)))
_CONV, _BIASED, _DEPTHWISE = ("kernel",), ("kernel", "bias"), ("depthwise_kernel",)
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_EXPANSION = {"expand_conv": _CONV, "expand_bn": _NORM}
_REST = {"dwconv": _DEPTHWISE, "bn": _NORM, "se_reduce": _BIASED, "se_expand": _BIASED}
_REST |= {"project_conv": _CONV, "project_bn": _NORM}
_SKIPPED = {"top_conv": _CONV, "top_bn": _NORM, "predictions": _BIASED, "normalization": ("mean", "variance", "count")}
_IMAGENET_STD = (0.229, 0.224, 0.225)


def read_efficientnet(path: Path, *, image_size: int | None = None, **overrides) -> SourceCheckpoint:
    """Recognises a weights file of an EfficientNet, of Keras 2 or (`.weights.h5`) 3.

    Args:
        image_size: the even number of pixels that the tower is for; by default the published one of its size.
        overrides: sizes to compare with the tensors'.

    Raises:
        ValueError: a damaged file, a layer of unknown name, tensors of another model, an odd `image_size`.
    """
    stored, skipped = _layers(path)
    layers = _in_order({key.split("/")[0] for key in stored})
    check_keys([f"{layer}/{leaf}" for layer, leaves in layers for leaf in leaves], stored, path)
    found = {
        f"{IMAGE_TOWER}{number}/{leaf}": f"{layer}/{leaf}"
        for number, (layer, leaves) in enumerate(layers)
        for leaf in leaves
    }
    tensors = LazyTensors({ours: _as_original(stored[theirs], theirs.split("/")[1]) for ours, theirs in found.items()})
    vision = efficientnet_config({key: tensors.shape(key) for key in tensors})
    published = IMAGE_SIZES.get((vision.width_coefficient, vision.depth_coefficient), 224)
    vision.image_size = image_size or published
    vision.depthwise_padding = _symmetric_blocks(vision)
    for name, value in overrides.items():
        if value is not None and getattr(vision, name, None) != value:
            raise ValueError(f"{name}: you say {value}, the tensors say {getattr(vision, name, None)}")
    return SourceCheckpoint(
        family="efficientnet",
        config=vision,
        slots=[replace(slot, key=slot.key.removeprefix("vision_model.")) for slot in align_tpu_slots(vision)],
        tensors=tensors,
        key_layout=None,
        weights="raw",
        has_averages=False,
        skipped=dict(Counter(key.split("/")[0] for key in skipped)),
        files=[path],
        kind="Keras' EfficientNet weights",
        names=found,
        assumed=() if image_size else ("image_size",),
        image_processor=partial(_image_processor, vision.image_size, *_normalization(path, skipped)),
    )


def _layers(path: Path) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
    """layer/leaf → tensor: those of the tower, and those that are known and left out."""
    entries, names = read_datasets(path)
    if any(key.startswith("model_weights/") for key in entries):  # model.save: the weights stand beside an optimizer's
        entries = {key: entry for key, entry in entries.items() if key.startswith("model_weights/")}
    kept, skipped = {}, {}
    for key, entry in entries.items():
        parts = key.removeprefix("model_weights/").split("/")
        group, leaf = key.rpartition("/")[0], parts[-1].removesuffix(":0")
        layer = names.get(group, parts[0])
        if parts[-2:-1] == ["vars"] and leaf.isdecimal():  # Keras 3 numbers the leaves of a layer
            leaves = _leaves(layer)
            leaf = leaves[int(leaf)] if int(leaf) < len(leaves) else leaf
        elif layer.endswith("dwconv") and leaf == "kernel":  # Keras 3's name for it
            leaf = "depthwise_kernel"
        layer = re.sub(r"^normalization_\d+$", "normalization", layer)  # numbered where a program builds two models
        home = skipped if leaf in _SKIPPED.get(layer, ()) else kept
        if f"{layer}/{leaf}" in home:
            raise ValueError(f"{path}: {layer}/{leaf} is there twice. Is there more than one model in the file?")
        home[f"{layer}/{leaf}"] = entry
    return kept, skipped


def _leaves(layer: str) -> tuple[str, ...]:
    """Names of a layer's tensors, in Keras' order."""
    kind = re.sub(r"^block\d+[a-z]_|_\d+$", "", layer)
    return ({"stem_conv": _CONV, "stem_bn": _NORM} | _EXPANSION | _REST | _SKIPPED).get(kind, ())


def _in_order(layers: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The tower's layers and their leaves, in the order of the network."""
    blocks = {
        match[0]: (int(match[1]), match[2]) for match in (re.match(r"block(\d+)([a-z])_", x) for x in layers) if match
    }
    ordered = [("stem_conv", _CONV), ("stem_bn", _NORM)]
    for block in sorted(blocks, key=blocks.get):
        expands = block + "expand_conv" in layers
        ordered += [(block + layer, leaves) for layer, leaves in ((_EXPANSION if expands else {}) | _REST).items()]
    return ordered


def _as_original(entry: TensorEntry, leaf: str) -> TensorEntry:
    """The original's batch norm has five axes."""
    shape, read = entry
    shape = (1, 1, 1, 1, *shape) if leaf in _NORM else shape
    return shape, lambda: read().reshape(shape)


def _symmetric_blocks(vision: AlignVisionConfig) -> list[int]:
    """Blocks of stride 2 whose input has an odd size."""
    if vision.image_size % 2:
        raise ValueError(
            f"image_size: got {vision.image_size}, wanted an even size: Keras pads the stem of others otherwise"
        )
    size, found = vision.image_size // 2, []
    for number, spec in enumerate(vision.blocks()):
        if spec.stride == 2:
            found += [number] * (size % 2)
            size = (size + 1) // 2
    return found


def _normalization(path: Path, skipped: dict[str, TensorEntry]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the model takes from pixels in 0..1.

    Keras' ImageNet files state the standard deviation in place of the variance, and its model divides by the root once
    more, by constants that no file holds. Files of models that were built without these weights need no such correction.
    """
    if not {"normalization/mean", "normalization/variance"} <= skipped.keys():
        raise ValueError(
            f"{path}: no layer `normalization` with mean and variance: what the tower's input is isn't known"
        )
    mean, variance = (skipped[f"normalization/{leaf}"][1]() for leaf in ("mean", "variance"))
    if mean.shape != (3,) or variance.shape != (3,):
        raise ValueError(f"{path}: normalization has shapes {mean.shape} and {variance.shape}, wanted (3,)")
    imagenet = np.allclose(variance, _IMAGENET_STD, rtol=0, atol=1e-4)
    deviation = variance if imagenet else np.sqrt(variance)
    return [round(float(x), 6) for x in mean], [round(float(x), 6) for x in deviation]


def _image_processor(size: int, mean: list[float], std: list[float]) -> ImageProcessor:
    from kakao_models.align.processing import AlignImageProcessor

    return AlignImageProcessor(
        preprocessing="tf",
        size=size,
        do_center_crop=False,
        rescale_factor=1 / 255,
        rescale_offset=False,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )
