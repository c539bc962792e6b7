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
from kakao_models.search.items import MAX_BYTES, WITHIN

_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")  # as `sources.plain` writes it


def hit_picture(
    hit: Hit | str,
    *,
    roots: Sequence[str | os.PathLike] | None = None,
    size_hint: tuple[int, int] | None = None,
    **options,
) -> Image.Image:
    """The picture of a hit, as upright RGB.

    Args:
        hit: a hit, or its path.
        roots: read files in these folders alone. Whoever wrote an index chose its paths: give the folders of your
            pictures wherever others may see the result, as on a web page. None allows any file of this machine.
        size_hint, options: as of `load_image`.

    Raises:
        ImageError: it can't be read, or lies elsewhere.
    """
    path = hit if isinstance(hit, str) else hit.path
    options = {"max_pixels": MAX_SHOWN_PIXELS} | options
    if "://" in path:
        if roots is not None:
            raise ImageError(path, "is an address, and only files are shown")
        return load_image(path, size_hint=size_hint, **options)
    file, _, inside = path.partition(WITHIN)
    place = allowed(on_disk(file), roots)
    source: Any = _inside(str(place), inside, path) if inside else place
    return load_image(source, size_hint=size_hint, **options)


def on_disk(path: str) -> str:
    """The name of a file as the system knows it: of bytes that are no UTF-8 a database has only the digits."""
    if r"\udc" not in path or os.path.lexists(path):
        return path
    return _BYTE.sub(lambda found: chr(int(found[1], 16)), path)


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
        raise ImageError(path, f"leads nowhere ({error})") from error
    if roots is not None and not any(real.is_relative_to(Path(root).resolve()) for root in roots):
        raise ImageError(path, "lies in none of the folders that may be shown")
    return real


def _inside(container: str, name: str, path: str) -> bytes:
    try:
        if container.endswith(".tar"):
            members = _members(container, os.stat(container).st_mtime_ns)
            if name not in members:
                raise ImageError(path, "is not in this tar any more")
            start, size = members[name]
            if size > MAX_BYTES:
                raise ImageError(path, f"has {size:,} bytes, more than {MAX_BYTES:,}")
            with open(container, "rb") as file:
                file.seek(start)
                return file.read(size)
        return _cell(container, name, path)
    except (OSError, tarfile.TarError) as error:
        raise ImageError(path, getattr(error, "strerror", None) or str(error)) from error


@lru_cache(maxsize=32)
def _members(container: str, changed: int) -> dict[str, tuple[int, int]]:
    """Where the picture of each sample lies in a tar."""
    from kakao_models.samples.shards import IMAGES, TarShards

    found = {}
    for key, parts in TarShards._read_index(Path(container)):
        place = next((parts[kind] for kind in IMAGES if kind in parts), None)
        if place is not None:
            found.setdefault(key, place)
    return found


def _cell(container: str, row: str, path: str) -> bytes:
    from kakao_models.samples.rows import Part, image_of

    if not row.isdecimal():
        raise ImageError(path, "names no row of a table")
    try:
        rows = _table(container, os.stat(container).st_mtime_ns)
        if int(row) >= rows.counts[0]:
            raise ImageError(path, f"is not in this table any more: it has {rows.counts[0]} rows")
        value = image_of(rows.read(Part(0, 0, int(row), int(row) + 1))[0], rows.folder)
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(path, str(error)) from error
    if not isinstance(value, bytes):
        raise ImageError(path, "the row holds no picture")
    return value


@lru_cache(maxsize=8)
def _table(container: str, changed: int) -> Any:
    from kakao_models.samples.rows import IMAGES, Rows

    return Rows(container, IMAGES)
