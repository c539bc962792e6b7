"""Optimised models for inference in ONNX Runtime and OpenVINO: what towers.py is in PyTorch, made without it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kakao_models.fused.graph import Graph
from kakao_models.fused.graph_align import image_tower, text_tower
from kakao_models.fused.graph_vit import vit_tower
from kakao_models.fused.weights import Weights

BytePixels = tuple[np.ndarray, np.ndarray]  # scale, zero, (C,) each: a byte u stands for (u - zero) * scale


def _align(config: Any, weights: Weights, pixels: BytePixels | None, hidden: bool) -> dict[str, Graph]:
    width = config.projection_dim
    projection = width if config.use_visual_projection else None
    return {
        "image": image_tower(config.vision_config, weights, projection, pixels, hidden),
        "text": text_tower(config.text_config, weights, width),
    }


def _align_vision(config: Any, weights: Weights, pixels: BytePixels | None, hidden: bool) -> dict[str, Graph]:
    return {"image": image_tower(config, weights, None, pixels, hidden)}


def _vit(config: Any, weights: Weights, pixels: BytePixels | None, hidden: bool) -> dict[str, Graph]:
    return {"image": vit_tower(config, weights, pixels, hidden)}


_TOWERS = {"align": _align, "align_vision_model": _align_vision, "vit": _vit}


def graphs(
    config: Any, tensors: Mapping[str, Any], pixels: BytePixels | None = None, *, hidden: bool = False
) -> dict[str, Graph]:
    """The towers of a checkpoint as graphs in float32: "image" always, "text" of an ALIGN.

    Inputs are `pixel_values` (B, C, H, W), or `input_ids` and `attention_mask` (B, L), int64.

    Args:
        config: the configuration of a model of any kind, or anything with all its fields.
        tensors: all of a checkpoint, by their keys in model.safetensors of the whole model; numpy's or PyTorch's.
        pixels: if given, images come as bytes, which stand for this; otherwise in floating point.
        hidden: the image tower gives its last hidden state: (B, L, D) of a ViT, (B, C', H', W') of an ALIGN.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    weights = Weights(tensors, as_float32)
    if config.model_type not in _TOWERS:
        raise ValueError(f"a model of type {config.model_type!r} has no fused towers")
    built = _TOWERS[config.model_type](config, weights, pixels, hidden)
    if "classifier.weight" in weights:  # its product is left to the caller
        classes, width = tensors["classifier.weight"].shape
        weights("classifier.weight", classes, width)
        weights("classifier.bias", classes)
    weights.check_all_used()
    return built


def as_float32(tensor: Any) -> np.ndarray:
    """An array of numpy or PyTorch, wherever it is, in float32 on the CPU."""
    if not isinstance(tensor, np.ndarray):
        tensor = tensor.detach().float().cpu().numpy()
    return tensor.astype(np.float32, copy=False)
