"""The images or texts of folders, tables and tars that an index is built of, with their metadata."""

import datetime
import decimal
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kakao_models.files.lines import lines_of
from kakao_models.pixels.fetch import fetch_url
from kakao_models.pixels.images import ImageError, image_header
from kakao_models.samples.columns import BY_NAME, CAPTIONS, Columns, Sample
from kakao_models.samples.rows import Part, Rows
from kakao_models.samples.sources import ImageFolder

MAX_BYTES = 256 * 2**20  # of a picture's file
_LONGEST = {"path": 8192, "caption": 65_535}  # bytes; the latter is the most that Milvus allows
_MOST = 65_000  # bytes of all further columns of a row; Milvus' limit is 65,536
WITHIN = "::"  # between a container's path and the name in it
FIELDS = ("path", "caption", "width", "height", "bytes")  # columns of every index, in this order
OWN = ("sha256", "vector", "digest")  # and those that are not metadata


@dataclass
class Item:
    """One image or text.

    id: SHA-256 of the content, that of the image's file or of the text in UTF-8; "" where there is none.
    error: why there is none.
    lost_in: the file of a sample that could not be read at all, so that its path is not known.
    """

    name: str  # in messages
    content: bytes | str = b""  # an image's file, or a text
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    id: str = ""
    lost_in: str | None = None

    def __post_init__(self):
        if self.content:
            data = self.content.encode("utf-8", "surrogatepass") if isinstance(self.content, str) else self.content
            self.id = hashlib.sha256(data).hexdigest()


class Items:
    """The images or texts of several sources, in a fixed order.

    Args:
        sources: folders of images, WebDataset tars, tables (.parquet, .csv, .jsonl), and for texts .txt files.
        kind: "images" or "texts".
        columns: keep these of a table's columns as metadata; None keeps all that can be kept.
        fields: the columns of images and captions, where they have other names than usual.
        roots: further folders that a table may name pictures in; its own folder is always allowed.
        size: items of a part.

    Raises:
        ValueError: there is nothing, or nothing that is known.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike],
        *,
        kind: str = "images",
        columns: Sequence[str] | None = None,
        fields: Columns = BY_NAME,
        roots: Sequence[str | os.PathLike] = (),
        size: int = 32,
        workers: int = 4,
    ):
        if not sources:
            raise ValueError("got no sources to index: name a folder, a table or tars")
        self.kind, self.columns, self.fields = kind, None if columns is None else set(columns), fields
        self._found: set[str] = set()  # of the columns to keep, those that a row has
        self.roots = [Path(root).resolve() for root in roots]
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="kakao-models-read")
        opened = [_open(source, kind, fields) for source in sources]
        self.parts = [(rows, part) for rows in opened for part in rows.parts(size)]
        folders = [rows.source for rows in opened if isinstance(rows.source, ImageFolder)]
        self.unlisted = tuple(os.path.join(os.path.abspath(path), "") for each in folders for path in each.unlisted)

    def read(self, number: int) -> list[Item]:
        """The items of a part; those that can't be read say why."""
        rows, part = self.parts[number]
        file = rows.files[part.file]
        is_folder = isinstance(rows.source, ImageFolder)

        def item(place: int, sample: Sample) -> Item:
            name = f"{file}{WITHIN}{place}"
            if sample.error:
                return Item(name, error=sample.error, lost_in=file)
            return self._text(name, sample) if self.kind == "texts" else self._image(name, file, is_folder, sample)

        return list(self._pool.map(item, range(part.start, part.stop), rows.read(part)))

    def missing(self) -> list[str]:
        """The columns to keep that no row read so far has."""
        return sorted((self.columns or set()) - self._found)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _text(self, name: str, sample: Sample) -> Item:
        text = next(iter(sample.captions), None)
        if not text:
            return Item(name, error="no text")
        try:
            return Item(name, text, self._metadata(sample, name, {}))
        except ValueError as error:
            return Item(name, error=_reason(error))

    def _image(self, name: str, file: str, is_folder: bool, sample: Sample) -> Item:
        value = sample.image
        if value is None:
            return Item(name, error="no image")
        if isinstance(value, str):  # an address
            path = value
        elif isinstance(value, os.PathLike):
            path = os.path.abspath(value)
        else:
            path = self._path_within(file, name, sample)
        try:
            if isinstance(value, os.PathLike) and not is_folder:
                self._check_place(path, Path(file).parent)
            content = _content(path) if isinstance(value, (str, os.PathLike)) else bytes(value)
            width, height, taken = image_header(content)
            known = {} if is_folder else {"id": sample.id}  # the id of a file in a folder is in its path
            metadata = self._metadata(sample, path, known)
        except (ValueError, OSError) as error:
            return Item(path, error=_reason(error))
        of_file = {"width": width, "height": height, "bytes": len(content)} | ({"taken": taken} if taken else {})
        return Item(path, content, of_file | metadata)

    def _check_place(self, path: str, folder: Path) -> None:
        """
        Raises:
            ValueError: an image lies neither in the folder of its table nor in one of `roots`.
        """
        try:
            place = Path(path).resolve()
        except RuntimeError as error:  # a loop of links
            raise ValueError(str(error)) from error
        if not is_within(place, (folder.resolve(), *self.roots)):
            raise ValueError(f"is outside of {folder}: allow its folder with --root")

    def _path_within(self, file: str, name: str, sample: Sample) -> str:
        """The path of an image inside a tar or table: CONTAINER::KEY or CONTAINER::ROW, with the chosen column."""
        is_tar = file.lower().endswith(".tar")
        of_tar = f"{os.path.basename(file)}:"  # the id may have folders before it
        inside = sample.id.partition(of_tar)[2] if is_tar else name.removeprefix(f"{file}{WITHIN}")
        container = file if "://" in file else os.path.abspath(file)
        return f"{container}{WITHIN}{inside}" + (f":{self.fields.image}" if self.fields.image else "")

    def _metadata(self, sample: Sample, path: str, known: dict[str, Any]) -> dict[str, Any]:
        caption = next(iter(sample.captions), "")
        image = self.fields.find(sample.record, optional=True).image
        metadata = {"path": _fitting(path, "path", cut=False), "caption": _fitting(caption, "caption", cut=True)}
        for name, value in (known | dict(sample.record)).items():
            if name in (image, "__key__", "embedding") or (name.lower() in CAPTIONS and str(value).strip() == caption):
                continue
            if self.columns is not None:
                if name not in self.columns:
                    continue
                self._found.add(name)
            kept = _whole(value) if name in ("width", "height") else plain(value)
            if kept is not None:
                metadata.setdefault(f"{name}_" if name in OWN or name in ("path", "caption", "bytes") else name, kept)
        extra = {name: value for name, value in metadata.items() if name not in FIELDS}
        if (size := len(json.dumps(extra).encode())) > _MOST:
            raise ValueError(
                f"its columns have {size:,} bytes, expected at most {_MOST:,}: choose fewer with --columns"
            )
        return metadata


def is_within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path lies in one of some folders, all of them resolved."""
    return any(path.is_relative_to(folder) for folder in folders)


def count(sources: Sequence[str | os.PathLike], kind: str, fields: Columns = BY_NAME) -> int:
    """Number of images or texts in some sources, readable or not."""
    return sum(sum(_open(source, kind, fields).counts) for source in sources)


class Lines:
    """The lines of a text file, as `Rows` would give them."""

    source = None

    def __init__(self, path: str | os.PathLike):
        self.files = [os.fspath(path)]
        self._lines = lines_of(path)
        if not self._lines:
            raise ValueError(f"{path}: the file has no lines")
        self.counts = [len(self._lines)]

    def parts(self, size: int) -> list[Part]:
        total = self.counts[0]
        return [Part(n, 0, start, min(start + size, total)) for n, start in enumerate(range(0, total, size))]

    def read(self, part: Part) -> list[Sample]:
        return [Sample(line, None, (line,)) for line in self._lines[part.start : part.stop]]


def metadata_digest(metadata: dict[str, Any]) -> str:
    """16 hexadecimal digits by which a change of a row's metadata is seen."""
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A value as a database keeps it; None of what it can't: bytes, NaN, nothing."""
    if isinstance(value, (bool, str)):
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, (float, decimal.Decimal)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        kept = {str(name): plain(part) for name, part in value.items()}
        return {name: part for name, part in kept.items() if part is not None} or None
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy
        return plain(value.item())
    return None


def _whole(value: Any) -> int | None:
    try:
        return int(value) if 0 <= int(value) < 2**31 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _open(source: str | os.PathLike, kind: str, fields: Columns) -> "Rows | Lines":
    if kind == "texts" and os.fspath(source).lower().endswith(".txt"):
        return Lines(source)
    return Rows(source, fields, ("image" if kind == "images" else "caption",), keep=None)


def _content(source: str) -> bytes:
    if "://" in source:
        return fetch_url(source)
    with open(source, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        kind = os.fstat(file.fileno())
        if not stat.S_ISREG(kind.st_mode):  # reading a pipe or a device might never end
            raise ImageError(source, "is not a regular file")
        if kind.st_size > MAX_BYTES:
            raise ImageError(source, f"has {kind.st_size:,} bytes, expected at most {MAX_BYTES:,}")
        return file.read(MAX_BYTES + 1)


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def _fitting(text: str, name: str, *, cut: bool) -> str:
    """`text` as UTF-8 of at most so many bytes as the column holds."""
    data, most = text.encode("utf-8", "backslashreplace"), _LONGEST[name]
    if len(data) > most and not cut:
        raise ValueError(f"its {name} has {len(data):,} bytes, expected at most {most:,}")
    return data[:most].decode("utf-8", "ignore")
