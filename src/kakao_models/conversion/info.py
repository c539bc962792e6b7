"""Describes a checkpoint by its config and the headers of its files: no weights are read, no framework runs."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from kakao_models.checkpoint import hub
from kakao_models.checkpoint.config import name_of_size
from kakao_models.checkpoint.formats import WEIGHT_FILES, find_weights, read_weights
from kakao_models.checkpoint.kinds import kind_of
from kakao_models.checkpoint.pickles import pickled_tensors
from kakao_models.checkpoint.shards import DTYPE_NAMES
from kakao_models.checkpoint.tensors import BUFFERS
from kakao_models.files.atomic import sha256_of
from kakao_models.inference.light_processors import preprocessing_class

_UNKNOWN = "unknown"  # the dtype of a tensor that its file gives only beside the values


def describe_checkpoint(name_or_path: str | os.PathLike, **where: Any) -> dict:
    """Describes a checkpoint, ready for JSON.

    Keys: name, folder (or None: then files were looked at on the Hub), model_type, dim, towers (image, text:
    kind, size, parameters, ...), parameters, preprocessing, files (name, bytes, sha256), tensors (name → dtype, shape).
    The number of parameters is None if weights would have to be downloaded to count them.

    Args:
        where: arguments of `fetch`.

    Raises:
        OSError: no such checkpoint.
        ValueError: another kind of model, or a broken file.
    """
    where = hub.pin(name_or_path, **where)
    file = hub.fetch(name_or_path, "config.json", **where)
    folder, config = file.parent, hub.read_config(file)
    try:
        files, tensors = _local_files(name_or_path, hub.cached_only(where))
    except hub.MissingFile:
        if os.path.isdir(hub.resolve(name_or_path)) or where.get("local_files_only"):
            files, tensors = [], {}
        else:
            files, tensors = _hub_files(os.fspath(name_or_path), where)
            folder = None
    parameters = {key: math.prod(entry["shape"]) for key, entry in tensors.items() if not key.endswith(BUFFERS)}
    model_type = config.get("model_type")
    kind_of(model_type, name_or_path)  # another kind of model is an error
    with hub.described_by(file):
        towers = _TOWERS[model_type](config, parameters)
    if not tensors:
        for tower in towers["towers"].values():
            tower["parameters"] = None
    return {
        "name": os.fspath(name_or_path),
        "folder": folder and str(folder),
        "model_type": model_type,
        **towers,
        "parameters": sum(parameters.values()) if tensors else None,
        "preprocessing": _preprocessing(name_or_path, where),
        "files": files,
        "tensors": tensors,
    }


def as_text(info: dict) -> str:
    """The result of `describe_checkpoint` for people."""
    lines = [f"{info['name']}: {info['model_type']}, {_millions(info['parameters'])}"]
    lines.append(f"  embedding      {info['dim']} dimensions")
    for name, tower in info["towers"].items():
        named = {"kind", "size", "parameters"}
        details = ", ".join(f"{key} {value}" for key, value in tower.items() if key not in named)
        kind = " ".join(filter(None, (tower["kind"], tower["size"])))
        lines.append(f"  {name + ' tower':<14} {kind}: {details}; {_millions(tower['parameters'])}")
    lines.append(f"  preprocessing  {_in_words(info['model_type'], info['preprocessing'])}")
    dtypes = sorted({tensor["dtype"] for tensor in info["tensors"].values()})
    lines.append(f"  tensors        {', '.join([str(len(info['tensors'])), *dtypes]) if dtypes else 'no weights here'}")
    for file in info["files"]:
        lines.append(f"  {file['name']}: {file['bytes']:,} bytes, sha256 {file['sha256']}")
    if info["folder"]:
        lines.append(f"  in {info['folder']}")
    return "\n".join(lines)


def _align(config: dict, parameters: dict[str, int]) -> dict:
    from kakao_models.align.config import BERT_SIZES, AlignConfig

    config = AlignConfig.from_dict(config)
    text = config.text_config
    image_tower = _efficientnet(config.vision_config, _count(parameters, ("vision_model.", "visual_projection.")))
    text_tower = {
        "kind": "BERT",
        "size": name_of_size(BERT_SIZES, (text.num_hidden_layers, text.hidden_size)),
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "vocabulary": text.vocab_size,
        "parameters": _count(parameters, ("text_model.", "text_projection.")),
    }
    return {"dim": config.projection_dim, "towers": {"image": image_tower, "text": text_tower}}


def _align_vision(config: dict, parameters: dict[str, int]) -> dict:
    from kakao_models.align.config import AlignVisionConfig

    config = AlignVisionConfig.from_dict(config)
    tower = _efficientnet(config, sum(parameters.values()))
    tower["classes"] = _classes(config, parameters)
    return {"dim": config.output_channels, "towers": {"image": tower}}


def _efficientnet(vision, parameters: int) -> dict:
    from kakao_models.align.config import EFFICIENTNET_SIZES, AlignVisionConfig

    def blocks(config: AlignVisionConfig) -> list:
        """The blocks without their padding, which depends on the image size and not on the network."""
        return [replace(block, symmetric_padding=False) for block in config.blocks()]

    published = (name for name in EFFICIENTNET_SIZES if blocks(AlignVisionConfig.efficientnet(name)) == blocks(vision))
    return {
        "kind": "EfficientNet",
        "size": next(published, None),
        "image_size": vision.image_size,
        "blocks": len(vision.blocks()),
        "width": vision.output_channels,
        "parameters": parameters,
    }


def _vit(config: dict, parameters: dict[str, int]) -> dict:
    from kakao_models.vit.config import VIT_SIZES, ViTConfig

    config = ViTConfig.from_dict(config)
    tower = {
        "kind": "ViT",
        "size": name_of_size(VIT_SIZES, (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)),
        "image_size": config.image_size,
        "patch": config.patch_size,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "pre_logits": config.representation_size or 0,
        "classes": _classes(config, parameters),
        "parameters": sum(parameters.values()),
    }
    return {"dim": config.representation_size or config.hidden_size, "towers": {"image": tower}}


def _classes(config, parameters: dict[str, int]) -> int:
    return config.num_labels if any(key.startswith("classifier.") for key in parameters) else 0


_TOWERS = {"align": _align, "align_vision_model": _align_vision, "vit": _vit}


def _count(parameters: dict[str, int], prefixes: tuple[str, ...]) -> int:
    return sum(size for key, size in parameters.items() if key.startswith(prefixes))


def _preprocessing(name_or_path, where: Mapping) -> dict:
    """The image processor's settings: preprocessor_config.json, or its part of processor_config.json."""
    for filename in hub.PROCESSOR_FILES:
        try:
            file = hub.fetch(name_or_path, filename, **where)
        except hub.MissingFile:
            continue
        values = hub.read_config(file)
        return values if filename.startswith("pre") else values.get("image_processor", {})
    return {}


def _in_words(model_type: str, values: dict) -> str:
    if not values:
        return "not in the checkpoint"
    try:
        return preprocessing_class(model_type).of(values).in_words()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        return f"unreadable ({error})"


def _local_files(name_or_path, where: Mapping) -> tuple[list[dict], dict[str, dict]]:
    format, paths = find_weights(name_or_path, **where)
    files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths]
    if format == "model.safetensors":
        return files, {key: tensor for path in paths for key, tensor in _header(path).items()}
    if format != "pytorch_model.bin":
        entries = read_weights(name_or_path, format, paths)
        return files, {key: {"dtype": _UNKNOWN, "shape": list(shape)} for key, (shape, _) in entries.items()}
    tensors = {}
    for path in paths:
        with open(path, "rb") as stream:
            tensors |= _pickle_header(stream, str(path))
    return files, tensors


def _pickle_header(stream: BinaryIO, name: str) -> dict[str, dict]:
    """Names, dtypes and shapes of a state dict."""
    tensors, _ = pickled_tensors(stream, name)
    return {key: {"dtype": DTYPE_NAMES[t.dtype.name], "shape": list(t.shape)} for key, t in tensors.items()}


def _header(path: Path) -> dict[str, dict]:
    """Names, dtypes and shapes of a safetensors file."""
    try:
        with safe_open(path, "np") as file:
            entries = {key: file.get_slice(key) for key in file.offset_keys()}
            return {key: {"dtype": entry.get_dtype(), "shape": entry.get_shape()} for key, entry in entries.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}. Is the download complete?") from error


def _hub_files(repo: str, where: Mapping) -> tuple[list[dict], dict[str, dict]]:
    """Files and tensors of a checkpoint on the Hub. Only the headers of the files are read."""
    from huggingface_hub import HfApi, HfFileSystem

    revision, token, folder = where["revision"], where.get("token"), where.get("subfolder", "")
    api, tensors = HfApi(token=token), {}
    with hub.asking(repo, where, revision=revision):
        siblings = api.model_info(repo, revision=revision, files_metadata=True).siblings
    sizes = {Path(file.rfilename): file for file in siblings if Path(file.rfilename).parent == Path(folder)}
    names = {path.name for path in sizes}
    format = next((name for name in WEIGHT_FILES if names & {name, f"{name}.index.json"}), None)
    if format is None:
        return [], {}
    weights = [format] if format in names else hub.shards_of(hub.fetch(repo, f"{format}.index.json", **where))
    if absent := sorted(set(weights) - names):
        raise hub.MissingFile(f"{repo} has no {absent[0]} (commit {revision[:8]}), which its index names")
    files = [Path(folder, name) for name in weights]  # not training_args.bin, or another model's weights beside them
    with hub.asking(repo, where, revision=revision):
        if format == "model.safetensors":
            for path in files:
                header = api.parse_safetensors_file_metadata(repo, path.as_posix(), revision=revision).tensors
                tensors |= {key: {"dtype": tensor.dtype, "shape": tensor.shape} for key, tensor in header.items()}
        elif format == "pytorch_model.bin":
            system = HfFileSystem(token=token)
            for path in files:
                with system.open(f"{repo}@{revision}/{path.as_posix()}") as stream:
                    tensors |= _pickle_header(stream, f"{repo}: {path.name}")
    described = []
    for file in (sizes[path] for path in files):
        described.append({"name": file.rfilename, "bytes": file.size, "sha256": file.lfs and file.lfs.sha256})
    return described, tensors


def _millions(count: int | None) -> str:
    if count is None:
        return "parameters not counted"
    return f"{count / 1e6:.1f} M parameters" if count >= 1e6 else f"{count:,} parameters"
