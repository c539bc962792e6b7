"""The formats of weights in Hub folders, each as key → shape and how to read the tensor.

Keys are parted by dots and otherwise as in the file. Tensors come in float32; narrower ones are widened.
"""

import math
import mmap
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kakao_models.checkpoint.tensors import TensorEntry, float32
from kakao_models.files.mapped import MappedFile


def read_safetensors(file: Path) -> dict[str, TensorEntry]:
    """Of transformers since 2023."""
    try:
        tensors = safe_open(file, "pt")  # not "np", which knows no bfloat16
        keys = list(tensors.keys())
        shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{file} can't be read: {error}. Is the download complete?") from error
    mapped = MappedFile(file)
    return {
        key: (shapes[key], partial(_from_torch, partial(tensors.get_tensor, key), f"{file}: {key}", mapped))
        for key in keys
    }


def read_pickle(file: Path) -> dict[str, TensorEntry]:
    """`torch.save` of a state dict: only tensors are unpickled, anything else is refused and not run."""
    import torch

    with open(file, "rb") as stream:
        zipped = stream.read(2) == b"PK"  # what torch wrote before 1.6 is no zip
    if zipped:
        _check_sums(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped or None)
    except Exception as error:  # whatever a pickle that somebody else made leads to
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"{file} is no state dict of tensors alone, or damaged; nothing else is unpickled. {said}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{file} holds a {type(state).__name__}, wanted a state dict")
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{file}: {key} is no dense tensor, but {type(tensor).__name__}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{file}: {key} claims {tuple(tensor.shape)}, more than the file holds of it")
    mapped = MappedFile(file)
    return {
        key: (tuple(tensor.shape), partial(_from_torch, lambda tensor=tensor: tensor, f"{file}: {key}", mapped))
        for key, tensor in state.items()
    }


def _check_sums(file: Path) -> None:
    """The zip's checksums, which torch does not look at when it maps a file into memory."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} can't be read: {error}. Is the download complete?") from error
    if damaged:
        raise ValueError(f"{file}: the bytes of {damaged} are not those that were written; the file is damaged")


def _from_torch(read: Callable, name: str, mapped: MappedFile) -> np.ndarray:
    import torch

    tensor = read()
    mapped.looked_at(tensor.nbytes)
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name} is {tensor.dtype}, wanted float32, float16 or bfloat16")
    return tensor.float().numpy()


def read_h5(file: Path) -> dict[str, TensorEntry]:
    """Of the TensorFlow classes: groups by layer and model stand before the module's name, shards leave them out."""
    from kakao_models.checkpoint.hdf5 import read_datasets

    tensors = {}
    for path, entry in read_datasets(file)[0].items():
        parts = path.removesuffix(":0").split("/")
        parts = parts[2:] if len(parts) > 2 and parts[1].startswith("tf_") else parts
        tensors[".".join(parts).replace("layer_._", "layer.")] = entry
    return tensors


def read_msgpack(file: Path) -> dict[str, TensorEntry]:
    """Of the Flax classes: nested dicts whose leaves are arrays, flax's extension type 1. The file is held in memory."""
    try:
        import msgpack
    except ImportError:
        raise ImportError("reading Flax weights (.msgpack) needs msgpack: pip install msgpack") from None

    def array(code: int, data: bytes) -> TensorEntry:
        if code != 1:
            raise ValueError(f"extension type {code}, wanted 1, an array")
        shape, dtype, numbers = msgpack.unpackb(data, raw=True)
        width = {b"float32": 4, b"float16": 2, b"bfloat16": 2}.get(dtype)
        sizes = all(isinstance(size, int) and size >= 0 for size in shape)
        if width is None or not sizes or math.prod(shape) * width != len(numbers):
            raise ValueError(f"an array that claims {dtype} {shape} has {len(numbers)} bytes")
        # the numbers come last: only the whole message is kept
        return tuple(shape), partial(_from_bytes, data, len(data) - len(numbers), tuple(shape), dtype)

    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tree = msgpack.unpackb(content, ext_hook=array, raw=False)
    except (ValueError, TypeError) as error:  # msgpack's own errors are ValueErrors
        raise ValueError(f"{file} is no file of Flax weights: {error}. Is the download complete?") from error
    tensors, branches = {}, [("", tree)]
    while branches:
        prefix, branch = branches.pop()
        for key, value in branch.items() if isinstance(branch, dict) else [("", None)]:
            if isinstance(value, dict):
                branches.append((f"{prefix}{key}.", value))
            elif isinstance(value, tuple):
                tensors[f"{prefix}{key}"] = value
            else:
                raise ValueError(f"{file}: {prefix}{key} is no array, but {type(value).__name__}")
    return tensors


def _from_bytes(data: bytes, start: int, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    if dtype == b"bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2", offset=start).astype("<u4") << 16).view(np.float32).reshape(shape)
    return float32(np.frombuffer(data, dtype.decode(), offset=start).reshape(shape), "array")
