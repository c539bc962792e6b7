"""Recognises a checkpoint by its files, and opens it for a conversion. Each tensor is read when asked for."""

import os
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kakao_models.align.config import AlignConfig
from kakao_models.align.processing import AlignImageProcessor
from kakao_models.align.towers import is_published
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.tensors import LazyTensors
from kakao_models.conversion.efficientnet import read_efficientnet
from kakao_models.conversion.folder import read_folder
from kakao_models.conversion.google import read_npz
from kakao_models.conversion.object_graph import SUFFIX, kind_of
from kakao_models.conversion.recognize import align_config, family_of, key_prefixes, vit_config
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.conversion.tensorflow import TensorFlowCheckpoint, open_checkpoint
from kakao_models.files.pointers import refuse_pointers
from kakao_models.pixels.processor import ImageProcessor
from kakao_models.vit.config import ViTConfig
from kakao_models.vit.processing import ViTImageProcessor
from kakao_models.vit.weights import vit_tpu_slots

_AVERAGE = re.compile(r"(.+)/\.OPTIMIZER_SLOT/.+/average")  # the optimizer has any name


def read_source(
    path: str | Path,
    *,
    weights: str | None = None,
    expected: str | None = None,
    key_prefix: str | None = None,
    **overrides: Any,
) -> SourceCheckpoint:
    """Recognises what is at `path`: a TensorFlow checkpoint (a prefix, an .index file, or a folder), a Hub folder of older
    transformers, Google's ViT (.npz), or an EfficientNet of Keras (.h5) or PyTorch (a state dict, or timm's folder; see
    `read_published`).

    Args:
        weights: "raw" or "average"; by default the moving averages where there are any, as the original evaluated.
        expected: "align", "vit" or "efficientnet"; by default whichever it is.
        key_prefix: prefix of a model's keys in a TensorFlow checkpoint, such as "net/"; needed only if it holds several models.
        overrides: sizes that tensors do not show, see `recognize`.

    Raises:
        ValueError: a broken file, a key of unknown kind, tensors of no known model, missing averages, or a symbolic
            link that leads out of a folder.
        ImportError: a package that reads this format is missing.
    """
    if weights not in (None, "raw", "average"):
        raise ValueError(f"weights: got {weights!r}, expected 'raw' or 'average'")
    refuse_pointers([path])
    _refuse_links(Path(path))
    read = _reader(Path(path))
    if read is None:
        return _read_tensorflow(path, weights, expected, key_prefix, **overrides)
    if key_prefix is not None:
        raise ValueError(f"key_prefix: only TensorFlow checkpoints have prefixes, and {path} is not one. Leave it out")
    if weights == "average":
        raise ValueError(f"{path} has no moving averages. Use the raw weights (--weights raw)")
    source = read(Path(path), **overrides)
    if expected not in (None, source.family):
        raise ValueError(f"{path} holds a model of family {source.family!r}, expected {expected!r}")
    return source


def _refuse_links(path: Path) -> None:
    """Refuses a folder with a symbolic link that leads out of it: whatever it leads to would become part of an upload. In the
    Hub's cache the files of a snapshot are links to the repository's blobs."""
    if not os.path.isdir(path):
        return
    folder = path.resolve()
    inside = [folder]
    if folder.parent.name == "snapshots":
        inside.append(folder.parent.parent / "blobs")
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            link = Path(parent, name)
            if link.is_symlink() and not any(link.resolve().is_relative_to(place) for place in inside):
                shown = path / link.relative_to(folder)
                raise ValueError(
                    f"{shown} is a symbolic link to {link.resolve()}, outside of the folder. Replace it with a copy of that "
                    "file, or remove it"
                )


def _reader(path: Path) -> Callable[..., SourceCheckpoint] | None:
    """The function that reads what is at `path`; None for a TensorFlow checkpoint."""
    if os.path.isfile(path / "config.json") and not os.path.exists(path / "checkpoint"):
        return read_efficientnet if is_published(path) else read_folder
    if not os.path.isfile(path):  # False where pathlib raises, as for names that are too long
        return None
    if path.name in ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        raise ValueError(f"{path} is a part of a Hub folder. Give the folder with its config.json, {path.parent}")
    if path.suffix == ".npz":
        return read_npz
    if path.suffix in (".h5", ".pth", ".pt", ".bin", ".safetensors"):
        return read_efficientnet
    return None


def _prefix(checkpoint: TensorFlowCheckpoint, chosen: str | None) -> str:
    """The prefix of the model's keys.

    Raises:
        ValueError: there are several models, or none under the chosen prefix.
    """
    prefixes = key_prefixes(key.removesuffix(SUFFIX) for key in checkpoint.entries)
    if chosen is None and len(prefixes) < 2:
        return prefixes[0] if prefixes else ""
    if chosen not in prefixes:
        got = "several models" if chosen is None else f"no model under {chosen!r}"
        raise ValueError(
            f"{checkpoint.files[0]} has {got}: expected one of the prefixes {', '.join(map(repr, prefixes))} as key_prefix "
            "(--key-prefix)"
        )
    return chosen


def _kind(key: str, dtype: str, prefix: str) -> str:
    """The kind of an entry, see `kind_of`. No weight is an integer; a step, an epoch or a counter is."""
    kind = kind_of(key.removeprefix(prefix))
    if kind == "weight" and "int" in dtype:
        return "counter"
    return kind if kind != "weight" or key.startswith(prefix) else f"outside of {prefix}"


def _read_tensorflow(
    path: str | Path, weights: str | None, expected: str | None, key_prefix: str | None, **overrides
) -> SourceCheckpoint:
    checkpoint = open_checkpoint(path)
    prefix = _prefix(checkpoint, key_prefix)
    kinds = {key: _kind(key, entry.dtype, prefix) for key, entry in checkpoint.entries.items()}
    paths = {key: key.removeprefix(prefix).removesuffix(SUFFIX) for key in kinds if key.startswith(prefix)}
    raw = {path: key for key, path in paths.items() if kinds[key] == "weight"}
    averages = {match[1]: key for key, path in paths.items() if (match := _AVERAGE.fullmatch(path))}
    if weights == "average" and not averages:
        raise ValueError(
            f"{path} has no moving averages (keys with .OPTIMIZER_SLOT/.../average). Use the raw weights (--weights raw)"
        )
    if averages and averages.keys() != raw.keys():
        differing = sorted(averages.keys() ^ raw.keys())
        raise ValueError(
            f"{path}: only some weights have moving averages; the keys without a partner are {differing[:5]}"
        )
    taken = weights or ("average" if averages else "raw")
    stored = averages if taken == "average" else raw
    shapes = {key: checkpoint.entries[name].shape for key, name in stored.items()}
    tensors = LazyTensors({key: (shapes[key], partial(checkpoint.read, name)) for key, name in stored.items()})
    family, key_layout = family_of(shapes), None
    hidden = ("num_attention_heads", "image_size") if family == "align" else ("num_attention_heads",)
    assumed = tuple(name for name in hidden if overrides.get(name) is None)
    if expected not in (None, family):
        raise ValueError(f"{path} holds a model of family {family!r}, expected {expected!r}")
    if family == "align":
        config = align_config(shapes, **overrides)
        slots = align_tpu_slots(config)
    else:
        config, key_layout = vit_config(shapes, **overrides)
        slots = vit_tpu_slots(config, key_layout)
    return SourceCheckpoint(
        family=family,
        config=config,
        slots=slots,
        tensors=tensors,
        key_layout=key_layout,
        weights=taken,
        has_averages=bool(averages),
        dtypes=dict(Counter(checkpoint.entries[key].dtype for key in stored.values())),
        skipped=dict(Counter(kind for kind in kinds.values() if kind != "weight")),
        files=list(checkpoint.files),
        names={key: prefix + key for key in stored} if prefix else {},
        image_processor=_original_processor(config),
        assumed=assumed,
    )


def _original_processor(config: AlignConfig | ViTConfig) -> ImageProcessor:
    """The preprocessing of the original implementation."""
    if isinstance(config, AlignConfig):
        crop = config.vision_config.image_size
        return AlignImageProcessor(preprocessing="tf", size=round(crop * 346 / 289), crop_size=crop)
    size = config.image_size
    if not config.representation_size:
        return ViTImageProcessor(preprocessing="tf", size=size)
    shorter = {"shortest_edge": round(size * 256 / 224)}  # as the pretraining code evaluates
    return ViTImageProcessor(preprocessing="tf", size=shorter, resample=4, do_center_crop=True, crop_size=size)
