"""Canonical arrays on disk: safetensors files, one or several."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

COUNTER = "num_batches_tracked"  # PyTorch's batch norm counts its steps; no other framework, and no result, knows of it


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a folder's safetensors files, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            for key in tensors.keys():
                yield key, tensors.get_tensor(key)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes canonical arrays to `path`, under another name first: the file is there complete or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        # safetensors writes an array's memory as it lies, whatever its strides
        contiguous = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        try:
            save_file(contiguous, unfinished, metadata={"format": "pt"})
        except SafetensorError as error:  # its own kind of error for what the system says, such as a full disk
            raise OSError(f"{path} can't be written: {error}") from error
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, Callable[[], np.ndarray]],
    max_shard_size: int,
) -> None:
    """model.safetensors, or model-00001-of-0000N.safetensors and their index where that would be too large.

    Args:
        shapes: of every tensor, float32; they decide what goes into which shard.
        arrays: the tensors, called for when their shard is written: one shard is in memory at a time.
        max_shard_size: bytes of tensors in a file; a larger tensor has one for itself.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for key, shape in shapes.items():
        size = 4 * math.prod(shape)
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", {key: arrays[key]() for key in shards[0]})
        return
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, keys in zip(names, shards):
        write_safetensors(folder / name, {key: arrays[key]() for key in keys})
    total = sum(4 * math.prod(shape) for shape in shapes.values())
    places = {key: name for name, keys in zip(names, shards) for key in keys}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
