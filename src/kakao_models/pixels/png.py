"""Chunks of PNG files: texts and profiles that PIL refuses as a whole, and those behind the pixels."""

import io
import struct
import zlib
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST, _MOST = 2**20, 2**24  # bytes of one text once it is unpacked, and of all; PIL's limits are higher
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_large_texts(file: BinaryIO) -> BinaryIO:
    """The file, or a copy of a PNG that leaves out texts and colour profiles too large for PIL's limits.

    They may hold an editor's history or a generator's settings; no pixel depends on them. Only lengths are read where there
    are none. At most 1 MB of each text is unpacked.
    """
    large = _large_texts(file)
    file.seek(0)
    if not large:
        return file
    parts = []
    for start, end in large:
        parts.append(file.read(start - file.tell()))
        file.seek(end)
    return io.BytesIO(b"".join([*parts, file.read()]))


def _large_texts(file: BinaryIO) -> list[tuple[int, int]]:
    """(start, end) of the chunks to leave out, in the order of the file."""
    size = file.seek(0, io.SEEK_END)
    large, total, place = [], 0, len(_SIGNATURE)
    while place + 12 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        end = place + 12 + length
        if kind in _TEXTS:
            unpacked = _unpacked_size(kind, file.read(length))
            if unpacked > _LARGEST or total + unpacked > _MOST:
                large.append((place, min(end, size)))
            else:
                total += unpacked
        place = end
    return large


def _unpacked_size(kind: bytes, data: bytes) -> int:
    """Bytes of a text once it is unpacked, as far as the limit; its own length where it is not packed or is broken."""
    rest = data.partition(b"\0")[2]  # behind the keyword
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return len(data)
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language, and the keyword in it
    elif kind == b"tEXt":
        return len(data)
    else:
        rest = rest[1:]
    try:
        return max(len(data), len(zlib.decompressobj().decompress(rest, _LARGEST + 1)))
    except zlib.error:
        return len(data)


def has_late_texts(data: bytes) -> bool:
    """Whether a PNG has chunks behind its pixels in which an orientation may be."""
    if not data.startswith(_SIGNATURE[:4]):
        return False
    place, pixels = 8, False
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        pixels |= kind == b"IDAT"
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False
