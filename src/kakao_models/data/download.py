"""Downloads the images of a table of URLs and texts into tars, in img2dataset's layout, resumable image by image.

Of each shard there are 00000.tar (the pictures that were downloaded), 00000.parquet (every row: what came of it) and
00000_stats.json. A shard in work is a journal; it becomes these files when all its rows have been tried.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kakao_models.data.deadlinks import failure_kind
from kakao_models.data.distribute import all_ranks, check_rank
from kakao_models.data.journal import Journal
from kakao_models.data.shard import Options, stored
from kakao_models.data.workers import each
from kakao_models.data.writers import StoredSample, TarWriter
from kakao_models.files.atomic import replacing
from kakao_models.pixels.fetch import FetchError, fetch_url
from kakao_models.pixels.images import ImageError, image_size
from kakao_models.pixels.limits import MAX_PIXELS
from kakao_models.samples.columns import BY_NAME, URLS, Columns, Sample
from kakao_models.samples.manifest import NAME, alone, begin, clear, cleared, entry, write_json, write_manifest
from kakao_models.samples.rows import Part, Rows
from kakao_models.samples.shards import TarShards

_TRIED = 100  # rows that are looked at to see whether they have addresses
HASHES = ("sha256", "md5")  # columns that, where they are, say what the bytes must be
# What another attempt can't change
_FINAL = ("only http and https", "not a public address", "answered 404", "answered 410", "answered 401", "answered 403")


@dataclass(frozen=True)
class Download:
    """Settings for downloading and storing images.

    retries: attempts beyond the first within a run, for failures that may pass; their waits double from half a second.
    attempts: attempts of a row over all runs; a later run tries failed rows again while they have fewer.
    timeout: seconds for an attempt, everything together.
    max_bytes, max_pixels: larger files are refused, before they are read as a whole.
    min_size, max_aspect: smaller or longer pictures are refused; 0 and infinity: none.
    image_size: images are downscaled so that the shorter side is at most this; None keeps the server's bytes.
    """

    per_shard: int = 10_000
    threads: int = 32
    retries: int = 1
    attempts: int = 6
    timeout: float = 10.0
    max_bytes: int = 64 * 2**20
    max_pixels: int = MAX_PIXELS
    min_size: int = 0
    max_aspect: float = float("inf")
    image_size: int | None = None
    allow_private_addresses: bool = False

    def __post_init__(self):
        for name in ("per_shard", "threads", "attempts", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.per_shard > 999_999:  # numbers in names of samples have six digits
            raise ValueError(f"per_shard: got {self.per_shard}, expected at most 999,999")


@dataclass(frozen=True)
class Outcome:
    rows: int
    successes: int
    tried: int  # rows that this run tried
    unfinished: int  # shards of other ranks
    errors: dict[str, int]

    def __str__(self) -> str:
        share = self.successes / self.rows if self.rows else 0
        tried = f"{self.tried:,} rows were tried in this run"
        lines = [f"{self.successes:,} of {self.rows:,} pictures ({share:.1%}); {tried}"]
        lines += [f"{count:>10,}  {error}" for error, count in list(self.errors.items())[:10]]
        return "\n".join(lines)


def download(
    source: Any,
    output: Path,
    options: Download = Download(),
    *,
    columns: Columns = BY_NAME,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    distributor: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Outcome:
    """Downloads what isn't there yet, and tries again what failed in earlier runs.

    Args:
        source: a table as of `Rows`, whose images are addresses, or `table_of_addresses`; captions, labels and hashes
            (`sha256`, `md5`) are used where they are.
        columns: passed to `Rows`.
        workers: processes, a shard each.
        rank, world_size: every machine of several takes each `world_size`-th shard.
        distributor: run all ranks, by "multiprocessing", "pyspark" or "ray", as `distribute.all_ranks` does.
        advance: called with the number of rows that are done.

    Raises:
        ValueError: no column of addresses, or `output` is of another table.
        FileExistsError: another process already works with this rank.
        FileNotFoundError: tasks of a cluster wrote where this machine sees nothing.
    """
    check_rank(rank, world_size, distributor)
    rows, output = source if isinstance(source, Rows) else table_of_addresses(source, columns), Path(output)
    plan = {"kind": "download", "rows": sum(rows.counts), "per_shard": options.per_shard, "source": rows.fingerprint()}
    plan |= {"image_size": options.image_size, **rows.plan}
    begin(output, plan)
    parts = rows.parts(options.per_shard)
    mine = [part for part in parts if part.number % world_size == rank]
    tried = 0
    if distributor:
        run = partial(download, rows.where, output.absolute(), options, columns=rows.columns, workers=workers)
        outcomes = all_ranks(run, world_size, distributor, output=output, parts=parts, advance=advance)
        tried = sum(outcome.tried for outcome in outcomes)
    else:
        with alone(output, rank):
            clear(output, range(rank, len(parts), world_size))
            for part, count in each(_shard, (rows, output, options), mine, workers):
                tried += count
                advance(part.stop - part.start)
    with cleared(output, NAME):
        return _summarize(output, parts, tried)


def table_of_addresses(source: Any, columns: Columns = BY_NAME) -> Rows:
    """Rows whose images are addresses.

    Raises:
        ValueError: no column holds addresses; it says which columns there are.
    """
    rows = Rows(source, replace(columns, prefer=URLS), keep=HASHES)
    start = [sample for part in rows.parts(_TRIED)[:1] for sample in rows.read(part) if sample.image is not None]
    column = Columns(columns.image, prefer=URLS).find(start[0].record).image if start and start[0].record else None
    named = column is not None and (column == columns.image or column.lower() in URLS)
    texts = [sample.path for sample in start if sample.path]
    if start and not (texts if named else any("://" in text for text in texts)):
        place = "it" if column is None else f"column {column!r}"
        raise ValueError(
            f"{rows.name}: {place} holds {(texts or ['images'])[0]:.60}, not URLs such as https://.... Give a table, and "
            "name its column of URLs with --image-column"
        )
    return rows


def _shard(shared: tuple[Rows, Path, Download], part: Part) -> tuple[Part, int]:
    """Finishes one shard; how many rows it tried."""
    rows, output, options = shared
    name, table = output / f"{part.number:05d}", output / f"{part.number:05d}.parquet"
    before = {row["row"]: row for row in pq.read_table(table).to_pylist()} if table.exists() else {}
    open_rows = {row for row, outcome in before.items() if _may_try(outcome, options)}
    sound = before and not _different(name.with_suffix(".tar"), before.values())
    if sound and not open_rows:
        name.with_suffix(".journal").unlink(missing_ok=True)
        return part, 0
    records = rows.read(part)
    journal = Journal(name.with_suffix(".journal"))
    try:
        if sound:  # pictures that were had are taken over, those that failed are tried again
            _take_over(journal, name.with_suffix(".tar"), before)
        done = set(journal.rows())
        expected = [row for row in range(len(records)) if row not in done]
        expected += [row for row in done if _may_try(journal.get(row)[0], options) and row in open_rows]
        _fetch_all(journal, records, expected, options)
        _write(journal, records, name, rows.numbered)
    finally:
        journal.close()
    name.with_suffix(".journal").unlink()
    return part, len(expected)


def _may_try(outcome: dict, options: Download) -> bool:
    return outcome["status"] != "success" and not outcome["final"] and outcome["attempts"] < options.attempts


def _fetch_all(journal: Journal, records: list[Sample], expected: list[int], options: Download) -> None:
    before = {row: journal.get(row)[0]["attempts"] for row in set(journal.rows()) & set(expected)}
    pool, stop = ThreadPoolExecutor(options.threads), Future()
    try:
        waiting: set = set()
        remaining = iter(expected)
        while True:
            for row in remaining:
                waiting.add(pool.submit(_fetch_one, row, records[row], before.get(row, 0), options, stop))
                if len(waiting) >= 2 * options.threads:  # what is downloaded and not yet written is in memory
                    break
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                journal.add(*future.result())
    finally:  # on Ctrl-C or a full disk, nothing more is begun, and what is under way is given up
        stop.set_result(None)
        pool.shutdown(wait=False, cancel_futures=True)


def _fetch_one(row: int, record: Sample, attempts: int, options: Download, stop: Future) -> tuple[dict, bytes]:
    outcome = {"row": row, "status": "failed", "final": False, "attempts": attempts, "error": None}
    for again in range(options.retries + 1):
        if again and wait([stop], 0.5 * 2 ** (again - 1)).done:
            break
        outcome["attempts"] += 1
        try:
            return _got(outcome, record, options, stop)
        except (FetchError, ImageError) as error:
            reason = _printable(getattr(error, "reason", str(error)))
            # A whole answer that is no picture, or not the one that is meant, will be that again
            outcome |= {"error": reason, "final": isinstance(error, ImageError) or any(x in reason for x in _FINAL)}
        except Exception as error:  # noqa: BLE001  one address must not end a run of millions
            outcome |= {"error": _printable(f"{type(error).__name__}: {error}"), "final": True}
        if outcome["final"] or outcome["attempts"] >= options.attempts:
            break
    return outcome, b""


def _printable(reason: str) -> str:
    """Reasons may quote a server: nothing of any length, and no control sequences, gets from there into reports."""
    return "".join(letter if letter.isprintable() else " " for letter in reason[:300])


def _got(outcome: dict, record: Sample, options: Download, stop: Future) -> tuple[dict, bytes]:
    if record.error:
        raise ImageError("row", record.error)
    if (url := record.path) is None:
        raise ImageError("row", "no address")
    limits = dict(timeout=options.timeout, max_bytes=options.max_bytes, stop=stop)
    data = fetch_url(url, allow_private_addresses=options.allow_private_addresses, **limits)
    for name in HASHES:
        expected = record.record.get(name)
        if expected and hashlib.new(name, data, usedforsecurity=False).hexdigest() != str(expected).lower():
            raise ImageError(url, f"content differs from the table's ({name} does not match)")
    keep = Options("webdataset", options.image_size, max_pixels=options.max_pixels)
    kept, kind, (width, height) = _stored(data, keep)
    if min(width, height) < options.min_size:
        raise ImageError(url, f"smaller than {options.min_size} pixels")
    if max(width, height) > options.max_aspect * min(width, height):
        raise ImageError(url, f"its longer side is more than {options.max_aspect:g} times its shorter side")
    digest = hashlib.sha256(kept).hexdigest()
    success = {"status": "success", "final": True, "error": None, "kind": kind, "sha256": digest}
    return outcome | success | {"width": width, "height": height}, kept


# Pixels → of larger pictures a process decodes so many at a time: a pixel takes up to 27 bytes, and all threads may meet them
_AT_A_TIME = ((2**24, threading.Semaphore(1)), (2**22, threading.Semaphore(4)))


def _stored(data: bytes, options: Options) -> tuple[bytes, str, tuple[int, int]]:
    width, height = image_size(data, options.max_pixels)
    turn = next((turn for pixels, turn in _AT_A_TIME if width * height > pixels), nullcontext())
    with turn:
        return stored(data, options)


def _write(journal: Journal, records: list[Sample], name: Path, numbered: bool) -> None:
    """Tar first, table last: where the table is, the shard is complete."""
    rows = []
    with replacing(name.with_suffix(".tar")) as temporary:
        writer = TarWriter(temporary)
        for row, record in enumerate(records):
            outcome, data = journal.get(row)
            key = f"{name.name}{row:06d}"
            rows.append({"row": row, "key": key, "id": record.id, "url": record.path, **outcome})
            if outcome["status"] == "success":
                metadata = {"id": record.id, "url": record.path, "sha256": outcome["sha256"]}
                writer.write(StoredSample(key, data, outcome["kind"], record.captions, record.labels, metadata))
        writer.close()
        if wrong := _different(temporary, rows):
            raise OSError(
                f"{name}.tar: the file read back differs from what was written ({wrong}). Is the disk faulty?"
            )
    statuses = Counter(failure_kind(row["error"]) if row["error"] else "success" for row in rows)
    successes = sum(row["status"] == "success" for row in rows)
    counts = {"count": len(rows), "successes": successes, "failed_to_download": len(rows) - successes}
    write_json(name.with_name(f"{name.name}_stats.json"), {**counts, "status_dict": dict(statuses)})
    with replacing(name.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_schema(numbered)), temporary, compression="zstd")


def _schema(numbered: bool) -> pa.Schema:
    kind = pa.int64() if numbered else pa.string()
    whole, text = pa.int64(), pa.string()
    columns = {"row": whole, "key": text, "id": kind, "url": text, "status": text, "error": text, "attempts": whole}
    return pa.schema({**columns, "final": pa.bool_(), "kind": text, "width": whole, "height": whole, "sha256": text})


def _different(path: Path, rows: Iterable[dict]) -> str | None:
    """Describes how the images of a tar, each of which is hashed, differ from the rows of its table; None if they don't."""
    expected = {row["key"]: row["sha256"] for row in rows if row["status"] == "success"}
    try:
        there = {key: hashlib.sha256(data).hexdigest() for key, data in _pictures(path)}
    except (ValueError, OSError) as error:
        return str(error)
    if list(there) != list(expected):
        return f"{len(there)} samples instead of {len(expected)}, or others"
    return next((f"{key}: SHA-256 differs" for key, digest in there.items() if digest != expected[key]), None)


def _pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    index = TarShards._read_index(path)
    with open(path, "rb") as file:
        for key, parts in index:
            start, size = next(place for kind, place in parts.items() if kind in ("jpg", "png", "webp"))
            file.seek(start)
            yield key, file.read(size)


def _take_over(journal: Journal, path: Path, before: dict[int, dict]) -> None:
    """Copies the rows of a finished shard, whose tar is at `path`, into its journal, but for those that it has."""
    rows = {outcome["key"]: outcome for outcome in before.values()}
    failures = ((key, b"") for key, outcome in rows.items() if outcome["status"] != "success")
    known = set(journal.rows())
    names = ("row", "status", "final", "attempts", "error", "kind", "sha256", "width", "height")
    for key, data in chain(_pictures(path), failures):
        if rows[key]["row"] not in known:
            journal.add({name: rows[key][name] for name in names}, data)


def _summarize(output: Path, parts: list[Part], tried: int) -> Outcome:
    rows = successes = unfinished = 0
    errors, entries = Counter(), []
    for part in parts:
        path = output / f"{part.number:05d}.parquet"
        if not path.exists():
            unfinished += 1
            continue
        table = pq.read_table(path, columns=["status", "error"])
        downloaded = table["status"].to_pylist().count("success")
        rows, successes = rows + len(table), successes + downloaded
        errors.update(failure_kind(error) for error in table["error"].to_pylist() if error)
        entries.append(entry(path.with_suffix(".tar"), downloaded))
    if not unfinished:
        write_manifest(output, "download", entries)
    return Outcome(rows, successes, tried, unfinished, dict(errors.most_common()))
