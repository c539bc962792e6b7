"""Verifies a conversion: PyTorch runs the written model, numpy runs the reference on the tensors of the source.

The two share neither code nor weight table. Every stage is compared, so that a failure names the block. They go side by side,
and each reads the weights of a stage when it comes to it: neither model is ever in memory.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import kakao_models
from kakao_models.align import reference as align_reference
from kakao_models.align.config import AlignConfig
from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.hub import read_config
from kakao_models.checkpoint.kinds import model_class_name
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.files.mapped import forget_pages
from kakao_models.vit import reference as vit_reference
from kakao_models.vit.weights import TPU_KEY_LAYOUTS

# Of the root mean square of a stage. Two float32 programs differ by 1e-4 at the very most after 55 blocks (the original
# from itself in float64: 7e-5); the mildest mistake, a wrong epsilon of LayerNorm, costs more at the features.
LIMIT = 5e-4

Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """The difference between the two models after one stage."""

    name: str
    difference: float  # largest absolute difference
    scale: float  # root mean square of the stage
    limit: float  # that `difference` may reach
    spread: float | None = None  # largest difference between the first two inputs, by `scale`; None without two

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit < math.inf  # False for NaN


class VerificationError(ValueError):
    """The converted model does not compute what its source computes."""

    def __init__(self, stages: list[Stage], causes: str = ""):
        failed = [stage for stage in stages if not stage.holds]
        first = failed[0]
        super().__init__(
            f"the converted model differs from its source in {len(failed)} of {len(stages)} stages, first in {first.name}: "
            f"by {first.difference:.3g}, allowed {first.limit:.3g}. Nothing was written." + causes
        )
        self.stages = stages


def verify(source: SourceCheckpoint, model: nn.Module) -> list[Stage]:
    """Runs the converted model and the numpy reference on fixed inputs.

    Args:
        model: result of `load_model`.

    Raises:
        VerificationError: some stage differs by more than `LIMIT`.
    """
    compare = {"align": _align_stages, "vit": _vit_stages, "efficientnet": _tower_stages}[source.family]
    with torch.inference_mode():
        stages = compare(source, model)
    if not all(stage.holds for stage in stages):
        raise VerificationError(stages)
    return stages


def load_model(folder: Path):
    """The model in `folder`, in PyTorch, through the loader that users go through. Its weights stay on disk, mapped; of
    those that a forward touches, no more than a block's stay in memory.
    """
    name = model_class_name(read_config(Path(folder, "config.json")), folder)
    model = getattr(kakao_models, name).from_pretrained(folder, dtype="float32")
    files = sorted(Path(folder).glob("*.safetensors"))
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            module.register_forward_hook(lambda *_: forget_pages(files))
    return model


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


def _align_stages(source: SourceCheckpoint, model: nn.Module) -> list[Stage]:
    config, original = source.config, source.tensors
    pixels = fixed_pixels(*as_pair(config.vision_config.image_size))
    expected = align_reference.image_stages(original, config, pixels)
    stages = _image_stages(model.vision_model, model.get_image_features, expected, pixels)

    ids, mask = fixed_tokens(config.text_config.vocab_size)

    def visible(values: np.ndarray) -> np.ndarray:
        """Sets padding to zero: no other output depends on it, and the originals' large negative mask leaves it undefined in
        ours."""
        return values * mask[..., None].astype(values.dtype) if values.ndim == 3 else values

    def run() -> Outputs:
        output = model.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask))
        return {"text features": output.pooler_output}

    text = model.text_model
    modules = {"embeddings": text.embeddings, **_numbered("layer", text.encoder.layer), "pooler": text.pooler}
    modules |= _numbered("keys", (layer.attention.self.key for layer in text.encoder.layer))
    expected = ((name, visible(values)) for name, values in align_reference.text_stages(original, config, ids, mask))
    stages += _side_by_side(modules, run, expected, visible)
    return [*stages, compare("temperature", model.temperature.detach().numpy(), original["temperature"])]


def _tower_stages(source: SourceCheckpoint, model: nn.Module) -> list[Stage]:
    pixels = fixed_pixels(*as_pair(source.config.image_size))
    width = source.config.output_channels  # no Dense layer where both widths are the same
    both = AlignConfig(vision_config=source.config.to_dict(), projection_dim=width)
    return _image_stages(model, model, align_reference.image_stages(source.tensors, both, pixels), pixels)


def _image_stages(tower: nn.Module, run: Callable, expected: Iterator, pixels: np.ndarray) -> list[Stage]:
    return _side_by_side(
        {"stem": tower.embeddings, **_numbered("block", tower.encoder.blocks)},
        lambda: {"image features": run(_channels_first(pixels)).pooler_output},
        expected,
        lambda values: values.transpose(0, 2, 3, 1) if values.ndim == 4 else values,
    )


def _vit_stages(source: SourceCheckpoint, model: nn.Module) -> list[Stage]:
    pixels = fixed_pixels(*as_pair(source.config.image_size))
    prefix, head = TPU_KEY_LAYOUTS[source.key_layout]
    backbone = model.base_model
    if head and backbone is model:
        raise ValueError(
            f"the weights have a classifier, but config.json does not name one: its architectures say {type(model).__name__}, expected "
            "ViTForImageClassification"
        )

    def run() -> Outputs:
        output = backbone(_channels_first(pixels))
        features = output.pooler_output if source.config.representation_size else output.last_hidden_state[:, 0]
        return {"features": features} | ({"logits": model.classifier(features)} if head else {})

    modules = {"embeddings": backbone.embeddings, **_numbered("layer", backbone.layers), "norm": backbone.layernorm}
    # no output depends on the bias of the keys
    modules |= _numbered("keys", (layer.attention.k_proj for layer in backbone.layers))
    expected = vit_reference.image_stages(source.tensors, source.config, pixels, prefix, head)
    return _side_by_side(modules, run, expected, lambda values: values)


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _numbered(name: str, modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    return {f"{name} {number}": module for number, module in enumerate(modules)}


def _side_by_side(
    modules: Mapping[str, nn.Module],
    run: Callable[[], Outputs],
    expected: Iterator[tuple[str, np.ndarray]],
    turned: Callable[[np.ndarray], np.ndarray],
) -> list[Stage]:
    """A stage of the converted model, then the same of the reference, and their comparison; then the next.

    Args:
        modules: name of a stage → the module that computes it.
        run: runs the model; returns the stages that no module of these gives.
        expected: the reference's stages.
        turned: brings a stage of the converted model into the axes of the reference.
    """
    stages = []

    def take(name: str, got) -> None:
        got = got[0] if isinstance(got, tuple) else got
        stage, values = next(expected, ("its end", None))
        if stage != name:
            raise RuntimeError(f"the converted model is at {name}, but the reference is at {stage}")
        stages.append(compare(name, turned(got.numpy()), values))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: take(name, output))
        for name, module in modules.items()
    ]
    try:
        for name, got in run().items():
            take(name, got)
    finally:
        for hook in hooks:
            hook.remove()
    if rest := [name for name, _ in expected]:
        raise RuntimeError(f"the converted model has ended, but the reference continues with {rest[0]}")
    return stages


def compare(name: str, got: np.ndarray, expected: np.ndarray) -> Stage:
    """Compares an output of the model with the expected one; `Stage.limit` follows from `LIMIT`."""
    scale = root_mean_square(expected)
    if got.shape != expected.shape:
        return Stage(name, math.inf, scale, 0.0)
    difference = got - expected
    largest = float(np.abs(difference, out=np.asarray(difference)).max())
    spread = (
        float(np.abs(expected[0] - expected[1]).max()) / scale
        if expected.ndim > 1 and len(expected) > 1 and scale
        else None
    )
    return Stage(name, largest, scale, LIMIT * scale, spread)


def root_mean_square(values: np.ndarray) -> float:
    """Root mean square in float64, computed in pieces to save memory."""
    flat, step = values.reshape(-1), 1_000_000
    squares = (np.square(flat[start : start + step], dtype=np.float64).sum() for start in range(0, flat.size, step))
    return math.sqrt(sum(squares) / flat.size)
