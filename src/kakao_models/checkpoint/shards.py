"""Canonical arrays on disk: safetensors files, one or several, written and read tensor by tensor."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from kakao_models.checkpoint.tensors import COUNTER, LazyTensors
from kakao_models.files.atomic import write_text
from kakao_models.files.mapped import MappedFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# numpy's name → that of the format, https://github.com/huggingface/safetensors#format
DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
DTYPE_NAMES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)} | {
    f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)
}


def counters(keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The counter of every batch norm among `keys`, at 0: transformers reports a file without them as incomplete."""
    statistics = (key for key in keys if key.endswith("running_mean"))
    return {key.removesuffix("running_mean") + COUNTER: np.zeros((), np.int64) for key in statistics}


@dataclass
class Written:
    """SHA-256 of what was written: by name of the file, and by name of the tensor."""

    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a folder's safetensors files, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        mapped = MappedFile(file)
        with safe_open(file, "np") as tensors:
            for key in tensors.keys():
                array = tensors.get_tensor(key)
                mapped.looked_at(array.nbytes)
                yield key, array


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> Written:
    """Writes canonical arrays to `path`, under another name first: the file is there complete or not at all.

    Args:
        arrays: by key. Of `LazyTensors`, which must give float32 (int64 for counters), one at a time is in memory.

    Raises:
        OSError: the file can't be written.
        ValueError: a dtype that safetensors files do not have, or an array that is not of the shape it said.
    """
    kinds = {
        key: (_lazy_dtype(key), arrays.shape(key)) if isinstance(arrays, LazyTensors) else array_kind(arrays[key])
        for key in arrays
    }
    for key, (dtype, _) in kinds.items():
        if dtype not in DTYPE_NAMES:
            raise ValueError(f"{key}: dtype {dtype}, expected one of {', '.join(DTYPE_NAMES)}")
    keys = sorted(kinds, key=lambda key: (-_width(kinds[key][0]), key))  # widest first keeps every tensor aligned
    unfinished = path.with_name(path.name + ".unfinished")
    written, whole = Written(), hashlib.sha256()
    try:
        with ThreadPoolExecutor(2) as pool, open(unfinished, "wb") as stream:
            header = _header({key: kinds[key] for key in keys})
            whole.update(header)
            stream.write(header)
            for key in keys:
                array = arrays[key]
                if array_kind(array) != kinds[key]:
                    raise ValueError(
                        f"{key}: got {array.dtype} {array.shape}, expected {' '.join(map(str, kinds[key]))}"
                    )
                part, data = hashlib.sha256(), bytes_of(array).data
                hashing = [pool.submit(digest.update, data) for digest in (part, whole)]
                stream.write(data)
                for job in hashing:
                    job.result()
                written.tensors[key] = part.hexdigest()
                del array, data, hashing, job  # before the next is read
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, f"{path} can't be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    written.files[path.name] = whole.hexdigest()
    return written


def _lazy_dtype(key: str) -> str:
    return "int64" if key.endswith(COUNTER) else "float32"


def array_kind(array: np.ndarray) -> tuple[str, tuple[int, ...]]:
    """Name of the dtype, and shape."""
    return array.dtype.name, tuple(array.shape)


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order, little-endian as in a file; a view where it lies so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize  # bfloat16 is another package's


def _header(kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Length and JSON, padded with spaces so that tensors begin at a multiple of 8."""
    entries: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (dtype, shape) in kinds.items():
        start, end = end, end + _width(dtype) * math.prod(shape)
        entries[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shards(folder: Path, tensors: LazyTensors, max_shard_size: int) -> Written:
    """model.safetensors, or model-00001-of-0000N.safetensors and their index where that would be too large.

    Args:
        tensors: of float32 (counters of int64), each read when it is written.
        max_shard_size: bytes of tensors in a file; a larger tensor has one for itself.
    """
    sizes = {key: _width(_lazy_dtype(key)) * math.prod(tensors.shape(key)) for key in tensors}
    shards = split(sizes, max_shard_size)
    written = Written()
    for name, keys in shards.items():
        shard = write_safetensors(folder / name, tensors.only(keys))
        written.files |= shard.files
        written.tensors |= shard.tensors
    write_index(folder, shards, sizes)
    return written


def split(sizes: Mapping[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """Keys in their order, by name of the file that is to hold them.

    Args:
        sizes: bytes of each tensor.
        max_shard_size: bytes of tensors in a file; a larger tensor has one for itself.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": keys for i, keys in enumerate(shards, 1)}


def write_index(folder: Path, shards: Mapping[str, list[str]], sizes: Mapping[str, int]) -> None:
    """The index of several files, and no file of an older checkpoint beside them, now that these are complete."""
    index = folder / INDEX
    if len(shards) > 1:
        places = {key: name for name, keys in shards.items() for key in keys}
        content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_text(index, json.dumps(content, indent=1))
    else:
        index.unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors"):
        if old.name not in shards:
            old.unlink()
