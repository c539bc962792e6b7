"""Local images and captions → shards for training, the same bytes for the same input, options and seed."""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kakao_models.data.workers import each
from kakao_models.data.writers import WRITERS, StoredSample
from kakao_models.files.atomic import unfinished
from kakao_models.pixels.images import ImageError, load_image
from kakao_models.pixels.limits import MAX_PIXELS
from kakao_models.samples.columns import Sample, SampleError
from kakao_models.samples.manifest import entry, write_manifest
from kakao_models.samples.shards import Source

_HELD = 8  # row groups in memory while samples are read in any order
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}


@dataclass(frozen=True)
class Options:
    """Settings for storing samples.

    image_size: a picture whose shorter side is larger is made that small; None keeps the file's own bytes wherever the
    format allows (tars and Parquet: JPEG, PNG, WebP; TFRecords: JPEG).
    """

    format: str = "webdataset"
    image_size: int | None = None
    quality: int = 95
    max_pixels: int = MAX_PIXELS


def write_sample_shards(
    source: Source,
    output: Path,
    *,
    options: Options = Options(),
    per_shard: int = 10_000,
    seed: int | None = None,
    workers: int = 1,
    name: str = "",
    advance: Callable[[int], None] = lambda steps: None,
) -> dict:
    """Writes all samples of a source as shards into a new folder, which appears when it is complete.

    Every picture is decoded before it is stored; samples that can't be read are left out and listed.

    Args:
        seed: shuffle all samples with this seed; None keeps their order.
        workers: processes, a shard each.
        name: what the manifest calls the source.
        advance: called with the number of samples that are done.

    Returns:
        the manifest: rows, format, seed, classes (their names, whose places are the labels), failures, shards.

    Raises:
        FileExistsError: `output` already exists.
        ValueError: no sample could be read, or an option is wrong.
    """
    if options.format not in WRITERS:
        raise ValueError(f"format: got {options.format!r}, expected one of {', '.join(WRITERS)}")
    if per_shard < 1:
        raise ValueError(f"per_shard: got {per_shard}, expected at least 1")
    total = sum(source.counts)
    order = np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)
    classes = source.classes or []
    if seed is not None:
        source.hold(_HELD)
    shared = (source, {label: place for place, label in enumerate(classes)}, options)
    with unfinished(Path(output)) as folder:
        tasks = [(folder, number, order[start : start + per_shard])
                 for number, start in enumerate(range(0, total, per_shard))]  # fmt: skip
        entries, failures = [], []
        done = {}
        for number, *result in each(_write, shared, tasks, workers):
            done[number] = result
            advance(len(tasks[number][2]))
        for written, failed in (done[number] for number in sorted(done)):
            entries += [written] if written else []
            failures += failed
        if not entries:
            raise ValueError(f"{name or 'the source'}: no sample could be read; the first: {': '.join(failures[0])}")
        summary = {"format": options.format, "seed": seed, "source": name, "classes": classes}
        failed = [{"name": key, "reason": reason} for key, reason in failures]
        return write_manifest(folder, "shards", entries, **summary, failures=failed)


def stored(data: bytes, options: Options) -> tuple[bytes, str, tuple[int, int]]:
    """The bytes to keep of a picture's file, their kind, and (width, height).

    Raises:
        ImageError: it can't be decoded, to the last pixel.
    """
    picture = load_image(data, max_pixels=options.max_pixels)
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
    small = options.image_size is not None and min(picture.size) > options.image_size
    if kind is not None and not small and (kind == "jpg" or options.format != "tfrecord"):
        return data, kind, picture.size
    if small:
        scale = options.image_size / min(picture.size)
        picture = picture.resize(tuple(max(1, round(side * scale)) for side in picture.size))  # bicubic, antialiased
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=options.quality)
    return file.getvalue(), "jpg", picture.size


def _write(shared: tuple, task: tuple) -> tuple[int, dict | None, list[tuple[str, str]]]:
    folder, number, rows = task
    source, classes, options = shared
    kind = WRITERS[options.format]
    path, failures, count = folder / f"{number:05d}{kind.suffix}", [], 0
    writer = kind(path)
    try:
        for place, row in enumerate(rows):
            name = f"sample {row}"
            try:
                sample = source.read(*source.locate(row))
                name = sample.key
                data, form, _ = stored(_content(sample), options)
                labels = tuple(classes[label] if isinstance(label, str) else label for label in sample.labels)
                "".join(sample.captions).encode()  # JSON may have half a character
            except Exception as error:  # noqa: BLE001  one sample must not end a run of millions
                name = error.sample.key if isinstance(error, SampleError) else name
                failures.append((name, getattr(error, "reason", str(error))))
                continue
            writer.write(StoredSample(f"{number:05d}{place:06d}", data, form, sample.captions, labels))
            count += 1
    finally:
        writer.close()
    if not count:
        path.unlink()
        return number, None, failures
    return number, entry(path, count), failures


def _content(sample: Sample) -> bytes:
    if sample.image is None:
        raise ImageError(sample.key, "no image")
    if isinstance(sample.image, (bytes, bytearray, memoryview)):
        return bytes(sample.image)
    path = os.fspath(sample.image)
    if "://" in path:
        raise ImageError(path, "no such file: to download images from URLs into shards, use kakao-models data download")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ImageError(path, "is not a regular file")
    return Path(path).read_bytes()
