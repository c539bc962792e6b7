"""TFRecord files of tf.train.Example, as the original read them, without TensorFlow.

A record is its length (8 bytes, little-endian), a masked CRC-32C of these, the data, and a masked CRC-32C of the data
(https://www.tensorflow.org/tutorials/load_data/tfrecord). A broken CRC is an error, never a wrong sample.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from kakao_models.files import wire
from kakao_models.files.wire import BYTES, VARINT, mask

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_LISTS = {1: ("bytes", BYTES), 2: ("floats", BYTES), 3: ("integers", BYTES)}


def index_records(path: str | os.PathLike) -> np.ndarray:
    """(records, 2) int64: where the data of each record begins, and its length. Reads headers only.

    Raises:
        ValueError: the file is cut short, or no TFRecord file.
    """
    return np.array(list(scan_records(path)), np.int64).reshape(-1, 2)


def scan_records(path: str | os.PathLike) -> Iterator[tuple[int, int]]:
    """Yields what `index_records` returns; in a file that is cut short, its whole records come before the error."""
    position, size = 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while position < size:
            file.seek(position)
            header = file.read(_HEADER.size)
            length, crc = _HEADER.unpack(header) if len(header) == _HEADER.size else (size, 0)
            end = position + _HEADER.size + length + _FOOTER.size
            if end > size or mask(google_crc32c.value(header[:8])) != crc:
                raise ValueError(
                    f"{path}: no record at byte {position} of {size}. Is it truncated, compressed, or not a TFRecord file?"
                )
            yield position + _HEADER.size, length
            position = end


def read_record(file: int, start: int, length: int, name: str | Path) -> bytes:
    """The data of a record of an open file descriptor.

    Raises:
        ValueError: its CRC says that it is damaged.
    """
    data = os.pread(file, length + _FOOTER.size, start)
    whole = len(data) == length + _FOOTER.size
    if not whole or mask(google_crc32c.value(data[:length])) != _FOOTER.unpack(data[length:])[0]:
        raise ValueError(f"{name}: the record at byte {start} is damaged (its CRC differs)")
    return data[:length]


def parse_example(data: bytes) -> dict[str, list]:
    """A serialised tf.train.Example: name of a feature → its values (bytes, int or float).

    Raises:
        ValueError: it is not a TFRecord file.
    """
    (features,) = wire.decode(data, {1: ("features", BYTES)}, skip_unknown=True)["features"] or (b"",)
    example = {}
    for entry in wire.decode(features, {1: ("entry", BYTES)}, skip_unknown=True)["entry"]:
        pair = wire.decode(entry, {1: ("name", BYTES), 2: ("value", BYTES)}, skip_unknown=True)
        name, value = (wire.single(pair, field, b"") for field in ("name", "value"))
        lists = wire.decode(value, _LISTS, skip_unknown=True)
        values = [x for part in lists["bytes"] for x in wire.decode(part, {1: ("value", BYTES)}, most=10**6)["value"]]
        for part in lists["floats"]:
            for packed in wire.decode(part, {1: ("value", BYTES)})["value"]:
                values += np.frombuffer(packed, "<f4").tolist()
        for part in lists["integers"]:
            values += _integers(part)
        example[wire.text(name)] = values
    return example


def _integers(message: bytes) -> list[int]:
    if message[:1] == b"\x08":  # not packed, as old writers did
        values = wire.decode(message, {1: ("value", VARINT)}, most=10**6)["value"]
    else:
        values = []
        for packed in wire.decode(message, {1: ("value", BYTES)})["value"]:
            position = 0
            while position < len(packed):
                value, position = wire.read_varint(packed, position)
                values.append(value)
    return [value - (1 << 64) if value >> 63 else value for value in values]
