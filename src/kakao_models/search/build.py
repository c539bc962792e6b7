"""Folders, tables and tars → rows of an index; what a killed run leaves, the next one completes to the same rows.

Batches of images depend only on the sources: batch n holds those of the n-th `embedder.batch_size` images that the index
does not have yet. An insertion holds whole batches and is in the database as a whole or not at all. So a run that resumes
after a kill meets each batch as the first run did, and embeds it to the same bits.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.samples.columns import BY_NAME, Columns
from kakao_models.search.collection import INSERT
from kakao_models.search.items import WITHIN, Item, Items, metadata_digest, plain
from kakao_models.warn import warn

if TYPE_CHECKING:
    from kakao_models.search.index import SearchIndex

_AHEAD = 2  # parts that are read while others are embedded
_TEXTS = 16  # times as many texts in a part as images


@dataclass
class BuildReport:
    """The counts of a build.

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

    @property
    def per_second(self) -> float:
        return self.seen / max(self.seconds, 1e-9)

    @property
    def counts(self) -> dict[str, int]:
        names = ("added", "updated", "unchanged", "duplicates", "removed")
        return {name: getattr(self, name) for name in names} | {"failed": len(self.failures)}

    def as_dict(self) -> dict[str, Any]:
        failures = [{"name": name, "reason": reason} for name, reason in self.failures]
        times = {"seconds": round(self.seconds, 3), "per_second": round(self.per_second, 1)}
        return self.counts | times | {"failures": failures}

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        return f"{counts}; {self.seconds:,.1f} s, {self.per_second:,.0f} a second"


def build(
    index: "SearchIndex",
    sources: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    sync: bool = False,
    columns: Sequence[str] | None = None,
    fields: Columns = BY_NAME,
    roots: Sequence[str | os.PathLike] = (),
    advance: Callable[[int], None] = lambda images: None,
) -> BuildReport:
    """Embeds what an index has not, and adds it; of what it has, brings the metadata up to date.

    Args:
        index: one that was opened with an embedder.
        sources: folders of images, tars, tables; for an index of texts, tables and .txt files.
        sync: then remove the rows that no source has. Rows of files that are there and can't be read stay, and so do those of
            folders that can't be listed.
        columns: names of the columns of tables to keep as metadata; None keeps all.
        fields: the tables' columns of images and captions, where they have other names than usual.
        roots: further folders that tables may name pictures in.
        advance: is told how many images or texts are done.

    Raises:
        ValueError: there is nothing to read, or nothing could be read.
        KeyboardInterrupt: Ctrl-C; all batches that were embedded are in the index.
    """
    start, report, embedder = time.monotonic(), BuildReport(), index._needed()
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    kind = index.metadata["kind"]
    size = embedder.batch_size * (1 if kind == "images" else _TEXTS)
    items = Items(
        paths, kind=kind, columns=columns, fields=fields, roots=roots, size=size, workers=embedder.num_workers
    )
    writer = _Writer(index, report)
    seen: set[str] = set()
    lost: set[str] = set()  # files of samples that could not be read
    try:
        parts = _parts(index, items, seen, lost, report, writer, advance)
        embedded = _texts(embedder, parts) if kind == "texts" else _images(embedder, parts, size)
        for new, vectors, failed in embedded:
            report.failures += failed
            writer.add(new, vectors)
            advance(len(new) + len(failed))
        writer.flush()
    except KeyboardInterrupt:
        writer.flush()  # whole batches, so the run that resumes meets the others as this one would have
        index.flush()
        raise
    finally:
        items.close()
    if not seen:
        name, reason = report.failures[0]
        raise ValueError(f"all {len(report.failures)} inputs failed; the first: {name}: {reason}")
    if missing := items.missing():
        warn(f"columns: no row has {', '.join(map(repr, missing))}, so the index lacks it")
    if sync:
        kept = {plain(name) for name, _ in report.failures}
        unlisted = tuple(map(plain, items.unlisted))
        gone = [
            key
            for key, path in index.all_ids()
            if key not in seen
            and path not in kept
            and path.partition(WITHIN)[0] not in lost
            and not path.startswith(unlisted)
        ]
        report.removed = index.delete(gone) if gone else 0
    index.flush()
    report.seconds = time.monotonic() - start
    return report


def _parts(
    index, items: Items, seen: set[str], lost: set[str], report: BuildReport, writer: "_Writer", advance
) -> Iterator[list]:
    """Yields the new items of each part that has any, in their places, with None in the places of others."""

    def look(number: int) -> tuple[list[Item], dict[str, str]]:
        read = items.read(number)
        return read, index.digests(sorted({item.id for item in read if item.id}))

    for read, known in _ahead(look, len(items.parts)):
        places: list[Item | None] = []
        for item in read:
            places.append(None)
            if item.error:
                report.failures.append((item.name, item.error))
                if item.lost_in:
                    lost.add(plain(item.lost_in))
                continue
            if item.id in seen:
                report.duplicates += 1
            elif item.id not in known:
                places[-1] = item
            elif known[item.id] == metadata_digest(item.metadata):
                report.unchanged += 1
            else:
                writer.update(item)
            seen.add(item.id)
        advance(places.count(None))
        if any(places):
            yield places


def _ahead(work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`work` of 0, 1, ... in order, in a thread that is a few steps ahead."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="kakao-models-parts")
    waiting: deque[Future] = deque()
    try:
        for number in range(count):
            waiting.append(pool.submit(work, number))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


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

    def __init__(self, index: "SearchIndex", report: BuildReport):
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

    def update(self, item: Item) -> None:
        self._changed[item.id] = item.metadata
        if len(self._changed) >= INSERT:
            self._change()

    def flush(self) -> None:
        self._insert()
        self._change()

    def _insert(self) -> None:
        if self._rows:
            ids, metadata = map(list, zip(*self._rows))
            self._index.add(ids, np.concatenate(self._vectors), metadata, at_once=len(ids))
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
