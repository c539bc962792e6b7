"""Recognises the model in a checkpoint of the original code: family, key layout and sizes, from keys and shapes only.

What tensors do not show (the number of attention heads of an unpublished width, the resolution of ALIGN) is taken from the
published models, or given as an override; an override that contradicts the tensors is an error.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kakao_models.align.config import AlignConfig, AlignTextConfig
from kakao_models.align.efficientnet import match_efficientnet, numbered_layers
from kakao_models.checkpoint.config import StrictConfig
from kakao_models.checkpoint.tensors import shape_of
from kakao_models.vit.config import VIT_SIZES, ViTConfig
from kakao_models.vit.weights import TPU_KEY_LAYOUTS

Shapes = Mapping[str, tuple[int, ...]]  # key without TensorFlow's suffix → shape

_HEAD_WIDTH = 64  # of BERT and ViT alike, at every published size
IMAGE_TOWER = "image_encoder/layer_with_weights-0/layer_with_weights-"
_TEXT = "text_encoder/layer_with_weights-0/bert/"


_FIRST = re.compile(rf"(?:^|(?<=/))(?:{IMAGE_TOWER}0/kernel|(?:backbone/|layer_with_weights-0/)?class_emb)$")


def key_prefixes(keys: Iterable[str]) -> list[str]:
    """The prefixes of the keys of each model in a checkpoint: "" for a model that was saved by itself, "net/" for one that was
    saved as `tf.train.Checkpoint(net=model)`.
    """
    return sorted({key[: match.start()] for key in keys if (match := _FIRST.search(key))})


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
    words = shape_of(shapes, _TEXT + "embeddings/weight", 2)
    text = AlignTextConfig(
        vocab_size=words[0],
        hidden_size=words[1],
        num_hidden_layers=_count(shapes, re.escape(_TEXT) + r"encoder/layer/(\d+)/"),
        num_attention_heads=overrides.pop("num_attention_heads", None) or max(1, words[1] // _HEAD_WIDTH),
        intermediate_size=shape_of(shapes, _TEXT + "encoder/layer/0/intermediate/dense/kernel", 2)[1],
        max_position_embeddings=shape_of(shapes, _TEXT + "embeddings/embeddings", 2)[0],
        type_vocab_size=shape_of(shapes, _TEXT + "embeddings/token_type_embeddings", 2)[0],
    )
    vision = match_efficientnet(numbered_layers(shapes, IMAGE_TOWER))
    vision.image_size = overrides.pop("image_size", None) or 289
    config = AlignConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=shape_of(shapes, "text_encoder/layer_with_weights-1/kernel", 2)[1],
        use_visual_projection="image_encoder/layer_with_weights-1/kernel" in shapes,
    )
    check_overrides(overrides, [config, text, vision])
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
    positions, width = shape_of(shapes, prefix + "pos_emb", 3)[1:]
    tall, wide = shape_of(shapes, prefix + "embedding/kernel", 4)[:2]
    side = math.isqrt(positions - 1)
    if side * side != positions - 1 or tall != wide:
        raise ValueError(f"{positions} positions and patches of {tall}x{wide}: expected square images and patches")
    layers = _count(shapes, re.escape(prefix) + r"enc_layers/(\d+)/")
    pre_logits = prefix + "representation/bias" in shapes
    published = next((heads for depth, d, heads in VIT_SIZES.values() if (depth, d) == (layers, width)), None)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=overrides.pop("num_attention_heads", None) or published or max(1, width // _HEAD_WIDTH),
        intermediate_size=shape_of(shapes, prefix + "enc_layers/0/mlp/layer_with_weights-0/kernel", 2)[1],
        image_size=side * tall,
        patch_size=tall,
        representation_size=shape_of(shapes, prefix + "representation/bias", 1)[0] if pre_logits else None,
        num_labels=shape_of(shapes, head + "/kernel", 2)[1] if head else 0,
    )
    check_overrides(overrides, [config])
    return config, key_layout


def _count(shapes: Shapes, pattern: str) -> int:
    numbers = {int(match.group(1)) for match in map(re.compile(pattern).match, shapes) if match}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"layers {pattern} are numbered {sorted(numbers)}, expected 0, 1, 2, ...")
    return len(numbers)


def check_overrides(overrides: Mapping, configs: Sequence[StrictConfig], source: str = "the tensors say") -> None:
    """Compares sizes that the user stated with those that were recognised, of a model or of its parts.

    Args:
        overrides: field of the configuration → stated value, that of any of `configs`; None is not compared.
        source: origin of the recognised sizes, for the message.

    Raises:
        ValueError: a stated size is not the recognised one.
    """
    for name, value in overrides.items():
        recognised = [getattr(config, name) for config in configs if hasattr(config, name)]
        if value is not None and value not in recognised:
            raise ValueError(f"{name}: got {value}, but {source} {', '.join(map(str, recognised)) or None}")
