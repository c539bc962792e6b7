"""EfficientNets that others published, as ALIGN's image tower: which size it is, and what every reader gives.

TensorFlow's "same" pads a convolution of stride 2 by (k//2 - 1, k//2) where its input is even and by (k//2, k//2) where it is
odd, at the size that the model was built for; `depthwise_padding` of the configuration lists the latter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kakao_models.align.config import EFFICIENTNET_SIZES, AlignVisionConfig
from kakao_models.checkpoint.tensors import LazyTensors, shape_of

# (width, depth) of B0 to B7 -> image size; Tan & Le 2019
IMAGE_SIZES = dict(zip(EFFICIENTNET_SIZES.values(), (224, 240, 260, 300, 380, 456, 528, 600)))
# (width, depth) of Lite0 to Lite4 -> image size; tensorflow/tpu, models/official/efficientnet/lite
LITE_SIZES = {(1.0, 1.0): 224, (1.0, 1.1): 240, (1.1, 1.2): 260, (1.2, 1.4): 280, (1.4, 1.8): 300}
_NO_SQUEEZE = 1e-6  # squeeze_expansion_ratio of a Lite: one channel, the fewest there are
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (stem channels,), then (input, expanded, squeezed, output channels, kernel) of each block; squeezed is 0 where nothing is
TowerShapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class PublishedTower:
    """An EfficientNet as an `AlignVisionModel`.

    tensors: float32, by the keys and in the layout of the tower's model.safetensors.
    names: key -> its name in the files. The others are constants, or new.
    new: what starts from random numbers and has to be trained.
    skipped: what the files have beside these: layer -> number of tensors.
    assumed: fields of the configuration that neither the files nor the caller give.
    preprocessing: fields of the `AlignImageProcessor`.
    """

    config: AlignVisionConfig
    tensors: LazyTensors
    names: Mapping[str, str]
    new: tuple[str, ...]
    skipped: Mapping[str, int]
    assumed: tuple[str, ...]
    files: list[Path]
    kind: str
    preprocessing: Mapping[str, Any]


def match_efficientnet(seen: TowerShapes) -> AlignVisionConfig:
    """The published size with this very tower; else the smallest scaling that gives it.

    Raises:
        ValueError: it does not exist.
    """
    published = IMAGE_SIZES
    if all(block[2] == 0 for block in seen[1:]):
        published, sizes, config_of, keep = LITE_SIZES, list(LITE_SIZES), _lite, [0, 1, 3, 4]
    else:
        fine = [step / 20 for step in range(1, 121)]  # coefficients up to 6, in twentieths
        depths = [depth for depth in fine if len(_sized(1.0, depth).blocks()) == len(seen) - 1]
        sizes = [*EFFICIENTNET_SIZES.values(), *((width, depth) for depth in depths for width in fine)]
        config_of, keep = _sized, [0, 1, 2, 3, 4]
    for size in sizes:
        config = config_of(*size)
        blocks = [
            (spec.in_channels, spec.expanded_channels, spec.se_channels, spec.out_channels, spec.kernel_size)
            for spec in config.blocks()
        ]
        same = len(blocks) == len(seen) - 1 and (config.stem_channels,) == tuple(seen[0])
        if same and all(ours[i] == theirs[i] for ours, theirs in zip(blocks, seen[1:]) for i in keep):
            config.hidden_dim, config.image_size = config.output_channels, published.get(size, 224)
            return config
    raise ValueError(
        f"the image tower is not an EfficientNet: its stem has {seen[0][0]} channels and its {len(seen) - 1} blocks are "
        f"(input, expanded, squeezed, output channels, kernel) {seen[1:4]}..."
    )


def numbered_layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> TowerShapes:
    """The tower of layers that are numbered in the order of the network, as in the original checkpoints: PREFIX0/kernel, ..."""
    number, end = 2, 1 + max(int(key[len(prefix) :].split("/")[0]) for key in shapes if key.startswith(prefix))
    seen = [(shape_of(shapes, f"{prefix}0/kernel", 4)[-1],)]
    while number < end:
        if f"{prefix}{number}/depthwise_kernel" not in shapes:
            number += 2  # the expansion and its batch norm
        kernel, _, channels, _ = shape_of(shapes, f"{prefix}{number}/depthwise_kernel", 4)
        squeezed = shape_of(shapes, f"{prefix}{number + 2}/kernel", 4)[-1]
        output = shape_of(shapes, f"{prefix}{number + 4}/kernel", 4)[-1]
        entry = seen[-1][3] if len(seen) > 1 else seen[0][0]
        seen.append((entry, channels, squeezed, output, kernel))
        number += 6
    return seen


def _sized(width: float, depth: float) -> AlignVisionConfig:
    return AlignVisionConfig(width_coefficient=width, depth_coefficient=depth)


def _lite(width: float, depth: float) -> AlignVisionConfig:
    """Neither the stem nor the number of blocks in the first and last stage scale: so all is written out."""
    base = _sized(width, depth)
    out = [base.round_filters(channels) for channels in base.out_channels]
    first, *middle, last = base.num_block_repeats
    return AlignVisionConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        in_channels=[32, *out[:-1]],
        out_channels=out,
        num_block_repeats=[first, *(math.ceil(depth * blocks) for blocks in middle), last],
        hidden_act="relu6",
        squeeze_expansion_ratio=_NO_SQUEEZE,
    )


def is_lite(vision: AlignVisionConfig) -> bool:
    """Whether it is an EfficientNet-Lite, whose squeeze-and-excite multiplies by 1: its weights are zero."""
    return vision.squeeze_expansion_ratio == _NO_SQUEEZE


def name_of(vision: AlignVisionConfig) -> str:
    """The published name of an EfficientNet, or its scaling."""
    if is_lite(vision):  # its head may be one stage more
        for number, lite in enumerate(_lite(*size) for size in LITE_SIZES):
            stages = len(lite.out_channels)
            if all(
                getattr(vision, name)[:stages] == getattr(lite, name) for name in ("out_channels", "num_block_repeats")
            ):
                return f"EfficientNet-Lite{number}"
    scaling = (vision.width_coefficient, vision.depth_coefficient)
    size = next((name for name, size in EFFICIENTNET_SIZES.items() if size == scaling), None)
    return f"EfficientNet-{size.upper()}" if size else f"EfficientNet (width {scaling[0]:g}, depth {scaling[1]:g})"


def set_image_size(vision: AlignVisionConfig, image_size: int) -> None:
    """Sets the size, and which blocks of stride 2 have an input of odd size there."""
    if image_size % 2:
        raise ValueError(
            f"image_size: got {image_size}, expected an even size: TensorFlow pads the first convolution differently for odd sizes"
        )
    vision.image_size, vision.depthwise_padding = image_size, []
    size = image_size // 2
    for number, spec in enumerate(vision.blocks()):
        if spec.stride == 2:
            vision.depthwise_padding += [number] * (size % 2)
            size = (size + 1) // 2


def preprocessing_of(size: int, mean: Sequence[float], std: Sequence[float], **more: Any) -> dict[str, Any]:
    """Preprocessing that resizes the whole image to a square."""
    fields = {"size": size, "do_center_crop": False, "rescale_factor": 1 / 255, "rescale_offset": False}
    return fields | {"do_normalize": True, "image_mean": list(mean), "image_std": list(std)} | more
