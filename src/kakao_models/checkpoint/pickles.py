"""State dicts that `torch.save` wrote (pytorch_model.bin), read in numpy. PyTorch is not needed, and nothing of a pickle is run.

A pickle may name any function and have it called. Here it may name those that make up a state dict of dense tensors, and
they only note where the tensor's values lie; each is read when asked for. Layouts:
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py (a zip, since 1.6; before that pickles and raw storages).
"""

import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from kakao_models.checkpoint.tensors import TensorEntry

_STORAGES = {
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("float64"),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the layout before 1.6
_DAMAGE = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError, UnicodeDecodeError)


class PickledTensor(NamedTuple):
    """A dense tensor of a state dict: where its values lie in a storage. Offset and strides count elements."""

    storage: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The element of the storage after the last that the tensor has."""
        if 0 in self.shape:
            return self.offset
        return self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) + 1


def read_pickle(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a state dict, with the dtypes of the file.

    Raises:
        ValueError: the file is damaged, or holds anything but dense tensors by name.
    """
    stream = open(file, "rb")  # held open by the functions that read
    tensors, read = pickled_tensors(stream, str(file))
    return {key: (tensor.shape, partial(read, tensor)) for key, tensor in tensors.items()}


def pickled_tensors(
    stream: BinaryIO, name: str
) -> tuple[dict[str, PickledTensor], Callable[[PickledTensor], np.ndarray]]:
    """The tensors of a state dict by their keys, and the function that reads one.

    Args:
        stream: a file that can seek; only the parts that are needed are read.
        name: the file's name, for messages.
    """
    zipped = stream.read(2) == b"PK"
    stream.seek(0)
    state, sizes, read = (_of_zip if zipped else _of_pickles)(stream, name)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{name} holds a {type(state).__name__}, expected a state dict")
    for key, tensor in state.items():
        if not isinstance(tensor, PickledTensor):
            raise ValueError(f"{name}: {key} is not a dense tensor, but {type(tensor).__name__}")
        if not _plausible(tensor) or tensor.stop * tensor.dtype.itemsize > sizes.get(tensor.storage, -1):
            raise ValueError(f"{name}: {key} should have shape {tensor.shape}, but the file has fewer values")
    return dict(state), read


def _plausible(tensor: PickledTensor) -> bool:
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    return len(tensor.shape) == len(tensor.strides) and all(type(n) is int and n >= 0 for n in numbers)


def _of_zip(stream: BinaryIO, name: str):
    try:
        archive = zipfile.ZipFile(stream)
        inside = next((entry for entry in archive.namelist() if entry.endswith("/data.pkl")), None)
        if inside is None:
            raise ValueError(f"{name} is a zip file that has no state dict")
        prefix = inside.removesuffix("data.pkl")
        state = _unpickle(archive.open(inside), name)
        if prefix + "byteorder" in archive.namelist() and archive.read(prefix + "byteorder") != b"little":
            raise ValueError(f"{name} was written on a big-endian machine. Write it again on a little-endian one")
    except _DAMAGE as error:
        raise ValueError(f"{name} can't be read: {error}. Is the download complete?") from error
    start = f"{prefix}data/"
    sizes = {
        entry.filename.removeprefix(start): entry.file_size
        for entry in archive.infolist()
        if entry.filename.startswith(start) and entry.compress_type == zipfile.ZIP_STORED  # as torch writes them
    }

    def read(tensor: PickledTensor) -> np.ndarray:
        try:
            data = archive.read(start + tensor.storage)  # which compares the checksum
        except _DAMAGE as error:
            raise ValueError(f"{name}: {error}. The file is damaged") from error
        return _view(data, tensor)

    return state, sizes, read


def _of_pickles(stream: BinaryIO, name: str):
    if (_unpickle(stream, name), _unpickle(stream, name)) != (_MAGIC, _PROTOCOL):
        raise ValueError(f"{name} is damaged, or it is not a state dict of tensors. Other objects are never unpickled")
    _unpickle(stream, name)  # about the machine
    tensors, keys, types = _unpickle(stream, name), _unpickle(stream, name), {}
    for tensor in tensors.values() if isinstance(tensors, dict) else ():
        if isinstance(tensor, PickledTensor):
            types[tensor.storage] = tensor.dtype
    starts, sizes = {}, {}
    for key in keys if isinstance(keys, list) else ():
        count = int.from_bytes(stream.read(8), "little", signed=True)
        if key not in types or count < 0:
            raise ValueError(f"{name}: storage {key!r:.80} belongs to no tensor. Is the download complete?")
        starts[key], sizes[key] = stream.tell(), count * types[key].itemsize
        stream.seek(sizes[key], 1)
    end = stream.seek(0, 2)
    if any(starts[key] + size > end for key, size in sizes.items()):
        raise ValueError(f"{name} ends before its last tensor. Is the download complete?")

    def read(tensor: PickledTensor) -> np.ndarray:
        stream.seek(starts[tensor.storage])
        return _view(stream.read(sizes[tensor.storage]), tensor)

    return tensors, sizes, read


def _view(data: bytes, tensor: PickledTensor) -> np.ndarray:
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, tensor.dtype)
    values = np.frombuffer(data, tensor.dtype)[tensor.offset :]
    strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Everything that a pickle may refer to is made here, anew for each file, so it cannot change other objects."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        makers: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): lambda *entries: OrderedDict(*entries),
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *more: PickledTensor(
                *storage, offset, tuple(size), tuple(stride)
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *more: data,
        }
        if (module, name) not in makers:
            raise pickle.UnpicklingError(f"it needs {module}.{name}")
        return makers[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        kind, storage, key, *_ = pid
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError(f"it refers to {pid!r:.80}")
        return key, _STORAGES[storage]


def _unpickle(stream: BinaryIO, name: str) -> Any:
    try:
        return _Unpickler(stream).load()
    except Exception as error:  # an untrusted pickle may raise anything
        raise ValueError(f"{name} is damaged, or it is not a state dict of tensors ({error})") from error
