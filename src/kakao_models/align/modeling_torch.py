"""ALIGN in PyTorch (Jia et al. 2021), with the semantics of Kakao Brain's original code.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  N heads  K width per head  P projection
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForZeroShotImageClassification, PreTrainedModel, initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndNoAttention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from kakao_models.align.blocks import BlockSpec, pools_by_mean
from kakao_models.align.config import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.depthwise_torch import DepthwiseConv2d
from kakao_models.align.ghost_norm_torch import ghost_norm
from kakao_models.align.towers import open_towers
from kakao_models.align.weights import BERT_HEADS, BERT_NAMES
from kakao_models.checkpoint.checks import check_images, check_texts
from kakao_models.checkpoint.torch import BijectiveLoading, activation, wide_dtype


@dataclass
class AlignOutput(ModelOutput):
    """Output of `AlignModel`.

    loss: scalar, with `return_loss=True`.
    logits_per_image: (images, texts), cosine similarity divided by the temperature; `logits_per_text` its transpose.
    text_embeds, image_embeds: (texts, P), (images, P), L2-normalised.
    text_model_output, vision_model_output: outputs of the towers.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPoolingAndNoAttention | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def contrastive_loss(logits_per_image: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """ALIGN's loss for square logits (B, B): image-to-text plus text-to-image cross entropy, mean over samples.

    The original adds the two directions where transformers takes their mean.
    """
    labels = torch.arange(len(logits_per_image), device=logits_per_image.device)
    image_to_text = F.cross_entropy(logits_per_image, labels, label_smoothing=label_smoothing)
    text_to_image = F.cross_entropy(logits_per_image.t(), labels, label_smoothing=label_smoothing)
    return image_to_text + text_to_image


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(max(sum of squares, 1e-12)) along the last axis, as in the original; computed in at least float32."""
    wide = x.to(wide_dtype(x))  # in float16 the squares overflow from a norm of 256 on
    return (wide * wide.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()).to(x.dtype)


class AlignBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that in training treats the batch as interleaved ghost batches (Hoffer et al. 2017).

    With n = B // virtual_batch_size groups, group j is the samples j, j + n, j + 2n, ... Variances are biased, also in
    the moving average, which takes the mean over the groups once a step. The original refuses a batch that is no
    multiple of `virtual_batch_size`; here its n groups differ by at most one sample (31 samples are one group).
    """

    def __init__(self, channels: int, config: AlignVisionConfig):
        # Keras' momentum is the share of the old value, PyTorch's that of the new.
        super().__init__(channels, eps=config.batch_norm_eps, momentum=1 - config.batch_norm_momentum)
        self.virtual_batch_size = config.virtual_batch_size

    def forward(self, x: torch.Tensor, silu: bool = False) -> torch.Tensor:
        """Normalises x (B, C, H, W). `silu`: and activates it, where `fuses` says that both can be one pass."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        batch = len(x)
        n = max(1, batch // self.virtual_batch_size) if self.virtual_batch_size else 1
        if self.fuses(x):
            x, mean, variance = ghost_norm(x, self.weight, self.bias, n, self.eps, silu)
            mean, variance = mean.mean(0), variance.mean(0)
        elif batch % n:
            parts = [self._normalize(x[j::n], 1) for j in range(n)]
            mean, variance = (torch.stack(values).mean(0) for values in zip(*(part[1:] for part in parts)))
            # sample j + i * n is row i of group j: undo the interleaving
            order = torch.cat([torch.arange(j, batch, n, device=x.device) for j in range(n)]).argsort()
            x = torch.cat([part[0] for part in parts])[order]
        else:
            x, mean, variance = self._normalize(x, n)
        self._update_running_statistics(mean, variance)
        return x

    def fuses(self, x: torch.Tensor) -> bool:
        return self.training and x.device.type == "cpu" and not torch.compiler.is_compiling()

    def _normalize(self, x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, channels, height, width = x.shape
        layout = torch.channels_last if n > 1 and x.is_contiguous(memory_format=torch.channels_last) else None
        # Interleaved groups are a view: sample i * n + j of channel c is sample i of channel j * C + c.
        groups = x.reshape(batch // n, n * channels, height, width)  # (B/n, n*C, H, W)
        mean, variance = self.running_mean.new_zeros((2, n * channels))
        y = F.batch_norm(
            groups,
            mean,
            variance,
            self.weight.repeat(n),
            self.bias.repeat(n),
            training=True,
            momentum=1.0,
            eps=self.eps,
        ).reshape(x.shape)  # (B, C, H, W)
        count = batch // n * height * width
        variance = variance * ((count - 1) / count)  # PyTorch stores the unbiased one
        mean, variance = (v.view(n, channels).mean(0) for v in (mean, variance))
        return (y.contiguous(memory_format=layout) if layout else y), mean, variance

    @torch.no_grad()
    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        # Gradient checkpointing runs the forward again inside backward; the step has been counted by then.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def normalize_and_activate(norm: AlignBatchNorm, activation: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """activation(norm(x)); in training on a CPU SiLU is part of the norm's pass, which takes less time and memory."""
    if norm.fuses(x) and isinstance(activation, nn.SiLU):
        return norm(x, silu=True)
    return activation(norm(x))


def pad_for_stride_2(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """(k//2 - 1, k//2) on both axes, at even and odd sizes alike: `correct_pad` of the original code of an unknown size."""
    low, high = kernel_size // 2 - 1, kernel_size // 2
    return F.pad(x, (low, high, low, high))


class AlignVisionEmbeddings(nn.Module):
    def __init__(self, config: AlignVisionConfig):
        super().__init__()
        self.convolution = nn.Conv2d(config.num_channels, config.stem_channels, kernel_size=3, stride=2, bias=False)
        self.batchnorm = AlignBatchNorm(config.stem_channels, config)
        self.activation = activation(config.hidden_act)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pad_for_stride_2(pixel_values, 3)
        return normalize_and_activate(self.batchnorm, self.activation, self.convolution(x))  # (B, C, H/2, W/2)


class AlignVisionExpansionLayer(nn.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.expand_conv = nn.Conv2d(spec.in_channels, spec.expanded_channels, kernel_size=1, bias=False)
        self.expand_bn = AlignBatchNorm(spec.expanded_channels, config)
        self.expand_act = activation(config.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalize_and_activate(self.expand_bn, self.expand_act, self.expand_conv(x))


class AlignVisionDepthwiseLayer(nn.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.pad_explicitly = spec.stride == 2 and not spec.symmetric_padding
        self.depthwise_conv = DepthwiseConv2d(
            spec.expanded_channels,
            spec.expanded_channels,
            kernel_size=spec.kernel_size,
            stride=spec.stride,
            padding=0 if self.pad_explicitly else spec.kernel_size // 2,
            groups=spec.expanded_channels,
            bias=False,
        )
        self.depthwise_norm = AlignBatchNorm(spec.expanded_channels, config)
        self.depthwise_act = activation(config.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pad_explicitly:
            x = pad_for_stride_2(x, self.depthwise_conv.kernel_size[0])
        return normalize_and_activate(self.depthwise_norm, self.depthwise_act, self.depthwise_conv(x))


class AlignVisionSqueezeExciteLayer(nn.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.reduce = nn.Conv2d(spec.expanded_channels, spec.se_channels, kernel_size=1)
        self.expand = nn.Conv2d(spec.se_channels, spec.expanded_channels, kernel_size=1)
        self.act_reduce = activation(config.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * self.expand(self.act_reduce(self.reduce(scale))).sigmoid()


class AlignVisionFinalBlockLayer(nn.Module):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        self.project_conv = nn.Conv2d(spec.expanded_channels, spec.out_channels, kernel_size=1, bias=False)
        self.project_bn = AlignBatchNorm(spec.out_channels, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project_bn(self.project_conv(x))


class AlignVisionBlock(GradientCheckpointingLayer):
    def __init__(self, config: AlignVisionConfig, spec: BlockSpec):
        super().__init__()
        if spec.expand_ratio != 1:
            self.expansion = AlignVisionExpansionLayer(config, spec)
        self.depthwise_conv = AlignVisionDepthwiseLayer(config, spec)
        self.squeeze_excite = AlignVisionSqueezeExciteLayer(config, spec)
        self.projection = AlignVisionFinalBlockLayer(config, spec)
        self.expands, self.skip, self.drop_rate = spec.expand_ratio != 1, spec.skip, spec.drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expansion(x) if self.expands else x  # (B, C * expand_ratio, H, W)
        y = self.squeeze_excite(self.depthwise_conv(y))  # stride
        y = self.projection(y)  # (B, C', H', W')
        return x + self.drop_connect(y) if self.skip else y

    def drop_connect(self, y: torch.Tensor) -> torch.Tensor:
        """Drops the residual branch of whole samples (Huang et al. 2016), in training."""
        if not self.training or self.drop_rate == 0:
            return y
        keep = 1 - self.drop_rate
        return y * y.new_empty((len(y), 1, 1, 1)).bernoulli_(keep).div_(keep)


class AlignVisionEncoder(nn.Module):
    def __init__(self, config: AlignVisionConfig):
        super().__init__()
        self.blocks = nn.ModuleList(AlignVisionBlock(config, spec) for spec in config.blocks())

    def forward(self, x: torch.Tensor, output_hidden_states: bool):
        states = (x,)
        for block in self.blocks:
            x = block(x)
            states = (*states, x) if output_hidden_states else None  # kept only when asked for: they are large
        return x, states


class AlignTextEmbeddings(nn.Module):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: torch.Tensor, token_type_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device)[None]  # (1, L)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        x = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
):
    """Attention that also returns its weights; the softmax runs in at least float32."""
    scores = query @ key.transpose(2, 3) * scaling  # (B, N, L, L)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=wide_dtype(scores)).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value  # (B, N, L, K)
    return output.transpose(1, 2).contiguous(), weights


class AlignTextSelfAttention(nn.Module):
    is_causal = False  # read by transformers' attention functions

    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool):
        heads = (*x.shape[:2], -1, self.head_size)
        q, k, v = (p(x).view(heads).transpose(1, 2) for p in (self.query, self.key, self.value))  # (B, N, L, K)
        # Only eager attention knows its weights.
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        x, weights = attend(self, q, k, v, attention_mask, scaling=self.head_size**-0.5, dropout=dropout)
        return x.flatten(2), weights  # (B, L, D), (B, N, L, L)


class AlignTextSelfOutput(nn.Module):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class AlignTextAttention(nn.Module):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.self = AlignTextSelfAttention(config)
        self.output = AlignTextSelfOutput(config)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool):
        attended, weights = self.self(x, attention_mask, output_attentions)
        return self.output(attended, x), weights


class AlignTextIntermediate(nn.Module):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(x))


class AlignTextOutput(nn.Module):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class AlignTextLayer(GradientCheckpointingLayer):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.attention = AlignTextAttention(config)
        self.intermediate = AlignTextIntermediate(config)
        self.output = AlignTextOutput(config)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool):
        x, weights = self.attention(x, attention_mask, output_attentions)
        return self.output(self.intermediate(x), x), weights


class AlignTextEncoder(nn.Module):
    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.layer = nn.ModuleList(AlignTextLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, x: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool, output_hidden_states: bool
    ):
        states, attentions = (x,), ()
        for layer in self.layer:
            x, weights = layer(x, attention_mask, output_attentions)
            states = (*states, x) if output_hidden_states else None
            attentions = (*attentions, weights) if output_attentions else None
        return x, states, attentions


class AlignTextPooler(nn.Module):
    """BERT's pooler. ALIGN stores it and does not use it: its text features come from `text_projection`."""

    def __init__(self, config: AlignTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x[:, 0]).tanh()  # (B, D)


class AlignPreTrainedModel(BijectiveLoading, PreTrainedModel):
    config: AlignConfig
    base_model_prefix = "align"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["AlignTextEmbeddings", "AlignTextLayer", "AlignVisionBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Buffers of checkpoints that old releases of transformers wrote.
    _keys_to_ignore_on_load_unexpected = [r".*embeddings\.position_ids", r".*embeddings\.token_type_ids"]
    _keys_to_ignore_on_load_missing = [r".*num_batches_tracked"]

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # Keras' VarianceScaling(2, "fan_out", "truncated_normal"), EfficientNet's initialiser.
            fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            std = (2 / fan_out) ** 0.5 / 0.87962566103423978  # standard deviation of a normal cut at 2
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, AlignModel):
            for projection in filter(None, (module.text_projection, module.visual_projection)):
                init.xavier_uniform_(projection.weight)
                init.zeros_(projection.bias)
            init.constant_(module.temperature, self.config.temperature_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class AlignTextModel(AlignPreTrainedModel):
    """The text tower. `pooler_output` is BERT's pooler, which ALIGN itself does not use."""

    config: AlignTextConfig
    config_class = AlignTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    tensors_elsewhere = (
        r"vision_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$", r"(text_model\.)?pooler\.",
        BERT_HEADS,
    )  # fmt: skip
    tensors_renamed = BERT_NAMES

    def __init__(self, config: AlignTextConfig, add_pooling_layer: bool = True):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.embeddings = AlignTextEmbeddings(config)
        self.encoder = AlignTextEncoder(config)
        self.pooler = AlignTextPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (B, L)
        attention_mask: torch.Tensor | None = None,  # (B, L), 1 for a token and 0 for padding
        token_type_ids: torch.Tensor | None = None,  # (B, L)
        position_ids: torch.Tensor | None = None,  # (B, L) or (1, L)
        inputs_embeds: torch.Tensor | None = None,  # (B, L, D), instead of input_ids
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        check_texts(self, input_ids, inputs_embeds)
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        x = self.embeddings(words, token_type_ids, position_ids)  # (B, L, D)
        mask = self._attention_mask(x, attention_mask, output_attentions)
        x, states, attentions = self.encoder(x, mask, output_attentions, output_hidden_states)
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.pooler is not None else None,
            hidden_states=states,
            attentions=attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _attention_mask(self, x: torch.Tensor, attention_mask: torch.Tensor | None, output_attentions: bool):
        if not (output_attentions or self.config._attn_implementation == "eager"):
            return create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
        if attention_mask is None:
            return None
        hidden = attention_mask[:, None, None] == 0  # (B, 1, 1, L)
        return torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)


class AlignVisionModel(AlignPreTrainedModel):
    """The image tower. `pooler_output` (B, C) is the mean of the last block's map, at any image size."""

    config: AlignVisionConfig
    config_class = AlignVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    tensors_elsewhere = (
        r"text_model\.", r"text_projection\.", r"visual_projection\.", r"temperature$|logit_bias$", r"classifier\."
    )  # fmt: skip

    def __init__(self, config: AlignVisionConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.pools_by_mean = pools_by_mean(config)
        self.embeddings = AlignVisionEmbeddings(config)
        self.encoder = AlignVisionEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Conv2d:
        return self.embeddings.convolution

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,  # (B, 3, H, W) in [-1, 1]
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPoolingAndNoAttention:
        check_images(self, pixel_values)
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        pixel_values = pixel_values.to(self.embeddings.convolution.weight.dtype)
        x, states = self.encoder(self.embeddings(pixel_values), output_hidden_states)  # (B, C, H/32, W/32)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=x,
            pooler_output=x.mean((2, 3)) if self.pools_by_mean else x.amax((2, 3)),  # (B, C)
            hidden_states=states,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class AlignModel(AlignPreTrainedModel):
    """Both towers, their projections and the temperature; with `config.logit_bias_init_value` a bias of the logits too.

    A checkpoint without the bias loads into a model that has it with `ignore_mismatched_sizes=True`, or `add_logit_bias`
    adds one afterwards.
    """

    config: AlignConfig
    config_class = AlignConfig
    tensors_replaceable = (r"logit_bias$",)

    def __init__(self, config: AlignConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.text_model = AlignTextModel(config.text_config)
        self.vision_model = AlignVisionModel(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.visual_projection = None
        if config.use_visual_projection:
            self.visual_projection = nn.Linear(config.vision_config.output_channels, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.post_init()

    def add_logit_bias(self, value: float = -10.0) -> None:
        """Gives the model a bias of its logits, a new parameter: call it before building an optimizer."""
        self.config.logit_bias_init_value = float(value)
        self.logit_bias = nn.Parameter(torch.full_like(self.temperature, value))

    @classmethod
    def from_towers(
        cls,
        image: str | os.PathLike | AlignVisionConfig,
        text: str | os.PathLike | AlignTextConfig,
        projection_dim: int,
        **changes: Any,
    ) -> "AlignModel":
        """An ALIGN of two towers that were published on their own, in evaluation mode. What no tower has is new: the
        projections and the temperature, whose names are logged.

        Args:
            image: an EfficientNet: a checkpoint of `AlignVisionModel` or of an ALIGN; Keras' weights (.h5); PyTorch's of
                efficientnet_pytorch or efficientnet-lite (.pth); or timm's folder. A configuration starts a tower at random.
            text: a BERT: a folder or Hub id, such as "bert-base-uncased"; or a configuration.
            projection_dim: dimension of the embeddings. An EfficientNet-Lite keeps its head, as a last stage of this width.
            changes: fields of `AlignConfig`; those of `vision_config` and `text_config` change the towers' own.

        Raises:
            ValueError: a tensor of a tower is missing, unknown or of another shape; the message names it.
            OSError: a tower cannot be found or read.
        """
        with open_towers(image, text, projection_dim, changes) as towers:
            model, config = cls(towers.config), towers.config
            if towers.image is not None:
                name, where = towers.image
                model.vision_model = AlignVisionModel.from_pretrained(
                    name, config=config.vision_config, dtype=torch.float32, **where
                )
            if towers.text is not None:
                name, where = towers.text
                model.text_model = AlignTextModel.from_pretrained(
                    name, config=config.text_config, dtype=torch.float32, **where
                )
        return model.eval()

    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """Output of the text tower with the text features (B, P), not normalised, as `pooler_output`."""
        output = self.text_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        output.pooler_output = self._project_text(output)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> tuple | BaseModelOutputWithPoolingAndNoAttention:
        """Output of the image tower with the image features (B, P), not normalised, as `pooler_output`."""
        output = self.vision_model(pixel_values, return_dict=True, **kwargs)
        output.pooler_output = self._project_image(output)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _project_text(self, output: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.text_projection(output.last_hidden_state[:, 0])  # (B, P)

    def _project_image(self, output: BaseModelOutputWithPoolingAndNoAttention) -> torch.Tensor:
        pooled = output.pooler_output  # (B, C)
        return pooled if self.visual_projection is None else self.visual_projection(pooled)  # (B, P)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | AlignOutput:
        """Compares every image with every text; arguments as of the two towers. Images or texts alone give their embeddings.

        With `return_loss=True` image i belongs to text i, and `loss` is `contrastive_loss` over this batch.
        """
        vision = text = image_embeds = text_embeds = logits_per_image = logits_per_text = loss = None
        if pixel_values is not None:
            vision = self.vision_model(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
            image_embeds = l2_normalize(self._project_image(vision))  # (images, P)
        if pixel_values is None or input_ids is not None or inputs_embeds is not None:
            text = self.text_model(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True,
                output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            )  # fmt: skip
            text_embeds = l2_normalize(self._project_text(text))  # (texts, P)
        if image_embeds is not None and text_embeds is not None:
            logits_per_image = image_embeds @ text_embeds.t() / self.temperature  # (images, texts)
            if self.logit_bias is not None:
                logits_per_image = logits_per_image + self.logit_bias
            logits_per_text = logits_per_image.t()
        if return_loss:
            images, texts = (0 if embeds is None else len(embeds) for embeds in (image_embeds, text_embeds))
            if images != texts:
                raise ValueError(
                    f"AlignModel: return_loss pairs image i with text i, got {images} images and {texts} texts"
                )
            loss = contrastive_loss(logits_per_image, self.config.label_smoothing)
        output = AlignOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


AutoModel.register(AlignConfig, AlignModel, exist_ok=True)
AutoModel.register(AlignTextConfig, AlignTextModel, exist_ok=True)
AutoModel.register(AlignVisionConfig, AlignVisionModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(AlignConfig, AlignModel, exist_ok=True)
