"""Compares a converted model with outputs recorded elsewhere, such as those of the original implementation."""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from kakao_models.conversion.verification import Stage, VerificationError, root_mean_square

REFERENCE_LIMIT = 1e-3  # absolute, of logits


def read_reference(reference: Path, family: str) -> dict[str, np.ndarray]:
    """Recorded inputs and outputs for `verify_against`.

    Args:
        reference: an .npz with `images`, uint8 (B, H, W, 3), or `pixel_values`, float32 (B, 3, H, W); for ALIGN
            `input_ids` and `attention_mask`; and what was expected: `logits`, for ALIGN `logits_per_image`; of a
            model without a head `pooler_output` or `last_hidden_state`. A tower of Keras' wants `pixel_values`.

    Raises:
        ValueError: it is no such file, or lacks one of these arrays.
    """
    try:
        with np.load(reference, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, BadZipFile, AttributeError, TypeError) as error:  # also a single .npy
        raise ValueError(f"{reference} is no .npz of arrays ({error})") from error
    expected = _expected(arrays, family)
    needed = {expected} | ({"input_ids", "attention_mask"} if family == "align" else set())
    pictures = {"pixel_values"} if family == "efficientnet" else {"images", "pixel_values"}
    if not (needed <= arrays.keys() and pictures & arrays.keys()):
        raise ValueError(
            f"{reference}: wanted the arrays {sorted(needed)} and images or pixel_values, got {sorted(arrays)}"
        )
    return arrays


def _expected(arrays: Mapping[str, np.ndarray], family: str) -> str:
    outputs = {
        "align": ("logits_per_image",),
        "vit": ("logits", "pooler_output", "last_hidden_state"),
        "efficientnet": ("pooler_output",),
    }[family]
    return next((name for name in outputs if name in arrays), outputs[0])


def verify_against(arrays: Mapping[str, np.ndarray], name: str, family: str, model: nn.Module) -> list[Stage]:
    """Runs the converted model on recorded inputs and compares with the recorded outputs.

    Args:
        arrays: what `read_reference` gave.
        name: of the file, for the report.
        model: what `load_model` gave.

    Raises:
        VerificationError: they differ by more than `REFERENCE_LIMIT`.
        ValueError: the model does not give such outputs.
    """
    expected = _expected(arrays, family)
    pixels = arrays.get("pixel_values")
    if pixels is None:
        pixels = arrays["images"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
    inputs = {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels))}
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if family == "align" and key in arrays:
            inputs[key] = torch.from_numpy(arrays[key].astype(np.int64))
    with torch.inference_mode():
        output = model(**inputs)
        if output.get(expected) is None:
            raise ValueError(f"{name}: the model has no {expected}; it gives {', '.join(output)}")
        got = output[expected].numpy()
    if got.shape != arrays[expected].shape:
        raise ValueError(f"{name}: {expected} has shape {arrays[expected].shape}, the model gives {got.shape}")
    difference = float(np.abs(got - arrays[expected]).max())
    scale = root_mean_square(arrays[expected])
    limit = REFERENCE_LIMIT * (1 if expected.startswith("logits") else max(1, scale))  # features have any scale
    stage = Stage(f"{expected} of {name}", difference, scale, limit)
    if not stage.holds:
        raise VerificationError([stage])
    return [stage]
