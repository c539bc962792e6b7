"""Writers of shards that training reads: WebDataset tars, TFRecords, Parquet. One content, one sequence of bytes."""

import io
import json
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from kakao_models.files.wire import bytes_field, mask, varint


@dataclass(frozen=True)
class StoredSample:
    """A sample as a shard has it."""

    key: str
    image: bytes
    kind: str  # jpg, png or webp
    captions: tuple[str, ...]
    labels: tuple[int | str, ...]  # names only in a tar
    metadata: dict | None = None  # further JSON, in a tar


class TarWriter:
    suffix = ".tar"

    def __init__(self, path: Path):
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  closed by close()

    def write(self, sample: StoredSample) -> None:
        parts = {sample.kind: sample.image}
        if sample.captions:
            parts["txt"] = sample.captions[0].encode()
        several = {"captions": list(sample.captions)} if len(sample.captions) > 1 else {}
        if any(isinstance(label, str) for label in sample.labels):
            several["labels"] = list(sample.labels)
        if metadata := (sample.metadata or {}) | several:
            parts["json"] = json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()
        if sample.labels and "labels" not in several:
            parts["cls"] = " ".join(map(str, sample.labels)).encode()
        for kind, data in parts.items():
            member = tarfile.TarInfo(f"{sample.key}.{kind}")  # its time is 0 and its owner nobody
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        self._tar.close()


class TFRecordWriter:
    """Examples with `jpg` and `txt`, as the original code reads them; labels are `label`."""

    suffix = ".tfrecord"

    def __init__(self, path: Path):
        self._file = open(path, "wb")  # noqa: SIM115  closed by close()

    def write(self, sample: StoredSample) -> None:
        texts = [text.encode() for text in sample.captions]
        self._file.write(record(example({"jpg": [sample.image], "txt": texts, "label": list(sample.labels)})))

    def close(self) -> None:
        self._file.close()


class ParquetWriter:
    suffix = ".parquet"

    def __init__(self, path: Path):
        fields = [("key", pa.string()), ("image", pa.binary()), ("captions", pa.list_(pa.string()))]
        self._schema = pa.schema([*fields, ("labels", pa.list_(pa.int64()))])
        self._writer, self._rows, self._size = pq.ParquetWriter(path, self._schema), [], 0

    def write(self, sample: StoredSample) -> None:
        row = {"key": sample.key, "image": sample.image, "captions": sample.captions, "labels": sample.labels}
        self._rows.append(row)
        self._size += len(sample.image)
        if len(self._rows) == 1000 or self._size > 2**25:  # a reader holds a few row groups in memory
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._size = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


WRITERS = {"webdataset": TarWriter, "tfrecord": TFRecordWriter, "parquet": ParquetWriter}


def example(features: dict[str, Sequence[bytes | int]]) -> bytes:
    """A serialised tf.train.Example of lists of bytes and of whole numbers; empty lists are left out."""
    entries = []
    for name, values in sorted(features.items()):
        if values and isinstance(values[0], int):
            packed = b"".join(varint(value & (1 << 64) - 1) for value in values)
            feature = bytes_field(3, bytes_field(1, packed))
        elif values:
            feature = bytes_field(1, b"".join(bytes_field(1, value) for value in values))
        else:
            continue
        entries.append(bytes_field(1, bytes_field(1, name) + bytes_field(2, feature)))
    return bytes_field(1, b"".join(entries))


def record(data: bytes) -> bytes:
    """A TFRecord: length, masked CRC-32C of it, data, masked CRC-32C of the data."""
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def checksum(data: bytes) -> bytes:
    """The masked CRC-32C of TFRecords, little-endian."""
    return struct.pack("<I", mask(google_crc32c.value(data)))
