"""ViT in Flax NNX (Dosovitskiy et al. 2020), with the semantics of Kakao Brain's original code: the same as
modeling_torch.py.

`pixel_values` are (B, C, height, width), as in PyTorch; inside, channels come last.

Axes: B batch  L tokens  D width  N heads  K width per head  R width of the pre-logits  H, W rows, columns of patches
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kakao_models.checkpoint.checks import check_images
from kakao_models.checkpoint.classification_flax import FlaxImageClassifier, FlaxImageClassifierOutput
from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.flax import (
    FlaxBaseModelOutputWithPooling,
    FlaxLoading,
    LayerNorm,
    activation,
    compute_dtype,
    run_layer,
    wide_dtype,
)
from kakao_models.checkpoint.weightmap import Slot
from kakao_models.vit.config import ViTConfig
from kakao_models.vit.pretrained import ViTLoading
from kakao_models.vit.weights import vit_slots


def resize_position_embeddings(table: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """A position table (1, 1 + H*W, D) for another grid of patches (H', W'): (1, 1 + H'*W', D).

    Linear interpolation with the grids' corners aligned, as `scipy.ndimage.zoom(order=1)` of the original; the position of
    the class token stays. Computed in at least float32.
    """
    if old == new:
        return table
    width = table.shape[-1]
    patches = table[:, 1:].reshape(*old, width).astype(wide_dtype(table))  # (H, W, D)
    rows, columns = (jnp.asarray(_linear_weights(*sizes), patches.dtype) for sizes in zip(old, new))
    patches = jnp.einsum("yh,xw,hwd->yxd", rows, columns, patches, precision=jax.lax.Precision.HIGHEST)  # (H', W', D)
    patches = patches.reshape(1, -1, width).astype(table.dtype)
    return jnp.concatenate((table[:, :1], patches), axis=1)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """(new, old): row i holds the shares of the two old places nearest to new place i."""
    places = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))


def _linear(config: ViTConfig, width: int, features: int, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    normal = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(width, features, use_bias=bias, kernel_init=normal, rngs=rngs)


class FlaxViTPatchEmbeddings(nnx.Module):
    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.num_channels = config.num_channels
        patch_size = as_pair(config.patch_size)
        self.projection = nnx.Conv(
            config.num_channels, config.hidden_size, patch_size, strides=patch_size, padding="VALID",
            kernel_init=nnx.initializers.normal(config.initializer_range), rngs=rngs,
        )  # fmt: skip

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        x = self.projection(pixel_values)  # (B, H, W, D)
        return x.reshape(x.shape[0], -1, x.shape[-1])  # (B, H*W, D)


class FlaxViTEmbeddings(nnx.Module):
    def __init__(self, config: ViTConfig, use_mask_token: bool = False, *, rngs: nnx.Rngs):
        width = config.hidden_size
        normal = nnx.initializers.truncated_normal(config.initializer_range)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.mask_token = nnx.Param(jnp.zeros((1, 1, width))) if use_mask_token else None
        self.patch_embeddings = FlaxViTPatchEmbeddings(config, rngs=rngs)
        self.patch_size, self.image_size = as_pair(config.patch_size), as_pair(config.image_size)
        rows, columns = self.grid(*self.image_size)
        self.position_embeddings = nnx.Param(normal(rngs.params(), (1, 1 + rows * columns, width)))
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, rngs=rngs)

    def interpolate_pos_encoding(self, height: int, width: int) -> jax.Array:
        return resize_position_embeddings(
            self.position_embeddings[...], self.grid(*self.image_size), self.grid(height, width)
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def set_image_size(self, image_size: int | list[int] | tuple[int, int]) -> None:
        self.position_embeddings = nnx.Param(self.interpolate_pos_encoding(*as_pair(image_size)))
        self.image_size = as_pair(image_size)

    def __call__(
        self, pixel_values: jax.Array, bool_masked_pos: jax.Array, interpolate_pos_encoding: bool | None
    ) -> jax.Array:
        _, height, width, _ = pixel_values.shape
        x = self.patch_embeddings(pixel_values)  # (B, H*W, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "FlaxViTModel: bool_masked_pos needs a mask token. Create the model with use_mask_token=True"
                )
            x = jnp.where(jnp.asarray(bool_masked_pos, bool)[..., None], self.mask_token[...].astype(x.dtype), x)
        first = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate((first.astype(x.dtype), x), axis=1)  # (B, L, D)
        if not interpolate_pos_encoding and (height, width) != self.image_size:
            raise ValueError(
                f"FlaxViTModel: got images of {height}*{width}, expected {self.image_size[0]}*{self.image_size[1]}. "
                "Give interpolate_pos_encoding=True, or call set_image_size once"
            )
        return self.dropout(x + self.interpolate_pos_encoding(height, width).astype(x.dtype))


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


class FlaxViTAttention(nnx.Module):
    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        self.scaling = self.head_dim**-0.5
        width = config.num_attention_heads * self.head_dim
        self.q_proj = _linear(config, config.hidden_size, width, rngs, config.qkv_bias)
        self.k_proj = _linear(config, config.hidden_size, width, rngs, config.qkv_bias)
        self.v_proj = _linear(config, config.hidden_size, width, rngs, config.qkv_bias)
        self.o_proj = _linear(config, width, config.hidden_size, rngs)
        self.dropout = nnx.Dropout(config.attention_probs_dropout_prob, rngs=rngs)

    def __call__(self, x: jax.Array, attention_mask: jax.Array):
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (p(x).reshape(heads) for p in (self.q_proj, self.k_proj, self.v_proj))  # (B, L, N, K)
        attended, weights = eager_attention(q, k, v, attention_mask, self.scaling, self.dropout)
        return self.o_proj(attended.reshape(*x.shape[:2], -1)), weights  # (B, L, D), (B, N, L, L)


class FlaxViTMLP(nnx.Module):
    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.activation_fn = activation(config.hidden_act)
        self.fc1 = _linear(config, config.hidden_size, config.intermediate_size, rngs)
        self.fc2 = _linear(config, config.intermediate_size, config.hidden_size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation_fn(self.fc1(x)))


class FlaxViTLayer(nnx.Module):
    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.attention = FlaxViTAttention(config, rngs=rngs)
        self.layernorm_before = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.layernorm_after = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.mlp = FlaxViTMLP(config, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, x: jax.Array, attention_mask: jax.Array):
        attended, weights = self.attention(self.layernorm_before(x), attention_mask)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.layernorm_after(x))), weights


class FlaxViTPooler(nnx.Module):
    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.dense = _linear(config, config.hidden_size, config.pooler_output_size, rngs)
        self.activation = activation(config.pooler_act, "pooler_act")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.dense(x[:, 0]))  # (B, R)


class FlaxViTPreTrainedModel(ViTLoading, FlaxLoading):
    """Loading and saving of the ViTs.

    `from_pretrained(..., image_size=512)` resizes the position embeddings to another resolution, and so does
    `set_image_size` afterwards.
    """

    # What a mesh axis may split: these layers by their output channels, or the kernels of these by their input channels.
    tensor_parallel_columns = (r".*\.[qkv]_proj", r".*\.fc1")
    tensor_parallel_rows = (r".*\.o_proj", r".*\.fc2")

    def backbone(self) -> "FlaxViTModel":
        return self if self.is_base else self.vit

    def set_image_size(self, image_size: int | list[int] | tuple[int, int]) -> None:
        """Makes the model one for images of this size (height, width): resizes its position embeddings, a new parameter.

        Call it before building an optimizer. A single call at another size needs only `interpolate_pos_encoding=True`.
        """
        self.backbone().embeddings.set_image_size(image_size)
        self.config.image_size = self.backbone().config.image_size = image_size

    def _slots(self) -> list[Slot]:
        base = self.backbone()
        return vit_slots(
            self.config, "nnx", head=base is not self, pooler=base.pooler is not None,
            mask_token=base.embeddings.mask_token is not None,
        )  # fmt: skip


class FlaxViTModel(FlaxViTPreTrainedModel):
    """The backbone. `pooler_output` (B, R) is the pre-logits representation, or None if there is none.

    Args:
        add_pooling_layer: whether there is a pooler, the Dense layer of the pre-logits. By default one exists if
            the configuration has a `representation_size`; `from_pretrained` also keeps one that is in the file, and never
            makes one up. True insists on one, False on none.
    """

    is_base = True
    tensors_elsewhere = (r"classifier\.", r"vit\.pooler\.")  # a pooler is only left over with add_pooling_layer=False

    def __init__(
        self,
        config: ViTConfig,
        add_pooling_layer: bool | None = None,
        use_mask_token: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        config = self.config_class.from_config(config)
        super().__init__(config)
        if add_pooling_layer is None:
            add_pooling_layer = config.representation_size is not None
        self.embeddings = FlaxViTEmbeddings(config, use_mask_token, rngs=rngs)
        self.layer = nnx.List(FlaxViTLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers))
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.pooler = FlaxViTPooler(config, rngs=rngs) if add_pooling_layer else None
        self.gradient_checkpointing = False

    def __call__(
        self,
        pixel_values: jax.Array | None = None,  # (B, 3, height, width) in [-1, 1]
        bool_masked_pos: jax.Array | None = None,  # (B, L - 1), True where the mask token stands for the patch
        interpolate_pos_encoding: bool | None = None,
        attention_mask: jax.Array | None = None,  # (B, L)
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | FlaxBaseModelOutputWithPooling:
        check_images(self, pixel_values)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        dtype = compute_dtype(self.embeddings.patch_embeddings.projection)
        pixel_values = jnp.asarray(pixel_values, dtype).transpose(0, 2, 3, 1)  # (B, height, width, 3)
        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)  # (B, L, D)
        mask = None if attention_mask is None else jnp.asarray(attention_mask)[:, None, None] != 0  # (B, 1, 1, L)
        states, attentions = (x,), ()
        for layer in self.layer:
            x, weights = run_layer(self, layer, x, mask)
            states = (*states, x) if output_hidden_states else None
            attentions = (*attentions, weights) if output_attentions else None
        x = self.layernorm(x)
        output = FlaxBaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.pooler is not None else None,
            hidden_states=states,
            attentions=attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class FlaxViTForImageClassification(FlaxImageClassifier, FlaxViTPreTrainedModel):
    """The backbone and a linear head, on the pre-logits representation where there is one and else on the class token.

    The head may be replaced in fine-tuning: `from_pretrained(path, num_labels=10, ignore_mismatched_sizes=True)` starts
    a new classifier, and with `representation_size=None` drops the representation in front of it.
    """

    tensors_replaceable = (r"classifier\.", r"vit\.pooler\.")

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = FlaxViTModel(config, rngs=rngs)
        width = config.representation_size or config.hidden_size
        # In the original code, the head starts at zero: every class has probability 1/2, or 1/classes.
        head = partial(nnx.Linear, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.classifier = head(config.num_labels) if config.num_labels > 0 else None

    def __call__(
        self,
        pixel_values: jax.Array | None = None,  # (B, 3, height, width) in [-1, 1]
        labels: jax.Array | None = None,  # (B,) class numbers, or (B, classes) for several labels an image
        interpolate_pos_encoding: bool | None = None,
        attention_mask: jax.Array | None = None,  # (B, L)
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple | FlaxImageClassifierOutput:
        outputs = self.vit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, attention_mask=attention_mask,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
        )  # fmt: skip
        pooled = outputs.last_hidden_state[:, 0] if self.vit.pooler is None else outputs.pooler_output  # (B, D or R)
        logits = pooled if self.classifier is None else self.classifier(pooled)  # (B, classes)
        output = FlaxImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, jnp.asarray(labels)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()
