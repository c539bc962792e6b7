"""Folders of shards with a manifest: row counts and SHA-256 of each file, which can be verified at any time."""

import json
import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kakao_models.files.atomic import sha256_of, write_text

NAME = "manifest.json"
PLAN = "plan.json"


@contextmanager
def alone(output: Path, rank: int) -> Iterator[None]:
    """Locks a folder for this rank; the lock goes with the process, however it ends.

    Raises:
        FileExistsError: another process works on the folder with this rank.
    """
    lock = FileLock(output / f".rank{rank}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(f"{output}: another process already works on it as rank {rank}") from None
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Raises:
    ValueError: it is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def begin(output: Path, plan: dict) -> None:
    """Makes a folder with a `plan.json` that describes the run, or checks that an existing one has the same plan.

    Raises:
        FileExistsError: the folder has files and no plan.
        ValueError: it was begun with another plan.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / PLAN
    with cleared(output, PLAN):
        if not path.exists():
            if others := sorted(name.name for name in output.iterdir() if name.name[0] != "."):
                raise FileExistsError(
                    f"{output} has files ({others[0]}), but no {PLAN}, so this command did not make it. Name a new folder"
                )
            write_json(path, plan)
            return
    there = read_json(path)
    if other := [name for name in plan if there.get(name) != plan[name]]:
        changes = ", ".join(f"{name} was {there.get(name)!r}, is {plan[name]!r}" for name in other)
        raise ValueError(
            f"{output} was started with other settings ({changes}). Name a new folder, or use the same settings."
        )


@contextmanager
def cleared(output: Path, name: str) -> Iterator[None]:
    """Lets one process in at a time, after removing what killed ones left of the file `name`."""
    with FileLock(output / ".lock"):
        for old in output.glob(f".{name}.*.tmp"):
            old.unlink()
        yield


def clear(output: Path, numbers: Container[int]) -> None:
    """Removes what killed runs left of files named after shards with these numbers."""
    for old in output.glob(".*.tmp"):
        digits = re.match(r"\.(\d+)", old.name)
        if digits and int(digits[1]) in numbers:
            old.unlink(missing_ok=True)


def entry(path: Path, rows: int) -> dict:
    """The entry of a file in a manifest."""
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def write_manifest(folder: Path, kind: str, shards: Sequence[dict], **metadata: Any) -> dict:
    manifest = {"kind": kind, "rows": sum(shard["rows"] for shard in shards), **metadata, "shards": list(shards)}
    write_json(folder / NAME, manifest)
    return manifest


def read_manifest(folder: Path) -> dict:
    """Raises:
    ValueError: it is missing, or not a manifest.
    """
    path = folder / NAME
    try:
        manifest = read_json(path)
        kinds = {"file": str, "rows": int, "bytes": int, "sha256": str}
        sound = all(isinstance(shard[name], kind) for shard in manifest["shards"] for name, kind in kinds.items())
        if not sound or not isinstance(manifest["kind"], str):
            raise TypeError("an entry has the wrong type")
    except FileNotFoundError:
        raise ValueError(f"{folder}: has no {NAME}. Has its run finished?") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest ({error!r})") from error
    return manifest


def verify_manifest(
    folder: Path, *, decode: bool = False, advance: Callable[[int], None] = lambda steps: None
) -> list[str]:
    """Differences from the manifest: files that are missing, not listed, or have other bytes or rows.

    Args:
        decode: also read every sample, and its picture from the first pixel to the last.
    """
    manifest, wrong = read_manifest(folder), []
    listed = {shard["file"] for shard in manifest["shards"]}
    suffixes = {Path(name).suffix for name in listed}
    for path in sorted(folder.iterdir()):
        if path.suffix in suffixes and path.name not in listed and path.name[0] != ".":
            wrong.append(f"{path.name}: is not in the manifest")
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file() or path.parent.resolve() != folder.resolve():
            wrong.append(f"{shard['file']}: is missing")
        elif path.stat().st_size != shard["bytes"]:
            wrong.append(f"{shard['file']}: has {path.stat().st_size} bytes, the manifest says {shard['bytes']}")
        elif sha256_of(path) != shard["sha256"]:
            wrong.append(f"{shard['file']}: its SHA-256 differs from the manifest's")
        else:
            wrong += _check_rows(path, shard["rows"], decode and manifest["kind"] != "embeddings")
        advance(1)
    return wrong


def _check_rows(path: Path, rows: int, decode: bool) -> list[str]:
    from kakao_models.pixels.images import load_image
    from kakao_models.samples.shards import ParquetShards, TarShards, TFRecordShards

    kinds = {".tar": TarShards, ".tfrecord": TFRecordShards, ".parquet": ParquetShards}
    try:
        source = kinds[path.suffix]([path])
    except (ValueError, OSError, KeyError) as error:
        return [f"{path.name}: can't be read ({error})"]
    if sum(source.counts) != rows:
        return [f"{path.name}: has {sum(source.counts)} rows, the manifest says {rows}"]
    wrong = []
    for number, count in enumerate(source.counts if decode else ()):
        for row in range(count):
            try:
                load_image(source.read(number, row).image)
            except (ValueError, OSError) as error:
                wrong.append(f"{path.name}: sample {row}: {error}")
    return wrong
