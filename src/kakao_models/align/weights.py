"""The place of every tensor of ALIGN. Data only: see checkpoint/weightmap.py.

The original numbers the layers of its image tower in creation order. So an index set of blocks also knows the number of
each of a block's layers: `{b:bn}` is the number of the layer `bn` of block b.

Index sets: b blocks of the image tower  x those of them that expand  s those that squeeze and excite  l layers of the text tower
"""

from collections.abc import Sequence
from dataclasses import replace

from kakao_models.align.config import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.checkpoint.weightmap import BlockIndex, Row, Slot, framework_slots, tpu_slots

# What checkpoints of a BERT call the text tower's tensors, by patterns, and its heads, which this has no use for
BERT_NAMES = ((r"^bert\.", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
BERT_HEADS = r"(text_model\.)?(cls|classifier|qa_outputs)\."

_IMAGE = "image_encoder/layer_with_weights-0/layer_with_weights-"
_TEXT = "text_encoder/layer_with_weights-0/bert"
_BLOCK = "vision_model.encoder.blocks"
_LAYER = "text_model.encoder.layer.{l}"
_TPU_LAYER = _TEXT + "/encoder/layer/{l}"


ROWS = (
    Row.same("vision_model.embeddings.convolution", "conv", _IMAGE + "0"),
    Row.same("vision_model.embeddings.batchnorm", "batchnorm", _IMAGE + "1"),
    Row.same(_BLOCK + ".{x}.expansion.expand_conv", "conv", _IMAGE + "{x:expand_conv}"),
    Row.same(_BLOCK + ".{x}.expansion.expand_bn", "batchnorm", _IMAGE + "{x:expand_bn}"),
    Row.same(_BLOCK + ".{b}.depthwise_conv.depthwise_conv", "depthwise", _IMAGE + "{b:dwconv}"),
    Row.same(_BLOCK + ".{b}.depthwise_conv.depthwise_norm", "batchnorm", _IMAGE + "{b:bn}"),
    Row.same(_BLOCK + ".{b}.squeeze_excite.reduce", "conv_bias", _IMAGE + "{b:se_reduce}"),
    Row.same(_BLOCK + ".{b}.squeeze_excite.expand", "conv_bias", _IMAGE + "{b:se_expand}"),
    Row.same(_BLOCK + ".{b}.projection.project_conv", "conv", _IMAGE + "{b:project_conv}"),
    Row.same(_BLOCK + ".{b}.projection.project_bn", "batchnorm", _IMAGE + "{b:project_bn}"),
    Row.same("visual_projection", "dense", "image_encoder/layer_with_weights-1"),
    Row.same("text_model.embeddings.word_embeddings", "embedding", _TEXT + "/embeddings/weight"),
    # In the object graph, the original position table has its second name, plain "embeddings".
    Row.same("text_model.embeddings.position_embeddings", "embedding", _TEXT + "/embeddings/embeddings"),
    Row.same("text_model.embeddings.token_type_embeddings", "embedding", _TEXT + "/embeddings/token_type_embeddings"),
    Row.same("text_model.embeddings.LayerNorm", "norm", _TEXT + "/embeddings/LayerNorm"),
    Row.same(_LAYER + ".attention.self.query", "dense", _TPU_LAYER + "/attention/self_attention/query"),
    Row.same(_LAYER + ".attention.self.key", "dense", _TPU_LAYER + "/attention/self_attention/key"),
    Row.same(_LAYER + ".attention.self.value", "dense", _TPU_LAYER + "/attention/self_attention/value"),
    Row(
        _LAYER + ".attention.output.dense",
        "dense",
        _LAYER + ".attention.output_layer.dense",
        _TPU_LAYER + "/attention/dense_output/dense",
    ),
    Row(
        _LAYER + ".attention.output.LayerNorm",
        "norm",
        _LAYER + ".attention.output_layer.LayerNorm",
        _TPU_LAYER + "/attention/dense_output/LayerNorm",
    ),
    Row.same(_LAYER + ".intermediate.dense", "dense", _TPU_LAYER + "/intermediate/dense"),
    Row(_LAYER + ".output.dense", "dense", _LAYER + ".output_layer.dense", _TPU_LAYER + "/bert_output/dense"),
    Row(
        _LAYER + ".output.LayerNorm", "norm", _LAYER + ".output_layer.LayerNorm", _TPU_LAYER + "/bert_output/LayerNorm"
    ),
    Row.same("text_model.pooler.dense", "dense", _TEXT + "/pooler/dense"),
    Row.same("text_projection", "dense", "text_encoder/layer_with_weights-1"),
    Row.same("temperature", "array", "temperature"),
    Row.same("logit_bias", "array", ""),  # of models trained with the sigmoid loss, which the original does not have
)
HEAD = Row.same("classifier", "dense", "")  # of the image tower as a classifier, which the original does not have


# The image tower in state dicts of others: module -> its name there. Two packages name EfficientNet's modules: efficientnet_pytorch,
# whose names efficientnet-lite has taken over, and timm. The layers of a block are named in `published_sets`.
_PUBLISHED = {
    "embeddings.convolution": ("conv", "_conv_stem", "conv_stem"),
    "embeddings.batchnorm": ("batchnorm", "_bn0", "bn1"),
    "encoder.blocks.{x}.expansion.expand_conv": ("conv", "_blocks.{x}._expand_conv", "blocks.{x:expand_conv}"),
    "encoder.blocks.{x}.expansion.expand_bn": ("batchnorm", "_blocks.{x}._bn0", "blocks.{x:expand_bn}"),
    "encoder.blocks.{b}.depthwise_conv.depthwise_conv": (
        "depthwise",
        "_blocks.{b}._depthwise_conv",
        "blocks.{b:dwconv}",
    ),
    "encoder.blocks.{b}.depthwise_conv.depthwise_norm": ("batchnorm", "_blocks.{b}._bn1", "blocks.{b:bn}"),
    "encoder.blocks.{s}.squeeze_excite.reduce": ("conv_bias", "_blocks.{s}._se_reduce", "blocks.{s:se_reduce}"),
    "encoder.blocks.{s}.squeeze_excite.expand": ("conv_bias", "_blocks.{s}._se_expand", "blocks.{s:se_expand}"),
    "encoder.blocks.{b}.projection.project_conv": ("conv", "_blocks.{b}._project_conv", "blocks.{b:project_conv}"),
    "encoder.blocks.{b}.projection.project_bn": ("batchnorm", "_blocks.{b}._bn2", "blocks.{b:project_bn}"),
    "head.convolution": ("conv", "_conv_head", "conv_head"),
    "head.batchnorm": ("batchnorm", "_bn1", "bn2"),
    "head.classifier": ("dense", "_fc", "classifier"),
}
PUBLISHED_ROWS = {
    "efficientnet_pytorch": tuple(Row(key, kind, name) for key, (kind, name, _) in _PUBLISHED.items()),
    "timm": tuple(Row(key, kind, name) for key, (kind, _, name) in _PUBLISHED.items()),
}


def published_sets(stages: Sequence[int], expands: Sequence[bool], squeezes: bool) -> dict[str, list[BlockIndex]]:
    """The members of the index sets of `PUBLISHED_ROWS`.

    Args:
        stages: blocks of each stage, by which timm numbers them.
        expands: whether a block has an expansion; timm names the layers of one without differently.
        squeezes: whether the blocks have squeeze-and-excite, which EfficientNet-Lite leaves out.
    """
    expanding = {"expand_conv": "conv_pw", "expand_bn": "bn1", "dwconv": "conv_dw", "bn": "bn2"}
    expanding |= {"project_conv": "conv_pwl", "project_bn": "bn3"}
    plain = {"dwconv": "conv_dw", "bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
    squeeze = {"se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"}
    places = [(stage, place) for stage, blocks in enumerate(stages) for place in range(blocks)]
    blocks = []
    for number, ((stage, place), expand) in enumerate(zip(places, expands, strict=True)):
        layers = (expanding if expand else plain) | squeeze
        blocks.append(BlockIndex(number, {layer: f"{stage}.{place}.{name}" for layer, name in layers.items()}))
    expanded = [block for block, expand in zip(blocks, expands) if expand]
    return {"b": blocks, "x": expanded, "s": blocks if squeezes else []}


def index_sets(config: AlignConfig) -> dict[str, Sequence[int]]:
    """The members of the index sets of `ROWS`."""
    return _image_sets(config.vision_config) | _text_sets(config.text_config)


def _image_sets(config: AlignVisionConfig) -> dict[str, list[BlockIndex]]:
    blocks, expanding, number = [], [], 2  # the stem took 0 and 1
    for block, spec in enumerate(config.blocks()):
        layers = ["dwconv", "bn", "se_reduce", "se_expand", "project_conv", "project_bn"]
        if spec.expand_ratio != 1:
            layers = ["expand_conv", "expand_bn"] + layers
        index = BlockIndex(block, {layer: number + position for position, layer in enumerate(layers)})
        number += len(layers)
        blocks.append(index)
        if spec.expand_ratio != 1:
            expanding.append(index)
    return {"b": blocks, "x": expanding}


def _text_sets(config: AlignTextConfig) -> dict[str, range]:
    return {"l": range(config.num_hidden_layers)}


def align_tpu_slots(config: AlignConfig | AlignVisionConfig) -> list[Slot]:
    """Every tensor of an ALIGN model, or of its image tower, in model.safetensors and in a checkpoint of the original
    program. A tower's keys are those of the whole model."""
    rows, sets = _rows_and_sets(config)
    return tpu_slots([row for row in rows if row.tpu], sets)


def align_slots(
    config: AlignConfig | AlignTextConfig | AlignVisionConfig, dialect: str, *, head: bool = False
) -> list[Slot]:
    """Every tensor of an ALIGN model, or of one of its towers, in model.safetensors and in our class of a framework.

    A tower's keys are those of the whole model, its attribute paths begin at the tower.

    Args:
        dialect: "keras" or "nnx".
        head: whether the class is the classifier, which holds the image tower as `vision_model`.
    """
    rows, sets = _rows_and_sets(config)
    if head:
        rows += [HEAD] if config.num_labels > 0 else []
    elif not isinstance(config, AlignConfig):
        rows = [replace(row, path=row.path.partition(".")[2]) for row in rows]
    return framework_slots(rows, sets, dialect)


def _rows_and_sets(config: AlignConfig | AlignTextConfig | AlignVisionConfig) -> tuple[list[Row], dict]:
    if isinstance(config, AlignConfig):
        absent = {"visual_projection"} if not config.use_visual_projection else set()
        absent |= {"logit_bias"} if config.logit_bias_init_value is None else set()
        return [row for row in ROWS if row.key not in absent], index_sets(config)
    text = isinstance(config, AlignTextConfig)
    prefix, sets = ("text_model.", _text_sets(config)) if text else ("vision_model.", _image_sets(config))
    return [row for row in ROWS if row.key.startswith(prefix)], sets
