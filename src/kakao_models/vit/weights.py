"""The place of every tensor of ViT. Data only: see checkpoint/weightmap.py.

Index set: l layers
"""

from dataclasses import replace

from kakao_models.checkpoint.weightmap import Row, Slot, framework_slots, tpu_slots
from kakao_models.vit.config import ViTConfig

# The original code wrote its checkpoints in three ways, which differ in the prefix of the keys:
# way -> (prefix of the backbone's keys, key of the head)
TPU_KEY_LAYOUTS = {
    "manager": ("backbone/", "model/layer_with_weights-1"),  # tf.train.CheckpointManager: during training
    "model": ("layer_with_weights-0/", "layer_with_weights-1"),  # model.save_weights
    "backbone": ("", None),  # model.backbone.save_weights: no head
}

_LAYER = "vit.encoder.layer.{l}"
_OURS = "vit.layer.{l}"  # Keras keeps the name `layers` for itself
_TPU_LAYER = "enc_layers/{l}"


ROWS = (
    Row.same("vit.embeddings.cls_token", "array", "class_emb"),
    Row.same("vit.embeddings.position_embeddings", "array", "pos_emb"),
    Row.same("vit.embeddings.patch_embeddings.projection", "conv_bias", "embedding"),
    Row(_LAYER + ".layernorm_before", "norm", _OURS + ".layernorm_before", _TPU_LAYER + "/layernorm1"),
    Row(_LAYER + ".attention.attention.query", "dense", _OURS + ".attention.q_proj", _TPU_LAYER + "/att/query_dense"),
    Row(_LAYER + ".attention.attention.key", "dense", _OURS + ".attention.k_proj", _TPU_LAYER + "/att/key_dense"),
    Row(_LAYER + ".attention.attention.value", "dense", _OURS + ".attention.v_proj", _TPU_LAYER + "/att/value_dense"),
    Row(_LAYER + ".attention.output.dense", "dense", _OURS + ".attention.o_proj", _TPU_LAYER + "/att/combine_heads"),
    Row(_LAYER + ".layernorm_after", "norm", _OURS + ".layernorm_after", _TPU_LAYER + "/layernorm2"),
    Row(_LAYER + ".intermediate.dense", "dense", _OURS + ".mlp.fc1", _TPU_LAYER + "/mlp/layer_with_weights-0"),
    Row(_LAYER + ".output.dense", "dense", _OURS + ".mlp.fc2", _TPU_LAYER + "/mlp/layer_with_weights-1"),
    Row.same("vit.layernorm", "norm", "norm"),
)
REPRESENTATION = Row.same("vit.pooler.dense", "dense", "representation")
# Part of no released checkpoint: what a backbone made with use_mask_token has beside
MASK_TOKEN = Row.same("vit.embeddings.mask_token", "array", "")
HEAD = "classifier"


def vit_tpu_slots(config: ViTConfig, key_layout: str = "manager") -> list[Slot]:
    """Every tensor of a ViT, in model.safetensors and in a checkpoint of the original code.

    Args:
        key_layout: how the checkpoint was written, a key of `TPU_KEY_LAYOUTS`: "manager" and "model" hold a classifier,
            "backbone" holds none.
    """
    if key_layout not in TPU_KEY_LAYOUTS:
        raise ValueError(f"key layout: got {key_layout!r}, expected one of {', '.join(TPU_KEY_LAYOUTS)}")
    backbone, head = TPU_KEY_LAYOUTS[key_layout]
    rows = [*ROWS, REPRESENTATION] if config.representation_size else ROWS
    rows = [replace(row, tpu=backbone + row.tpu) for row in rows]
    if head is not None:
        rows.append(Row.same(HEAD, "dense", head))
    return tpu_slots(rows, {"l": range(config.num_hidden_layers)})


def vit_slots(
    config: ViTConfig, dialect: str, *, head: bool = True, pooler: bool | None = None, mask_token: bool = False
) -> list[Slot]:
    """Every tensor of a ViT in model.safetensors and in our class of a framework.

    Args:
        dialect: "keras" or "nnx".
        head: whether the class is the classifier, which holds the backbone as `vit`; else attribute paths begin at the
            backbone. Keys are the classifier's either way.
        pooler: whether there is one; by default it follows `representation_size`.
        mask_token: whether there is one.
    """
    rows = [*ROWS]
    if config.representation_size is not None if pooler is None else pooler:
        rows.append(REPRESENTATION)
    if mask_token:
        rows.append(MASK_TOKEN)
    if not config.qkv_bias:
        plain = tuple(_LAYER + f".attention.attention.{name}" for name in ("query", "key", "value"))
        rows = [replace(row, kind="matrix") if row.key in plain else row for row in rows]
    if head and config.num_labels > 0:
        rows.append(Row.same(HEAD, "dense", ""))
    if not head:
        rows = [replace(row, path=row.path.removeprefix("vit.")) for row in rows]
    return framework_slots(rows, {"l": range(config.num_hidden_layers)}, dialect)
