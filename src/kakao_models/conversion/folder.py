"""A Hub folder of older transformers: ALIGN or ViT in any format of weights it had. Its tensors become those of
`model.safetensors`, and are presented under the keys of the original code, so that all later steps are the same.

The folder's config.json stays what it says. Nothing of a file is run.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

import kakao_models
from kakao_models.align.config import AlignConfig, AlignVisionConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint import hub
from kakao_models.checkpoint.formats import find_weights, read_weights
from kakao_models.checkpoint.kinds import kind_of, whole_keys
from kakao_models.checkpoint.tensors import UNUSED, LazyTensors, check_keys
from kakao_models.checkpoint.weightmap import Slot, permuted
from kakao_models.conversion.recognize import check_overrides
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.pixels.processor import ImageProcessor
from kakao_models.vit.config import ViTConfig
from kakao_models.vit.weights import TPU_KEY_LAYOUTS, vit_tpu_slots

CARD = "README.md"

# How a leaf and its axes in model.safetensors are in TensorFlow and Flax files. The modules' names are the same.
_KERNELS = {("weight", "OI"): ("kernel", "IO"), ("weight", "OIHW"): ("kernel", "HWIO")}
_DIALECTS = {
    "tf_model.h5": _KERNELS | {("weight", "D"): ("gamma", "D"), ("bias", "D"): ("beta", "D")},
    "flax_model.msgpack": _KERNELS | {("weight", "D"): ("scale", "D")},
}


def download(name_or_path: str | Path, **where: Any) -> Path:
    """The folder of a checkpoint; of one on the Hub, where all its files are downloaded to that a conversion reads.

    Raises:
        OSError: no such checkpoint, or the Hub does not give it.
    """
    where = hub.pin(name_or_path, **where)
    folder = hub.fetch(name_or_path, "config.json", **where).parent
    find_weights(name_or_path, **where)
    for filename in (*hub.TOKENIZER_FILES, *hub.PROCESSOR_FILES, CARD):
        with suppress(hub.MissingFile):
            hub.fetch(name_or_path, filename, **where)
    return folder


def read_model_config(folder: Path) -> AlignConfig | AlignVisionConfig | ViTConfig:
    """The configuration of a folder's model.

    Raises:
        ValueError: another model, or values that describe none.
    """
    file = folder / "config.json"
    config_class = getattr(kakao_models, kind_of(hub.read_config(file).get("model_type"), folder).config)
    with hub.described_by(file):
        return config_class.from_pretrained(folder)


def read_folder(folder: Path, **overrides: Any) -> SourceCheckpoint:
    """Recognises a Hub folder by its config.json.

    Args:
        overrides: fields to compare with config.json.

    Raises:
        ValueError: another model, no weights, a damaged file, a key of unknown kind, or an override that contradicts the
            configuration. Sizes of config.json that contradict the tensors are found when the result is loaded.
    """
    config = read_model_config(folder)
    model_type = config.model_type
    name, files = find_weights(folder)
    stored, dialect = read_weights(folder, name, files), _DIALECTS.get(name, {})
    buffers = [key for key in stored if key.endswith(UNUSED)]
    weights = {key: (key, entry) for key, entry in stored.items() if key not in buffers}
    weights = whole_keys(weights, model_type)
    shapes = {key: shape for key, (_, (shape, _)) in weights.items()}
    key_layout = _vit_key_layout(config, shapes) if model_type == "vit" else None
    slots = vit_tpu_slots(config, key_layout) if key_layout else align_tpu_slots(config)
    family = model_type
    if model_type == "align_vision_model":
        family = "efficientnet"
        if "classifier.bias" in shapes:
            raise ValueError(
                "the weights have a classifier on ALIGN's image tower, which the original code cannot have. "
                "AlignForImageClassification.from_pretrained loads this folder without a conversion"
            )
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    check_overrides(overrides, parts, f"{folder / 'config.json'} says")
    homes = [_foreign(slot, dialect) for slot in slots]  # name in the files, axes
    check_keys([key for key, _ in homes], weights, ", ".join(map(str, files)))
    matches = {slot.local_key: (slot, *weights[key], axes) for slot, (key, axes) in zip(slots, homes)}
    return SourceCheckpoint(
        family=family,
        config=config,
        slots=slots,
        tensors=LazyTensors(
            {ours: permuted(entry, axes, slot.local_axes, key) for ours, (slot, key, entry, axes) in matches.items()}
        ),
        key_layout=key_layout,
        skipped={"buffer": len(buffers)} if buffers else {},
        files=[*files, folder / "config.json"],
        kind=f"{name} of a Hub folder",
        names={ours: key for ours, (_, key, _, _) in matches.items()},
        image_processor=_image_processor(family, folder),
        tokenizer=folder if family == "align" and _has(folder, hub.TOKENIZER_FILES) else None,
        license=_license(folder / CARD),
    )


def _license(card: Path) -> dict[str, str]:
    """The license fields of a model card; none where it names no license."""
    from huggingface_hub.repocard import metadata_load

    try:
        fields = metadata_load(card) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return {
        name: fields[name] for name in ("license", "license_name", "license_link") if isinstance(fields.get(name), str)
    }


def _vit_key_layout(config: ViTConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The key layout of a ViT. The tensors also decide, beside config.json, whether there is a head, and a pooler (the Dense
    layer of the pre-logits): `config` is changed accordingly."""
    key_layout = "model" if "classifier.bias" in shapes else "backbone"
    if "vit.pooler.dense.bias" in shapes:
        if key_layout == "model" and not config.representation_size:
            raise ValueError(
                "the weights have a pooler and a classifier. transformers' classifier skips the pooler, while the original "
                "uses it: set representation_size in config.json, or leave the pooler's tensors out"
            )
        if getattr(config, "pooler_act", None) not in (None, "tanh"):
            raise ValueError(f"config.json: pooler_act is {config.pooler_act!r}, expected 'tanh'")
        (config.representation_size,) = shapes["vit.pooler.dense.bias"]
    if TPU_KEY_LAYOUTS[key_layout][1] is None:
        config.num_labels = 0
    return key_layout


def _foreign(slot: Slot, dialect: Mapping) -> tuple[str, str]:
    """Name and axes of a tensor in the files."""
    module, _, leaf = slot.key.rpartition(".")
    leaf, axes = dialect.get((leaf, slot.axes), (leaf, slot.axes))
    return f"{module}.{leaf}" if module else leaf, axes


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _image_processor(family: str, folder: Path) -> ImageProcessor | None:
    if not _has(folder, hub.PROCESSOR_FILES):
        return None
    processor = kakao_models.ViTImageProcessor if family == "vit" else kakao_models.AlignImageProcessor
    return processor.from_pretrained(folder)
