"""TensorFlow 2 checkpoints (`model.save_weights`, CheckpointManager) without TensorFlow: read and written tensor by tensor.

A checkpoint is `<prefix>.index`, a sorted table (sstable.py) from each key to its dtype, shape, place and checksum, and
`<prefix>.data-<i>-of-<n>`, the tensors' bytes (bundle.py); the folder's text file `checkpoint` names the latest prefix.
What keys mean is told in object_graph.py.
"""

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from kakao_models.conversion import bundle
from kakao_models.conversion.object_graph import OBJECT_GRAPH, object_graph
from kakao_models.conversion.sstable import MAX_BYTES, read_table, write_table
from kakao_models.files import wire
from kakao_models.files.atomic import replacing
from kakao_models.files.pointers import IS_POINTER, is_pointer
from kakao_models.files.wire import CheckpointError, within


@dataclass(frozen=True)
class TensorFlowCheckpoint:
    """An opened checkpoint; `open_checkpoint` makes it. No file is held open."""

    prefix: Path
    entries: dict[str, bundle.BundleEntry]  # by key, in the order of keys; the object graph is one of them
    files: tuple[Path, ...]  # the index, then the data files

    def read(self, key: str) -> np.ndarray:
        """The tensor of `key`, in its own memory. bfloat16 is widened to float32; strings are bytes objects.

        Raises:
            CheckpointError: no such key, or its bytes aren't those that were written.
        """
        if key not in self.entries:
            raise CheckpointError(f"{self.files[0]}: no tensor {key!r} among {len(self.entries)}")
        entry = self.entries[key]
        file = self.files[1 + entry.shard]
        with within(f"{file}: {key}"):
            return bundle.values_of(_read_bytes(file, entry), entry)


def open_checkpoint(path: str | os.PathLike) -> TensorFlowCheckpoint:
    """Opens a checkpoint: the index is read and checked, the tensors are left for later.

    Args:
        path: a prefix (`.../model-weights`), one of its files, or a folder: then the latest checkpoint that its file
            `checkpoint` names, looked for nowhere but in the folder; without that file, the only checkpoint there.

    Raises:
        CheckpointError: no such checkpoint, damaged, incomplete, or of a form that isn't supported (partitioned
            variables, big-endian numbers, dtypes that no model has).
    """
    prefix = _find(Path(path))
    index = _add(prefix, ".index")
    with within(index):
        table = read_table(_read_small(index))
        if b"" not in table:
            raise CheckpointError("no header")
        with within("header"):
            count = bundle.read_header(table.pop(b""))
        entries = {}
        for key, message in table.items():
            with within(f"tensor {repr(key)[2:-1]}"):
                if key.startswith(b"\0"):
                    raise CheckpointError(bundle.SLICED)
                if not wire.text(key).isprintable():
                    raise CheckpointError("a key with control characters")
                entries[key.decode()] = bundle.read_entry(message)
    files, sizes = [index], []
    for shard in range(count):
        files.append(_add(prefix, f".data-{shard:05d}-of-{count:05d}"))
        with within(files[-1]):
            sizes.append(_size(files[-1]))
    with within(index):
        _check_places(entries, files[1:], sizes)
    return TensorFlowCheckpoint(prefix, entries, tuple(files))


def write_checkpoint(
    prefix: str | os.PathLike,
    tensors: Mapping[str, ArrayLike | Callable[[], ArrayLike]],
    graph: bytes | None = None,
) -> TensorFlowCheckpoint:
    """Writes a checkpoint that TensorFlow 2 restores: one data file, an index, and the folder's file `checkpoint`.

    The index is written after the complete data file: a process that stops before leaves no checkpoint.

    Args:
        prefix: path without suffix; its folder exists, the checkpoint doesn't.
        tensors: by key (path + SUFFIX) arrays or strings, or functions that give them, which are called one by one:
            only one tensor is held in memory. Their order is the order in the data file.
        graph: the message of the object graph, by default of the smallest for these keys.

    Raises:
        FileExistsError: there is such a checkpoint.
        ValueError: a dtype that isn't supported, or a key from which no graph can be made.
    """
    prefix = Path(prefix)
    index = _add(prefix, ".index")
    if index.exists():
        raise FileExistsError(f"{index} already exists. Remove that checkpoint, or choose another name")
    if OBJECT_GRAPH in tensors:
        raise ValueError(f"tensors must not include {OBJECT_GRAPH}. Pass it as graph")
    graph = object_graph(tensors) if graph is None else graph
    state, data = prefix.with_name("checkpoint"), _add(prefix, ".data-00000-of-00001")
    # All are complete before one gets its name: the last named here first.
    with replacing(state) as state_file, replacing(index) as index_file, replacing(data) as data_file:
        with open(data_file, "wb") as file:
            entries = {key.encode(): _append(file, key, tensors[key]) for key in tensors}
            entries[OBJECT_GRAPH.encode()] = _append(file, OBJECT_GRAPH, graph)
        table = write_table([(b"", bundle.HEADER), *sorted(entries.items())])
        read_table(table)  # within the bounds of what is read
        index_file.write_bytes(table)
        name = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in os.fsencode(prefix.name))
        state_file.write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
    return open_checkpoint(prefix)


def _find(path: Path) -> Path:
    """The prefix that `path` stands for."""
    # os.path answers False where pathlib raises, as for names that are too long
    if path.name == "checkpoint" and os.path.isfile(path) and not os.path.isfile(_add(path, ".index")):
        path = path.parent
    if not os.path.isdir(path) or os.path.isfile(_add(path, ".index")):
        return Path(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", str(path)))
    here = sorted(file.stem for file in path.glob("*.index"))
    if not os.path.exists(path / "checkpoint"):
        if len(here) == 1:
            return path / here[0]
        if here:
            raise CheckpointError(
                f"{path} has {len(here)} checkpoints ({', '.join(here[:20])}) and no file `checkpoint` that names one. Pass one "
                f"of them, such as {path / here[-1]}"
            )
        raise CheckpointError(f"{path}: expected a checkpoint, but it has no .index file{_unfinished(path)}")
    with within(path / "checkpoint"):
        pattern = rb'(?m)^[ \t]*model_checkpoint_path:[ \t]*"((?:[^"\\\n]|\\.)*)"'
        names = re.findall(pattern, _read_small(path / "checkpoint"))
        if len(names) != 1:
            raise CheckpointError(f"model_checkpoint_path occurs {len(names)} times, expected once")
        name = os.fsdecode(re.sub(rb"\\(?:([0-7]{1,3})|(.))", _unescape, names[0]))
        parts = re.split(r"[/\\]", name)
        if ".." in parts or parts[-1] in ("", "."):
            raise CheckpointError(f"names {name!r}, expected a checkpoint in this folder")
        # Paths as of the machine where it was written: only names in this folder are believed
        for candidate in ("/".join(parts) if parts[0] and ":" not in name else parts[-1], parts[-1]):
            if os.path.isfile(_add(path / candidate, ".index")):
                return path / candidate
        raise CheckpointError(
            f"names {name!r}, whose .index file isn't in this folder. Checkpoints here: {', '.join(here[:20]) or 'none'}"
            + (f". Pass one of them, such as {path / here[-1]}" if here else _unfinished(path))
        )


def _unfinished(path: Path) -> str:
    """The files that are left of a checkpoint without its index, as the end of a message."""
    left = sorted(file.name for pattern in ("*.data-?????-of-?????", "*_temp") for file in path.glob(pattern))
    more = f", only {', '.join(left[:5])}. The index is written last: was the save or the copy interrupted?"
    return more if left else ""


def _unescape(match: re.Match) -> bytes:
    return bytes([int(match[1], 8) & 255]) if match[1] else match[2]


def _add(path: Path, suffix: str) -> Path:
    return Path(f"{path}{suffix}")


def _size(file: Path) -> int:
    try:
        status = os.stat(file)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise CheckpointError(f"can't be read ({error}). Is the download complete?") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise CheckpointError("not a regular file")
    if is_pointer(file):
        raise CheckpointError(IS_POINTER)
    return status.st_size


def _read_small(file: Path) -> bytes:
    """The content of an index or of the file `checkpoint`."""
    if (size := _size(file)) > MAX_BYTES:
        raise CheckpointError(f"{size} bytes, expected at most {MAX_BYTES}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"can't be read ({error})") from error


def _check_places(entries: Mapping[str, bundle.BundleEntry], shards: list[Path], sizes: list[int]) -> None:
    """Every tensor lies within its file, and none within another."""
    shard, end, before = 0, 0, ""
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[1].size)):
        if entry.shard >= len(shards):
            raise CheckpointError(
                f"tensor {key} is in data file {entry.shard} (from 0), but there are only {len(shards)}"
            )
        if entry.shard != shard:
            shard, end = entry.shard, 0
        if entry.offset + entry.size > sizes[shard]:
            raise CheckpointError(
                f"tensor {key}: bytes {entry.offset} to {entry.offset + entry.size} of {shards[shard].name}, "
                f"which has {sizes[shard]}. Is the download complete?"
            )
        if entry.offset < end and entry.size:
            raise CheckpointError(f"tensor {key}: its bytes overlap those of {before}")
        end, before = max(end, entry.offset + entry.size), key


def _read_bytes(file: Path, entry: bundle.BundleEntry) -> np.ndarray:
    """The bytes of a tensor."""
    try:
        data = np.fromfile(file, np.uint8, entry.size, offset=entry.offset)
    except OSError as error:
        raise CheckpointError(f"can't be read ({error})") from error
    if len(data) != entry.size:
        raise CheckpointError("the file ends within the tensor")
    return data


def _append(file: BinaryIO, key: str, value: ArrayLike | Callable[[], ArrayLike]) -> bytes:
    """Writes a tensor; returns the message of its entry."""
    entry, data = bundle.encode(key, value() if callable(value) else value)
    offset = file.tell()
    file.write(data)
    return bundle.entry_message(replace(entry, offset=offset))
