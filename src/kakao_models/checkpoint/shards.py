"""Canonical arrays on disk: safetensors files, one or several, written and read tensor by tensor."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.checkpoint.formats import read_safetensors
from kakao_models.checkpoint.tensors import COUNTER, LazyTensors
from kakao_models.files.atomic import replacing, write_text

WEIGHTS = "model.safetensors"
# Patterns of all names that `write_shards` gives. Other files may lie beside them, such as model.fp16.safetensors.
WEIGHT_NAMES = (WEIGHTS, f"{WEIGHTS}.index.json", "model-?????-of-?????.safetensors")

# numpy's name → that of the format, https://github.com/huggingface/safetensors#format
DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
DTYPE_NAMES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
DTYPE_NAMES |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}


@dataclass
class Written:
    """SHA-256 of each file and of each tensor that was written, by name."""

    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a folder's safetensors files, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        for key, (_, read) in read_safetensors(file).items():
            yield key, read()


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> Written:
    """Writes canonical arrays to `path`, under another name first: the file is written completely or not at all.

    Args:
        arrays: key → array. `LazyTensors` are read one at a time.

    Raises:
        OSError: the file can't be written.
        ValueError: a dtype that safetensors files do not have, or an array whose shape differs from the announced one.
    """
    if isinstance(arrays, LazyTensors):
        kinds = {key: (arrays.dtype(key), arrays.shape(key)) for key in arrays}
    else:
        kinds = {key: array_kind(array) for key, array in arrays.items()}
    for key, (dtype, _) in kinds.items():
        if dtype not in DTYPE_NAMES:
            raise ValueError(f"{key}: dtype {dtype}, expected one of {', '.join(DTYPE_NAMES)}")
    # widest first keeps every tensor aligned
    keys = sorted(kinds, key=lambda key: (-np.dtype(kinds[key][0]).itemsize, key))
    written, whole = Written(), hashlib.sha256()
    with replacing(path) as unfinished, ThreadPoolExecutor(2) as pool, open(unfinished, "wb") as stream:
        header = _header({key: kinds[key] for key in keys})
        whole.update(header)
        stream.write(header)
        for key in keys:
            array = arrays[key]
            if array_kind(array) != kinds[key]:
                raise ValueError(f"{key}: got {array.dtype} {array.shape}, expected {' '.join(map(str, kinds[key]))}")
            part, data = hashlib.sha256(), bytes_of(array).data
            hashing = [pool.submit(digest.update, data) for digest in (part, whole)]
            stream.write(data)
            for job in hashing:
                job.result()
            written.tensors[key] = part.hexdigest()
            del array, data, hashing, job  # before the next is read
    written.files[path.name] = whole.hexdigest()
    return written


def array_kind(array: np.ndarray) -> tuple[str, tuple[int, ...]]:
    """Name of the dtype, and shape."""
    return array.dtype.name, tuple(array.shape)


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order, little-endian as in a file; a view where it lies so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def digest_of(array: np.ndarray) -> str:
    """SHA-256 of an array, as in `Written.tensors`."""
    return hashlib.sha256(bytes_of(array).data).hexdigest()


def _header(kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Length and JSON, padded with spaces so that tensors begin at a multiple of 8."""
    entries: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (dtype, shape) in kinds.items():
        start, end = end, end + np.dtype(dtype).itemsize * math.prod(shape)
        entries[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shards(folder: Path, tensors: LazyTensors, max_shard_size: int) -> Written:
    """Writes model.safetensors, or numbered shards and their index where it would exceed `max_shard_size`.

    Every batch norm also gets its counter, at 0: transformers reports a file without them as incomplete. Files of an older
    checkpoint in the folder are removed once the new ones are complete.

    Args:
        tensors: each is read when it is written.
        max_shard_size: bytes of tensors in a file; a larger tensor has one for itself.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    statistics = [key for key in tensors if key.endswith("running_mean")]
    counters = {key.removesuffix("running_mean") + COUNTER: ((), partial(np.zeros, (), np.int64)) for key in statistics}
    tensors = tensors.with_entries(counters)
    sizes = {key: np.dtype(tensors.dtype(key)).itemsize * math.prod(tensors.shape(key)) for key in tensors}
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    written = Written()
    for name, keys in split.filename_to_tensors.items():
        shard = write_safetensors(folder / name, tensors.only(keys))
        written.files |= shard.files
        written.tensors |= shard.tensors
    index = folder / f"{WEIGHTS}.index.json"
    if split.is_sharded:
        write_text(index, json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, indent=1))
    kept = {*split.filename_to_tensors, index.name if split.is_sharded else WEIGHTS}
    for old in [path for pattern in WEIGHT_NAMES for path in folder.glob(pattern)]:
        if old.name not in kept:
            old.unlink()
    return written
