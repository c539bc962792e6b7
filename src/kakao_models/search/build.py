"""Folders, tables and tars → rows of an index; what a killed run leaves, the next one completes to the same rows.

Images are embedded in batches that depend on the sources alone: batch n is made of those of the n-th `batch_size` images
that the index has not. An insertion holds whole batches, and is in the database as a whole or not at all. So a run that
goes on after a kill meets each batch as the first run did, and embeds it to the same bits.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kakao_models.samples.columns import BY_NAME, Columns
from kakao_models.search.collection import INSERT
from kakao_models.search.items import Item, Items, metadata_digest, plain

_AHEAD = 2  # parts that are read while others are embedded
_TEXTS = 16  # times as many texts in a part as images


class Index(Protocol):
    """What a build needs of a `search.SearchIndex`."""

    metadata: dict[str, Any]
    client: Any

    def _needed(self) -> Any: ...

    def add(self, ids: Sequence[str], vectors: np.ndarray, metadata: Any = None, *, at_once: int = INSERT) -> int: ...

    def delete(self, ids: Sequence[str]) -> int: ...

    def digests(self, ids: Sequence[str]) -> dict[str, str]: ...

    def vectors_of(self, ids: Sequence[str]) -> dict[str, np.ndarray]: ...

    def all_ids(self) -> Iterator[tuple[str, str]]: ...

    def flush(self) -> None: ...


@dataclass
class BuildReport:
    """What a build did.

    added, updated, unchanged: rows by whether their content was new, known with other metadata, or known.
    duplicates: further places of a content that was met in this build; the first one's metadata is kept.
    removed: rows that no source has any more, with `sync`.
    failures: (name, reason) of what could not be read.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0
    removed: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.added + self.updated + self.unchanged + self.duplicates + len(self.failures)

    def as_dict(self) -> dict[str, Any]:
        names = ("added", "updated", "unchanged", "duplicates", "removed")
        facts = {name: getattr(self, name) for name in names} | {"failed": len(self.failures)}
        facts |= {"seconds": round(self.seconds, 3), "per_second": round(self.seen / max(self.seconds, 1e-9), 1)}
        return facts | {"failures": [{"name": name, "reason": reason} for name, reason in self.failures]}

    def __str__(self) -> str:
        counts = (
            f"{getattr(self, name):,} {name}" for name in ("added", "updated", "unchanged", "duplicates", "removed")
        )
        rate = f"{self.seen / max(self.seconds, 1e-9):,.0f} a second"
        return f"{', '.join(counts)}, {len(self.failures):,} failed; {self.seconds:,.1f} s, {rate}"


def build(
    index: Index,
    sources: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    sync: bool = False,
    columns: Sequence[str] | None = None,
    fields: Columns = BY_NAME,
    roots: Sequence[str | os.PathLike] = (),
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> BuildReport:
    """Embeds what an index has not, and adds it; of what it has, brings the metadata up to date.

    Args:
        index: one that was opened with an embedder.
        sources: folders of images, tars, tables; for an index of texts, tables and .txt files.
        sync: then remove the rows that no source has. Rows of files that are there and can't be read stay.
        columns: of tables: keep these alone as metadata.
        fields: the tables' columns of images and captions, where they have other names than usual.
        roots: further folders that tables may name pictures in.
        batch_size: images at a time, by default the embedder's. Embeddings of other batch sizes differ in the last bits.
        advance: is told how many images or texts are done.

    Raises:
        ValueError: there is nothing to read, or nothing could be read.
    """
    start, report, embedder = time.monotonic(), BuildReport(), index._needed()
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    kind = index.metadata["kind"]
    size = (batch_size or embedder.batch_size) * (1 if kind == "images" else _TEXTS)
    items = Items(
        paths, kind=kind, columns=columns, fields=fields, roots=roots, size=size, workers=embedder.num_workers
    )
    writer = _Writer(index, report)
    seen: set[bytes] = set()
    try:
        parts = _parts(index, items, seen, report, writer, advance)
        embedded = _texts(embedder, parts) if kind == "texts" else _images(embedder, parts, size)
        for new, vectors, failed in embedded:
            report.failures += failed
            writer.add(new, vectors)
            advance(len(new) + len(failed))
        writer.flush()
    finally:
        items.close()
    if not seen:
        name, reason = report.failures[0]
        raise ValueError(f"nothing could be read, {len(report.failures)} failed; the first: {name}: {reason}")
    if sync:
        kept = {plain(name) for name, _ in report.failures}
        gone = [key for key, path in index.all_ids() if _packed(key) not in seen and path not in kept]
        report.removed = index.delete(gone) if gone else 0
    index.flush()
    report.seconds = time.monotonic() - start
    return report


def _parts(index, items: Items, seen: set[bytes], report: BuildReport, writer: "_Writer", advance) -> Iterator[list]:
    """For each part that has something new: its new items in their places, None in the others."""

    def look(number: int) -> tuple[list[Item], dict[str, str]]:
        read = items.read(number)
        return read, index.digests(sorted({item.id for item in read if item.id}))

    for read, known in _ahead(look, len(items.parts)):
        places: list[Item | None] = []
        for item in read:
            key = item.id
            new = not item.error and key not in known and _packed(key) not in seen
            places.append(item if new else None)
            if item.error:
                report.failures.append((item.name, item.error))
            elif _packed(key) in seen:
                report.duplicates += 1
            elif not new and known[key] == metadata_digest(item.metadata):
                report.unchanged += 1
            elif not new:
                writer.update(key, item)
            if not item.error:
                seen.add(_packed(key))
        advance(places.count(None))
        if any(places):
            yield places


def _packed(key: str) -> bytes:
    """An id in half the memory; others than those of `build` are no hexadecimal digits."""
    try:
        return bytes.fromhex(key)
    except ValueError:
        return key.encode()


def _ahead(work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`work` of 0, 1, ... in order, in a thread that is a few steps ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="kakao-models-parts") as pool:
        waiting = deque(pool.submit(work, number) for number in range(min(_AHEAD, count)))
        try:
            for number in range(count):
                result = waiting.popleft().result()
                if number + _AHEAD < count:
                    waiting.append(pool.submit(work, number + _AHEAD))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def _images(embedder, parts: Iterator[list], size: int) -> Iterator[tuple[list[Item], np.ndarray, list]]:
    """(items, unit vectors, failures) of each part: one batch."""
    waiting: deque[list[Item | None]] = deque()

    def places() -> Iterator[bytes | None]:
        for part in parts:
            part = part + [None] * (size - len(part))
            waiting.append(part)
            # what is no image makes no row, but keeps its place: all batches begin where parts do
            yield from (item and item.content for item in part)

    stream = embedder.iter_images(places(), batch_size=size, normalize=True, on_error="ignore")
    for number, (indices, values, failures) in enumerate(stream):
        part = waiting.popleft()
        embedder.failures.clear()  # places without an image are among them
        broken = [(part[failure.index - number * size], failure.reason) for failure in failures]
        good, rows, bad = _usable([part[index - number * size] for index in indices], values)
        yield good, rows, [(item.name, reason) for item, reason in broken if item is not None] + bad


def _texts(embedder, parts: Iterator[list]) -> Iterator[tuple[list[Item], np.ndarray, list]]:
    for part in parts:
        new = [item for item in part if item is not None]
        yield _usable(new, embedder.texts([item.content for item in new], normalize=True, progress=False))


def _usable(items: list[Item], vectors: np.ndarray) -> tuple[list[Item], np.ndarray, list[tuple[str, str]]]:
    """Items whose unit vectors have a length, these, and (name, reason) of the others."""
    lengths = np.linalg.norm(vectors, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0.5)
    bad = [(item.name, "its embedding is not finite, or all zeros") for item, good in zip(items, usable) if not good]
    return [item for item, good in zip(items, usable) if good], vectors[usable], bad


class _Writer:
    """Gathers whole batches to insertions."""

    def __init__(self, index: Index, report: BuildReport):
        self._index, self._report = index, report
        self._rows: list[tuple[str, dict]] = []  # id and metadata: the content is of no more use
        self._vectors: list[np.ndarray] = []
        self._changed: dict[str, dict] = {}

    def add(self, items: list[Item], vectors: np.ndarray) -> None:
        if items:
            self._rows += [(item.id, item.metadata) for item in items]
            self._vectors.append(vectors)
        if len(self._rows) >= INSERT:
            self._insert()

    def update(self, key: str, item: Item) -> None:
        self._changed[key] = item.metadata
        if len(self._changed) >= INSERT:
            self._change()

    def flush(self) -> None:
        self._insert()
        self._change()

    def _insert(self) -> None:
        if self._rows:
            ids, facts = map(list, zip(*self._rows))
            self._index.add(ids, np.concatenate(self._vectors), facts, at_once=len(ids))
            self._report.added += len(ids)
            self._rows, self._vectors = [], []

    def _change(self) -> None:
        if self._changed:
            vectors = self._index.vectors_of(list(self._changed))
            there = [key for key in self._changed if key in vectors]
            if there:
                self._index.add(there, np.stack([vectors[k] for k in there]), [self._changed[k] for k in there])
            self._report.updated += len(there)
            self._changed = {}
