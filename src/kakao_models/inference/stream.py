"""Images in, batches of pixel values out: reading and preprocessing run in threads, beside the model."""

import contextlib
import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from kakao_models.pixels.fetch import is_address
from kakao_models.pixels.formats import list_images
from kakao_models.pixels.images import (
    ImageError,
    describe,
    is_file_object,
    is_image_text,
    is_one_image,
    read_file_object,
)
from kakao_models.samples.paths import matches

_LISTED = 10  # failures that a report names


@dataclass(frozen=True)
class Failure:
    """An image that could not be read."""

    index: int  # its place among the sources
    source: str  # its name
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class ImageBatch(NamedTuple):
    """Consecutive images, in the order of the sources."""

    indices: np.ndarray  # (n,) int64, places of the readable ones among the sources
    values: np.ndarray  # (n, ...) float32, a row per readable image
    failures: list[Failure]  # the others


def is_single(source: Any) -> bool:
    """Whether this is one image rather than several, such as a folder, a pattern of names or a list."""
    if isinstance(source, (str, os.PathLike)):
        return not (os.path.isdir(source) or _is_pattern(source))
    return is_one_image(source)


def _is_pattern(source: str | os.PathLike) -> bool:
    """Whether a name that is not there is a pattern, such as photos/*.jpg. The image of a URL may have a question mark."""
    name = os.fspath(source)
    return isinstance(name, str) and glob.has_magic(name) and not (
        is_address(name) or os.path.lexists(name) or is_image_text(name)
    )  # fmt: skip


def each_source(sources: Any) -> Iterable[Any]:
    """One image, a folder (the images under it, sorted), a pattern (its files, sorted) or an iterable, as an iterable of
    images.

    Raises:
        ValueError: there are no images, or `sources` is something else.
    """
    if is_single(sources):
        return [sources]
    if isinstance(sources, (str, os.PathLike)):
        folder = os.path.isdir(sources)
        paths = list_images(sources) if folder else matches(sources)
        if not paths:
            raise ValueError(
                f"{os.fspath(sources)}: this folder has no images"
                if folder
                else f"{os.fspath(sources)}: no file matches this pattern"
            )
        return paths
    if not (hasattr(sources, "__iter__") or hasattr(sources, "__getitem__")):
        raise ValueError(
            f"expected images as a path, URL, folder, PIL image, array, bytes, file object or an iterable of these, "
            f"got {type(sources).__name__}"
        )
    return sources


def stream_batches(
    sources: Iterable[Any],
    prepare: Callable[[Any], np.ndarray],
    *,
    batch_size: int,
    num_workers: int,
    stop_at_failure: bool,
) -> Iterator[ImageBatch]:
    """Batches of `prepare(source)` for all sources, in order; at most three batches are held at any time.

    Args:
        prepare: one image → (C, H, W); a `ValueError` or `OSError` it raises makes a `Failure`.
        stop_at_failure: raise that error instead.
    """
    remaining = enumerate(sources)
    listed = isinstance(sources, (list, tuple))  # anything else may change what it gave before a thread gets to it
    waiting: deque[tuple[int, Any, Future]] = deque()  # in the order of the sources

    def top_up() -> None:
        while len(waiting) < 2 * batch_size and (item := next(remaining, None)):
            index, source = item
            future, entry = None, source if listed and not is_file_object(source) else _unchanging(source)
            if isinstance(entry, Image.Image):  # two threads must not decode one lazily opened file
                future = next((future for _, other, future in waiting if other is entry), None)
            waiting.append((index, source, future or pool.submit(prepare, entry)))

    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="kakao-models-images")
    try:
        top_up()
        while waiting:
            indices, values, failures = [], [], []
            for index, source, future in [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]:
                try:
                    values.append(future.result())
                    indices.append(index)
                except (ValueError, OSError) as error:
                    if stop_at_failure:
                        raise
                    failures.append(Failure(index, _name(source, index), getattr(error, "reason", str(error))))
            top_up()  # so that the threads have work while the model runs
            yield ImageBatch(np.array(indices, np.int64), np.stack(values) if values else np.empty(0), failures)
    finally:
        pool.shutdown(cancel_futures=True)


def _unchanging(source: Any) -> Any:
    """`source`, or a copy of one whose content may be replaced: a buffer, a file, the current frame of an animation."""
    if is_file_object(source):  # one may be closed next, or be there twice, and two threads can't share one
        try:
            return read_file_object(source)
        except ImageError:  # it is reported when it is its turn
            return source
    if isinstance(source, np.ndarray):
        return source.copy()
    if hasattr(source, "clone"):  # a PyTorch tensor
        return source.clone()
    if isinstance(source, Image.Image) and (
        not isinstance(source, ImageFile.ImageFile) or getattr(source, "is_animated", False)
    ):
        with contextlib.suppress(Exception):  # a broken or closed one is reported when it is its turn
            return source.copy()
    return source


def collect(batches: Iterable[ImageBatch], expected: int | None, width: int) -> np.ndarray:
    """Batches as one array (N, width), with rows of NaN for failures; without `expected` rows it grows as they come."""
    rows = np.empty((1024 if expected is None else expected, width), np.float32)
    end = 0
    for indices, values, failures in batches:
        start, end = end, end + len(indices) + len(failures)
        if end > len(rows):
            rows.resize((max(end, len(rows) * 3 // 2), width), refcheck=False)
        rows[start:end] = np.nan
        rows[indices] = values.reshape(len(indices), width)
    rows.resize((end, width), refcheck=False)
    return rows


def report(failures: list[Failure], total: int) -> str:
    """One message for all failures of a run."""
    lines = [f"{len(failures)} of {total} images could not be read:"]
    lines += [f"  {failure}" for failure in failures[:_LISTED]]
    if len(failures) > _LISTED:
        lines.append(f"  and {len(failures) - _LISTED} more: see Embedder.failures")
    return "\n".join(lines)


def _name(source: Any, index: int) -> str:
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        return describe(name) if isinstance(name, bytes) or is_image_text(name) else name
    name = getattr(source, "filename", None) or (getattr(source, "name", None) if is_file_object(source) else None)
    return name if isinstance(name, str) and name else f"image {index} ({type(source).__name__})"
