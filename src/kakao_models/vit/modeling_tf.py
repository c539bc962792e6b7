"""ViT in Keras 3 (Dosovitskiy et al. 2020), with the semantics of Kakao Brain's original code: the same as
modeling_torch.py.

Axes: B batch  L tokens  D width  N heads  K width per head  R width of the pre-logits  H, W rows, columns of patches
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kakao_models.checkpoint.checks import check_images
from kakao_models.checkpoint.classification_tf import TFImageClassifier, TFImageClassifierOutput
from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.keras import (
    Layer,
    Tensor,
    TFBaseModelOutputWithPooling,
    TFPreTrainedModel,
    activation,
    at_least_float32,
    convolution,
    dense,
    image_signatures,
    layer_norm,
)
from kakao_models.vit.config import ViTConfig
from kakao_models.vit.pretrained import ViTLoading
from kakao_models.vit.weights import vit_slots


def resize_position_embeddings(table: Tensor, old: tuple[int, int], new: tuple[int, int]):
    """A position table (1, 1 + H*W, D) for another grid of patches (H', W'): (1, 1 + H'*W', D).

    Linear interpolation with the grids' corners aligned, as `scipy.ndimage.zoom(order=1)` of the original; the position of
    the class token stays. Computed in at least float32.
    """
    if old == new:
        return table
    patches = at_least_float32(ops.reshape(table[:, 1:], (*old, table.shape[-1])))  # (H, W, D)
    rows, columns = (_interpolation(*sizes, patches.dtype) for sizes in zip(old, new))
    patches = ops.einsum("ah,bw,hwd->abd", rows, columns, patches)  # (H', W', D)
    patches = ops.cast(ops.reshape(patches, (1, -1, table.shape[-1])), table.dtype)
    return ops.concatenate((table[:, :1], patches), axis=1)


def _interpolation(old: int, new: int, dtype):
    """The (new, old) matrix of linear interpolation between `old` places with the first and the last kept."""
    places = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    return ops.cast(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old))), dtype)


class TFViTPatchEmbeddings(Layer):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch_size, self.num_channels = as_pair(config.patch_size), config.num_channels
        start = keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        self.projection = convolution(
            config.num_channels, config.hidden_size, self.patch_size, self.patch_size, start=start
        )

    def call(self, pixel_values: Tensor):
        x = self.projection(ops.transpose(pixel_values, (0, 2, 3, 1)))  # (B, H, W, D)
        return ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))  # (B, H*W, D)


class TFViTEmbeddings(Layer):
    def __init__(self, config: ViTConfig, use_mask_token: bool = False):
        super().__init__()
        self.patch_size, self.image_size = as_pair(config.patch_size), as_pair(config.image_size)
        self.start = keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        self.cls_token = self.add_weight((1, 1, config.hidden_size), self.start, name="cls_token")
        self.mask_token = None
        if use_mask_token:
            self.mask_token = self.add_weight((1, 1, config.hidden_size), "zeros", name="mask_token")
        self.patch_embeddings = TFViTPatchEmbeddings(config)
        self.position_embeddings = self._positions(self.grid(*self.image_size), config.hidden_size)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def _positions(self, grid: tuple[int, int], width: int) -> keras.Variable:
        return self.add_weight((1, 1 + grid[0] * grid[1], width), self.start, name="position_embeddings")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def set_image_size(self, image_size: int | list[int] | tuple[int, int]) -> None:
        old, new = self.grid(*self.image_size), self.grid(*as_pair(image_size))
        table = ops.convert_to_tensor(self.position_embeddings)
        resized = ops.convert_to_numpy(resize_position_embeddings(table, old, new))
        trainable = self.position_embeddings.trainable
        del self.position_embeddings
        self.position_embeddings = self._positions(new, table.shape[-1])
        self.position_embeddings.assign(resized)
        self.position_embeddings.trainable = trainable
        self.image_size = as_pair(image_size)

    def call(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, interpolate_pos_encoding: bool | None = None
    ):
        height, width = pixel_values.shape[2:]
        x = self.patch_embeddings(pixel_values)  # (B, H*W, D)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "TFViTModel: bool_masked_pos needs a mask token. Create the model with use_mask_token=True"
                )
            x = ops.where(ops.cast(bool_masked_pos, "bool")[:, :, None], ops.cast(self.mask_token, x.dtype), x)
        first = ops.broadcast_to(self.cls_token, (ops.shape(x)[0], 1, x.shape[-1]))
        x = ops.concatenate((ops.cast(first, x.dtype), x), axis=1)  # (B, L, D)
        positions = ops.convert_to_tensor(self.position_embeddings)
        if interpolate_pos_encoding:
            if height is None or width is None:
                raise ValueError(
                    "interpolate_pos_encoding needs a static height and width of pixel_values in a TensorFlow graph"
                )
            positions = resize_position_embeddings(positions, self.grid(*self.image_size), self.grid(height, width))
        elif (height or self.image_size[0], width or self.image_size[1]) != self.image_size:
            raise ValueError(
                f"TFViTModel: got images of {height}*{width}, expected {self.image_size[0]}*{self.image_size[1]}. "
                "Give interpolate_pos_encoding=True, or call set_image_size once"
            )
        return self.dropout(x + ops.cast(positions, x.dtype))


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


class TFViTAttention(Layer):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        width, std = self.num_attention_heads * self.head_dim, config.initializer_range
        self.q_proj = dense(config.hidden_size, width, std, bias=config.qkv_bias)
        self.k_proj = dense(config.hidden_size, width, std, bias=config.qkv_bias)
        self.v_proj = dense(config.hidden_size, width, std, bias=config.qkv_bias)
        self.o_proj = dense(width, config.hidden_size, std)
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob)

    def call(self, hidden_states: Tensor, attention_mask: Tensor | None = None):
        shape = (*ops.shape(hidden_states)[:2], self.num_attention_heads, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (ops.reshape(p(hidden_states), shape) for p in projections)  # (B, L, N, K)
        x, weights = eager_attention(q, k, v, attention_mask, self.dropout)
        return self.o_proj(x), weights  # (B, L, D), (B, N, L, L)


class TFViTMLP(Layer):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = dense(config.hidden_size, config.intermediate_size, config.initializer_range)
        self.fc2 = dense(config.intermediate_size, config.hidden_size, config.initializer_range)
        self.activation_fn = activation(config.hidden_act)

    def call(self, x: Tensor):
        return self.fc2(self.activation_fn(self.fc1(x)))


class TFViTLayer(Layer):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.attention = TFViTAttention(config)
        self.layernorm_before = layer_norm(config.hidden_size, config.layer_norm_eps)
        self.layernorm_after = layer_norm(config.hidden_size, config.layer_norm_eps)
        self.mlp = TFViTMLP(config)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, x: Tensor, attention_mask: Tensor | None = None):
        y, weights = self.attention(self.layernorm_before(x), attention_mask)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.layernorm_after(x))), weights


class TFViTPooler(Layer):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.dense = dense(config.hidden_size, config.pooler_output_size, config.initializer_range)
        self.activation = activation(config.pooler_act, "pooler_act")

    def call(self, x: Tensor):
        return self.activation(self.dense(x[:, 0]))  # (B, R)


class TFViTPreTrainedModel(ViTLoading, TFPreTrainedModel):
    """Loading, saving and initialisation of the ViTs.

    `from_pretrained(..., image_size=512)` resizes the position embeddings to another resolution, and so does
    `set_image_size` afterwards.
    """

    def backbone(self) -> "TFViTModel":
        return self if self.is_base else self.vit

    def set_image_size(self, image_size: int | list[int] | tuple[int, int]) -> None:
        """Makes the model one for images of this size (height, width): resizes its position embeddings, a new variable.

        Call it before `compile`. A single call at another size needs only `interpolate_pos_encoding=True`.
        """
        self.backbone().embeddings.set_image_size(image_size)
        self.config.image_size = self.backbone().config.image_size = image_size

    def _slots(self):
        base = self.backbone()
        return vit_slots(
            self.config, "keras", head=base is not self, pooler=base.pooler is not None,
            mask_token=base.embeddings.mask_token is not None,
        )  # fmt: skip

    def signatures(self) -> dict[str, tuple]:
        return image_signatures(self)


class TFViTModel(TFViTPreTrainedModel):
    """The backbone. `pooler_output` (B, R) is the pre-logits representation, or None if there is none.

    Args:
        add_pooling_layer: whether there is a pooler, the Dense layer of the pre-logits. By default one exists if
            the configuration has a `representation_size`; `from_pretrained` also keeps one that is in the file, and never
            makes one up. True insists on one, False on none.
    """

    is_base = True
    tensors_elsewhere = (r"classifier\.", r"vit\.pooler\.")  # a pooler is only left over with add_pooling_layer=False

    def __init__(self, config: ViTConfig, add_pooling_layer: bool | None = None, use_mask_token: bool = False):
        config = self.config_class.from_config(config)
        super().__init__(config)
        if add_pooling_layer is None:
            add_pooling_layer = config.representation_size is not None
        self.embeddings = TFViTEmbeddings(config, use_mask_token)
        self.layer = [TFViTLayer(config) for _ in range(config.num_hidden_layers)]
        self.layernorm = layer_norm(config.hidden_size, config.layer_norm_eps)
        self.pooler = TFViTPooler(config) if add_pooling_layer else None

    def options(self) -> dict:
        mask_token = self.embeddings.mask_token is not None
        return {"add_pooling_layer": self.pooler is not None, "use_mask_token": mask_token}

    def call(
        self,
        pixel_values: Tensor | None = None,  # (B, 3, height, width) in [-1, 1]
        bool_masked_pos: Tensor | None = None,  # (B, H*W), true for patches to hide, of a model with use_mask_token
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,  # (B, L)
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,  # which `fit` gives only to a call that names it
    ) -> tuple | TFBaseModelOutputWithPooling:
        check_images(self, pixel_values)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        x = self.embeddings(
            pixel_values, bool_masked_pos, interpolate_pos_encoding=interpolate_pos_encoding, training=training
        )
        mask = None if attention_mask is None else ops.expand_dims(attention_mask, (1, 2)) != 0  # (B, 1, 1, L)
        states, attentions = (x,), ()
        for layer in self.layer:
            x, weights = layer(x, mask, training=training)  # (B, L, D), (B, N, L, L)
            states = (*states, x) if output_hidden_states else None
            attentions = (*attentions, weights) if output_attentions else None
        x = self.layernorm(x)
        output = TFBaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.pooler is not None else None,
            hidden_states=states,
            attentions=attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()


class TFViTForImageClassification(TFImageClassifier, TFViTPreTrainedModel):
    """The backbone and a linear head, on the pre-logits representation where there is one and else on the class token.

    The head may be replaced in fine-tuning: `from_pretrained(path, num_labels=10, ignore_mismatched_sizes=True)` starts
    a new classifier, and with `representation_size=None` drops the representation in front of it. `fit` trains as
    `TFImageClassifier` says.
    """

    tensors_replaceable = (r"classifier\.", r"vit\.pooler\.")

    def __init__(self, config: ViTConfig):
        config = self.config_class.from_config(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = TFViTModel(config)
        width = config.representation_size or config.hidden_size
        # in the original code, the head starts at zero: every class has probability 1/2, or 1/classes
        self.classifier = dense(width, config.num_labels, std=0.0) if config.num_labels > 0 else None

    def call(
        self,
        pixel_values: Tensor | None = None,  # (B, 3, height, width) in [-1, 1]
        labels: Tensor | None = None,  # (B,) class numbers, or (B, classes) for several labels an image
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,  # (B, L)
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,  # which `fit` gives only to a call that names it
    ) -> tuple | TFImageClassifierOutput:
        outputs = self.vit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, attention_mask=attention_mask,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            training=training,
        )  # fmt: skip
        pooled = outputs.last_hidden_state[:, 0] if self.vit.pooler is None else outputs.pooler_output  # (B, D or R)
        logits = pooled if self.classifier is None else self.classifier(pooled)  # (B, classes)
        output = TFImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()
