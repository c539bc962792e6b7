"""PyTorch's EfficientNets: state dicts of efficientnet_pytorch, efficientnet-lite and timm, by the rows of align/weights.py.

EfficientNet-Lite has ReLU6, no squeeze-and-excite, and a stem and a head of one size. It is an `AlignVisionModel` too, exactly. Its
squeeze-and-excite gets one channel, weights of zero, and a bias whose sigmoid is 1. Its head, a convolution to 1,280 channels,
becomes an eighth stage, since ReLU6 leaves what it gave as it is: the convolution is the expansion, the depthwise kernel is a
delta, and the block's last convolution is a linear projection of the pooled features, with which the mean over positions commutes.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from kakao_models.align.blocks import STAGE_FIELDS
from kakao_models.align.config import AlignVisionConfig
from kakao_models.align.efficientnet import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PublishedTower,
    TowerShapes,
    match_efficientnet,
    preprocessing_of,
    set_image_size,
)
from kakao_models.align.weights import PUBLISHED_ROWS, published_sets
from kakao_models.checkpoint.formats import read_safetensors
from kakao_models.checkpoint.hub import read_config
from kakao_models.checkpoint.pickles import read_pickle
from kakao_models.checkpoint.tensors import COUNTER, LazyTensors, TensorEntry, check_keys, shape_of
from kakao_models.checkpoint.weightmap import permuted, pytorch_slots

_OPEN = 40.0  # a bias whose sigmoid is 1, in float64 too

# What every state dict of a layout has, how the names of blocks begin, and what blocks have that expand, or squeeze
_FIRST = {"efficientnet_pytorch": "_conv_stem.weight", "timm": "conv_stem.weight"}
_BLOCK = {"efficientnet_pytorch": r"_blocks\.(\d+)\.", "timm": r"blocks\.(\d+)\.(\d+)\."}
_EXPANDS = {"efficientnet_pytorch": "_expand_conv.weight", "timm": "conv_pwl.weight"}
_SQUEEZES = {"efficientnet_pytorch": "_se_reduce.weight", "timm": "se.conv_reduce.weight"}


def read_pytorch(path: Path, image_size: int | None, head: int | None) -> PublishedTower:
    file, described = _find(path)
    stored = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)
    stored = {key: entry for key, entry in stored.items() if not key.endswith(COUNTER)}
    layout = next((name for name, key in _FIRST.items() if key in stored), None)
    if layout is None:
        names = ", ".join(sorted(stored)[:5])
        raise ValueError(f"{file} is not an EfficientNet: expected {' or '.join(_FIRST.values())}, got {names}, ...")
    if layout == "timm" and described is None:
        raise ValueError(
            f"{file}: timm's tensors do not show how its convolutions pad. Give the folder as timm saves it for the Hub, whose "
            'config.json names the architecture, such as "tf_efficientnet_lite0"'
        )
    matches = (re.match(_BLOCK[layout], key) for key in stored)
    blocks = {tuple(map(int, match.groups())): match[0] for match in matches if match}
    prefixes = [blocks[place] for place in sorted(blocks)]
    lite = not any(prefix + _SQUEEZES[layout] in stored for prefix in prefixes)
    head = head if lite else None
    last = f"encoder.blocks.{len(prefixes)}."  # of the head, if it is kept
    rows = []
    for row in PUBLISHED_ROWS[layout]:
        if head is not None and row.key in _HEAD:
            row = replace(row, key=last + _HEAD[row.key])
        if row.kind != "dense" or f"{row.path}.weight" in stored:  # some files leave the classifier out
            rows.append(row)
    stages = list(Counter(place[0] for place in sorted(blocks)).values())
    expands = [prefix + _EXPANDS[layout] in stored for prefix in prefixes]
    slots = {slot.key: slot for slot in pytorch_slots(rows, published_sets(stages, expands, not lite))}
    check_keys([slot.local_key for slot in slots.values()], stored, file)
    names = {key: slot.local_key for key, slot in slots.items()}
    entries = {key: permuted(stored[name], slots[key].axes, slots[key].axes, name) for key, name in names.items()}
    skipped = {key: names.pop(key) for key in list(names) if key.startswith("head.")}
    entries = {key: entries[key] for key in names}

    vision = match_efficientnet(_blocks_of({key: shape for key, (shape, _) in entries.items()}, len(prefixes)))
    new: tuple[str, ...] = ()
    if head is not None:
        expansion = {key: entry for key, entry in entries.items() if key.startswith(last)}
        vision, stage = _head_stage(vision, expansion, last, head)
        entries |= stage
        new = (last + "projection.project_conv.weight",)
    if lite:
        entries |= _open_gates(vision)
    mean, std = ((127 / 255,) * 3, (128 / 255,) * 3) if lite else (IMAGENET_MEAN, IMAGENET_STD)
    if described is not None:
        vision.image_size, mean, std = described
    set_image_size(vision, image_size or vision.image_size)
    return PublishedTower(
        config=vision,
        tensors=LazyTensors(entries),
        names=names,
        new=new,
        skipped=dict(Counter(name.rpartition(".")[0] for name in skipped.values())),
        assumed=() if image_size or described is not None else ("image_size",),
        files=[file] if described is None else [file, path / "config.json"],
        kind=f"PyTorch's EfficientNet weights, named as by {layout}",
        preprocessing=preprocessing_of(vision.image_size, mean, std, resample=3),
    )


# The head's layers as those of an eighth stage
_HEAD = {"head.convolution": "expansion.expand_conv", "head.batchnorm": "expansion.expand_bn"}


def _find(path: Path) -> tuple[Path, tuple[int, list[float], list[float]] | None]:
    """The file of weights; and, from timm's folder, the image size, mean and standard deviation that it was trained with."""
    if path.is_file():
        return path, None
    config = read_config(path / "config.json")
    architecture = str(config.get("architecture"))
    if not architecture.startswith("tf_efficientnet_"):
        raise ValueError(
            f"{path / 'config.json'}: architecture is {architecture!r}, expected one that begins with 'tf_efficientnet_'. The other "
            "EfficientNets of timm pad convolutions evenly on both sides, but an AlignVisionModel does not"
        )
    file = next((path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()), None)
    if file is None:
        raise ValueError(
            f"{path} has a config.json of timm, but no weights: expected model.safetensors or pytorch_model.bin"
        )
    trained = config.get("pretrained_cfg")
    try:
        channels, size, _ = trained["input_size"]
        mean, std = ([float(x) for x in trained[name]] for name in ("mean", "std"))
        if not (channels == len(mean) == len(std) == 3 and isinstance(size, int)):
            raise ValueError(trained)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path / 'config.json'}: expected a pretrained_cfg with input_size [3, 224, 224], mean and std, got {trained}"
        ) from error
    return file, (size, mean, std)


def _blocks_of(shapes: Mapping[str, tuple[int, ...]], blocks: int) -> TowerShapes:
    """The tower of tensors by the keys of model.safetensors."""
    seen: list[tuple[int, ...]] = [shape_of(shapes, "embeddings.convolution.weight", 4)[:1]]
    for number in range(blocks):
        block = f"encoder.blocks.{number}."
        channels, _, kernel, _ = shape_of(shapes, block + "depthwise_conv.depthwise_conv.weight", 4)
        output = shape_of(shapes, block + "projection.project_conv.weight", 4)[0]
        squeezed = shapes.get(block + "squeeze_excite.reduce.weight", (0,))[0]
        seen.append((seen[-1][3] if number else seen[0][0], channels, squeezed, output, kernel))
    return seen


def _constant(value: np.ndarray) -> TensorEntry:
    value = np.ascontiguousarray(value, np.float32)
    return value.shape, lambda: value


def _open_gates(vision: AlignVisionConfig) -> dict[str, TensorEntry]:
    """A squeeze-and-excite that multiplies by 1, for every block."""
    entries = {}
    for number, spec in enumerate(vision.blocks()):
        gate, wide, narrow = f"encoder.blocks.{number}.squeeze_excite.", spec.expanded_channels, spec.se_channels
        entries[gate + "reduce.weight"] = _constant(np.zeros((narrow, wide, 1, 1)))
        entries[gate + "reduce.bias"] = _constant(np.zeros(narrow))
        entries[gate + "expand.weight"] = _constant(np.zeros((wide, narrow, 1, 1)))
        entries[gate + "expand.bias"] = _constant(np.full(wide, _OPEN))
    return entries


def _head_stage(
    vision: AlignVisionConfig, expansion: Mapping[str, TensorEntry], block: str, width: int
) -> tuple[AlignVisionConfig, dict[str, TensorEntry]]:
    """A stage more, which is the head projected to `width` channels.

    Args:
        expansion: the head's convolution and batch norm, under the keys of the stage's expansion.
    """
    norm = block + "expansion.expand_bn."
    channels, narrow = expansion[norm + "weight"][0][0], vision.out_channels[-1]
    ratio = -(-channels // narrow)
    lists = {name: [*getattr(vision, name), x] for name, x in zip(STAGE_FIELDS, (narrow, width, 3, 1, ratio, 1))}
    vision = AlignVisionConfig.from_dict(vision.to_dict() | lists | {"hidden_dim": width})
    wide = ratio * narrow  # a multiple of the stage's input; channels that the head does not have stay 0
    arrays = {}
    for key, (shape, read) in expansion.items():
        arrays[key] = np.pad(read(), [(0, wide - channels)] + [(0, 0)] * (len(shape) - 1))
    arrays[norm + "running_var"][channels:] = 1
    limit = (6 / (channels + width)) ** 0.5  # Glorot & Bengio 2010, as ALIGN's projections start
    projection = np.random.default_rng(0).uniform(-limit, limit, (width, wide))
    arrays[block + "depthwise_conv.depthwise_conv.weight"] = np.zeros((wide, 1, 3, 3))
    arrays[block + "depthwise_conv.depthwise_conv.weight"][:, :, 1, 1] = 1
    arrays[block + "projection.project_conv.weight"] = projection[:, :, None, None]
    arrays |= _identity_norm(block + "depthwise_conv.depthwise_norm.", wide, vision.batch_norm_eps)
    arrays |= _identity_norm(block + "projection.project_bn.", width, vision.batch_norm_eps)
    return vision, {key: _constant(array) for key, array in arrays.items()}


def _identity_norm(name: str, channels: int, eps: float) -> dict[str, np.ndarray]:
    """A batch norm that changes nothing in evaluation; in training it normalises, as any."""
    one, zero = np.ones(channels), np.zeros(channels)
    leaves = {"weight": one * (1 + eps) ** 0.5, "bias": zero, "running_mean": zero, "running_var": one}
    return {name + leaf: value for leaf, value in leaves.items()}
