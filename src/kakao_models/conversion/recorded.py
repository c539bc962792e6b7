"""Compares a converted model with outputs recorded elsewhere, such as those of the original implementation."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

import kakao_models
from kakao_models.checkpoint.config import as_pair
from kakao_models.conversion.verification import Stage, VerificationError, root_mean_square
from kakao_models.pixels.images import load_image

REFERENCE_LIMIT = 1e-3  # absolute, of logits
_OUTPUTS = {
    "align": ("logits_per_image",),
    "vit": ("logits", "pooler_output", "last_hidden_state"),
    "efficientnet": ("pooler_output",),
}


# Inputs in an .npz: kinds of numbers, and sizes of the axes
_FORMS: dict[str, tuple[tuple[type, ...], tuple]] = {
    "images": ((np.uint8,), (..., ..., ..., 3)),
    "pixel_values": ((np.floating,), (..., 3, ..., ...)),
    **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ((np.integer, np.bool_), (..., ...))),
}


@dataclass(frozen=True)
class Reference:
    """Recorded inputs and the expected output."""

    name: str  # of the file
    output: str  # name of the expected output
    expected: np.ndarray
    inputs: Callable[[Path], dict[str, torch.Tensor]]  # prepares the inputs for the model of a folder
    tolerance: float = REFERENCE_LIMIT


def read_reference(path: Path, family: str) -> Reference:
    """Reads recorded inputs and outputs for `verify_against`.

    Args:
        path: .npz with `images`, uint8 (B, H, W, 3), or `pixel_values`, float32 (B, 3, H, W); for ALIGN `input_ids` and
            `attention_mask`; and the expected `logits`, for ALIGN `logits_per_image`; of a model without a head
            `pooler_output` or `last_hidden_state`. Keras' towers need `pixel_values`.
            Or .json with `images`, names of image files beside it, for ALIGN `texts`, the same outputs as nested lists, and
            `tolerance` (optional): these go through the folder's own preprocessing and tokenizer.

    Raises:
        ValueError: the file is not of this form, or lacks one of these.
    """
    if path.suffix.lower() == ".json":
        return _read_json(path, family)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, BadZipFile, AttributeError, TypeError) as error:  # also a single .npy
        raise ValueError(f"{path} is not an .npz of arrays ({error})") from error
    output = _output(arrays, family)
    needed = {output} | ({"input_ids", "attention_mask"} if family == "align" else set())
    images = {"pixel_values"} if family == "efficientnet" else {"images", "pixel_values"}
    if not (needed <= arrays.keys() and images & arrays.keys()):
        raise ValueError(
            f"{path}: expected the arrays {sorted(needed)} and one of {sorted(images)}, got {sorted(arrays)}"
        )
    _check_inputs(arrays, path)
    return Reference(path.name, output, arrays[output], lambda folder: _recorded_inputs(arrays, family))


def _check_inputs(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Refuses inputs of another form now: the model would refuse them after hours of work, or give other outputs."""
    for name in sorted(_FORMS.keys() & arrays.keys()):
        array, (kinds, axes) = arrays[name], _FORMS[name]
        fits = array.ndim == len(axes) and all(axis in (size, ...) for size, axis in zip(array.shape, axes))
        if not (fits and any(np.issubdtype(array.dtype, kind) for kind in kinds)):
            sizes = ", ".join("any" if axis is ... else str(axis) for axis in axes)
            raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}, expected {kinds[0].__name__} ({sizes})")


def _read_json(path: Path, family: str) -> Reference:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        output = _output(values, family)
        lists = {name: values[name] for name in ("images", *(["texts"] if family == "align" else []))}
        expected = np.asarray(values[output], np.float32)
        tolerance = float(values.get("tolerance", REFERENCE_LIMIT))
        named = all(names and all(isinstance(name, str) for name in names) for names in lists.values())
        shape = tuple(len(names) for names in lists.values())
        fits = expected.shape[: len(shape)] == shape and np.isfinite(expected).all()
        if not (named and fits and tolerance > 0):
            raise ValueError(f"{output} has shape {expected.shape}, which does not fit {shape} inputs")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        names = "images, texts" if family == "align" else "images"
        raise ValueError(
            f"{path}: expected a JSON object with {names} (lists of text), {_OUTPUTS[family][0]} (a row per image, numbers) "
            f"and, if need be, tolerance (above 0): {error!r}"
        ) from error
    images = [path.parent / name for name in lists["images"]]
    for image in images:
        load_image(image)  # before hours of work
    inputs = partial(_prepared_inputs, path.name, images, lists.get("texts"), family)
    return Reference(path.name, output, expected, inputs, tolerance)


def _output(values: Mapping, family: str) -> str:
    return next((name for name in _OUTPUTS[family] if name in values), _OUTPUTS[family][0])


def verify_against(reference: Reference, model: nn.Module, folder: Path) -> list[Stage]:
    """Runs the converted model on recorded inputs and compares with the recorded outputs.

    Args:
        reference: result of `read_reference`.
        model: result of `load_model`.
        folder: the model's folder, with its preprocessing and tokenizer.

    Raises:
        VerificationError: they differ by more than the reference's tolerance.
        ValueError: the model does not give such outputs.
        OSError: `folder` has no tokenizer or preprocessing.
    """
    name, output = reference.name, reference.output
    inputs = reference.inputs(folder)
    size = as_pair(getattr(model.config, "vision_config", model.config).image_size)
    if (got := tuple(inputs["pixel_values"].shape[2:])) != size:  # an ALIGN would compute outputs at any size
        raise ValueError(
            f"{name}: its images have {got[0]} x {got[1]} pixels, but the model's image_size is {size[0]} x {size[1]}. Pass "
            "their size as image_size (--image-size), if the original was evaluated at it"
        )
    with torch.inference_mode():
        outputs = model(**inputs)
        if outputs.get(output) is None:
            raise ValueError(f"{name}: the model has no {output}; it gives {', '.join(outputs)}")
        got = outputs[output].numpy()
    if got.shape != reference.expected.shape:
        raise ValueError(f"{name}: {output} has shape {reference.expected.shape}, but the model gives {got.shape}")
    difference = float(np.abs(got - reference.expected).max())
    scale = root_mean_square(reference.expected)
    limit = reference.tolerance * (1 if output.startswith("logits") else max(1, scale))  # features have any scale
    stage = Stage(f"{output} of {name}", difference, scale, limit)
    if not stage.holds:
        raise VerificationError([stage])
    return [stage]


def _recorded_inputs(arrays: Mapping[str, np.ndarray], family: str) -> dict[str, torch.Tensor]:
    pixels = arrays.get("pixel_values")
    if pixels is None:
        pixels = arrays["images"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
    inputs = {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels))}
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if family == "align" and key in arrays:
            inputs[key] = torch.from_numpy(arrays[key].astype(np.int64))
    return inputs


def _prepared_inputs(
    name: str, images: list[Path], texts: list[str] | None, family: str, folder: Path
) -> dict[str, torch.Tensor]:
    if texts is None:
        processor = kakao_models.ViTImageProcessor if family == "vit" else kakao_models.AlignImageProcessor
        return dict(processor.from_pretrained(folder)(images, return_tensors="pt"))
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{name} has texts, but the model has no tokenizer: name one with --tokenizer")
    return dict(kakao_models.AlignProcessor.from_pretrained(folder)(images, texts, return_tensors="pt"))
