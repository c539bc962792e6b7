"""What a shard has got so far, sample by sample: an append-only file that survives a kill at any byte.

A record is a TFRecord (length and data with checksums); what a kill cut short is cut off when the file is opened again.
"""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from kakao_models.data.writers import record
from kakao_models.files.wire import mask

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")


class Journal:
    """Facts (JSON) and bytes of rows, in the order they came.

    Raises:
        FileExistsError: another process has it open.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places: dict[int, tuple[int, int]] = {}
        self._file = open(path, "a+b")  # noqa: SIM115  closed by close()
        _lock(self._file, path)
        end = 0
        for start, length, row in self._sound():
            self._places[row] = (start, length)  # a later record of a row replaces an earlier one
            end = start + length + _FOOTER.size
        self._file.truncate(end)
        self._file.seek(end)

    def _sound(self) -> Iterator[tuple[int, int, int]]:
        """(where its data begins, length, row) of each whole record, up to the first that is not."""
        position, size = 0, os.path.getsize(self.path)
        while position + _HEADER.size <= size:
            self._file.seek(position)
            header = self._file.read(_HEADER.size)
            length, crc = _HEADER.unpack(header)
            end = position + _HEADER.size + length + _FOOTER.size
            if mask(google_crc32c.value(header[:8])) != crc or end > size:
                return
            data = self._file.read(length)
            if mask(google_crc32c.value(data)) != _FOOTER.unpack(self._file.read(_FOOTER.size))[0]:
                return
            yield position + _HEADER.size, length, _unpack(data)[0]["row"]
            position = end

    def add(self, facts: dict, data: bytes = b"") -> None:
        """Keeps `facts`, which have `row`, and bytes; they are with the operating system when this returns."""
        text = json.dumps(facts).encode()
        packed = record(struct.pack("<I", len(text)) + text + data)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(packed)
        self._file.flush()
        self._places[facts["row"]] = (start + _HEADER.size, len(packed) - _HEADER.size - _FOOTER.size)

    def rows(self) -> list[int]:
        return sorted(self._places)

    def get(self, row: int) -> tuple[dict, bytes]:
        start, length = self._places[row]
        self._file.seek(start)
        return _unpack(self._file.read(length))

    def close(self) -> None:
        self._file.close()


def _lock(file, path: Path) -> None:
    """For this process alone, for as long as the file is open."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FileExistsError(f"{path}: another process is at work on this shard") from None
    except OSError:  # a file system without locks
        pass


def _unpack(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack_from("<I", data)
    return json.loads(data[4 : 4 + length]), data[4 + length :]
