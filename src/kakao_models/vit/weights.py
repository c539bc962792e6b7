"""Where every tensor of ViT lives. Data only: see checkpoint/weightmap.py.

Index set: l layers
"""

from dataclasses import replace

from kakao_models.checkpoint.weightmap import Index, Row, Slot, tpu_slots
from kakao_models.vit.config import ViTConfig

# The original program wrote its checkpoints in three ways, which differ in what stands before the keys:
# way -> (prefix of the backbone's keys, key of the head)
TPU_SPELLINGS = {
    "manager": ("backbone/", "model/layer_with_weights-1"),  # tf.train.CheckpointManager: during training
    "model": ("layer_with_weights-0/", "layer_with_weights-1"),  # model.save_weights
    "backbone": ("", None),  # model.backbone.save_weights: no head
}

_LAYER = "vit.encoder.layer.{l}"
_TPU_LAYER = "enc_layers/{l}"

ROWS = (
    Row("vit.embeddings.cls_token", "array", "class_emb"),
    Row("vit.embeddings.position_embeddings", "array", "pos_emb"),
    Row("vit.embeddings.patch_embeddings.projection", "conv_bias", "embedding"),
    Row(_LAYER + ".layernorm_before", "norm", _TPU_LAYER + "/layernorm1"),
    Row(_LAYER + ".attention.attention.query", "dense", _TPU_LAYER + "/att/query_dense"),
    Row(_LAYER + ".attention.attention.key", "dense", _TPU_LAYER + "/att/key_dense"),
    Row(_LAYER + ".attention.attention.value", "dense", _TPU_LAYER + "/att/value_dense"),
    Row(_LAYER + ".attention.output.dense", "dense", _TPU_LAYER + "/att/combine_heads"),
    Row(_LAYER + ".layernorm_after", "norm", _TPU_LAYER + "/layernorm2"),
    Row(_LAYER + ".intermediate.dense", "dense", _TPU_LAYER + "/mlp/layer_with_weights-0"),
    Row(_LAYER + ".output.dense", "dense", _TPU_LAYER + "/mlp/layer_with_weights-1"),
    Row("vit.layernorm", "norm", "norm"),
)
REPRESENTATION = Row("vit.pooler.dense", "dense", "representation")
HEAD = "classifier"


def vit_tpu_slots(config: ViTConfig, spelling: str = "manager") -> list[Slot]:
    """Every tensor of a ViT, in model.safetensors and in a checkpoint of the original program.

    Args:
        spelling: how the checkpoint was written, a key of `TPU_SPELLINGS`: "manager" and "model" hold a classifier,
            "backbone" holds none.
    """
    if spelling not in TPU_SPELLINGS:
        raise ValueError(f"ViT checkpoints have no spelling {spelling!r}; there are {', '.join(TPU_SPELLINGS)}")
    backbone, head = TPU_SPELLINGS[spelling]
    rows = [*ROWS, REPRESENTATION] if config.representation_size else ROWS
    rows = [replace(row, tpu=backbone + row.tpu) for row in rows]
    if head is not None:
        rows.append(Row(HEAD, "dense", head))
    return tpu_slots(rows, {"l": [Index(i) for i in range(config.num_hidden_layers)]})
