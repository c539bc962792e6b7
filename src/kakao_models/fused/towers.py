"""The models as they run fastest in PyTorch at inference: the same numbers, of fewer and larger operations.

Built from the tensors of `model.safetensors` alone (`tensors_of` gives those of a model object), without transformers'
model classes, and made of plain operations, so that `torch.export`, OpenVINO and ONNX take them as they are:

- batch normalisation is folded into the convolutions in front of it;
- query, key and value of an attention are one product; the last layer computes its first token only, the one that is read;
- segment and position embeddings are one table; the poolers that nothing reads are gone;
- `uint8` pixels are taken too, if the processor's arithmetic is known: its scale is folded into the first convolution.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kakao_models.fused.align import AlignImageTower, AlignTextTower
from kakao_models.fused.layers import ByteValues, Linear, Weights
from kakao_models.fused.vit import ViTTower


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
    config: Any, tensors: Mapping[str, torch.Tensor], pixels: ByteValues | None = None, dtype: torch.dtype | None = None
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
