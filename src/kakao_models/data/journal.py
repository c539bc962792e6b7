"""The samples that a shard has so far: an append-only file that survives a kill at any byte.

A record is a TFRecord (length and data with checksums); what a kill cut short is cut off when the file is opened again.
"""

import json
import os
import struct
from contextlib import suppress
from pathlib import Path

from kakao_models.data.writers import checksum, record
from kakao_models.samples.tfrecord import scan_records

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HEADER, _FOOTER = 12, 4  # bytes of a record before and after its data


class Journal:
    """Metadata (JSON) and bytes of rows, in the order they came.

    Raises:
        FileExistsError: another process has it open.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places: dict[int, tuple[int, int]] = {}
        self._file = open(path, "a+b")  # noqa: SIM115  closed by close()
        _lock(self._file, path)
        end = 0
        with suppress(ValueError):  # a record that was cut short or changed
            for start, length in scan_records(path):
                metadata, _ = self._read(start, length)
                self._places[metadata["row"]] = (start, length)  # a later record of a row replaces an earlier one
                end = start + length + _FOOTER
        self._file.truncate(end)

    def add(self, metadata: dict, data: bytes = b"") -> None:
        """Keeps `metadata`, which has `row`, and bytes; they are with the operating system when this returns."""
        text = json.dumps(metadata).encode()
        packed = record(struct.pack("<I", len(text)) + text + data)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(packed)
        self._file.flush()
        self._places[metadata["row"]] = (start + _HEADER, len(packed) - _HEADER - _FOOTER)

    def rows(self) -> list[int]:
        return sorted(self._places)

    def get(self, row: int) -> tuple[dict, bytes]:
        return self._read(*self._places[row])

    def _read(self, start: int, length: int) -> tuple[dict, bytes]:
        self._file.seek(start)
        data, footer = self._file.read(length), self._file.read(_FOOTER)
        if checksum(data) != footer:
            raise ValueError(f"{self.path}: the record at byte {start} is damaged")
        (size,) = struct.unpack_from("<I", data)
        return json.loads(data[4 : 4 + size]), data[4 + size :]

    def close(self) -> None:
        self._file.close()


def _lock(file, path: Path) -> None:
    """Locks the file for this process while it is open."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FileExistsError(f"{path}: another process already works on this shard") from None
    except OSError:  # a file system without locks
        pass
