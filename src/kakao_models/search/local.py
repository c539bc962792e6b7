"""The rows of a local database as its files have them, for any number of processes that read while one writes.

Milvus Lite keeps a collection in a folder: files of rows and of deletions, each with the range of its operations' numbers in
its name; `manifest.json`, which lists them and is replaced as a whole; and a log of what is in no such file yet. Rows are
read from there without a lock. What `manifest.json` lists is also kept in segments, mapped into memory, whose folder
is `search/` in that of the collection; `state.json` there says up to which operation. Nothing else depends on them:
what they lack is added, and what doesn't match the database is made again.
"""

import contextlib
import itertools
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from kakao_models.files.atomic import replacing
from kakao_models.samples.rows import vectors_of
from kakao_models.search.rows import BATCH, KEY, SEQUENCE, VECTOR, Part, Rows, Segment

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = 1  # of the segments
_PATIENCE = 600.0  # seconds until another process has written its segments
_TRIES = 100
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)  # of segments: RuntimeError is faiss'

Source = Callable[[list[str] | None], Iterator["pa.Table"]]  # columns (None: all) → rows of a file or of the log


class _Changed(Exception):
    """The database changed while it was read."""


class LocalRows:
    """The rows of a collection; each call of `now` sees what has been written until then.

    Args:
        folder: the collection's.
        lock: file by which one process at a time writes segments.
    """

    def __init__(self, folder: Path, lock: Path):
        self._folder, self._derived, self._lock = folder, folder / "search", FileLock(lock)
        self._thread = threading.Lock()
        self._seen: tuple | None = None
        self._identity: tuple | None = None  # of the collection
        self._segments: list[Segment] = []  # of what the manifest lists
        self._until = -1  # the last operation in them; -1: nothing is known
        self._rows: Rows | None = None

    def now(self) -> Rows:
        """The rows as they were last committed.

        Raises:
            FileNotFoundError: the collection is gone.
            BlockingIOError: another process writes so much that no state could be read.
        """
        with self._thread:
            for _ in range(_TRIES):
                seen = self._signature()
                if self._rows is not None and seen == self._seen:
                    return self._rows
                with contextlib.suppress(_Changed):
                    self._rows, self._seen = self._read(seen), seen
                    return self._rows
            if self._rows is not None:
                return self._rows
            raise BlockingIOError(f"{self._folder}: is being written without a pause. Try again later")

    def _signature(self) -> tuple:
        """Changes whenever an operation is committed."""
        try:
            schema = os.stat(self._folder / "schema.json")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self._folder}: the collection was removed") from error
        try:
            manifest = os.stat(self._folder / "manifest.json")
            listed = (manifest.st_ino, manifest.st_mtime_ns, manifest.st_size)
        except FileNotFoundError:
            listed = ()
        log = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._folder / "wal"):
                with contextlib.suppress(FileNotFoundError):
                    log[entry.name] = entry.stat().st_size
        return (schema.st_ino, schema.st_mtime_ns), listed, tuple(sorted(log.items()))

    def _check(self, seen: tuple) -> None:
        """Raises `_Changed` unless what was read since `seen` is of one state: rows may have been added to the log, but
        nothing else may have happened, or an addition could be seen without a deletion before it."""
        now = self._signature()
        logs = [{name: "data" in name or size for name, size in log} for _, _, log in (seen, now)]
        if seen[:2] != now[:2] or logs[0] != logs[1]:
            raise _Changed

    def _read(self, seen: tuple) -> Rows:
        from milvus_lite.schema.persistence import load_schema
        from milvus_lite.storage.manifest import Manifest

        _, schema = load_schema(str(self._folder / "schema.json"))
        manifest = Manifest.load(str(self._folder))
        identity = (seen[0], manifest.list_partitions())  # the rows of a partition that is dropped leave no deletions
        if identity != self._identity:
            self._identity, self._segments, self._until = identity, [], -1
        if self._until != manifest.current_seq:
            self._follow(manifest, seen)
        inserted, deleted = self._logged(manifest.current_seq)
        self._check(seen)
        return Rows(_advanced(self._segments, inserted, deleted, None), schema)

    def _follow(self, manifest: Any, seen: tuple) -> None:
        """Brings the segments to the state of the manifest: those on the disk, if this process may write there."""
        if manifest.current_seq == 0:
            self._segments, self._until = [], 0
            return
        with self.alone() as writes:
            segments, until = self._load(manifest)
            if until < manifest.current_seq:
                try:
                    inserted, deleted, first = self._flushed(manifest, until)
                except FileNotFoundError:
                    self._check(seen)
                    raise
                self._check(seen)  # all files are open now, and stay what they are
                segments = [segment.without(segment.sequences < first) for segment in segments]
                segments = _advanced(segments, inserted, deleted, self._derived if writes else None)
                if writes:
                    self._save(segments, manifest)
        self._segments, self._until = segments, manifest.current_seq

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this process may write segments; no other one does until it is through."""
        try:
            self._derived.mkdir(exist_ok=True)
            self._lock.acquire(timeout=_PATIENCE)
        except (Timeout, OSError, NotImplementedError):  # a disk that is read only, or has no locks
            yield False
            return
        try:
            yield os.access(self._derived, os.W_OK)
        finally:
            self._lock.release()

    def _load(self, manifest: Any) -> tuple[list[Segment], int]:
        """Segments on the disk and the last operation in them, or in memory if these are newer; none that don't match."""
        try:
            state = json.loads((self._derived / "state.json").read_text())
            fits = state["format"] == _FORMAT and state["partitions"] == manifest.list_partitions()
            if not fits or not self._until < state["until"] <= manifest.current_seq:
                raise ValueError("another state")
            known = {segment.folder: segment for segment in self._segments}
            segments, dead = [], np.load(self._derived / state["dead"], allow_pickle=False)
            for name in state["segments"]:
                folder = self._derived / name
                segment = known[folder] if folder in known else Segment.read(folder)
                alive = ~dead[: len(segment)]
                dead = dead[len(segment) :]
                segments.append(Segment(segment.vectors, segment.table, alive, folder, segment._matching))
            return segments, state["until"]
        except _UNREADABLE:
            if 0 <= self._until <= manifest.current_seq:
                return self._segments, self._until
            return [], 0

    def _save(self, segments: list[Segment], manifest: Any) -> None:
        dead = f"dead-{uuid.uuid4().hex}.npy"
        flags = [np.zeros(len(part), bool) if part.alive is None else ~part.alive for part in segments]
        with replacing(self._derived / dead) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate([np.empty(0, bool), *flags]))
        names = [part.folder.name for part in segments if part.folder]
        state = {"format": _FORMAT, "until": manifest.current_seq, "partitions": manifest.list_partitions()}
        with replacing(self._derived / "state.json") as temporary:
            temporary.write_text(json.dumps(state | {"segments": names, "dead": dead}))
        for path in self._derived.iterdir():
            if path.is_dir() and path.name not in names:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".npy" and path.name != dead:
                path.unlink(missing_ok=True)

    def _flushed(self, manifest: Any, after: int) -> tuple[list[Source], dict[str, int], int]:
        """The later operations in files: rows, {id: number of its last deletion}, and a number. Milvus Lite forgets
        deletions of rows that no file has any more: a row with a smaller number than this is one of these."""
        import pyarrow.parquet as pq
        from milvus_lite.storage.data_file import parse_seq_range

        inserted: list[Source] = []
        deleted: dict[str, int] = {}
        first = np.iinfo(np.int64).max
        for partition, names in manifest.get_all_data_files().items():
            for name in names:
                low, high = parse_seq_range(name)
                first = min(first, low)
                if high > after:
                    inserted.append(partial(_file_rows, pq.ParquetFile(_path(self._folder, partition, name)), after))
        for partition, names in manifest.get_all_delta_files().items():
            for name in names:
                if parse_seq_range(name)[1] > after:
                    _delete(deleted, _after(pq.read_table(_path(self._folder, partition, name)), after))
        return inserted, deleted, first

    def _logged(self, after: int) -> tuple[list[Source], dict[str, int]]:
        """The same of the log. Deletions are read first: see `_check`."""
        import pyarrow as pa
        from milvus_lite.storage.wal import WAL

        inserted: list[Source] = []
        deleted: dict[str, int] = {}
        where = str(self._folder / "wal")
        for number in WAL.find_wal_files(where):
            _, batches = WAL.recover(where, number)
            for batch in batches:
                _delete(deleted, _after(pa.Table.from_batches([batch]), after))
        for number in WAL.find_wal_files(where):
            batches, _ = WAL.recover(where, number)
            if batches:
                rows = _after(pa.Table.from_batches(batches).drop_columns(["_partition"]), after)
                inserted.append(partial(_logged_rows, rows))
        return inserted, deleted


def _path(folder: Path, partition: str, name: str) -> Path:
    return folder / "partitions" / partition / name


def _file_rows(file: Any, after: int, columns: list[str] | None) -> Iterator["pa.Table"]:
    import pyarrow as pa

    for batch in file.iter_batches(BATCH, columns=columns):
        yield _after(pa.Table.from_batches([batch]), after)


def _logged_rows(rows: "pa.Table", columns: list[str] | None) -> Iterator["pa.Table"]:
    yield rows if columns is None else rows.select(columns)


def _after(table: "pa.Table", sequence: int) -> "pa.Table":
    import pyarrow.compute as pc

    return table.filter(pc.field(SEQUENCE) > sequence)


def _delete(deleted: dict[str, int], table: "pa.Table") -> None:
    for key, sequence in zip(table[KEY].to_pylist(), table[SEQUENCE].to_pylist()):
        deleted[key] = max(sequence, deleted.get(key, 0))


def _advanced(
    segments: list[Segment], inserted: list[Source], deleted: dict[str, int], folder: Path | None
) -> list[Segment]:
    """Segments after further operations: of rows with one id the last one counts, unless it was deleted later.

    Args:
        folder: where a new segment is written; None keeps it in memory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    last = dict(deleted)
    keys = [pa.concat_tables(list(source([KEY, SEQUENCE]))) for source in inserted]
    for table in keys:
        _delete(last, table)  # the last operation on each id
    if not last:
        return segments
    touched = pa.array(last, pa.string())
    segments = [part.without(pc.is_in(part.table[KEY], touched).to_numpy()) for part in segments]
    kept = []
    for table in keys:
        pairs = zip(table[KEY].to_pylist(), table[SEQUENCE].to_pylist())
        kept.append(np.fromiter((last[key] == number for key, number in pairs), bool, len(table)))
    count = sum(int(np.count_nonzero(part)) for part in kept)

    def parts() -> Iterator[Part]:
        for source, keep in zip(inserted, kept):
            for table in source(None):
                table, keep = table.filter(keep[: len(table)]), keep[len(table) :]
                if len(table):
                    yield vectors_of(table[VECTOR].combine_chunks(), "the database"), table.drop_columns([VECTOR])

    if folder is None:
        return [*segments, Segment.of(parts())] if count else segments
    # Small segments, those that lost many rows, and those that are in memory only are written again with the new rows.
    kept_segments, rewritten = [], []
    for segment in sorted(segments, key=lambda segment: segment.count):
        is_there = segment.folder is not None and segment.folder.is_dir()
        if is_there and segment.count > 2 * count and 2 * segment.count > len(segment):
            kept_segments.append(segment)
        else:
            rewritten.append(segment)
            count += segment.count
    if not count:
        return kept_segments
    all_parts = itertools.chain(*(segment.parts() for segment in rewritten), parts())
    return [*kept_segments, Segment.write(folder / uuid.uuid4().hex, count, all_parts)]
