"""The wire format of protocol buffers, as far as TensorFlow's files need it, and the masked checksums of these files.

Strict and small: messages have no classes.

Format: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}


class CheckpointError(ValueError):
    """A checkpoint that can't be read: damaged, incomplete, or of a form that isn't supported."""


def mask(crc: int) -> int:
    """A checksum in the masked form that is stored: a plain CRC of data that contains CRCs would be weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def within(place: object) -> Iterator[None]:
    """Puts `place` before the message of a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error


def read_varint(data: bytes, position: int, end: int | None = None) -> tuple[int, int]:
    """The unsigned 64-bit number at `position`, and the position after it."""
    value, shift = 0, 0
    end = len(data) if end is None else end
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 1 << 64:
                break
            return value, position
        shift += 7
    raise CheckpointError(f"expected a number of at most 64 bits, which ends before byte {position} of {end}")


def varint(value: int) -> bytes:
    """An unsigned number of at most 64 bits."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(
    message: bytes, schema: Mapping[int, tuple[str, int]], *, skip_unknown: bool = False, most: int = 1000
) -> dict[str, list]:
    """The fields of a message: name → its values, in their order (none: an empty list).

    Args:
        schema: number of a field → name, wire type.
        skip_unknown: pass over fields that `schema` doesn't have, which newer releases may add; otherwise they are an error.
        most: this many fields at most.

    Raises:
        CheckpointError: the message is cut, has too many fields, an unknown one, or one of another wire type.
    """
    values: dict[str, list] = {name: [] for name, _ in schema.values()}
    position, end = 0, len(message)
    while position < end:
        if (most := most - 1) < 0:
            raise CheckpointError("a message has far too many fields")
        tag, position = read_varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = read_varint(message, position)
        elif wire == BYTES or wire in _FIXED:
            size, start = read_varint(message, position) if wire == BYTES else (_FIXED[wire], position)
            position = start + size
            if position > end:
                raise CheckpointError(
                    f"field {number} has {size} bytes according to its header, but {end - start} are left"
                )
            value = message[start:position] if wire == BYTES else int.from_bytes(message[start:position], "little")
        else:
            raise CheckpointError(f"field {number} has the unknown wire type {wire}")
        if number in schema:
            name, expected = schema[number]
            if wire != expected:
                raise CheckpointError(f"field {number} ({name}) has wire type {wire}, expected {expected}")
            values[name].append(value)
        elif number == 0 or not skip_unknown:
            raise CheckpointError(f"field {number} is unknown. Was the file written by a newer release?")
    return values


def single(values: Mapping[str, list], name: str, default: Any):
    """The value of a field that may be there once."""
    if len(values[name]) > 1:
        raise CheckpointError(f"field {name} occurs {len(values[name])} times, expected once")
    return values[name][0] if values[name] else default


def number_field(number: int, value: int) -> bytes:
    """A field of an unsigned number; zero, the default, isn't written."""
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def bytes_field(number: int, value: bytes | str) -> bytes:
    """A field of bytes, of text or of another message."""
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def text(value: bytes) -> str:
    """UTF-8.

    Raises:
        CheckpointError: it isn't.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{value[:80]!r} isn't UTF-8 text") from error
