"""ALIGN in Keras 3 (Jia et al. 2021), with the semantics of Kakao Brain's original code: the same as modeling_torch.py.

Inside, maps lie as (B, H, W, C); `pixel_values` and the maps in outputs are (B, C, H, W), as in PyTorch.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  N heads  K width per head  P projection
"""

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kakao_models.align.blocks import BlockSpec, pools_by_mean
from kakao_models.align.config import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.depthwise_tf import depthwise_convolution
from kakao_models.align.towers import open_towers
from kakao_models.align.weights import BERT_HEADS, BERT_NAMES, align_slots
from kakao_models.checkpoint.checks import check_images, check_texts
from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.keras import (
    Layer,
    ModelOutput,
    Tensor,
    TFBaseModelOutputWithPooling,
    TFPreTrainedModel,
    activation,
    at_least_float32,
    convolution,
    dense,
    embedding,
    gather_replicas,
    image_signatures,
    layer_norm,
)


class TFAlignOutput(ModelOutput):
    """Output of `TFAlignModel`.

    loss: scalar, with `return_loss=True`.
    logits_per_image: (images, texts), cosine similarity divided by the temperature; `logits_per_text` its transpose.
    text_embeds, image_embeds: (texts, P), (images, P), L2-normalised.
    text_model_output, vision_model_output: outputs of the towers.
    """

    loss: Any
    logits_per_image: Any
    logits_per_text: Any
    text_embeds: Any
    image_embeds: Any
    text_model_output: TFBaseModelOutputWithPooling
    vision_model_output: TFBaseModelOutputWithPooling


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float):
    """(B, N) logits, (B,) labels → (B,)."""
    log_probabilities = ops.log_softmax(at_least_float32(logits))
    at_label = ops.squeeze(ops.take_along_axis(log_probabilities, labels[:, None], axis=1), 1)
    return -(1 - label_smoothing) * at_label - label_smoothing * ops.mean(log_probabilities, 1)


def contrastive_loss(logits_per_image: Tensor, label_smoothing: float):
    """ALIGN's loss for square logits (B, B): image-to-text plus text-to-image cross entropy, mean over samples.

    The original adds the two directions where transformers takes their mean.
    """
    labels = ops.arange(ops.shape(logits_per_image)[0])
    image_to_text = ops.mean(cross_entropy(logits_per_image, labels, label_smoothing))
    text_to_image = ops.mean(cross_entropy(ops.transpose(logits_per_image), labels, label_smoothing))
    return image_to_text + text_to_image


def l2_normalize(x: Tensor, dtype: str | None = None):
    """x / sqrt(max(sum of squares, 1e-12)) along the last axis, as in the original; computed in at least float32."""
    wide = at_least_float32(x)  # in float16 the squares overflow from a norm of 256 on
    square = ops.maximum(ops.sum(ops.square(wide), -1, keepdims=True), 1e-12)
    return ops.cast(wide * ops.rsqrt(square), dtype or x.dtype)


class TFAlignBatchNorm(Layer):
    """Batch normalisation that in training treats the batch as interleaved ghost batches (Hoffer et al. 2017).

    With n = B // virtual_batch_size groups, group j is the samples j, j + n, j + 2n, ... Variances are biased, also in
    the moving average, which takes the mean over the groups once a step. The original refuses a batch that is no
    multiple of `virtual_batch_size`; here its n groups differ by at most one sample (31 samples are one group).
    """

    def __init__(self, channels: int, config: AlignVisionConfig):
        super().__init__()
        self.eps, self.momentum = config.batch_norm_eps, config.batch_norm_momentum
        self.virtual_batch_size = config.virtual_batch_size
        self.gamma = self.add_weight((channels,), "ones", name="gamma", autocast=False)
        self.beta = self.add_weight((channels,), "zeros", name="beta", autocast=False)
        moving = dict(trainable=False, autocast=False, aggregation="mean")  # over the replicas of a tf.distribute step
        self.moving_mean = self.add_weight((channels,), "zeros", name="moving_mean", **moving)
        self.moving_variance = self.add_weight((channels,), "ones", name="moving_variance", **moving)

    def call(self, x: Tensor, training: bool | None = None):
        wide = at_least_float32(x)
        gamma, beta = at_least_float32(self.gamma), at_least_float32(self.beta)
        if training and self.trainable:
            centred, variance = self._centre_groups(wide)  # variance (B, 1, 1, C): of the group that a sample is in
            return ops.cast(centred * (gamma * ops.rsqrt(variance + self.eps)) + beta, x.dtype)
        mean, variance = at_least_float32(self.moving_mean), at_least_float32(self.moving_variance)  # (C,)
        scale = gamma * ops.rsqrt(variance + self.eps)
        return ops.cast(wide * scale + (beta - mean * scale), x.dtype)

    def _centre_groups(self, x):
        batch = ops.shape(x)[0]
        if self.virtual_batch_size is None:
            n = 1
        elif isinstance(batch, int):
            n = max(1, batch // self.virtual_batch_size)
        else:  # not known when a tf.function is traced
            n = ops.maximum(1, batch // self.virtual_batch_size)
        means = _group_means(ops.mean(x, (1, 2)), n)  # (n, C)
        centred = x - _spread(means, n, batch)
        variances = _group_means(ops.mean(ops.square(centred), (1, 2)), n)  # (n, C)
        some = batch > 0  # a replica may get no sample of a last batch
        share = (some if isinstance(batch, int) else ops.cast(some, means.dtype)) * (1 - self.momentum)
        for moving, now in ((self.moving_mean, means), (self.moving_variance, variances)):
            moving.assign(moving + ops.cast((ops.mean(now, 0) - moving) * share, moving.dtype))
        return centred, _spread(variances, n, batch)


def _group_means(x, n):
    """(B, C) → (n, C): the means over the rows j, j + n, j + 2n, ... for each j below n."""
    batch, channels = ops.shape(x)
    if isinstance(batch, int) and batch and batch % n == 0:
        return ops.mean(ops.reshape(x, (-1, n, channels)), 0)
    x = ops.pad(x, ((0, -batch % n), (0, 0)))
    sizes = (batch - ops.arange(n) + n - 1) // n
    sizes = ops.cast(ops.maximum(sizes, 1), x.dtype)
    return ops.sum(ops.reshape(x, (-1, n, channels)), 0) / sizes[:, None]


def _spread(groups, n, batch):
    """(n, C) → (B, 1, 1, C): to each sample its group's row, the inverse of the interleaving."""
    return ops.tile(groups, (-(-batch // n), 1))[:batch, None, None]


def pad_for_stride_2(x: Tensor, kernel_size: int):
    """(k//2 - 1, k//2) on both axes, at even and odd sizes alike: `correct_pad` of the original code of an unknown size."""
    low, high = kernel_size // 2 - 1, kernel_size // 2
    return ops.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))


class TFAlignDepthwiseConv(Layer):
    def __init__(self, channels: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        start = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
        self.kernel = self.add_weight((kernel_size, kernel_size, channels, 1), start, name="kernel")

    def call(self, x: Tensor):
        return depthwise_convolution(x, ops.convert_to_tensor(self.kernel), self.stride, self.padding)


class TFAlignVisionEmbeddings(Layer):
    def __init__(self, config: AlignVisionConfig):
        super().__init__()
        self.convolution = convolution(config.num_channels, config.stem_channels, kernel_size=3, stride=2, bias=False)
        self.batchnorm = TFAlignBatchNorm(config.stem_channels, config)
        self.activation = activation(config.hidden_act)

    def call(self, pixel_values: Tensor):
        x = pad_for_stride_2(pixel_values, 3)
        return self.activation(self.batchnorm(self.convolution(x)))  # (B, H/2, W/2, C)


class TFAlignVisionExpansionLayer(Layer):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.expand_conv = convolution(spec.in_channels, spec.expanded_channels, kernel_size=1, bias=False)
        self.expand_bn = TFAlignBatchNorm(spec.expanded_channels, config)
        self.expand_act = activation(config.hidden_act)

    def call(self, x: Tensor):
        return self.expand_act(self.expand_bn(self.expand_conv(x)))


class TFAlignVisionDepthwiseLayer(Layer):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.pad_explicitly = spec.stride == 2 and not spec.symmetric_padding
        self.depthwise_conv = TFAlignDepthwiseConv(
            spec.expanded_channels,
            kernel_size=spec.kernel_size,
            stride=spec.stride,
            padding=0 if self.pad_explicitly else spec.kernel_size // 2,
        )
        self.depthwise_norm = TFAlignBatchNorm(spec.expanded_channels, config)
        self.depthwise_act = activation(config.hidden_act)

    def call(self, x: Tensor):
        if self.pad_explicitly:
            x = pad_for_stride_2(x, self.depthwise_conv.kernel_size)
        return self.depthwise_act(self.depthwise_norm(self.depthwise_conv(x)))


class TFAlignVisionSqueezeExciteLayer(Layer):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.reduce = convolution(spec.expanded_channels, spec.se_channels, kernel_size=1)
        self.expand = convolution(spec.se_channels, spec.expanded_channels, kernel_size=1)
        self.act_reduce = activation(config.hidden_act)

    def call(self, x: Tensor):
        scale = ops.mean(x, (1, 2), keepdims=True)  # (B, 1, 1, C)
        return x * ops.sigmoid(self.expand(self.act_reduce(self.reduce(scale))))


class TFAlignVisionFinalBlockLayer(Layer):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.project_conv = convolution(spec.expanded_channels, spec.out_channels, kernel_size=1, bias=False)
        self.project_bn = TFAlignBatchNorm(spec.out_channels, config)

    def call(self, x: Tensor):
        return self.project_bn(self.project_conv(x))


class TFAlignVisionBlock(Layer):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        if spec.expand_ratio != 1:
            self.expansion = TFAlignVisionExpansionLayer(config, spec)
        self.depthwise_conv = TFAlignVisionDepthwiseLayer(config, spec)
        self.squeeze_excite = TFAlignVisionSqueezeExciteLayer(config, spec)
        self.projection = TFAlignVisionFinalBlockLayer(config, spec)
        self.expands, self.skip, self.drop_rate = spec.expand_ratio != 1, spec.skip, spec.drop_rate
        # drops the residual branch of whole samples (Huang et al. 2016), in training
        self.drop_connect = keras.layers.Dropout(spec.drop_rate, noise_shape=(None, 1, 1, 1))

    def call(self, x: Tensor):
        y = self.expansion(x) if self.expands else x  # (B, H, W, C * expand_ratio)
        y = self.squeeze_excite(self.depthwise_conv(y))  # stride
        y = self.projection(y)  # (B, H', W', C')
        return x + self.drop_connect(y) if self.skip else y


class TFAlignVisionEncoder(Layer):
    def __init__(self, config: AlignVisionConfig):
        super().__init__()
        self.blocks = [TFAlignVisionBlock(config, spec) for spec in config.blocks()]

    def call(self, x: Tensor, output_hidden_states: bool = False):
        states = (x,)
        for block in self.blocks:
            x = block(x)
            states = (*states, x) if output_hidden_states else None  # kept only when asked for: they are large
        return x, states


class TFAlignTextEmbeddings(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        std = config.initializer_range
        self.word_embeddings = embedding(config.vocab_size, config.hidden_size, std)
        self.position_embeddings = embedding(config.max_position_embeddings, config.hidden_size, std)
        self.token_type_embeddings = embedding(config.type_vocab_size, config.hidden_size, std)
        self.LayerNorm = layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, words: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None):
        if position_ids is None:
            position_ids = ops.arange(ops.shape(words)[1])[None]  # (1, L)
        if token_type_ids is None:
            token_type_ids = ops.zeros_like(position_ids)
        x = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


def eager_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: Callable[[Tensor], Tensor]):
    """Attention of (B, L, N, K): its output (B, L, N * K), and its weights; the softmax runs in at least float32.

    `mask` (B, 1, 1, L) is true where a token may be seen; None for everywhere.
    """
    query, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, value))  # (B, N, L, K)
    key = ops.transpose(key, (0, 2, 3, 1))  # (B, N, K, L)
    scores = at_least_float32(ops.matmul(query * query.shape[-1] ** -0.5, key))  # (B, N, L, L)
    if mask is not None:
        scores = ops.where(mask, scores, np.finfo(keras.backend.standardize_dtype(scores.dtype)).min)
    weights = ops.cast(ops.softmax(scores), query.dtype)
    output = ops.transpose(ops.matmul(dropout(weights), value), (0, 2, 1, 3))  # (B, L, N, K)
    return ops.reshape(output, (*ops.shape(output)[:2], output.shape[2] * output.shape[3])), weights


class TFAlignTextSelfAttention(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = dense(config.hidden_size, config.hidden_size, config.initializer_range)
        self.key = dense(config.hidden_size, config.hidden_size, config.initializer_range)
        self.value = dense(config.hidden_size, config.hidden_size, config.initializer_range)
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob)

    def call(self, x: Tensor, attention_mask: Tensor | None = None):
        heads = (*ops.shape(x)[:2], x.shape[2] // self.head_size, self.head_size)
        q, k, v = (ops.reshape(p(x), heads) for p in (self.query, self.key, self.value))  # (B, L, N, K)
        return eager_attention(q, k, v, attention_mask, self.dropout)  # (B, L, D), (B, N, L, L)


class TFAlignTextSelfOutput(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = dense(config.hidden_size, config.hidden_size, config.initializer_range)
        self.LayerNorm = layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, x: Tensor, residual: Tensor):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class TFAlignTextAttention(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.self = TFAlignTextSelfAttention(config)
        self.output_layer = TFAlignTextSelfOutput(config)

    def call(self, x: Tensor, attention_mask: Tensor | None = None):
        attended, weights = self.self(x, attention_mask)
        return self.output_layer(attended, x), weights


class TFAlignTextIntermediate(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = dense(config.hidden_size, config.intermediate_size, config.initializer_range)
        self.intermediate_act_fn = activation(config.hidden_act)

    def call(self, x: Tensor):
        return self.intermediate_act_fn(self.dense(x))


class TFAlignTextOutput(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = dense(config.intermediate_size, config.hidden_size, config.initializer_range)
        self.LayerNorm = layer_norm(config.hidden_size, config.layer_norm_eps)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, x: Tensor, residual: Tensor):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class TFAlignTextLayer(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.attention = TFAlignTextAttention(config)
        self.intermediate = TFAlignTextIntermediate(config)
        self.output_layer = TFAlignTextOutput(config)

    def call(self, x: Tensor, attention_mask: Tensor | None = None):
        x, weights = self.attention(x, attention_mask)
        return self.output_layer(self.intermediate(x), x), weights


class TFAlignTextEncoder(Layer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.layer = [TFAlignTextLayer(config) for _ in range(config.num_hidden_layers)]

    def call(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ):
        states, attentions = (x,), ()
        for layer in self.layer:
            x, weights = layer(x, attention_mask)
            states = (*states, x) if output_hidden_states else None
            attentions = (*attentions, weights) if output_attentions else None
        return x, states, attentions


class TFAlignTextPooler(Layer):
    """BERT's pooler. ALIGN stores it and does not use it: its text features come from `text_projection`."""

    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = dense(config.hidden_size, config.hidden_size, config.initializer_range)

    def call(self, x: Tensor):
        return ops.tanh(self.dense(x[:, 0]))  # (B, D)


class TFAlignPreTrainedModel(TFPreTrainedModel):
    def backbone(self) -> "TFAlignVisionModel":
        """The image tower."""
        return self if self.is_base else self.vision_model

    def _slots(self):
        slots = align_slots(self.config, "keras")
        if isinstance(self, TFAlignTextModel) and self.pooler is None:
            slots = [slot for slot in slots if not slot.key.startswith("text_model.pooler.")]
        return slots


class TFAlignTextModel(TFAlignPreTrainedModel):
    """The text tower. `pooler_output` is BERT's pooler, which ALIGN itself does not use."""

    config_class = AlignTextConfig
    key_prefix = "text_model."
    is_base = True
    tensors_elsewhere = (
        r"vision_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$", r"text_model\.pooler\.",
        BERT_HEADS,
    )  # fmt: skip
    tensors_renamed = BERT_NAMES

    def __init__(self, config: AlignTextConfig, add_pooling_layer: bool = True):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.embeddings = TFAlignTextEmbeddings(config)
        self.encoder = TFAlignTextEncoder(config)
        self.pooler = TFAlignTextPooler(config) if add_pooling_layer else None

    def options(self) -> dict:
        return {"add_pooling_layer": self.pooler is not None}

    def call(
        self,
        input_ids: Tensor | None = None,  # (B, L)
        attention_mask: Tensor | None = None,  # (B, L), 1 for a token and 0 for padding
        token_type_ids: Tensor | None = None,  # (B, L)
        position_ids: Tensor | None = None,  # (B, L) or (1, L)
        inputs_embeds: Tensor | None = None,  # (B, L, D), instead of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,  # which `fit` gives only to a call that names it
    ) -> tuple | TFBaseModelOutputWithPooling:
        check_texts(self, input_ids, inputs_embeds)
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        x = self.embeddings(words, token_type_ids, position_ids, training=training)  # (B, L, D)
        mask = None if attention_mask is None else ops.expand_dims(attention_mask, (1, 2)) != 0  # (B, 1, 1, L)
        x, states, attentions = self.encoder(
            x, mask, output_attentions=output_attentions, output_hidden_states=output_hidden_states, training=training
        )
        output = TFBaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.pooler is not None else None,
            hidden_states=states,
            attentions=attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class TFAlignVisionModel(TFAlignPreTrainedModel):
    """The image tower. `pooler_output` (B, C) is the mean of the last block's map, at any image size."""

    config_class = AlignVisionConfig
    key_prefix = "vision_model."
    is_base = True
    tensors_elsewhere = (
        r"text_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$", r"classifier\."
    )  # fmt: skip

    def __init__(self, config: AlignVisionConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.pools_by_mean = pools_by_mean(config)
        self.embeddings = TFAlignVisionEmbeddings(config)
        self.encoder = TFAlignVisionEncoder(config)

    def call(
        self,
        pixel_values: Tensor | None = None,  # (B, 3, H, W) in [-1, 1]
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,  # which `fit` gives only to a call that names it
    ) -> tuple | TFBaseModelOutputWithPooling:
        check_images(self, pixel_values)
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        x = self.embeddings(ops.transpose(pixel_values, (0, 2, 3, 1)), training=training)
        x, states = self.encoder(x, output_hidden_states=output_hidden_states, training=training)  # (B, H/32, W/32, C)
        output = TFBaseModelOutputWithPooling(
            last_hidden_state=_channels_first(x),
            pooler_output=ops.mean(x, (1, 2)) if self.pools_by_mean else ops.max(x, (1, 2)),  # (B, C)
            hidden_states=None if states is None else tuple(_channels_first(state) for state in states),
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def signatures(self) -> dict[str, tuple]:
        return image_signatures(self)


class TFAlignModel(TFAlignPreTrainedModel):
    """Both towers, their projections and the temperature; with `config.logit_bias_init_value` a bias of the logits too.

    `fit` needs batches of a dict with `pixel_values` and `input_ids` (and `attention_mask`, `token_type_ids`), no labels
    and no loss: it trains with `contrastive_loss` over the global batch, that of all replicas of a `tf.distribute`
    strategy together.
    """

    config_class = AlignConfig

    def __init__(self, config: AlignConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.text_model = TFAlignTextModel(config.text_config)
        self.text_model.pooler.trainable = False  # nothing depends on it, and no optimizer should decay it
        self.vision_model = TFAlignVisionModel(config.vision_config)
        self.text_projection = dense(config.text_config.hidden_size, config.projection_dim, std=None)
        self.visual_projection = None
        if config.use_visual_projection:
            self.visual_projection = dense(config.vision_config.output_channels, config.projection_dim, std=None)
        start = keras.initializers.Constant(config.temperature_init_value)
        self.temperature = self.add_weight((), start, name="temperature", autocast=False)
        self.logit_bias, bias = None, config.logit_bias_init_value
        if bias is not None:
            start = keras.initializers.Constant(bias)
            self.logit_bias = self.add_weight((), start, name="logit_bias", autocast=False)

    @classmethod
    def from_towers(
        cls,
        image: str | os.PathLike | AlignVisionConfig,
        text: str | os.PathLike | AlignTextConfig,
        projection_dim: int,
        **changes: Any,
    ) -> "TFAlignModel":
        """See `AlignModel.from_towers`."""
        with open_towers(image, text, projection_dim, changes) as towers:
            model, config = cls(towers.config), towers.config
            if towers.image is not None:
                name, where = towers.image
                model.copy_from(TFAlignVisionModel.from_pretrained(name, config=config.vision_config, **where))
            if towers.text is not None:
                name, where = towers.text
                model.copy_from(TFAlignTextModel.from_pretrained(name, config=config.text_config, **where))
        return model

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | TFBaseModelOutputWithPooling:
        """Output of the text tower with the text features (B, P), not normalised, as `pooler_output`."""
        output = self.text_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        output.pooler_output = self._project_text(output)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def get_image_features(
        self, pixel_values: Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> tuple | TFBaseModelOutputWithPooling:
        """Output of the image tower with the image features (B, P), not normalised, as `pooler_output`."""
        output = self.vision_model(pixel_values, return_dict=True, **kwargs)
        output.pooler_output = self._project_image(output)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _project_text(self, output: TFBaseModelOutputWithPooling):
        return self.text_projection(output.last_hidden_state[:, 0])  # (B, P)

    def _project_image(self, output: TFBaseModelOutputWithPooling):
        pooled = output.pooler_output  # (B, C)
        return pooled if self.visual_projection is None else self.visual_projection(pooled)  # (B, P)

    def call(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,  # which `fit` gives only to a call that names it
    ) -> tuple | TFAlignOutput:
        """Compares every image with every text; arguments as of the two towers. Images or texts alone give their embeddings.

        With `return_loss=True` image i belongs to text i, and `loss` is `contrastive_loss` over this batch.
        """
        vision = text = image_embeds = text_embeds = logits_per_image = logits_per_text = loss = None
        # in mixed precision the vectors and what follows are float32
        if pixel_values is not None:
            vision = self.vision_model(
                pixel_values, output_hidden_states=output_hidden_states, return_dict=True, training=training
            )
            image_embeds = l2_normalize(self._project_image(vision), self.variable_dtype)  # (images, P)
        if pixel_values is None or input_ids is not None or inputs_embeds is not None:
            text = self.text_model(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True,
                output_attentions=output_attentions, output_hidden_states=output_hidden_states, training=training,
            )  # fmt: skip
            text_embeds = l2_normalize(self._project_text(text), self.variable_dtype)  # (texts, P)
        if image_embeds is not None and text_embeds is not None:
            logits_per_image = (
                ops.matmul(image_embeds, ops.transpose(text_embeds)) / self.temperature
            )  # (images, texts)
            if self.logit_bias is not None:
                logits_per_image = logits_per_image + self.logit_bias
            logits_per_text = ops.transpose(logits_per_image)
        if return_loss:
            images, texts = (0 if embeds is None else embeds.shape[0] for embeds in (image_embeds, text_embeds))
            if images != texts:
                raise ValueError(
                    f"TFAlignModel: return_loss pairs image i with text i, got {images} images and {texts} texts"
                )
            loss = contrastive_loss(logits_per_image, self.config.label_smoothing)
        output = TFAlignOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ):
        """This replica's share of `contrastive_loss` over the global batch: the shares of all replicas add up to it."""
        if self.loss is not None or y is not None or sample_weight is not None:
            raise ValueError(
                "TFAlignModel trains with its own contrastive loss of images and texts: compile it without a loss, and fit it "
                "on a dict of pixel_values and input_ids, without labels and weights"
            )
        every_image, first = gather_replicas(y_pred.image_embeds)  # (global B, P)
        every_text, _ = gather_replicas(y_pred.text_embeds)
        labels = first + ops.arange(ops.shape(y_pred.image_embeds)[0])
        image_to_text = ops.matmul(y_pred.image_embeds, ops.transpose(every_text)) / self.temperature
        text_to_image = ops.matmul(y_pred.text_embeds, ops.transpose(every_image)) / self.temperature
        losses = [
            cross_entropy(logits, labels, self.config.label_smoothing) for logits in (image_to_text, text_to_image)
        ]
        return ops.sum(losses[0] + losses[1]) / ops.cast(ops.shape(every_image)[0], losses[0].dtype)

    def predict_step(self, *arguments: Any):
        """`predict` returns the embeddings only: logits compare the images and texts of one batch, and hidden states are large."""
        predicted = super().predict_step(*arguments)
        output, *state = predicted if isinstance(predicted, tuple) else (predicted,)  # state: Keras on JAX
        output = TFAlignOutput(text_embeds=output.text_embeds, image_embeds=output.image_embeds)
        return (output, *state) if state else output

    def signatures(self) -> dict[str, tuple]:
        height, width = as_pair(self.config.vision_config.image_size)
        pixels = {"pixel_values": ((None, self.config.vision_config.num_channels, height, width), "float32")}
        tokens = dict.fromkeys(("input_ids", "attention_mask"), ((None, None), "int32"))

        def logits(**inputs):
            output = self(**inputs, return_dict=True, training=False)
            return {name: output[name] for name in ("logits_per_image", "image_embeds", "text_embeds")}

        def image_features(pixel_values):
            output = self.get_image_features(pixel_values, return_dict=True, training=False)
            return {"image_features": output.pooler_output}

        def text_features(**inputs):
            return {"text_features": self.get_text_features(**inputs, return_dict=True, training=False).pooler_output}

        return {
            "image_features": (image_features, pixels),
            "text_features": (text_features, tokens),
            "logits": (logits, pixels | tokens),
        }


def _channels_first(x):
    return ops.transpose(x, (0, 3, 1, 2))
