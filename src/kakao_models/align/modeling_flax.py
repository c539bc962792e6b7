"""ALIGN in Flax NNX (Jia et al. 2021), with the semantics of Kakao Brain's original code: the same as
modeling_torch.py.

`pixel_values` and all maps that models return are (B, C, H, W), as in PyTorch; inside, channels come last.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  N heads  K width per head  P projection
"""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from kakao_models.align.blocks import BlockSpec, pools_by_mean
from kakao_models.align.config import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.depthwise_flax import depthwise_convolution
from kakao_models.align.towers import open_towers
from kakao_models.align.weights import BERT_HEADS, BERT_NAMES, align_slots
from kakao_models.checkpoint.checks import check_images, check_texts
from kakao_models.checkpoint.flax import (
    FlaxBaseModelOutputWithPooling,
    FlaxLoading,
    FlaxModelOutput,
    LayerNorm,
    activation,
    compute_dtype,
    output_class,
    run_layer,
    wide_dtype,
)
from kakao_models.checkpoint.weightmap import Slot


@output_class
class FlaxAlignOutput(FlaxModelOutput):
    """Output of `FlaxAlignModel`.

    loss: scalar, with `return_loss=True`.
    logits_per_image: (images, texts), cosine similarity divided by the temperature; `logits_per_text` its transpose.
    text_embeds, image_embeds: (texts, P), (images, P), L2-normalised.
    text_model_output, vision_model_output: outputs of the towers.
    """

    loss: jax.Array | None = None
    logits_per_image: jax.Array | None = None
    logits_per_text: jax.Array | None = None
    text_embeds: jax.Array | None = None
    image_embeds: jax.Array | None = None
    text_model_output: FlaxBaseModelOutputWithPooling | None = None
    vision_model_output: FlaxBaseModelOutputWithPooling | None = None


def contrastive_loss(logits_per_image: jax.Array, label_smoothing: float) -> jax.Array:
    """ALIGN's loss for square logits (B, B): image-to-text plus text-to-image cross entropy, mean over samples.

    The original adds the two directions where transformers takes their mean. Under `jax.jit` a batch that is sharded over
    devices is one batch; `train.loss_flax` has the same loss for `jax.shard_map`.
    """

    def cross_entropy(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits.astype(wide_dtype(logits)))
        return -((1 - label_smoothing) * jnp.diagonal(log_p).mean() + label_smoothing * log_p.mean())

    return cross_entropy(logits_per_image) + cross_entropy(logits_per_image.T)


def l2_normalize(x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """x / sqrt(max(sum of squares, 1e-12)) along the last axis, as in the original; computed in at least float32."""
    wide = x.astype(wide_dtype(x))  # in float16 the squares overflow from a norm of 256 on
    return (wide * lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), 1e-12))).astype(dtype or x.dtype)


class FlaxAlignBatchNorm(nnx.BatchNorm):
    """Batch normalisation that in training treats the batch as interleaved ghost batches (Hoffer et al. 2017).

    With n = B // virtual_batch_size groups, group j is the samples j, j + n, j + 2n, ... Variances are biased, also in
    the moving average, which takes the mean over the groups once a step. The original refuses a batch that is no
    multiple of `virtual_batch_size`; here its n groups differ by at most one sample (31 samples are one group).
    Under `jax.jit` B is the global batch; under `jax.shard_map` it is a device's own, as in the original.
    """

    def __init__(self, channels: int, config: AlignVisionConfig, *, rngs: nnx.Rngs):
        super().__init__(
            channels, momentum=config.batch_norm_momentum, epsilon=config.batch_norm_eps, rngs=rngs
        )  # fmt: skip
        self.virtual_batch_size = config.virtual_batch_size

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            return self._scale(x, self.mean[...], self.var[...])
        batch = len(x)
        n = max(1, batch // self.virtual_batch_size) if self.virtual_batch_size else 1
        if batch % n:
            parts = [self._normalize(x[j::n], 1) for j in range(n)]
            mean, variance = (jnp.stack(values).mean(0) for values in zip(*(part[1:] for part in parts)))
            # sample j + i * n is row i of group j: undo the interleaving
            order = np.concatenate([np.arange(j, batch, n) for j in range(n)]).argsort()
            x = jnp.concatenate([part[0] for part in parts])[order]
        else:
            x, mean, variance = self._normalize(x, n)
        self._update_running_statistics(mean, variance)
        return x

    def _normalize(self, x: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch, height, width, channels = x.shape
        # Interleaved groups are a view: sample i * n + j is sample i of group j.
        groups = x.reshape(batch // n, n, height, width, channels)
        wide = groups.astype(wide_dtype(x))
        mean = wide.mean((0, 2, 3), keepdims=True)  # (1, n, 1, 1, C)
        variance = jnp.square(wide - mean).mean((0, 2, 3), keepdims=True)
        y = self._scale(groups, mean, variance).reshape(x.shape)  # (B, H, W, C)
        mean, variance = (v.reshape(n, channels).mean(0) for v in (mean, variance))
        return y, mean, variance

    def _scale(self, x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        factor = self.scale[...] * lax.rsqrt(variance.astype(wide_dtype(x)) + self.epsilon)
        return ((x - mean) * factor + self.bias[...]).astype(x.dtype)

    def _update_running_statistics(self, mean: jax.Array, variance: jax.Array) -> None:
        for statistic, new in ((self.mean, mean), (self.var, variance)):
            old = statistic[...]
            new = self.momentum * old + (1 - self.momentum) * lax.stop_gradient(new)
            statistic[...] = new.astype(old.dtype)


def pad_for_stride_2(x: jax.Array, kernel_size: int) -> jax.Array:
    """(k//2 - 1, k//2) on both axes, at even and odd sizes alike: `correct_pad` of the original code of an unknown size."""
    low, high = kernel_size // 2 - 1, kernel_size // 2
    return jnp.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))


class DepthwiseConv(nnx.Conv):
    """`nnx.Conv` of one filter per channel; without bias, and padded by the same width on all sides."""

    def __init__(self, channels: int, kernel_size: int, stride: int, padding: int, *, rngs: nnx.Rngs):
        super().__init__(
            channels, channels, (kernel_size, kernel_size), feature_group_count=channels, use_bias=False,
            kernel_init=_conv_init(kernel_size, 1), rngs=rngs,
        )  # fmt: skip
        self.stride, self.margin = stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        margins = ((0, 0), (self.margin, self.margin), (self.margin, self.margin), (0, 0))
        return depthwise_convolution(jnp.pad(x, margins), self.kernel[...], self.stride)


def _conv_init(kernel_size: int, channels: int) -> nnx.Initializer:
    """Keras' VarianceScaling(2, "fan_out", "truncated_normal"), EfficientNet's initialiser."""
    fan_out = channels * kernel_size * kernel_size
    return nnx.initializers.truncated_normal((2 / fan_out) ** 0.5 / 0.87962566103423978)  # the std of a normal cut at 2


def _conv(channels: int, filters: int, kernel_size: int = 1, *, stride: int = 1, bias: bool = False, rngs: nnx.Rngs):
    return nnx.Conv(
        channels, filters, (kernel_size, kernel_size), strides=stride, padding="VALID", use_bias=bias,
        kernel_init=_conv_init(kernel_size, filters), rngs=rngs,
    )  # fmt: skip


class FlaxAlignVisionEmbeddings(nnx.Module):
    def __init__(self, config: AlignVisionConfig, *, rngs: nnx.Rngs):
        self.convolution = _conv(config.num_channels, config.stem_channels, kernel_size=3, stride=2, rngs=rngs)
        self.batchnorm = FlaxAlignBatchNorm(config.stem_channels, config, rngs=rngs)
        self.activation = activation(config.hidden_act)

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        x = pad_for_stride_2(pixel_values, 3)
        return self.activation(self.batchnorm(self.convolution(x)))  # (B, H/2, W/2, C)


class FlaxAlignVisionExpansionLayer(nnx.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec, *, rngs: nnx.Rngs):
        self.expand_conv = _conv(spec.in_channels, spec.expanded_channels, rngs=rngs)
        self.expand_bn = FlaxAlignBatchNorm(spec.expanded_channels, config, rngs=rngs)
        self.expand_act = activation(config.hidden_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.expand_act(self.expand_bn(self.expand_conv(x)))


class FlaxAlignVisionDepthwiseLayer(nnx.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec, *, rngs: nnx.Rngs):
        self.pad_explicitly = spec.stride == 2 and not spec.symmetric_padding
        self.depthwise_conv = DepthwiseConv(
            spec.expanded_channels,
            kernel_size=spec.kernel_size,
            stride=spec.stride,
            padding=0 if self.pad_explicitly else spec.kernel_size // 2,
            rngs=rngs,
        )
        self.depthwise_norm = FlaxAlignBatchNorm(spec.expanded_channels, config, rngs=rngs)
        self.depthwise_act = activation(config.hidden_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.pad_explicitly:
            x = pad_for_stride_2(x, self.depthwise_conv.kernel_size[0])
        return self.depthwise_act(self.depthwise_norm(self.depthwise_conv(x)))


class FlaxAlignVisionSqueezeExciteLayer(nnx.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec, *, rngs: nnx.Rngs):
        self.reduce = _conv(spec.expanded_channels, spec.se_channels, bias=True, rngs=rngs)
        self.expand = _conv(spec.se_channels, spec.expanded_channels, bias=True, rngs=rngs)
        self.act_reduce = activation(config.hidden_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = x.mean((1, 2), keepdims=True)  # (B, 1, 1, C)
        return x * nnx.sigmoid(self.expand(self.act_reduce(self.reduce(scale))))


class FlaxAlignVisionFinalBlockLayer(nnx.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec, *, rngs: nnx.Rngs):
        self.project_conv = _conv(spec.expanded_channels, spec.out_channels, rngs=rngs)
        self.project_bn = FlaxAlignBatchNorm(spec.out_channels, config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.project_bn(self.project_conv(x))


class FlaxAlignVisionBlock(nnx.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec, *, rngs: nnx.Rngs):
        if spec.expand_ratio != 1:
            self.expansion = FlaxAlignVisionExpansionLayer(config, spec, rngs=rngs)
        self.depthwise_conv = FlaxAlignVisionDepthwiseLayer(config, spec, rngs=rngs)
        self.squeeze_excite = FlaxAlignVisionSqueezeExciteLayer(config, spec, rngs=rngs)
        self.projection = FlaxAlignVisionFinalBlockLayer(config, spec, rngs=rngs)
        self.expands, self.skip, self.drop_rate = spec.expand_ratio != 1, spec.skip, spec.drop_rate
        # Drops the residual branch of whole samples (Huang et al. 2016), in training.
        self.drop_connect = nnx.Dropout(spec.drop_rate if spec.skip else 0.0, broadcast_dims=(1, 2, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.expansion(x) if self.expands else x  # (B, H, W, C * expand_ratio)
        y = self.squeeze_excite(self.depthwise_conv(y))  # stride
        y = self.projection(y)  # (B, H', W', C')
        return x + self.drop_connect(y) if self.skip else y


class FlaxAlignVisionEncoder(nnx.Module):
    def __init__(self, config: AlignVisionConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(FlaxAlignVisionBlock(config, spec, rngs=rngs) for spec in config.blocks())
        self.gradient_checkpointing = False

    def __call__(self, x: jax.Array, output_hidden_states: bool):
        states = (x,)
        for block in self.blocks:
            x = run_layer(self, block, x)
            states = (*states, x) if output_hidden_states else None  # kept only when asked for: they are large
        return x, states


class FlaxAlignTextEmbeddings(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.word_embeddings = _embed(config, config.vocab_size, rngs)
        self.position_embeddings = _embed(config, config.max_position_embeddings, rngs)
        self.token_type_embeddings = _embed(config, config.type_vocab_size, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, words: jax.Array, token_type_ids: jax.Array, position_ids: jax.Array) -> jax.Array:
        if position_ids is None:
            position_ids = jnp.arange(words.shape[1])[None]  # (1, L)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(position_ids)
        x = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


def _embed(config: AlignTextConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
    normal = nnx.initializers.normal(config.initializer_range)
    table = nnx.Embed(rows, config.hidden_size, embedding_init=normal, rngs=rngs)
    table.dtype = None  # the table's own, which loading may change; nnx.Embed keeps that of the first moment
    return table


def _linear(config: AlignTextConfig, width: int, features: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(width, features, kernel_init=nnx.initializers.normal(config.initializer_range), rngs=rngs)


def eager_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, attention_mask: jax.Array, scaling: float, dropout: nnx.Dropout
):
    """Attention that also returns its weights; the softmax runs in at least float32."""
    query, value = (x.transpose(0, 2, 1, 3) for x in (query, value))  # (B, N, L, K)
    key = key.transpose(0, 2, 3, 1)  # (B, N, K, L)
    scores = jnp.matmul(query * scaling, key, preferred_element_type=wide_dtype(query))  # (B, N, L, L)
    if attention_mask is not None:
        scores = jnp.where(attention_mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    output = (dropout(weights) @ value).transpose(0, 2, 1, 3)  # (B, L, N, K)
    return output, weights


class FlaxAlignTextSelfAttention(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = _linear(config, config.hidden_size, config.hidden_size, rngs)
        self.key = _linear(config, config.hidden_size, config.hidden_size, rngs)
        self.value = _linear(config, config.hidden_size, config.hidden_size, rngs)
        self.dropout = nnx.Dropout(config.attention_probs_dropout_prob, rngs=rngs)

    def __call__(self, x: jax.Array, attention_mask: jax.Array):
        heads = (*x.shape[:2], -1, self.head_size)
        q, k, v = (p(x).reshape(heads) for p in (self.query, self.key, self.value))  # (B, L, N, K)
        attended, weights = eager_attention(q, k, v, attention_mask, self.head_size**-0.5, self.dropout)
        return attended.reshape(x.shape), weights  # (B, L, D), (B, N, L, L)


class FlaxAlignTextSelfOutput(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.dense = _linear(config, config.hidden_size, config.hidden_size, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class FlaxAlignTextAttention(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.self = FlaxAlignTextSelfAttention(config, rngs=rngs)
        self.output_layer = FlaxAlignTextSelfOutput(config, rngs=rngs)

    def __call__(self, x: jax.Array, attention_mask: jax.Array):
        attended, weights = self.self(x, attention_mask)
        return self.output_layer(attended, x), weights


class FlaxAlignTextIntermediate(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.dense = _linear(config, config.hidden_size, config.intermediate_size, rngs)
        self.intermediate_act_fn = activation(config.hidden_act)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.intermediate_act_fn(self.dense(x))


class FlaxAlignTextOutput(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.dense = _linear(config, config.intermediate_size, config.hidden_size, rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class FlaxAlignTextLayer(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.attention = FlaxAlignTextAttention(config, rngs=rngs)
        self.intermediate = FlaxAlignTextIntermediate(config, rngs=rngs)
        self.output_layer = FlaxAlignTextOutput(config, rngs=rngs)

    def __call__(self, x: jax.Array, attention_mask: jax.Array):
        x, weights = self.attention(x, attention_mask)
        return self.output_layer(self.intermediate(x), x), weights


class FlaxAlignTextEncoder(nnx.Module):
    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.layer = nnx.List(FlaxAlignTextLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def __call__(self, x: jax.Array, attention_mask: jax.Array, output_attentions: bool, output_hidden_states: bool):
        states, attentions = (x,), ()
        for layer in self.layer:
            x, weights = run_layer(self, layer, x, attention_mask)
            states = (*states, x) if output_hidden_states else None
            attentions = (*attentions, weights) if output_attentions else None
        return x, states, attentions


class FlaxAlignTextPooler(nnx.Module):
    """BERT's pooler. ALIGN stores it and does not use it: its text features come from `text_projection`."""

    def __init__(self, config: AlignTextConfig, *, rngs: nnx.Rngs):
        self.dense = _linear(config, config.hidden_size, config.hidden_size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.dense(x[:, 0]))  # (B, D)


class FlaxAlignPreTrainedModel(FlaxLoading):
    config_class = AlignConfig

    # What a mesh axis may split: these layers by their output channels, or the kernels of these by their input channels.
    tensor_parallel_columns = (
        r".*\.self\.(query|key|value)", r".*\.intermediate\.dense",
        r".*\.expansion\.expand_(conv|bn)", r".*\.depthwise_conv\.depthwise_(conv|norm)", r".*\.squeeze_excite\.expand",
    )  # fmt: skip
    tensor_parallel_rows = (r".*\.output_layer\.dense", r".*\.squeeze_excite\.reduce", r".*\.projection\.project_conv")

    def backbone(self) -> "FlaxAlignVisionModel":
        """The image tower."""
        return self if self.is_base else self.vision_model

    def _slots(self) -> list[Slot]:
        slots = align_slots(self.config, "nnx")
        if isinstance(self, FlaxAlignTextModel) and self.pooler is None:
            slots = [slot for slot in slots if not slot.key.startswith("text_model.pooler.")]
        return slots


class FlaxAlignTextModel(FlaxAlignPreTrainedModel):
    """The text tower. `pooler_output` is BERT's pooler, which ALIGN itself does not use."""

    config_class = AlignTextConfig
    key_prefix = "text_model."
    is_base = True
    tensors_elsewhere = (
        r"vision_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$", r"text_model\.pooler\.",
        BERT_HEADS,
    )  # fmt: skip
    tensors_renamed = BERT_NAMES

    def __init__(self, config: AlignTextConfig, add_pooling_layer: bool = True, *, rngs: nnx.Rngs):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.embeddings = FlaxAlignTextEmbeddings(config, rngs=rngs)
        self.encoder = FlaxAlignTextEncoder(config, rngs=rngs)
        self.pooler = FlaxAlignTextPooler(config, rngs=rngs) if add_pooling_layer else None

    def __call__(
        self,
        input_ids: jax.Array | None = None,  # (B, L)
        attention_mask: jax.Array | None = None,  # (B, L), 1 for a token and 0 for padding
        token_type_ids: jax.Array | None = None,  # (B, L)
        position_ids: jax.Array | None = None,  # (B, L) or (1, L)
        inputs_embeds: jax.Array | None = None,  # (B, L, D), instead of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | FlaxBaseModelOutputWithPooling:
        check_texts(self, input_ids, inputs_embeds)
        words = self.embeddings.word_embeddings(jnp.asarray(input_ids)) if inputs_embeds is None else inputs_embeds
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        x = self.embeddings(words, token_type_ids, position_ids)  # (B, L, D)
        mask = None if attention_mask is None else jnp.asarray(attention_mask)[:, None, None] != 0  # (B, 1, 1, L)
        x, states, attentions = self.encoder(x, mask, output_attentions, output_hidden_states)
        output = FlaxBaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.pooler is not None else None,
            hidden_states=states,
            attentions=attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class FlaxAlignVisionModel(FlaxAlignPreTrainedModel):
    """The image tower. `pooler_output` (B, C) is the mean of the last block's map, at any image size."""

    config_class = AlignVisionConfig
    key_prefix = "vision_model."
    is_base = True
    tensors_elsewhere = (
        r"text_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$", r"classifier\."
    )  # fmt: skip

    def __init__(self, config: AlignVisionConfig, *, rngs: nnx.Rngs):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.pools_by_mean = pools_by_mean(config)
        self.embeddings = FlaxAlignVisionEmbeddings(config, rngs=rngs)
        self.encoder = FlaxAlignVisionEncoder(config, rngs=rngs)

    def __call__(
        self,
        pixel_values: jax.Array | None = None,  # (B, 3, H, W) in [-1, 1]
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | FlaxBaseModelOutputWithPooling:
        check_images(self, pixel_values)
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        dtype = compute_dtype(self.embeddings.convolution)
        pixel_values = jnp.asarray(pixel_values, dtype).transpose(0, 2, 3, 1)  # (B, H, W, 3)
        x, states = self.encoder(self.embeddings(pixel_values), output_hidden_states)  # (B, H/32, W/32, C)
        output = FlaxBaseModelOutputWithPooling(
            last_hidden_state=x.transpose(0, 3, 1, 2),  # (B, C, H/32, W/32)
            pooler_output=x.mean((1, 2)) if self.pools_by_mean else x.max((1, 2)),  # (B, C)
            hidden_states=tuple(state.transpose(0, 3, 1, 2) for state in states) if output_hidden_states else None,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class FlaxAlignModel(FlaxAlignPreTrainedModel):
    """Both towers, their projections and the temperature; with `config.logit_bias_init_value` a bias of the logits too."""

    config_class = AlignConfig

    def __init__(self, config: AlignConfig, *, rngs: nnx.Rngs):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.text_model = FlaxAlignTextModel(config.text_config, rngs=rngs)
        self.vision_model = FlaxAlignVisionModel(config.vision_config, rngs=rngs)
        linear = partial(
            nnx.Linear, out_features=config.projection_dim, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
        )
        self.text_projection = linear(config.text_config.hidden_size)
        has_projection = config.use_visual_projection
        self.visual_projection = linear(config.vision_config.output_channels) if has_projection else None
        self.temperature = nnx.Param(jnp.asarray(config.temperature_init_value, jnp.float32))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))

    @classmethod
    def from_towers(
        cls,
        image: str | os.PathLike | AlignVisionConfig,
        text: str | os.PathLike | AlignTextConfig,
        projection_dim: int,
        *,
        rngs: nnx.Rngs | None = None,
        **changes: Any,
    ) -> "FlaxAlignModel":
        """See `AlignModel.from_towers`. `rngs` initialise the new weights, and are used for dropout."""
        with open_towers(image, text, projection_dim, changes) as towers:
            config, rngs = towers.config, rngs or nnx.Rngs(0)
            model = cls._build(config, None, rngs=rngs)
            if towers.image is not None:
                name, where = towers.image
                model.copy_from(FlaxAlignVisionModel.from_pretrained(name, config=config.vision_config, **where))
            if towers.text is not None:
                name, where = towers.text
                model.copy_from(FlaxAlignTextModel.from_pretrained(name, config=config.text_config, **where))
        model._initialise(rngs)
        return model

    def get_text_features(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        return_dict: bool | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple | FlaxBaseModelOutputWithPooling:
        """Output of the text tower with the text features (B, P), not normalised, as `pooler_output`."""
        output = self.text_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        output.pooler_output = self._project_text(output)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def get_image_features(
        self, pixel_values: jax.Array, return_dict: bool | None = None, *, output_hidden_states: bool | None = None
    ) -> tuple | FlaxBaseModelOutputWithPooling:
        """Output of the image tower with the image features (B, P), not normalised, as `pooler_output`."""
        output = self.vision_model(pixel_values, return_dict=True, output_hidden_states=output_hidden_states)
        output.pooler_output = self._project_image(output)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _project_text(self, output: FlaxBaseModelOutputWithPooling) -> jax.Array:
        return self.text_projection(output.last_hidden_state[:, 0])  # (B, P)

    def _project_image(self, output: FlaxBaseModelOutputWithPooling) -> jax.Array:
        pooled = output.pooler_output  # (B, C)
        return pooled if self.visual_projection is None else self.visual_projection(pooled)  # (B, P)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | FlaxAlignOutput:
        """Compares every image with every text; arguments as of the two towers. Images or texts alone give their embeddings.

        With `return_loss=True` image i belongs to text i, and `loss` is `contrastive_loss` over this batch.
        """
        vision = text = image_embeds = text_embeds = logits_per_image = logits_per_text = loss = None
        dtype = self.temperature.dtype  # in mixed precision the embeddings and what follows are float32
        if pixel_values is not None:
            vision = self.vision_model(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
            image_embeds = l2_normalize(self._project_image(vision), dtype)  # (images, P)
        if pixel_values is None or input_ids is not None or inputs_embeds is not None:
            text = self.text_model(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True,
                output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            )  # fmt: skip
            text_embeds = l2_normalize(self._project_text(text), dtype)  # (texts, P)
        if image_embeds is not None and text_embeds is not None:
            logits_per_image = image_embeds @ text_embeds.T / self.temperature[...]  # (images, texts)
            if self.logit_bias is not None:
                logits_per_image = logits_per_image + self.logit_bias[...]
            logits_per_text = logits_per_image.T
        if return_loss:
            images, texts = (0 if embeds is None else len(embeds) for embeds in (image_embeds, text_embeds))
            if images != texts:
                raise ValueError(
                    f"FlaxAlignModel: return_loss pairs image i with text i, got {images} images and {texts} texts"
                )
            loss = contrastive_loss(logits_per_image, self.config.label_smoothing)
        output = FlaxAlignOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()
