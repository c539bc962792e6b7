"""Sorted tables of keys and values, as TensorFlow writes a checkpoint's `.index`.

The format is LevelDB's (https://github.com/google/leveldb/blob/main/doc/table_format.md), with TensorFlow's settings:
blocks of 256 KiB, a restart every 16 entries, no compression, no filters. What `write_table` writes has the same bytes.
"""

import struct
from collections.abc import Iterable, Iterator

import google_crc32c

from kakao_models.files.wire import CheckpointError, mask, read_varint, varint, within

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER = 48  # two handles of at most 20 bytes, padded, and the magic number
_TRAILER = 5  # after each block: kind of compression, masked checksum
_BLOCK_SIZE, _RESTART_INTERVAL = 1 << 18, 16

# Bounds of what a hostile file can make us hold; a model of a billion weights has a few thousand keys of 120 characters
MAX_BYTES, MAX_ENTRIES, MAX_KEY = 16 << 20, 100_000, 1024


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Every key and its value, in the order of the keys. The order and all checksums are checked.

    Raises:
        CheckpointError: no such table, damaged, compressed, or larger than any checkpoint's.
    """
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise CheckpointError("the end isn't that of a TensorFlow index. Is the download complete?")
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"an index of {len(data)} bytes, expected at most {MAX_BYTES}")
    footer, body = data[-_FOOTER:-8], len(data) - _FOOTER
    with within("footer"):
        meta, position = _read_handle(footer, 0)
        index, position = _read_handle(footer, position)
        if footer[position:].strip(b"\0"):
            raise CheckpointError("extra bytes after the two handles")
    with within("index of blocks"):
        blocks = list(_entries(_block(data, *index, body)))
    table: dict[bytes, bytes] = {}
    end, last = 0, None
    for bound, handle in blocks:
        with within(f"block {handle.hex()}"):
            (offset, size), used = _read_handle(handle, 0)
            if used != len(handle) or offset < end:
                raise CheckpointError("it must begin after the end of the block before it")
            end = offset + size + _TRAILER
            for key, value in _entries(_block(data, offset, size, body)):
                if last is not None and key <= last:
                    raise CheckpointError(f"key {key!r} comes after {last!r}, expected increasing keys")
                if len(table) == MAX_ENTRIES:
                    raise CheckpointError(f"more than {MAX_ENTRIES} keys")
                table[key], last = value, key
            if last is None or last > bound:
                raise CheckpointError(f"keys up to {last!r}, expected at most {bound!r}")
            last = bound if bound > last else last
    with within("index of filters"):  # TensorFlow writes none; checked so that no damaged file is taken for a sound one
        if meta[0] < end or list(_entries(_block(data, *meta, body))):
            raise CheckpointError("expected an empty block after the others")
    return table


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _block(data: bytes, offset: int, size: int, body: int) -> bytes:
    """The content of a block; its checksum is verified."""
    end = offset + size
    if end + _TRAILER > body:
        raise CheckpointError(f"a block ends at byte {end + _TRAILER} (from {offset}), expected at most {body}")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if stored != mask(google_crc32c.value(data[offset : end + 1])):
        raise CheckpointError(f"the checksum of bytes {offset} to {end} is wrong: the file is damaged")
    if data[end] != 0:
        raise CheckpointError(f"compressed (kind {data[end]}), which TensorFlow doesn't write by default")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values. Each key is stored as what differs from the one before it; at restarts, in full."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if len(block) < 8 or end < 0 or not 0 < restarts <= MAX_ENTRIES:
        raise CheckpointError(f"a block of {len(block)} bytes cannot have {restarts} restarts")
    starts = {0}  # positions at which a key is stored in full
    key, position, count = b"", 0, 0
    while position < end:
        count += 1
        if count > MAX_ENTRIES:
            raise CheckpointError(f"more than {MAX_ENTRIES} keys in a block")
        start = position
        shared, position = read_varint(block, position, end)
        added, position = read_varint(block, position, end)
        size, position = read_varint(block, position, end)
        if shared > len(key) or position + added + size > end or shared + added > MAX_KEY:
            raise CheckpointError(
                f"the entry after key {key!r} has impossible sizes: {shared} shared bytes, {added} new bytes, {size} bytes of value"
            )
        if shared == 0:
            starts.add(start)
        key = key[:shared] + block[position : position + added]
        position += added + size
        yield key, block[position - size : position]
    places = struct.unpack_from(f"<{restarts}I", block, end)
    if places[0] != 0 or any(a >= b for a, b in zip(places, places[1:])) or not starts.issuperset(places):
        raise CheckpointError("its restarts point to places where no key begins")


def write_table(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The table of `pairs`, whose keys ascend."""
    out = bytearray()
    block, index, meta = _Block(_RESTART_INTERVAL), _Block(1), _Block(_RESTART_INTERVAL)
    finished: tuple[bytes, bytes] | None = None  # last key and handle of a block: its entry needs to see the next key
    for key, value in pairs:
        if finished:
            index.add(_separator(finished[0], key), finished[1])
            finished = None
        block.add(key, value)
        if block.size >= _BLOCK_SIZE:
            finished, block = (key, _append(out, block)), _Block(_RESTART_INTERVAL)
    if block.content:
        finished = block.last, _append(out, block)
    meta_handle = _append(out, meta)
    if finished:
        index.add(_successor(finished[0]), finished[1])
    return bytes(out + (meta_handle + _append(out, index)).ljust(_FOOTER - 8, b"\0") + _MAGIC)


class _Block:
    def __init__(self, interval: int):
        self.interval = interval
        self.content, self.restarts, self.count, self.last = bytearray(), [0], 0, b""

    @property
    def size(self) -> int:
        return len(self.content) + 4 * len(self.restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.count == self.interval:
            self.restarts.append(len(self.content))
            self.count = 0
        else:
            shared = _common(self.last, key)
        self.content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.count += 1
        self.last = key


def _append(out: bytearray, block: _Block) -> bytes:
    """Writes a block; returns its handle."""
    content = bytes(block.content) + struct.pack(f"<{len(block.restarts) + 1}I", *block.restarts, len(block.restarts))
    handle = varint(len(out)) + varint(len(content))
    out += content + b"\0"
    out += struct.pack("<I", mask(google_crc32c.value(content + b"\0")))
    return handle


def _common(a: bytes, b: bytes) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _separator(last: bytes, following: bytes) -> bytes:
    """A short key from `last` on, before `following`: the rule by which TensorFlow bounds a block."""
    at = _common(last, following)
    if at < min(len(last), len(following)) and last[at] < 255 and last[at] + 1 < following[at]:
        return last[:at] + bytes([last[at] + 1])
    return last


def _successor(last: bytes) -> bytes:
    """A short key from `last` on."""
    at = next((i for i, byte in enumerate(last) if byte != 255), None)
    return last if at is None else last[:at] + bytes([last[at] + 1])
