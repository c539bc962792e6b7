"""Where every tensor of ALIGN lives. Data only: see checkpoint/weightmap.py.

The original numbers the layers of its image tower in creation order. So an index set of blocks also knows the number of
each of a block's layers: `{b:bn}` is the number of the layer `bn` of block b.

Index sets: b blocks of the image tower  x those of them that expand  l layers of the text tower
"""

from kakao_models.align.config import AlignConfig
from kakao_models.checkpoint.weightmap import Index, Row, Slot, tpu_slots

_IMAGE = "image_encoder/layer_with_weights-0/layer_with_weights-"
_TEXT = "text_encoder/layer_with_weights-0/bert"
_BLOCK = "vision_model.encoder.blocks"
_LAYER = "text_model.encoder.layer.{l}"
_TPU_LAYER = _TEXT + "/encoder/layer/{l}"

ROWS = (
    Row("vision_model.embeddings.convolution", "conv", _IMAGE + "0"),
    Row("vision_model.embeddings.batchnorm", "batchnorm", _IMAGE + "1"),
    Row(_BLOCK + ".{x}.expansion.expand_conv", "conv", _IMAGE + "{x:expand_conv}"),
    Row(_BLOCK + ".{x}.expansion.expand_bn", "batchnorm", _IMAGE + "{x:expand_bn}"),
    Row(_BLOCK + ".{b}.depthwise_conv.depthwise_conv", "depthwise", _IMAGE + "{b:dwconv}"),
    Row(_BLOCK + ".{b}.depthwise_conv.depthwise_norm", "batchnorm", _IMAGE + "{b:bn}"),
    Row(_BLOCK + ".{b}.squeeze_excite.reduce", "conv_bias", _IMAGE + "{b:se_reduce}"),
    Row(_BLOCK + ".{b}.squeeze_excite.expand", "conv_bias", _IMAGE + "{b:se_expand}"),
    Row(_BLOCK + ".{b}.projection.project_conv", "conv", _IMAGE + "{b:project_conv}"),
    Row(_BLOCK + ".{b}.projection.project_bn", "batchnorm", _IMAGE + "{b:project_bn}"),
    Row("visual_projection", "dense", "image_encoder/layer_with_weights-1"),
    Row("text_model.embeddings.word_embeddings", "embedding", _TEXT + "/embeddings/weight"),
    # The original's position table goes by its second name in the object graph, plain "embeddings".
    Row("text_model.embeddings.position_embeddings", "embedding", _TEXT + "/embeddings/embeddings"),
    Row("text_model.embeddings.token_type_embeddings", "embedding", _TEXT + "/embeddings/token_type_embeddings"),
    Row("text_model.embeddings.LayerNorm", "norm", _TEXT + "/embeddings/LayerNorm"),
    Row(_LAYER + ".attention.self.query", "dense", _TPU_LAYER + "/attention/self_attention/query"),
    Row(_LAYER + ".attention.self.key", "dense", _TPU_LAYER + "/attention/self_attention/key"),
    Row(_LAYER + ".attention.self.value", "dense", _TPU_LAYER + "/attention/self_attention/value"),
    Row(_LAYER + ".attention.output.dense", "dense", _TPU_LAYER + "/attention/dense_output/dense"),
    Row(_LAYER + ".attention.output.LayerNorm", "norm", _TPU_LAYER + "/attention/dense_output/LayerNorm"),
    Row(_LAYER + ".intermediate.dense", "dense", _TPU_LAYER + "/intermediate/dense"),
    Row(_LAYER + ".output.dense", "dense", _TPU_LAYER + "/bert_output/dense"),
    Row(_LAYER + ".output.LayerNorm", "norm", _TPU_LAYER + "/bert_output/LayerNorm"),
    Row("text_model.pooler.dense", "dense", _TEXT + "/pooler/dense"),
    Row("text_projection", "dense", "text_encoder/layer_with_weights-1"),
    Row("temperature", "array", "temperature"),
)


def index_sets(config: AlignConfig) -> dict[str, list[Index]]:
    """The members of the index sets of `ROWS`."""
    blocks, expanding, number = [], [], 2  # the stem took 0 and 1
    for block, spec in enumerate(config.vision_config.blocks()):
        layers = ["dwconv", "bn", "se_reduce", "se_expand", "project_conv", "project_bn"]
        if spec.expand_ratio != 1:
            layers = ["expand_conv", "expand_bn"] + layers
        index = Index(block, {layer: number + position for position, layer in enumerate(layers)})
        number += len(layers)
        blocks.append(index)
        if spec.expand_ratio != 1:
            expanding.append(index)
    return {"b": blocks, "x": expanding, "l": [Index(i) for i in range(config.text_config.num_hidden_layers)]}


def align_tpu_slots(config: AlignConfig) -> list[Slot]:
    """Every tensor of an ALIGN model, in model.safetensors and in a checkpoint of the original program."""
    rows = [row for row in ROWS if row.key != "visual_projection" or config.use_visual_projection]
    return tpu_slots(rows, index_sets(config))
