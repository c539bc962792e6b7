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

Tensors = Mapping[str, torch.Tensor]  # keys as in model.safetensors
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
    def folded(cls, tensors: Tensors, conv: str, norm: str, eps: float, **options) -> "Convolution":
        weight = tensors[conv + ".weight"]
        mean, variance, gamma, beta = (
            tensors[f"{norm}.{leaf}"].double() for leaf in ("running_mean", "running_var", "weight", "bias")
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

    def __init__(self, tensors: Tensors, name: str, activation: str):
        super().__init__()
        self.reduce, self.expand = (Linear(tensors, f"{name}.{part}") for part in ("reduce", "expand"))
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.expand(_activate(self.reduce(x.mean((2, 3))), self.activation)).sigmoid()  # (B, C)
        return x.mul_(scale[:, :, None, None])


class Linear(nn.Module):
    """A product with the sum of a bias; of several names, their results side by side."""

    def __init__(self, tensors: Tensors, *names: str):
        super().__init__()
        weights = [tensors[name + ".weight"].flatten(1) for name in names]
        self.weight = _constant(torch.cat(weights) if len(weights) > 1 else weights[0])
        biases = [tensors[name + ".bias"] for name in names if name + ".bias" in tensors]
        self.bias = _constant(torch.cat(biases) if len(biases) > 1 else biases[0]) if biases else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, tensors: Tensors, name: str, eps: float):
        super().__init__()
        self.weight, self.bias = _constant(tensors[name + ".weight"]), _constant(tensors[name + ".bias"])
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """An inverted-residual block of EfficientNet."""

    def __init__(self, tensors: Tensors, name: str, spec, activation: str, eps: float):
        super().__init__()
        self.expand = None
        if spec.expand_ratio != 1:
            self.expand = Convolution.folded(
                tensors, f"{name}.expansion.expand_conv", f"{name}.expansion.expand_bn", eps, activation=activation
            )
        half = spec.kernel_size // 2
        low = half - 1 if spec.stride == 2 and not spec.symmetric_padding else half
        self.depthwise = Convolution.folded(
            tensors,
            f"{name}.depthwise_conv.depthwise_conv",
            f"{name}.depthwise_conv.depthwise_norm",
            eps,
            stride=spec.stride,
            pad=(low, half),
            activation=activation,
        )
        self.squeeze_excite = SqueezeExcite(tensors, f"{name}.squeeze_excite", activation)
        self.project = Convolution.folded(
            tensors, f"{name}.projection.project_conv", f"{name}.projection.project_bn", eps
        )
        self.skip = spec.skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.squeeze_excite(self.depthwise(y)))
        return y.add_(x) if self.skip else y


class AlignImageTower(nn.Module):
    """ALIGN's image tower and projection: pixels (B, C, H, W) → features (B, P), not normalised.

    Args:
        config: `AlignVisionConfig`.
        tensors: of a whole ALIGN, or of an `AlignForImageClassification`.
        pixels: what `uint8` input stands for; without it only floating-point input, as the processor gives it, is taken.
    """

    def __init__(self, config, tensors: Tensors, pixels: Pixels | None = None):
        super().__init__()
        self.channels, self.pooling = config.num_channels, config.pooling_type
        eps, activation = config.batch_norm_eps, config.hidden_act
        _activation(activation)
        name = "vision_model.embeddings."
        self.stem = Convolution.folded(
            tensors, name + "convolution", name + "batchnorm", eps, stride=2, pad=(0, 1), activation=activation
        )
        self.byte_stem = None if pixels is None else ByteStem(self.stem, *pixels)
        self.blocks = nn.ModuleList(
            Block(tensors, f"vision_model.encoder.blocks.{index}", spec, activation, eps)
            for index, spec in enumerate(config.blocks())
        )
        self.projection = Linear(tensors, "visual_projection") if "visual_projection.weight" in tensors else None

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

    def __init__(self, tensors: Tensors, query: str, key: str, value: str, output: str, heads: int):
        super().__init__()
        self.project, self.output, self.heads = Linear(tensors, query, key, value), Linear(tensors, output), heads

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

    def __init__(self, config, tensors: Tensors, name: str):
        super().__init__()
        self_attention = (f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
        self.attention = Attention(
            tensors, *self_attention, f"{name}.attention.output.dense", config.num_attention_heads
        )
        self.attention_norm = LayerNorm(tensors, f"{name}.attention.output.LayerNorm", config.layer_norm_eps)
        self.intermediate = Linear(tensors, f"{name}.intermediate.dense")
        self.output = Linear(tensors, f"{name}.output.dense")
        self.output_norm = LayerNorm(tensors, f"{name}.output.LayerNorm", config.layer_norm_eps)
        self.activation = _activation(config.hidden_act)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, first: bool) -> torch.Tensor:
        attended = self.attention(x, mask, first)
        x = self.attention_norm((x[:, :1] if first else x) + attended)
        return self.output_norm(x + self.output(self.activation(self.intermediate(x))))


class AlignTextTower(nn.Module):
    """ALIGN's text tower and projection: token ids, mask (B, L) → features (B, P), not normalised.

    Args:
        config: `AlignTextConfig`.
        tensors: of a whole ALIGN.
    """

    def __init__(self, config, tensors: Tensors):
        super().__init__()
        name = "text_model.embeddings."
        self.words = _constant(tensors[name + "word_embeddings.weight"])
        positions, types = (tensors[f"{name}{part}_embeddings.weight"] for part in ("position", "token_type"))
        self.positions = _constant(positions + types[0])
        self.norm = LayerNorm(tensors, name + "LayerNorm", config.layer_norm_eps)
        self.layers = nn.ModuleList(
            TextLayer(config, tensors, f"text_model.encoder.layer.{index}") for index in range(config.num_hidden_layers)
        )
        self.projection = Linear(tensors, "text_projection")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Without a mask, every token counts."""
        length = input_ids.shape[1]
        torch._check(length <= self.positions.shape[0], lambda: f"texts have at most {len(self.positions)} tokens")
        x = self.norm(F.embedding(input_ids, self.words) + self.positions[:length])
        mask = None if attention_mask is None else (attention_mask != 0)[:, None, None]  # (B, 1, 1, L)
        for layer in self.layers[:-1]:
            x = layer(x, mask, False)
        return self.projection(self.layers[-1](x, mask, True)[:, 0])


class ViTLayer(nn.Module):
    """A layer of ViT: normalisation in front of each block."""

    def __init__(self, config, tensors: Tensors, name: str):
        super().__init__()
        self_attention = (f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))
        self.attention = Attention(
            tensors, *self_attention, f"{name}.attention.output.dense", config.num_attention_heads
        )
        self.before = LayerNorm(tensors, f"{name}.layernorm_before", config.layer_norm_eps)
        self.after = LayerNorm(tensors, f"{name}.layernorm_after", config.layer_norm_eps)
        self.intermediate = Linear(tensors, f"{name}.intermediate.dense")
        self.output = Linear(tensors, f"{name}.output.dense")
        self.activation = _activation(config.hidden_act)

    def forward(self, x: torch.Tensor, first: bool) -> torch.Tensor:
        attended = self.attention(self.before(x), None, first)
        x = (x[:, :1] if first else x) + attended
        return x + self.output(self.activation(self.intermediate(self.after(x))))


class ViTTower(nn.Module):
    """ViT's backbone: pixels (B, C, H, W) → the pre-logits (B, R), or the final [CLS] (B, D) of a model without them.

    Args:
        config: `ViTConfig`.
        tensors: keys begin with "vit."; a pooler is used if it is there.
        pixels: as of `AlignImageTower`.
    """

    def __init__(self, config, tensors: Tensors, pixels: Pixels | None = None):
        super().__init__()
        name = "vit.embeddings."
        size, patch = config.image_size, config.patch_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        self.channels = config.num_channels
        self.patches = Linear(tensors, name + "patch_embeddings.projection")
        self.byte_patches = None if pixels is None else _byte_patches(self.patches, *pixels)
        positions = tensors[name + "position_embeddings"]
        self.first_token = _constant(tensors[name + "cls_token"] + positions[:, :1])
        self.positions = _constant(positions[:, 1:])
        self.layers = nn.ModuleList(
            ViTLayer(config, tensors, f"vit.encoder.layer.{index}") for index in range(config.num_hidden_layers)
        )
        self.norm = LayerNorm(tensors, "vit.layernorm", config.layer_norm_eps)
        self.pooler = Linear(tensors, "vit.pooler.dense") if "vit.pooler.dense.weight" in tensors else None
        self.pooler_act = {"tanh": torch.tanh}.get(getattr(config, "pooler_act", None)) or _activation(
            config.pooler_act
        )

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        _check_pixels(pixels, self.channels, self.size)
        patches = self.byte_patches if pixels.dtype == torch.uint8 else self.patches
        (height, width), (rows, columns) = self.patch, (side // part for side, part in zip(self.size, self.patch))
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
    weight = patches.weight.double()
    scaled = (weight.unflatten(1, (len(scale), -1)) * scale.double()[None, :, None]).flatten(1)
    shift = (scaled.unflatten(1, (len(scale), -1)) * zero.double()[None, :, None]).sum((1, 2))
    bias = -shift if patches.bias is None else patches.bias.double() - shift
    tensors = {"weight": scaled.to(patches.weight.dtype), "bias": bias.to(patches.weight.dtype)}
    return Linear({f"bytes.{name}": tensor for name, tensor in tensors.items()}, "bytes")


class Classifier(nn.Module):
    """A tower and the classifier behind it: pixels (B, C, H, W) → logits (B, classes)."""

    def __init__(self, tower: nn.Module, tensors: Tensors):
        super().__init__()
        self.tower, self.head = tower, Linear(tensors, "classifier")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(pixel_values))


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


def towers(config, tensors: Tensors, pixels: Pixels | None = None) -> dict[str, nn.Module]:
    """What a checkpoint holds: "image" always, "text" of an ALIGN, "classifier" where there is one (sharing "image")."""
    if config.model_type == "align":
        image = AlignImageTower(config.vision_config, tensors, pixels)
        found = {"image": image, "text": AlignTextTower(config.text_config, tensors)}
    else:
        found = {"image": ViTTower(config, tensors, pixels)}
        if "classifier.weight" in tensors:
            found["classifier"] = Classifier(found["image"], tensors)
    return {name: tower.eval() for name, tower in found.items()}
