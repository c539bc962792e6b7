"""The models as they run fastest in PyTorch at inference: the same numbers, of fewer and larger operations.

Built from the tensors of `model.safetensors` alone (`tensors_of` gives those of a model object), without transformers'
model classes, and made of plain operations, so that `torch.export`, OpenVINO and ONNX take them as they are:

- batch normalisation is folded into the convolutions in front of it;
- query, key and value of an attention are one product; the last layer computes its first token only, the one that is read;
- segment and position embeddings are one table; the poolers that nothing reads are gone;
- `uint8` pixels are taken too, if the processor's arithmetic is known: its scale is folded into the first convolution.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  N heads  K width per head  P projection
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from kakao_models.align.blocks import block_specs, round_filters

Pixels = tuple[torch.Tensor, torch.Tensor]  # scale, zero, (C,) each: a byte u stands for (u - zero) * scale

_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def _activation(name: str):
    if name not in _ACTIVATIONS:
        raise ValueError(f"hidden_act {name!r} has no fused form; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


class Weights:
    """Tensors by their keys in model.safetensors: each is checked for its shape, and which ones were used is known.

    Args:
        dtype: what they become; by default they stay what they are.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None):
        self._tensors, self._dtype, self._used = tensors, dtype, set()

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def __call__(self, key: str, *shape: int) -> torch.Tensor:
        if key not in self._tensors:
            raise ValueError(f"missing {key}")
        tensor = self._tensors[key]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{key}: the file has {tuple(tensor.shape)}, the model wants {shape}")
        self._used.add(key)
        return tensor if self._dtype is None else tensor.to(self._dtype)

    def unused(self) -> set[str]:
        return self._tensors.keys() - self._used


def _constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


class Convolution(nn.Module):
    """A convolution with the batch normalisation behind it folded in, padded by `low` and `high` pixels on both axes."""

    def __init__(self, weight, bias, *, stride: int = 1, pad: tuple[int, int] = (0, 0), activation: str | None = None):
        super().__init__()
        self.weight, self.bias = _constant(weight), _constant(bias)
        self.stride, self.pad, self.activation = stride, pad, activation
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1

    @classmethod
    def folded(cls, weights: Weights, conv: str, norm: str, shape: tuple, eps: float, **options) -> "Convolution":
        weight = weights(conv + ".weight", *shape)
        mean, variance, gamma, beta = (
            weights(f"{norm}.{leaf}", shape[0]).double() for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gamma / (variance + eps).sqrt()
        return cls(
            weight * scale[:, None, None, None].to(weight.dtype), (beta - mean * scale).to(weight.dtype), **options
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.pad
        if low != high:
            x = F.pad(x, (low, high, low, high))
        x = F.conv2d(x, self.weight, self.bias, self.stride, low if low == high else 0, groups=self.groups)
        return x if self.activation is None else _activate(x, self.activation)


def _activate(x: torch.Tensor, name: str) -> torch.Tensor:
    return F.silu(x, inplace=True) if name in ("silu", "swish") else _activation(name)(x)


class SqueezeExcite(nn.Module):
    """Scales channels by what two small products make of their means; in place."""

    def __init__(self, weights: Weights, name: str, channels: int, inner: int, activation: str):
        super().__init__()
        self.reduce = Linear(weights, f"{name}.reduce", inner=channels, outer=inner, kernel=(1, 1))
        self.expand = Linear(weights, f"{name}.expand", inner=inner, outer=channels, kernel=(1, 1))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.expand(_activate(self.reduce(x.mean((2, 3))), self.activation)).sigmoid()  # (B, C)
        return x.mul_(scale[:, :, None, None])


class Linear(nn.Module):
    """A product and a bias; of several names, their results side by side.

    Args:
        inner, outer: width of the input, and of one result.
        kernel: of a convolution that is a product in truth.
        bias: whether there is one.
    """

    def __init__(
        self, weights: Weights, *names: str, inner: int, outer: int, kernel: tuple[int, ...] = (), bias: bool = True
    ):
        super().__init__()
        matrices = [weights(name + ".weight", outer, inner, *kernel).flatten(1) for name in names]
        self.weight = _constant(torch.cat(matrices) if len(matrices) > 1 else matrices[0])
        biases = [weights(name + ".bias", outer) for name in names if bias]
        self.bias = _constant(torch.cat(biases) if len(biases) > 1 else biases[0]) if biases else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, weights: Weights, name: str, width: int, eps: float):
        super().__init__()
        self.weight, self.bias = (_constant(weights(f"{name}.{leaf}", width)) for leaf in ("weight", "bias"))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """An inverted-residual block of EfficientNet."""

    def __init__(self, weights: Weights, name: str, spec, activation: str, eps: float):
        super().__init__()
        width, kernel = spec.expanded_channels, spec.kernel_size

        def folded(layer: str, conv: str, norm: str, *shape: int, **options) -> Convolution:
            return Convolution.folded(
                weights, f"{name}.{layer}.{conv}", f"{name}.{layer}.{norm}", shape, eps, **options
            )

        self.expand = None
        if spec.expand_ratio != 1:
            shape = width, spec.in_channels, 1, 1
            self.expand = folded("expansion", "expand_conv", "expand_bn", *shape, activation=activation)
        high = kernel // 2
        low = high - 1 if spec.stride == 2 and not spec.symmetric_padding else high
        options = dict(stride=spec.stride, pad=(low, high), activation=activation)
        shape = width, 1, kernel, kernel
        self.depthwise = folded("depthwise_conv", "depthwise_conv", "depthwise_norm", *shape, **options)
        self.squeeze_excite = SqueezeExcite(weights, f"{name}.squeeze_excite", width, spec.se_channels, activation)
        self.project = folded("projection", "project_conv", "project_bn", spec.out_channels, width, 1, 1)
        self.skip = spec.skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.squeeze_excite(self.depthwise(y)))
        return y.add_(x) if self.skip else y


class AlignImageTower(nn.Module):
    """ALIGN's image tower and projection: pixels (B, C, H, W) → features (B, P), not normalised.

    Args:
        config: `AlignVisionConfig`.
        weights: of a whole ALIGN.
        projection: width of the projection behind it; None where there is none.
        pixels: what `uint8` input stands for; without it only floating-point input, as the processor gives it, is taken.
    """

    def __init__(self, config, weights: Weights, projection: int | None, pixels: Pixels | None = None):
        super().__init__()
        self.channels, self.pooling = config.num_channels, config.pooling_type
        eps, activation = config.batch_norm_eps, config.hidden_act
        _activation(activation)
        name = "vision_model.embeddings."
        specs = block_specs(config)
        shape, options = (round_filters(config, 32), self.channels, 3, 3), dict(stride=2, pad=(0, 1))
        self.stem = Convolution.folded(
            weights, name + "convolution", name + "batchnorm", shape, eps, activation=activation, **options
        )
        self.byte_stem = None if pixels is None else ByteStem(self.stem, *pixels)
        self.blocks = nn.ModuleList(
            Block(weights, f"vision_model.encoder.blocks.{index}", spec, activation, eps)
            for index, spec in enumerate(specs)
        )
        width = round_filters(config, config.out_channels[-1])
        self.projection = None
        if projection is not None:
            self.projection = Linear(weights, "visual_projection", inner=width, outer=projection)

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last block's map (B, C', H', W')."""
        _check_pixels(pixel_values, self.channels)
        x = self.byte_stem(pixel_values) if pixel_values.dtype == torch.uint8 else self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.hidden(pixel_values)
        x = x.mean((2, 3)) if self.pooling == "mean" else x.amax((2, 3))
        return x if self.projection is None else self.projection(x)


class ByteStem(nn.Module):
    """A first convolution of bytes: their zero is subtracted, so that padding stays 0, and their scale is in the weights."""

    def __init__(self, stem: Convolution, scale: torch.Tensor, zero: torch.Tensor):
        super().__init__()
        weight = stem.weight
        self.convolution = Convolution(
            (weight.double() * scale.double()[None, :, None, None]).to(weight.dtype),
            stem.bias,
            stride=stem.stride,
            pad=stem.pad,
            activation=stem.activation,
        )
        self.zero = _constant(zero.to(weight.dtype)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x.to(self.zero.dtype) - self.zero)


def _check_pixels(pixels: torch.Tensor, channels: int, size: tuple[int, int] | None = None) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != channels or (size and pixels.shape[2:] != size):
        wanted = f"(batch, {channels}, {', '.join(map(str, size or ('height', 'width')))})"
        raise ValueError(f"pixel_values must be {wanted}, got {tuple(pixels.shape)}")


class Attention(nn.Module):
    """Self-attention. With `first`, of the first token only: (B, 1, D)."""

    def __init__(
        self,
        weights: Weights,
        projections: tuple[str, str, str],
        output: str,
        width: int,
        heads: int,
        bias: bool = True,
    ):
        super().__init__()
        self.project = Linear(weights, *projections, inner=width, outer=width, bias=bias)
        self.output, self.heads = Linear(weights, output, inner=width, outer=width), heads

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, first: bool) -> torch.Tensor:
        width = x.shape[-1]
        if first:
            w, b = self.project.weight, self.project.bias
            q = F.linear(x[:, :1], w[:width], None if b is None else b[:width])
            k, v = F.linear(x, w[width:], None if b is None else b[width:]).chunk(2, -1)
        else:
            q, k, v = self.project(x).chunk(3, -1)
        heads = self.heads, width // self.heads
        q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in (q, k, v))  # (B, N, L, K)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(x.transpose(1, 2).flatten(2))


class TextLayer(nn.Module):
    """A layer of BERT: normalisation behind each sum."""

    def __init__(self, config, weights: Weights, name: str):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        projections = tuple(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
        output = f"{name}.attention.output."
        self.attention = Attention(weights, projections, output + "dense", width, config.num_attention_heads)
        self.attention_norm = LayerNorm(weights, output + "LayerNorm", width, eps)
        self.intermediate = Linear(weights, f"{name}.intermediate.dense", inner=width, outer=inner)
        self.output = Linear(weights, f"{name}.output.dense", inner=inner, outer=width)
        self.output_norm = LayerNorm(weights, f"{name}.output.LayerNorm", width, eps)
        self.activation = _activation(config.hidden_act)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, first: bool) -> torch.Tensor:
        attended = self.attention(x, mask, first)
        x = self.attention_norm((x[:, :1] if first else x) + attended)
        return self.output_norm(x + self.output(self.activation(self.intermediate(x))))


class AlignTextTower(nn.Module):
    """ALIGN's text tower and projection: token ids, mask (B, L) → features (B, P), not normalised.

    Args:
        config: `AlignTextConfig`.
        weights: of a whole ALIGN.
        projection: P.
    """

    def __init__(self, config, weights: Weights, projection: int):
        super().__init__()
        name, width = "text_model.embeddings.", config.hidden_size
        tables = {"word": config.vocab_size, "position": config.max_position_embeddings}
        tables["token_type"] = config.type_vocab_size
        words, positions, types = (weights(f"{name}{t}_embeddings.weight", rows, width) for t, rows in tables.items())
        self.words, self.positions = _constant(words), _constant(positions + types[0])
        self.norm = LayerNorm(weights, name + "LayerNorm", width, config.layer_norm_eps)
        self.layers = nn.ModuleList(
            TextLayer(config, weights, f"text_model.encoder.layer.{index}") for index in range(config.num_hidden_layers)
        )
        self.projection = Linear(weights, "text_projection", inner=width, outer=projection)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Without a mask, every token counts."""
        length = input_ids.shape[1]
        if length > self.positions.shape[0]:
            raise ValueError(f"texts have at most {self.positions.shape[0]} tokens, got {length}")
        x = self.norm(F.embedding(input_ids, self.words) + self.positions[:length])
        mask = None if attention_mask is None else (attention_mask != 0)[:, None, None]  # (B, 1, 1, L)
        for layer in self.layers[:-1]:
            x = layer(x, mask, False)
        return self.projection(self.layers[-1](x, mask, True)[:, 0])


class ViTLayer(nn.Module):
    """A layer of ViT: normalisation in front of each block."""

    def __init__(self, config, weights: Weights, name: str):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        projections = tuple(f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))
        output = f"{name}.attention.output.dense"
        heads, bias = config.num_attention_heads, config.qkv_bias
        self.attention = Attention(weights, projections, output, width, heads, bias)
        self.before, self.after = (
            LayerNorm(weights, f"{name}.layernorm_{at}", width, eps) for at in ("before", "after")
        )
        self.intermediate = Linear(weights, f"{name}.intermediate.dense", inner=width, outer=inner)
        self.output = Linear(weights, f"{name}.output.dense", inner=inner, outer=width)
        self.activation = _activation(config.hidden_act)

    def forward(self, x: torch.Tensor, first: bool) -> torch.Tensor:
        attended = self.attention(self.before(x), None, first)
        x = (x[:, :1] if first else x) + attended
        return x + self.output(self.activation(self.intermediate(self.after(x))))


class ViTTower(nn.Module):
    """ViT's backbone: pixels (B, C, H, W) → the pre-logits (B, R), or the final [CLS] (B, D) of a model without them.

    Args:
        config: `ViTConfig`.
        weights: keys begin with "vit."; a pooler is used if it is there.
        pixels: as of `AlignImageTower`.
    """

    def __init__(self, config, weights: Weights, pixels: Pixels | None = None):
        super().__init__()
        name, width = "vit.embeddings.", config.hidden_size
        size, patch = config.image_size, config.patch_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        self.channels = config.num_channels
        self.grid = self.size[0] // self.patch[0], self.size[1] // self.patch[1]
        of_patches = dict(inner=self.channels, outer=width, kernel=self.patch)
        self.patches = Linear(weights, name + "patch_embeddings.projection", **of_patches)
        self.byte_patches = None if pixels is None else _byte_patches(self.patches, *pixels)
        positions = weights(name + "position_embeddings", 1, 1 + self.grid[0] * self.grid[1], width)
        self.first_token = _constant(weights(name + "cls_token", 1, 1, width) + positions[:, :1])
        self.positions = _constant(positions[:, 1:])
        self.layers = nn.ModuleList(
            ViTLayer(config, weights, f"vit.encoder.layer.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = LayerNorm(weights, "vit.layernorm", width, config.layer_norm_eps)
        self.pooler = None
        if "vit.pooler.dense.weight" in weights:
            self.pooler = Linear(weights, "vit.pooler.dense", inner=width, outer=config.pooler_output_size or width)
            self.pooler_act = torch.tanh if config.pooler_act == "tanh" else _activation(config.pooler_act)

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        _check_pixels(pixels, self.channels, self.size)
        patches = self.byte_patches if pixels.dtype == torch.uint8 else self.patches
        (height, width), (rows, columns) = self.patch, self.grid
        x = pixels[:, :, : rows * height, : columns * width].to(patches.weight.dtype)
        x = (
            x.reshape(-1, self.channels, rows, height, columns, width)
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        x = patches(x) + self.positions  # (B, L - 1, D)
        return torch.cat([self.first_token.expand(x.shape[0], -1, -1), x], 1)  # (B, L, D)

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last hidden state (B, L, D)."""
        x = self._embedded(pixel_values)
        for layer in self.layers:
            x = layer(x, False)
        return self.norm(x)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self._embedded(pixel_values)
        for layer in self.layers[:-1]:
            x = layer(x, False)
        x = self.norm(self.layers[-1](x, True)[:, 0])
        return x if self.pooler is None else self.pooler_act(self.pooler(x))


def _byte_patches(patches: Linear, scale: torch.Tensor, zero: torch.Tensor) -> Linear:
    """Of patches nothing is padded, so that scale and zero go into weights and bias whole."""
    by_channel = (len(scale), -1)
    scaled = patches.weight.double().unflatten(1, by_channel) * scale.double()[None, :, None]
    shift = (scaled * zero.double()[None, :, None]).sum((1, 2))
    bias = -shift if patches.bias is None else patches.bias.double() - shift
    tensors = {"bytes.weight": scaled.flatten(1), "bytes.bias": bias}
    outer, inner = patches.weight.shape
    return Linear(Weights(tensors, patches.weight.dtype), "bytes", inner=inner, outer=outer)


class Classifier(nn.Module):
    """A tower and the classifier behind it: pixels (B, C, H, W) → logits (B, classes)."""

    def __init__(self, tower: nn.Module, weights: Weights, classes: int):
        super().__init__()
        width = (tower.pooler or tower.layers[-1].output).weight.shape[0]
        self.tower, self.head = tower, Linear(weights, "classifier", inner=width, outer=classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(pixel_values))


# What a checkpoint holds and nothing here reads: BERT's pooler, the temperature, tables and counters of training
_UNREAD = (
    *("text_model.pooler.dense.weight", "text_model.pooler.dense.bias", "temperature", "num_batches_tracked"),
    *("embeddings.position_ids", "embeddings.token_type_ids", "vit.embeddings.mask_token"),
)
_VIT_ON_DISK = {  # in a model of transformers 5 → in its model.safetensors
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of an `AlignModel`, a `ViTModel` or a `ViTForImageClassification`, by their keys in
    model.safetensors."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.model_type != "vit":
        return tensors
    for ours, on_disk in _VIT_ON_DISK.items():
        tensors = {name.replace(ours, on_disk): tensor for name, tensor in tensors.items()}
    prefix = "" if any(name.startswith("vit.") for name in tensors) else "vit."
    return {prefix + name: tensor for name, tensor in tensors.items()}


def towers(
    config, tensors: Mapping[str, torch.Tensor], pixels: Pixels | None = None, dtype: torch.dtype | None = None
) -> dict[str, nn.Module]:
    """What a checkpoint holds: "image" always, "text" of an ALIGN, "classifier" where there is one (sharing "image").

    Args:
        config: `AlignConfig` or `ViTConfig`, or anything with all their fields.
        tensors: all of a checkpoint, by their keys in model.safetensors.
        pixels: what `uint8` pixels stand for, by the processor; without it only floating point is taken.
        dtype: of the towers; by default that of the tensors.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    weights = Weights(tensors, dtype)
    if config.model_type == "align":
        width = config.projection_dim
        projection = width if config.use_visual_projection else None
        found = {
            "image": AlignImageTower(config.vision_config, weights, projection, pixels),
            "text": AlignTextTower(config.text_config, weights, width),
        }
    elif config.model_type == "vit":
        found = {"image": ViTTower(config, weights, pixels)}
        if "classifier.weight" in weights:
            classes = len(tensors["classifier.bias"])
            found["classifier"] = Classifier(found["image"], weights, classes)
    else:
        raise ValueError(f"a model of type {config.model_type!r} has no fused towers")
    unknown = [key for key in weights.unused() if not key.endswith(_UNREAD)]
    if unknown:
        raise ValueError(f"unknown {min(unknown)}, and {len(unknown) - 1} more")
    return {name: tower.eval() for name, tower in found.items()}
