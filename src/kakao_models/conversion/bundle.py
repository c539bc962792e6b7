"""TensorFlow's tensor bundle: the messages in a checkpoint's index, and how values lie in its data files.

Formats: tensorflow/core/protobuf/tensor_bundle.proto and tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

import math
import struct
from dataclasses import dataclass

import google_crc32c
import numpy as np

from kakao_models.files import wire
from kakao_models.files.wire import BYTES, FIXED32, VARINT, CheckpointError, mask

# number in tensorflow/core/framework/types.proto → name, bytes of an element
_DTYPES = {1: ("float32", 4), 2: ("float64", 8), 3: ("int32", 4), 4: ("uint8", 1), 5: ("int16", 2), 6: ("int8", 1)}
_DTYPES |= {7: ("string", 0), 9: ("int64", 8), 10: ("bool", 1), 14: ("bfloat16", 2), 17: ("uint16", 2)}
_DTYPES |= {19: ("float16", 2), 22: ("uint32", 4), 23: ("uint64", 8)}
_NUMBERS = {name: number for number, (name, _) in _DTYPES.items()}

_HEADER = {1: ("shards", VARINT), 2: ("big_endian", VARINT), 3: ("version", BYTES)}
_VERSION = {1: ("producer", VARINT), 2: ("oldest_reader", VARINT)}
_ENTRY = {1: ("dtype", VARINT), 2: ("shape", BYTES), 3: ("shard", VARINT), 4: ("offset", VARINT), 5: ("size", VARINT)}
_ENTRY |= {6: ("crc32c", FIXED32), 7: ("slices", BYTES)}

# Bounds of what a hostile index can make us hold: dimensions, elements beside a dimension of 0, bytes and number of strings
_MAX_RANK, _MAX_ELEMENTS, _MAX_STRING_BYTES, _MAX_STRINGS = 32, 1 << 40, 64 << 20, 1_000_000


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """Dtype, shape and place of a tensor."""

    dtype: str  # as TensorFlow calls it: float32, bfloat16, string, ...
    shape: tuple[int, ...]
    shard: int
    offset: int  # in bytes
    size: int  # in bytes
    crc32c: int  # masked, as stored


SLICED = "part of a partitioned variable, stored in slices, which isn't supported"
# What `read_header` reads: one data file, written by version 1 of the format
HEADER = wire.number_field(1, 1) + wire.bytes_field(3, wire.number_field(1, 1))


def read_header(message: bytes) -> int:
    """The number of data files that the index's first entry tells.

    Raises:
        CheckpointError: damaged, or of a form that isn't supported.
    """
    header = wire.decode(message, _HEADER)
    if wire.single(header, "big_endian", 0) != 0:
        raise CheckpointError("its values are big-endian. Write it again on a little-endian machine")
    version = wire.decode(wire.single(header, "version", b""), _VERSION)
    if wire.single(version, "oldest_reader", 0) > 1:
        raise CheckpointError("the version of the format is above 1, expected one that TensorFlow 2 writes")
    if (count := wire.single(header, "shards", 0)) == 0:
        raise CheckpointError("no data files")
    return count


def read_entry(message: bytes) -> BundleEntry:
    """The entry of a tensor; its size, dtype and shape agree.

    Raises:
        CheckpointError: damaged, or of a form that isn't supported.
    """
    fields = wire.decode(message, _ENTRY)
    if fields["slices"]:
        raise CheckpointError(SLICED)
    number = wire.single(fields, "dtype", 0)
    if number not in _DTYPES:
        raise CheckpointError(f"dtype number {number}, expected one of {', '.join(_NUMBERS)}")
    dtype, width = _DTYPES[number]
    dims = wire.decode(wire.single(fields, "shape", b""), {2: ("dim", BYTES)})["dim"]
    if len(dims) > _MAX_RANK:
        raise CheckpointError(f"{len(dims)} dimensions, expected at most {_MAX_RANK}")
    shape = tuple(wire.single(wire.decode(dim, {1: ("size", VARINT)}), "size", 0) for dim in dims)
    if math.prod(filter(None, shape)) > _MAX_ELEMENTS:
        raise CheckpointError(f"shape {shape}: too large")
    count, size = math.prod(shape), wire.single(fields, "size", 0)
    if dtype == "string":
        # each string has at least its length, a byte; then there is the checksum of the lengths
        if not count + 4 <= size <= _MAX_STRING_BYTES or count > _MAX_STRINGS:
            raise CheckpointError(f"shape {shape} of strings in {size} bytes, expected at most {_MAX_STRING_BYTES}")
    elif size != count * width:
        raise CheckpointError(f"shape {shape} of {dtype} needs {count * width} bytes, got {size}")
    place = (wire.single(fields, name, 0) for name in ("shard", "offset"))
    return BundleEntry(dtype, shape, *place, size, wire.single(fields, "crc32c", 0))


def entry_message(entry: BundleEntry) -> bytes:
    """The message of an entry, the inverse of `read_entry`."""
    shape = b"".join(wire.bytes_field(2, wire.number_field(1, size)) for size in entry.shape)
    numbers = wire.number_field(3, entry.shard) + wire.number_field(4, entry.offset) + wire.number_field(5, entry.size)
    start = wire.number_field(1, _NUMBERS[entry.dtype]) + wire.bytes_field(2, shape)
    return start + numbers + struct.pack("<BI", 6 << 3 | FIXED32, entry.crc32c)


def values_of(data: np.ndarray, entry: BundleEntry) -> np.ndarray:
    """The tensor with these bytes. bfloat16 is widened to float32.

    Raises:
        CheckpointError: these aren't the bytes that were written.
    """
    if entry.dtype == "string":
        return _decode_strings(data.tobytes(), entry)
    _check_crc(google_crc32c.value(data), entry)
    if entry.dtype == "bfloat16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4").reshape(entry.shape)
    if entry.dtype == "bool" and data.size and data.max() > 1:
        raise CheckpointError("a bool that is neither 0 nor 1")
    return data.view(np.dtype(entry.dtype).newbyteorder("<")).reshape(entry.shape)


def encode(key: str, value: np.ndarray | bytes | str) -> tuple[BundleEntry, np.ndarray | bytes]:
    """The bytes of a tensor, and its entry as of offset 0 in the only data file.

    Raises:
        ValueError: a dtype that isn't supported.
    """
    array = np.asarray(value, order="C")
    if array.dtype.kind in "SUO":
        # numpy's own strings would drop zero bytes at the end
        array = np.asarray(value, dtype=object)
        data, crc = _encode_strings(key, array)
        return BundleEntry("string", array.shape, 0, 0, len(data), mask(crc)), data
    name = array.dtype.name
    if name not in _NUMBERS:
        raise ValueError(f"{key}: dtype {array.dtype}, expected one of {', '.join(_NUMBERS)}")
    if name != "bfloat16":  # of another package, which has no byte orders
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data = array.reshape(-1).view(np.uint8)
    return BundleEntry(name, array.shape, 0, 0, len(data), mask(google_crc32c.value(data))), data


def _check_crc(crc: int, entry: BundleEntry) -> None:
    if mask(crc) != entry.crc32c:
        raise CheckpointError(f"checksum {mask(crc):08x}, but {entry.crc32c:08x} was written: the file is damaged")


def _encode_strings(key: str, array: np.ndarray) -> tuple[bytes, int]:
    """Lengths, their checksum, then the strings; and the checksum, which takes each length as 32 bits."""
    strings = [value.encode() if isinstance(value, str) else value for value in array.reshape(-1)]
    if not all(isinstance(value, bytes) for value in strings):
        raise ValueError(f"{key}: got Python objects, expected numbers or strings")
    lengths = [len(value) for value in strings]
    if sum(lengths) > _MAX_STRING_BYTES // 2 or len(lengths) > _MAX_STRINGS:
        raise ValueError(f"{key}: {len(lengths)} strings of {sum(lengths)} bytes, expected {_MAX_STRING_BYTES // 2}")
    check, crc = _lengths_crc(lengths)
    content = b"".join(strings)
    return b"".join(map(wire.varint, lengths)) + check + content, google_crc32c.extend(crc, content)


def _decode_strings(data: bytes, entry: BundleEntry) -> np.ndarray:
    lengths, position = [], 0
    for _ in range(math.prod(entry.shape)):
        length, position = wire.read_varint(data, position)
        lengths.append(length)
    if position + 4 + sum(lengths) != len(data):
        raise CheckpointError(f"its strings need {sum(lengths)} bytes, but the data has {len(data) - position - 4}")
    check, crc = _lengths_crc(lengths)
    if check != data[position : position + 4]:
        raise CheckpointError("the checksum of the strings' lengths is wrong: the file is damaged")
    position += 4
    _check_crc(google_crc32c.extend(crc, data[position:]), entry)
    strings = np.empty(len(lengths), dtype=object)
    for i, length in enumerate(lengths):
        strings[i] = data[position : position + length]
        position += length
    return strings.reshape(entry.shape)


def _lengths_crc(lengths: list[int]) -> tuple[bytes, int]:
    """The masked checksum of the lengths as it is stored, and the unmasked one of both."""
    fixed = struct.pack(f"<{len(lengths)}I", *lengths)
    check = struct.pack("<I", mask(google_crc32c.value(fixed)))
    return check, google_crc32c.value(fixed + check)
