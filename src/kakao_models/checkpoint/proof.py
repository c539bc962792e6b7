"""Proof of a conversion: the written model, run by PyTorch, against numpy on the tensors of the source.

The two share neither code nor weight table. Every stage is compared, so that a failure names the block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from kakao_models.align import reference as align_reference
from kakao_models.align.config import AlignConfig
from kakao_models.checkpoint.source import Source
from kakao_models.vit import reference as vit_reference
from kakao_models.vit.config import as_pair
from kakao_models.vit.weights import TPU_SPELLINGS

# Of the root mean square of a stage. Two float32 programs differ by 1e-4 at the very most after 55 blocks (the original
# from itself in float64: 7e-5); the mildest mistake, a wrong epsilon of LayerNorm, costs more at the features.
LIMIT = 5e-4
REFERENCE_LIMIT = 1e-3  # absolute, of logits that somebody else recorded


@dataclass(frozen=True)
class Stage:
    """How far the two are apart after a stage of the model."""

    name: str
    difference: float  # largest absolute difference
    scale: float  # root mean square of the stage
    limit: float  # that `difference` may reach

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit  # False for NaN


class ProofError(ValueError):
    """The converted model does not compute what its source computes."""

    def __init__(self, stages: list[Stage]):
        failed = [stage for stage in stages if not stage.holds]
        first = failed[0]
        super().__init__(
            f"the converted model differs from its source in {len(failed)} of {len(stages)} stages, first in {first.name}: "
            f"by {first.difference:.3g}, allowed {first.limit:.3g}. Nothing was written."
        )
        self.stages = stages


def prove(source: Source, folder: Path) -> list[Stage]:
    """Runs the model in `folder` and the numpy reference on fixed inputs.

    Raises:
        ProofError: some stage differs by more than `LIMIT`.
    """
    compute = {"align": _align_stages, "vit": _vit_stages, "efficientnet": _tower_stages}[source.family]
    stages = [_compare(name, got, wanted) for name, got, wanted in compute(source, folder)]
    if not all(stage.holds for stage in stages):
        raise ProofError(stages)
    return stages


def read_reference(reference: Path, family: str) -> dict[str, np.ndarray]:
    """Recorded inputs and outputs for `prove_against`.

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


def prove_against(arrays: Mapping[str, np.ndarray], name: str, family: str, folder: Path) -> list[Stage]:
    """Runs the model in `folder` on recorded inputs and compares with the recorded outputs.

    Args:
        arrays: what `read_reference` gave.
        name: of the file, for the report.

    Raises:
        ProofError: they differ by more than `REFERENCE_LIMIT`.
        ValueError: the model does not give such outputs.
    """
    import torch

    expected = _expected(arrays, family)
    pixels = arrays.get("pixel_values")
    if pixels is None:
        pixels = arrays["images"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
    inputs = {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels))}
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if family == "align" and key in arrays:
            inputs[key] = torch.from_numpy(arrays[key].astype(np.int64))
    with torch.inference_mode():
        output = load_model(family, folder)(**inputs)
        if output.get(expected) is None:
            raise ValueError(f"{name}: the model has no {expected}; it gives {', '.join(output)}")
        got = output[expected].numpy()
    if got.shape != arrays[expected].shape:
        raise ValueError(f"{name}: {expected} has shape {arrays[expected].shape}, the model gives {got.shape}")
    difference = float(np.abs(got - arrays[expected]).max())
    scale = _rms(arrays[expected])
    limit = REFERENCE_LIMIT * (1 if expected.startswith("logits") else max(1, scale))  # features have any scale
    stage = Stage(f"{expected} of {name}", difference, scale, limit)
    if not stage.holds:
        raise ProofError([stage])
    return [stage]


def _compare(name: str, got: np.ndarray, wanted: np.ndarray) -> Stage:
    scale = _rms(wanted)
    return Stage(name, float(np.abs(got - wanted).max()), scale, LIMIT * scale)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def load_model(family: str, folder: Path):
    """The model in `folder`, in PyTorch, through the loader that users go through."""
    if family == "align":
        from kakao_models.align.modeling_torch import AlignModel as Model
    elif family == "efficientnet":
        from kakao_models.align.modeling_torch import AlignVisionModel as Model
    else:
        from kakao_models.vit.modeling_torch import ViTForImageClassification, ViTModel

        Model = ViTForImageClassification if _has_head(folder) else ViTModel
    return Model.from_pretrained(folder, dtype="float32")


def _has_head(folder: Path) -> bool:
    import json

    return "ViTForImageClassification" in json.loads((folder / "config.json").read_text())["architectures"]


def fixed_pixels(height: int, width: int) -> np.ndarray:
    """Two fixed images (2, height, width, 3) in [-1, 1]: smooth waves and fine noise, so that all scales are seen."""
    noise = np.random.Generator(np.random.Philox(7)).uniform(-0.3, 0.3, (2, height, width, 3))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * (c + 1) / 17 + y / (9 + 4 * c) + i) for i in range(2) for c in range(3)]
    waves = np.stack(waves).reshape(2, 3, height, width).transpose(0, 2, 3, 1)
    return (0.7 * waves + noise).astype(np.float32)


def fixed_tokens(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Three fixed texts of 12, 7 and 3 tokens, (3, 12), and their attention mask."""
    lengths = np.array([12, 7, 3])
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    return np.random.Generator(np.random.Philox(11)).integers(1, vocabulary, (3, 12)) * mask, mask


def _align_stages(source: Source, folder: Path):
    import torch

    pixels = fixed_pixels(*as_pair(source.config.vision_config.image_size))
    ids, mask = fixed_tokens(source.config.text_config.vocab_size)
    model = load_model("align", folder)
    with torch.inference_mode():
        image = model.get_image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
        tower = model.text_model(torch.from_numpy(ids), torch.from_numpy(mask), output_hidden_states=True)
        features = model.text_projection(tower.last_hidden_state[:, 0])
    yield from _image_pairs(image, source.tensors, source.config, pixels)
    layers = [f"layer {i}" for i in range(len(tower.hidden_states) - 1)]
    # padding takes part in no other output, and the originals' large negative mask leaves it undefined in ours
    visible = [state * torch.from_numpy(mask)[..., None] for state in tower.hidden_states]
    wanted = align_reference.text_stages(source.tensors, source.config, ids, mask)
    wanted = {name: value * mask[..., None] if value.ndim == 3 else value for name, value in wanted.items()}
    yield from _pairs(
        ["embeddings", *layers, "pooler", "text features"], [*visible, tower.pooler_output, features], wanted
    )
    temperature = model.temperature.detach().numpy()
    yield "temperature", temperature, source.tensors["temperature"]


def _tower_stages(source: Source, folder: Path):
    import torch

    pixels = fixed_pixels(*as_pair(source.config.image_size))
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        image = load_model("efficientnet", folder)(inputs, output_hidden_states=True)
    width = source.config.output_channels  # no Dense layer where both widths are the same
    both = AlignConfig(vision_config=source.config.to_dict(), projection_dim=width)
    yield from _image_pairs(image, source.tensors, both, pixels)


def _image_pairs(image, original: Mapping[str, np.ndarray], config: AlignConfig, pixels: np.ndarray):
    maps = [state.permute(0, 2, 3, 1) for state in image.hidden_states]
    yield from _pairs(
        ["stem", *(f"block {i}" for i in range(len(maps) - 1)), "image features"],
        [*maps, image.pooler_output],
        align_reference.image_stages(original, config, pixels),
    )


def _vit_stages(source: Source, folder: Path):
    import torch

    pixels = fixed_pixels(*as_pair(source.config.image_size))
    prefix, head = TPU_SPELLINGS[source.spelling]
    model = load_model("vit", folder)
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        backbone = model.base_model(inputs, output_hidden_states=True)
        features = backbone.pooler_output if source.config.representation_size else backbone.last_hidden_state[:, 0]
        outputs = [*backbone.hidden_states, backbone.last_hidden_state, features]
        outputs += [model.classifier(features)] if head else []
    names = ["embeddings", *(f"layer {i}" for i in range(source.config.num_hidden_layers)), "norm", "features"]
    yield from _pairs(
        names + ["logits"] * bool(head),
        outputs,
        vit_reference.image_stages(source.tensors, source.config, pixels, prefix, head),
    )


def _pairs(names: list[str], outputs: list, wanted: Mapping[str, np.ndarray]):
    for name, output in zip(names, outputs, strict=True):
        yield name, output.numpy(), wanted[name]
