"""The picture of a hit, read where its index says it is, and nowhere that it must not be."""

import os
import re
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from kakao_models.pixels.images import ImageError, load_image
from kakao_models.pixels.limits import MAX_SHOWN_PIXELS
from kakao_models.search.index import Hit
from kakao_models.search.items import MAX_BYTES, WITHIN, is_within

_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")  # as `sources.plain` writes it


def hit_picture(
    hit: Hit | str,
    *,
    roots: Sequence[str | os.PathLike] | None = None,
    size_hint: tuple[int, int] | None = None,
    **options: Any,
) -> Image.Image:
    """The picture of a hit, as upright RGB.

    Args:
        hit: a hit, or its path.
        roots: read only files in these folders. Whoever wrote an index chose its paths: give the folders of your
            pictures wherever others may see the result, as on a web page. None allows any file of this machine.
        size_hint, options: passed to `load_image`.

    Raises:
        ImageError: it can't be read, or lies elsewhere.
    """
    path = hit if isinstance(hit, str) else hit.path
    options = {"max_pixels": MAX_SHOWN_PIXELS} | options
    if "://" in path:
        if roots is not None:
            raise ImageError(path, "is a URL, but only files can be shown")
        return load_image(path, size_hint=size_hint, **options)
    file, _, inside = path.partition(WITHIN)
    place = allowed(on_disk(file), roots)
    return load_image(_inside(str(place), inside, path) if inside else place, size_hint=size_hint, **options)


def on_disk(path: str) -> str:
    """The name of a file as the system knows it: a database holds bytes that are not UTF-8 as their digits."""
    if r"\udc" not in path or os.path.lexists(path):
        return path
    return _BYTE.sub(lambda match: chr(int(match[1], 16)), path)


def allowed(path: str, roots: Sequence[str | os.PathLike] | None) -> Path:
    """The file that a path leads to, through links and "..".

    Raises:
        ImageError: it is not absolute, or in none of `roots`.
    """
    if not path or "\0" in path or not os.path.isabs(path):
        raise ImageError(path or "a hit without a path", "has no absolute path to a file")
    try:
        real = Path(path).resolve()
    except (OSError, RuntimeError) as error:
        raise ImageError(path, f"is not a readable path ({error})") from error
    if roots is not None and not is_within(real, [Path(root).resolve() for root in roots]):
        raise ImageError(path, "is outside of the folders that may be shown")
    return real


def _inside(container: str, name: str, path: str) -> bytes:
    try:
        if container.lower().endswith(".tar"):
            data = _tar(container, os.stat(container).st_mtime_ns).image_bytes(name, MAX_BYTES)
            if data is None:
                raise ImageError(path, f"is no longer in this tar, or has more than {MAX_BYTES:,} bytes")
            return data
        return _cell(container, name, path)
    except (OSError, tarfile.TarError) as error:
        raise ImageError(path, getattr(error, "strerror", None) or str(error)) from error


@lru_cache(maxsize=32)
def _tar(container: str, changed: int) -> Any:
    from kakao_models.samples.shards import TarShards

    return TarShards([container])


def _cell(container: str, name: str, path: str) -> bytes:
    from kakao_models.samples.rows import Part

    row, _, column = name.partition(":")
    if not row.isdecimal():
        raise ImageError(path, "is not the name of a row of a table")
    try:
        rows, number = _table(container, column, os.stat(container).st_mtime_ns), int(row)
        sample = None
        if number < rows.counts[0]:
            (sample,) = rows.read(Part(0, 0, number, number + 1))
    except ValueError as error:
        raise ImageError(path, str(error)) from error
    if sample is None:
        raise ImageError(path, f"is no longer in this table, which has {rows.counts[0]} rows")
    if not isinstance(sample.image, bytes):
        raise ImageError(path, "the row has no image")
    return sample.image


@lru_cache(maxsize=8)
def _table(container: str, column: str, changed: int) -> Any:
    from kakao_models.samples.columns import Columns
    from kakao_models.samples.rows import Rows

    return Rows(container, Columns(image=column or None))
