"""Keras' EfficientNet (keras.applications, B0 to B7), a weights file .h5.

Layers are found by the names Keras gave them (stem_conv, block1a_dwconv, ...): the format has nothing else. Every tensor is used,
or is one of those that are known and left out.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from kakao_models.align.efficientnet import (
    IMAGENET_STD,
    PublishedTower,
    match_efficientnet,
    numbered_layers,
    preprocessing_of,
    set_image_size,
)
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.tensors import LazyTensors, TensorEntry, check_keys
from kakao_models.checkpoint.weightmap import permuted

_CONV, _BIASED, _DEPTHWISE = ("kernel",), ("kernel", "bias"), ("depthwise_kernel",)
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_EXPANSION = {"expand_conv": _CONV, "expand_bn": _NORM}
_REST = {"dwconv": _DEPTHWISE, "bn": _NORM, "se_reduce": _BIASED, "se_expand": _BIASED}
_REST |= {"project_conv": _CONV, "project_bn": _NORM}
_SKIPPED = {"top_conv": _CONV, "top_bn": _NORM, "predictions": _BIASED, "normalization": ("mean", "variance", "count")}


def read_keras(path: Path, image_size: int | None) -> PublishedTower:
    stored, skipped = _layers(path)
    layers = _in_order({key.split("/")[0] for key in stored})
    check_keys([f"{layer}/{leaf}" for layer, leaves in layers for leaf in leaves], stored, path)
    # the same layers, in the same order, as in the original image tower
    prefix = "image_encoder/layer_with_weights-0/layer_with_weights-"
    names = {f"{prefix}{n}/{leaf}": f"{layer}/{leaf}" for n, (layer, leaves) in enumerate(layers) for leaf in leaves}
    vision = match_efficientnet(numbered_layers({key: stored[name][0] for key, name in names.items()}, prefix))
    set_image_size(vision, image_size or vision.image_size)
    slots = {slot.key.removeprefix("vision_model."): slot for slot in align_tpu_slots(vision)}
    entries = {}
    for key, slot in slots.items():
        name = names[slot.local_key]
        entries[key] = permuted(stored[name], slot.local_axes.replace("1111D", "D"), slot.axes, f"{path}: {name}")
    return PublishedTower(
        config=vision,
        tensors=LazyTensors(entries),
        names={key: names[slot.local_key] for key, slot in slots.items()},
        new=(),
        skipped=dict(Counter(key.split("/")[0] for key in skipped)),
        assumed=() if image_size else ("image_size",),
        files=[path],
        kind="Keras' EfficientNet weights",
        preprocessing=preprocessing_of(vision.image_size, *_normalization(path, skipped), preprocessing="tf"),
    )


def _layers(path: Path) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry]]:
    """layer/leaf → tensor: those of the tower, and those that are known and left out."""
    from kakao_models.checkpoint.hdf5 import read_datasets

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
        layer = re.sub(
            r"^normalization_\d+$", "normalization", layer
        )  # Keras adds a number if a process builds two models
        home = skipped if leaf in _SKIPPED.get(layer, ()) else kept
        if f"{layer}/{leaf}" in home:
            raise ValueError(f"{path}: duplicate tensor {layer}/{leaf}. Is there more than one model in the file?")
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


def _normalization(path: Path, skipped: dict[str, TensorEntry]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the model takes from pixels in 0..1.

    Keras' ImageNet files state the standard deviation in place of the variance, and its model divides by the root once
    more, by constants that no file holds. Files of models that were built without these weights need no such correction.
    """
    if not {"normalization/mean", "normalization/variance"} <= skipped.keys():
        raise ValueError(f"{path}: no layer `normalization` with mean and variance, so the input scaling is unknown")
    mean, variance = (skipped[f"normalization/{leaf}"][1]() for leaf in ("mean", "variance"))
    if mean.shape != (3,) or variance.shape != (3,):
        raise ValueError(f"{path}: normalization has shapes {mean.shape} and {variance.shape}, expected (3,)")
    imagenet = np.allclose(variance, IMAGENET_STD, rtol=0, atol=1e-4)
    deviation = variance if imagenet else np.sqrt(variance)
    return [round(float(x), 6) for x in mean], [round(float(x), 6) for x in deviation]
