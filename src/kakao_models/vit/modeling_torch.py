"""ViT in PyTorch (Dosovitskiy et al. 2020): transformers' model, and what Kakao Brain's original has beside it.

That is the pre-logits representation, linear resizing of the position embeddings, the loss of multi-label pretraining and
the head that starts at zero.

Axes: B batch  L tokens  D width  N heads  K width per head  R width of the pre-logits  H, W rows, columns of patches
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    initialization as init,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit import modeling_vit as base
from transformers.utils.generic import can_return_tuple

from kakao_models.checkpoint.checks import check_images
from kakao_models.checkpoint.classification_torch import ImageClassifier
from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.hub import MissingFile, hub_arguments
from kakao_models.checkpoint.torch import BijectiveLoading, activation, wide_dtype
from kakao_models.vit.config import ViTConfig


def resize_position_embeddings(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """A position table (1, 1 + H*W, D) for another grid of patches (H', W'): (1, 1 + H'*W', D).

    Linear interpolation with the grids' corners aligned, as `scipy.ndimage.zoom(order=1)` of the original; the position of
    the class token stays. Computed in at least float32.
    """
    if old == new:
        return table
    width = table.shape[-1]
    patches = table[:, 1:].reshape(1, *old, width).permute(0, 3, 1, 2)  # (1, D, H, W)
    patches = patches.to(wide_dtype(table))
    patches = F.interpolate(patches, size=new, mode="bilinear", align_corners=True)  # (1, D, H', W')
    patches = patches.permute(0, 2, 3, 1).reshape(1, -1, width).to(table.dtype)
    return torch.cat((table[:, :1], patches), dim=1)


class ViTEmbeddings(base.ViTEmbeddings):
    def __init__(self, config: ViTConfig, use_mask_token: bool = False):
        super().__init__(config, use_mask_token)
        self.patch_size, self.image_size = as_pair(config.patch_size), as_pair(config.image_size)

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return resize_position_embeddings(
            self.position_embeddings, self.grid(*self.image_size), self.grid(height, width)
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size."""
        return height // self.patch_size[0], width // self.patch_size[1]

    @torch.no_grad()
    def set_image_size(self, image_size: int | list[int] | tuple[int, int]) -> None:
        old, new = self.grid(*self.image_size), self.grid(*as_pair(image_size))
        table = self.position_embeddings
        resized = resize_position_embeddings(table, old, new)
        self.position_embeddings = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.image_size = self.patch_embeddings.image_size = as_pair(image_size)
        self.patch_embeddings.num_patches = new[0] * new[1]


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
    """Attention that also returns its weights; the softmax runs in at least float32 (transformers': in float32)."""
    if attention_mask is not None and not isinstance(attention_mask, torch.Tensor):
        raise ValueError(
            "ViT: flex attention has no attention weights, and eager attention cannot use its block mask. For "
            "output_attentions call model.set_attn_implementation('eager') first."
        )
    scores = query @ key.transpose(2, 3) * scaling  # (B, N, L, L)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=wide_dtype(scores)).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value  # (B, N, L, K)
    return output.transpose(1, 2).contiguous(), weights


class ViTAttention(base.ViTAttention):
    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any):
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in projections)  # (B, N, L, K)
        # Only eager attention knows its weights.
        implementation = "eager" if kwargs.pop("output_attentions", None) else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        dropout = self.attention_dropout if self.training else 0.0
        x, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.o_proj(x.flatten(2)), weights  # (B, L, D), (B, N, L, L)


class ViTLayer(base.ViTLayer):
    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.attention = ViTAttention(config)


class _FollowFile:
    """Shape of the model that a file holds: the size of its position table, and whether it has a pooler.

    Stands between `BijectiveLoading` and transformers, so the check comes after it.
    """

    @classmethod
    def from_pretrained(cls, source, *model_args, config=None, image_size=None, **kwargs):
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            if source is not None:
                expected, config.image_size = config.image_size, cls._stored_image_size(source, config, kwargs)
                image_size = expected if image_size is None else image_size
        pooler_by_file = issubclass(cls, ViTModel) and not model_args and kwargs.get("add_pooling_layer") is None
        if pooler_by_file:
            kwargs["add_pooling_layer"] = True
        model, info = super().from_pretrained(source, *model_args, config=config, **kwargs)
        if pooler_by_file and not model.config.representation_size:
            absent = {name for name, _ in model.named_parameters() if name.startswith("pooler.")}
            if absent <= set(info["missing_keys"]):
                model.pooler = None
                info["missing_keys"] = set(info["missing_keys"]) - absent
        if image_size is not None and as_pair(image_size) != as_pair(model.config.image_size):
            model.set_image_size(image_size)
        return model, info

    @classmethod
    def _stored_image_size(cls, source, config: ViTConfig, kwargs: dict):
        try:
            return ViTConfig.from_pretrained(source, **hub_arguments(kwargs)).image_size
        except MissingFile:  # weights without a config.json
            return config.image_size


class ViTPreTrainedModel(BijectiveLoading, _FollowFile, base.ViTPreTrainedModel):
    """Loading, saving and initialisation of the ViTs.

    `from_pretrained(..., image_size=512)` resizes the position embeddings to another resolution, and so does
    `set_image_size` afterwards.
    """

    config: ViTConfig
    config_class = ViTConfig

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: modules are named and initialised as in transformers' own ViT, and so their names on disk are the same
        as well. (transformers maps `vit.layers.0.attention.q_proj` in memory to
        `vit.encoder.layer.0.attention.attention.query` on disk, but not for code that is not its own.)
        """
        return False

    def set_image_size(self, image_size: int | list[int] | tuple[int, int]) -> None:
        """Makes the model one for images of this size (height, width): resizes its position embeddings, a new parameter.

        Call it before building an optimizer. A single forward at another size needs only `interpolate_pos_encoding=True`.
        """
        self.config.image_size = self.base_model.config.image_size = image_size
        self.base_model.embeddings.set_image_size(image_size)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTForImageClassification) and isinstance(module.classifier, nn.Linear):
            # In the original code, the head starts at zero: every class has probability 1/2, or 1/classes.
            init.zeros_(module.classifier.weight)
            init.zeros_(module.classifier.bias)


class ViTModel(ViTPreTrainedModel, base.ViTModel):
    """The backbone. `pooler_output` (B, R) is the pre-logits representation, or None if there is none.

    Args:
        add_pooling_layer: whether there is a pooler, the Dense layer of the pre-logits. By default one exists if
            the configuration has a `representation_size`; `from_pretrained` also keeps one that is in the file, and never
            makes one up (transformers does: the released checkpoints have none). True insists on one, False on none.
    """

    tensors_elsewhere = (r"classifier\.", r"pooler\.")  # a pooler is only left over with add_pooling_layer=False

    def __init__(self, config: ViTConfig, add_pooling_layer: bool | None = None, use_mask_token: bool = False):
        config = self.config_class.from_config(config)
        PreTrainedModel.__init__(self, config)  # not transformers' ViTModel, which would build its own layers
        if add_pooling_layer is None:
            add_pooling_layer = config.representation_size is not None
        activation(config.hidden_act)  # transformers' layers would raise a KeyError
        if add_pooling_layer:
            activation(config.pooler_act, "pooler_act")
        self.embeddings = ViTEmbeddings(config, use_mask_token)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = base.ViTPooler(config) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,  # (B, 3, height, width) in [-1, 1]
        bool_masked_pos: torch.Tensor | None = None,  # (B, L - 1), True where the mask token stands for the patch
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,  # (B, L)
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        check_images(self, pixel_values)  # transformers would take bytes for numbers in [-1, 1]
        return super().forward(pixel_values, bool_masked_pos, interpolate_pos_encoding, attention_mask, **kwargs)


class ViTForImageClassification(ImageClassifier, ViTPreTrainedModel, base.ViTForImageClassification):
    """The backbone and a linear head, on the pre-logits representation where there is one and else on the class token.

    The head may be replaced in fine-tuning: `from_pretrained(path, num_labels=10, ignore_mismatched_sizes=True)` starts
    a new classifier, and with `representation_size=None` drops the representation in front of it.
    """

    tensors_replaceable = (r"classifier\.", r"(vit\.)?pooler\.")

    def __init__(self, config: ViTConfig):
        config = self.config_class.from_config(config)
        PreTrainedModel.__init__(self, config)  # not transformers' class, which has no pre-logits
        self.num_labels = config.num_labels
        self.vit = ViTModel(config)
        width = config.representation_size or config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,  # (B, 3, height, width) in [-1, 1]
        labels: torch.Tensor | None = None,  # (B,) class numbers, or (B, classes) for several labels an image
        interpolate_pos_encoding: bool | None = None,
        attention_mask: torch.Tensor | None = None,  # (B, L)
        **kwargs: Any,
    ) -> tuple | ImageClassifierOutput:
        outputs = self.vit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, attention_mask=attention_mask, **kwargs
        )
        pooled = outputs.last_hidden_state[:, 0] if self.vit.pooler is None else outputs.pooler_output  # (B, D or R)
        logits = self.classifier(pooled)  # (B, classes)
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoModel.register(ViTConfig, ViTModel, exist_ok=True)
AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification, exist_ok=True)
