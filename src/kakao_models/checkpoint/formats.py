"""The formats of weights of checkpoints, each as key → shape and how to read the tensor, in numpy.

Keys are parted by dots and otherwise as in the file; dtypes are those of the file.
"""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from kakao_models.checkpoint.hub import MissingFile, NotCached, fetch, shards_of
from kakao_models.checkpoint.pickles import read_pickle
from kakao_models.checkpoint.tensors import UNUSED, TensorEntry
from kakao_models.files.mapped import forget_pages

_MOST_HELD = 64 << 20


def read_safetensors(file: Path) -> dict[str, TensorEntry]:
    """Reads model.safetensors, the format of transformers since 2023."""
    try:
        tensors = safe_open(file, "np")
        keys = list(tensors.keys())
        shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{file} can't be read: {error}. Is the download complete?") from error
    held = 0  # bytes of the mapped file in memory

    def read(key: str) -> np.ndarray:
        nonlocal held
        array = tensors.get_tensor(key)
        held += array.nbytes
        if held > _MOST_HELD:
            forget_pages([file])
            held = 0
        return array

    return {key: (shapes[key], partial(read, key)) for key in keys}


def read_h5(file: Path) -> dict[str, TensorEntry]:
    """Reads tf_model.h5, which transformers' TensorFlow classes wrote.

    Keys begin with groups for layer and model, which sharded files leave out; they are removed.
    """
    from kakao_models.checkpoint.hdf5 import read_datasets

    tensors = {}
    for path, entry in read_datasets(file)[0].items():
        parts = path.removesuffix(":0").split("/")
        parts = parts[2:] if len(parts) > 2 and parts[1].startswith("tf_") else parts
        tensors[".".join(parts).replace("layer_._", "layer.")] = entry
    return tensors


def read_msgpack(file: Path) -> dict[str, TensorEntry]:
    """Reads flax_model.msgpack, which transformers' Flax classes wrote, into memory.

    It holds nested dicts; the leaves are arrays, flax's extension type 1.
    """
    try:
        import msgpack
    except ImportError:
        raise ImportError("reading Flax weights (.msgpack) needs msgpack: pip install msgpack") from None

    def array(code: int, data: bytes) -> TensorEntry:
        if code != 1:
            raise ValueError(f"extension type {code}, expected 1 (an array)")
        shape, dtype, numbers = msgpack.unpackb(data, raw=True)
        width = {b"float32": 4, b"float16": 2, b"bfloat16": 2}.get(dtype)
        sizes = all(isinstance(size, int) and size >= 0 for size in shape)
        if width is None or not sizes or math.prod(shape) * width != len(numbers):
            raise ValueError(f"got {len(numbers)} bytes for an array of {dtype} {shape}")
        # the numbers come last: only the whole message is kept
        return tuple(shape), partial(_from_bytes, data, len(data) - len(numbers), tuple(shape), dtype)

    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tree = msgpack.unpackb(content, ext_hook=array, raw=False)
    except (ValueError, TypeError) as error:  # msgpack's own errors are ValueErrors
        raise ValueError(f"{file} is not a file of Flax weights: {error}. Is the download complete?") from error
    tensors, branches = {}, [("", tree)]
    while branches:
        prefix, branch = branches.pop()
        for key, value in branch.items() if isinstance(branch, dict) else [("", None)]:
            if isinstance(value, dict):
                branches.append((f"{prefix}{key}.", value))
            elif isinstance(value, tuple):
                tensors[f"{prefix}{key}"] = value
            else:
                raise ValueError(f"{file}: {prefix}{key} is not an array, but {type(value).__name__}")
    return tensors


def _from_bytes(data: bytes, start: int, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    kind = ml_dtypes.bfloat16 if dtype == b"bfloat16" else dtype.decode()
    return np.frombuffer(data, kind, offset=start).reshape(shape)


# In the order of preference, if a checkpoint has several
WEIGHT_FILES: dict[str, Callable[[Path], dict[str, TensorEntry]]] = {
    "model.safetensors": read_safetensors,
    "pytorch_model.bin": read_pickle,
    "tf_model.h5": read_h5,
    "flax_model.msgpack": read_msgpack,
}


_CANONICAL = ("model.safetensors", "pytorch_model.bin")  # the others name and turn their tensors otherwise


def find_weights(
    name_or_path: str | os.PathLike, names: Sequence[str] = tuple(WEIGHT_FILES), **where: Any
) -> tuple[str, list[Path]]:
    """The format of a checkpoint's weights, of those in `names`, and its file or the shards that its index names.

    Args:
        where: arguments of `fetch`, which downloads them.

    Raises:
        MissingFile: no weights, or a shard that an index names is missing.
    """
    first: MissingFile | None = None
    for name in names:
        try:
            return name, [fetch(name_or_path, name, **where)]
        except MissingFile as error:
            first = first or error
        try:
            index = fetch(name_or_path, f"{name}.index.json", **where)
        except MissingFile:
            continue
        return name, [fetch(name_or_path, shard, **where) for shard in shards_of(index)]
    if isinstance(first, NotCached):
        raise first
    raise MissingFile(f"{name_or_path} has no weights: expected {', '.join(names)}, or an index of shards")


def read_weights(name_or_path: str | os.PathLike, format: str, files: Sequence[Path]) -> dict[str, TensorEntry]:
    """The tensors of the files that `find_weights` gives.

    Raises:
        ValueError: a damaged file, or a tensor that is in two of them.
    """
    stored: dict[str, TensorEntry] = {}
    for file in files:
        tensors = WEIGHT_FILES[format](file)
        if twice := tensors.keys() & stored.keys():
            raise ValueError(f"{file}: {min(twice)} is a duplicate: another file of {name_or_path} also has it")
        stored |= tensors
    return stored


def stored_tensors(name_or_path: str | os.PathLike, where: dict[str, Any]) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint's files, without those that no model loads.

    Raises:
        OSError: no weights, a damaged file, or only formats that have to be converted.
    """
    format, files = find_weights(name_or_path, **where)
    if format not in _CANONICAL:
        raise OSError(
            f"{name_or_path} has no {' or '.join(_CANONICAL)} but {files[0].name}. Convert it once: "
            f"kakao-models convert {name_or_path} NEW_FOLDER"
        )
    try:
        stored = read_weights(name_or_path, format, files)
    except ValueError as error:
        raise OSError(str(error)) from error
    return {key: entry for key, entry in stored.items() if not key.endswith(UNUSED)}
