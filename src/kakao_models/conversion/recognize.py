"""Which model a checkpoint of an original program holds: family, key layout and sizes, from keys and shapes alone.

What tensors do not show (the number of attention heads of an unpublished width, the resolution of ALIGN) is taken from the
published models, or given as an override; an override that contradicts the tensors is an error.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kakao_models.align.config import EFFICIENTNET_SIZES, AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.vit.config import VIT_SIZES, ViTConfig
from kakao_models.vit.weights import TPU_KEY_LAYOUTS

Shapes = Mapping[str, tuple[int, ...]]  # key without TensorFlow's suffix → shape

_HEAD_WIDTH = 64  # of BERT and ViT alike, at every published size
IMAGE_TOWER = "image_encoder/layer_with_weights-0/layer_with_weights-"
_TEXT = "text_encoder/layer_with_weights-0/bert/"


def family_of(keys: Iterable[str]) -> str:
    """ "align" or "vit".

    Raises:
        ValueError: neither.
    """
    if any(key.startswith(IMAGE_TOWER) for key in keys):
        return "align"
    if any(key.endswith("class_emb") for key in keys):
        return "vit"
    raise ValueError(
        "neither an ALIGN (keys image_encoder/..., text_encoder/...) nor a ViT (class_emb, enc_layers/...): its keys are "
        + ", ".join(sorted(keys)[:5])
        + ", ..."
    )


def align_config(shapes: Shapes, **overrides: Any) -> AlignConfig:
    """The configuration of an ALIGN checkpoint.

    Args:
        overrides: `image_size` (289 by default), `num_attention_heads`; any other size is recognised, and only
            compared.

    Raises:
        ValueError: the tensors are those of no ALIGN, or contradict an override.
    """
    words = _shape(shapes, _TEXT + "embeddings/weight", 2)
    text = AlignTextConfig(
        vocab_size=words[0],
        hidden_size=words[1],
        num_hidden_layers=_count(shapes, re.escape(_TEXT) + r"encoder/layer/(\d+)/"),
        num_attention_heads=overrides.pop("num_attention_heads", None) or max(1, words[1] // _HEAD_WIDTH),
        intermediate_size=_shape(shapes, _TEXT + "encoder/layer/0/intermediate/dense/kernel", 2)[1],
        max_position_embeddings=_shape(shapes, _TEXT + "embeddings/embeddings", 2)[0],
        type_vocab_size=_shape(shapes, _TEXT + "embeddings/token_type_embeddings", 2)[0],
    )
    vision = efficientnet_config(shapes)
    vision.image_size = overrides.pop("image_size", None) or 289
    config = AlignConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=_shape(shapes, "text_encoder/layer_with_weights-1/kernel", 2)[1],
        use_visual_projection="image_encoder/layer_with_weights-1/kernel" in shapes,
    )
    found = {name: getattr(part, name) for part in (config, text, vision) for name in overrides if hasattr(part, name)}
    _compare(overrides, found)
    return config


def vit_config(shapes: Shapes, **overrides: Any) -> tuple[ViTConfig, str]:
    """The configuration of a ViT checkpoint, and its key layout (see `TPU_KEY_LAYOUTS`).

    Args:
        overrides: `num_attention_heads`; any other size is recognised, and only compared.

    Raises:
        ValueError: the tensors are those of no ViT, or contradict an override.
    """
    key_layout = next(name for name, (prefix, _) in TPU_KEY_LAYOUTS.items() if prefix + "class_emb" in shapes)
    prefix, head = TPU_KEY_LAYOUTS[key_layout]
    positions, width = _shape(shapes, prefix + "pos_emb", 3)[1:]
    tall, wide = _shape(shapes, prefix + "embedding/kernel", 4)[:2]
    side = math.isqrt(positions - 1)
    if side * side != positions - 1 or tall != wide:
        raise ValueError(
            f"{prefix}pos_emb has {positions} positions and patches are {tall}x{wide}: only square images and patches are known"
        )
    layers = _count(shapes, re.escape(prefix) + r"enc_layers/(\d+)/")
    pre_logits = prefix + "representation/bias" in shapes
    published = next((heads for depth, d, heads in VIT_SIZES.values() if (depth, d) == (layers, width)), None)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=overrides.pop("num_attention_heads", None) or published or max(1, width // _HEAD_WIDTH),
        intermediate_size=_shape(shapes, prefix + "enc_layers/0/mlp/layer_with_weights-0/kernel", 2)[1],
        image_size=side * tall,
        patch_size=tall,
        representation_size=_shape(shapes, prefix + "representation/bias", 1)[0] if pre_logits else None,
        num_labels=_shape(shapes, head + "/kernel", 2)[1] if head else 0,
    )
    _compare(overrides, {name: getattr(config, name) for name in overrides if hasattr(config, name)})
    return config, key_layout


def efficientnet_config(shapes: Shapes) -> AlignVisionConfig:
    """The published size with this very tower; else the smallest scaling that gives it."""
    seen = _tower(shapes)
    fine = [step / 20 for step in range(1, 121)]  # coefficients up to 6, in twentieths
    published = list(EFFICIENTNET_SIZES.values())
    depths = [depth for depth in fine if len(_blocks(1.0, depth)) == len(seen) - 1]
    scaled = [(width, depth) for depth in depths for width in fine]
    for width, depth in published + scaled:
        config = AlignVisionConfig(width_coefficient=width, depth_coefficient=depth)
        if [(config.stem_channels,)] + _blocks(width, depth) == seen:
            config.hidden_dim = config.output_channels
            return config
    raise ValueError(
        f"the image tower is no EfficientNet: its stem has {seen[0][0]} channels and its {len(seen) - 1} blocks are "
        f"(input, expanded, squeezed, output channels, kernel) {seen[1:4]}..."
    )


def _blocks(width: float, depth: float) -> list[tuple[int, ...]]:
    config = AlignVisionConfig(width_coefficient=width, depth_coefficient=depth)
    return [
        (spec.in_channels, spec.expanded_channels, spec.se_channels, spec.out_channels, spec.kernel_size)
        for spec in config.blocks()
    ]


def _tower(shapes: Shapes) -> list[tuple[int, ...]]:
    """(stem channels,), then (input, expanded, squeezed, output channels, kernel) of each block, in order."""
    number, end = (
        2,
        1 + max(int(key[len(IMAGE_TOWER) :].split("/")[0]) for key in shapes if key.startswith(IMAGE_TOWER)),
    )
    seen = [(_shape(shapes, f"{IMAGE_TOWER}0/kernel", 4)[-1],)]
    while number < end:
        if f"{IMAGE_TOWER}{number}/depthwise_kernel" not in shapes:
            number += 2  # the expansion and its batch norm
        kernel, _, channels, _ = _shape(shapes, f"{IMAGE_TOWER}{number}/depthwise_kernel", 4)
        squeezed = _shape(shapes, f"{IMAGE_TOWER}{number + 2}/kernel", 4)[-1]
        output = _shape(shapes, f"{IMAGE_TOWER}{number + 4}/kernel", 4)[-1]
        entry = seen[-1][3] if len(seen) > 1 else seen[0][0]
        seen.append((entry, channels, squeezed, output, kernel))
        number += 6
    return seen


def _shape(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ValueError(f"the checkpoint has no tensor {key}. Is a part of it missing?")
    if len(shapes[key]) != axes or 0 in shapes[key]:
        raise ValueError(f"{key} has shape {shapes[key]}, wanted {axes} axes. Is this another model?")
    return shapes[key]


def _count(shapes: Shapes, pattern: str) -> int:
    numbers = {int(match.group(1)) for match in map(re.compile(pattern).match, shapes) if match}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"layers {pattern} are numbered {sorted(numbers)}, wanted 0, 1, 2, ...")
    return len(numbers)


def _compare(overrides: Mapping, found: Mapping) -> None:
    for name, value in overrides.items():
        if value is not None and found.get(name) != value:
            raise ValueError(f"{name}: you say {value}, the tensors say {found.get(name)}")
