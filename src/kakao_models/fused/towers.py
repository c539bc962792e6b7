"""Optimised models for inference in PyTorch: the same outputs, with fewer and larger operations.

Built from the tensors of `model.safetensors` alone (`tensors_of` gives those of a model object), without transformers'
model classes, and made of plain operations, so that `torch.export`, OpenVINO and ONNX can take them unchanged:

- batch normalisation is folded into the convolutions in front of it;
- query, key and value of an attention are one product; the last layer computes its first token only, the one that is read;
- segment and position embeddings are one table; unused poolers are removed;
- `uint8` pixels are taken too, if the processor's arithmetic is known: its scale is folded into the first convolution.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kakao_models.checkpoint.kinds import whole_keys
from kakao_models.fused.align import AlignImageTower, AlignTextTower
from kakao_models.fused.layers import ByteValues, Linear
from kakao_models.fused.vit import ViTTower
from kakao_models.fused.weights import Weights


class Classifier(nn.Module):
    """A tower and the classifier behind it: pixels (B, C, H, W) → logits (B, classes)."""

    def __init__(self, tower: nn.Module, weights: Weights, classes: int):
        super().__init__()
        self.tower, self.head = tower, Linear(weights, "classifier", inner=tower.width, outer=classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(pixel_values))


_ON_DISK = {  # in a model of transformers 5 → in its model.safetensors
    "vit": {
        "layers.": "encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
}


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch model of any kind, by their keys in model.safetensors, those of a backbone as in one of the
    whole model."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for ours, on_disk in _ON_DISK.get(model.config.model_type, {}).items():
        tensors = {name.replace(ours, on_disk): tensor for name, tensor in tensors.items()}
    return whole_keys(tensors, model.config.model_type)


def _align(config, weights: Weights, pixels: ByteValues | None) -> dict[str, nn.Module]:
    width = config.projection_dim
    projection = width if config.use_visual_projection else None
    return {
        "image": AlignImageTower(config.vision_config, weights, projection, pixels),
        "text": AlignTextTower(config.text_config, weights, width),
    }


def _align_vision(config, weights: Weights, pixels: ByteValues | None) -> dict[str, nn.Module]:
    return {"image": AlignImageTower(config, weights, None, pixels)}


def _vit(config, weights: Weights, pixels: ByteValues | None) -> dict[str, nn.Module]:
    return {"image": ViTTower(config, weights, pixels)}


_TOWERS = {"align": _align, "align_vision_model": _align_vision, "vit": _vit}


def towers(
    config: Any, tensors: Mapping[str, Any], pixels: ByteValues | None = None, dtype: torch.dtype | None = None
) -> dict[str, nn.Module]:
    """The towers of a checkpoint: "image" always, "text" of an ALIGN, "classifier" where there is one (sharing "image").

    Args:
        config: the configuration of a model of any kind, or anything with all its fields.
        tensors: all of a checkpoint, by their keys in model.safetensors of the whole model; numpy's or PyTorch's.
        pixels: what `uint8` pixels stand for, by the processor; without it only floating point is taken.
        dtype: of the towers; by default that of the tensors.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    weights = Weights(tensors, lambda tensor: torch.as_tensor(tensor, dtype=dtype))
    if config.model_type not in _TOWERS:
        raise ValueError(f"a model of type {config.model_type!r} has no fused towers")
    built = _TOWERS[config.model_type](config, weights, pixels)
    if "classifier.weight" in weights:
        built["classifier"] = Classifier(built["image"], weights, len(tensors["classifier.bias"]))
    weights.check_all_used()
    return {name: tower.eval() for name, tower in built.items()}
