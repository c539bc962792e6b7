"""The first rows of a table of image-text pairs: for the terminal, and as a page with images."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
from PIL import Image

from kakao_models.pixels.contact_sheet import SIDE, cell, picture_page
from kakao_models.pixels.images import ImageError, load_image
from kakao_models.pixels.limits import MAX_SHOWN_PIXELS
from kakao_models.samples.columns import BY_NAME, Columns, Sample, image_of
from kakao_models.samples.coyo import TYPES
from kakao_models.samples.paths import is_hub
from kakao_models.samples.rows import Rows
from kakao_models.samples.sources import load_hub_dataset

_MAX_BYTES = 64 * 2**20
_ON_HUB = re.compile(r"((zip|tar|gzip)://[^:]*::)?hf://")  # as `datasets` calls pictures that are files of a data set
_SHOWN = ("id", "text", "width", "height", "word_count", "clip_similarity_vitb32", "aesthetic_score_laion_v2", "url")


def first_rows(source: str | os.PathLike, count: int, split: str = "train") -> tuple[list[dict], dict[str, str]]:
    """The first rows of a source, and the types of its columns; of a data set of the Hub nothing more is downloaded.

    Args:
        source: passed to `open_source`.
        split: split of a data set of the Hub.
    """
    if is_hub(os.fspath(source)):
        data = load_hub_dataset(os.fspath(source), streaming=True, split=split)
        for name, feature in (data.features or {}).items():
            if type(feature).__name__ == "Image":
                data = data.cast_column(name, type(feature)(decode=False))
        rows = list(islice(data, count))
        if data.features is None:
            return rows, dict.fromkeys(rows[0] if rows else (), "unknown")
        return rows, _type_names(data.features.arrow_schema)
    table = Rows(source, needs=(), keep=None)
    parts = [replace(part, stop=min(part.stop, part.start + count)) for part in table.parts(count)[:count]]
    rows = [_row(sample) for part in parts for sample in table.read(part)][:count]
    if hasattr(table.source, "schemas"):
        return rows, _type_names(table.source.schemas[0])
    names = dict.fromkeys(name for row in rows for name in row)
    return rows, {name: TYPES.get(name) or _value_type(row.get(name) for row in rows) for name in names}


def _row(sample: Sample) -> dict[str, Any]:
    """A sample's own fields; of an image in a folder, which has none, what is known about it."""
    if sample.record or not isinstance(sample.image, Path):
        return dict(sample.record)
    captions = {"caption": "\n".join(sample.captions)} if sample.captions else {}
    labels = {"label": sample.labels[0]} if sample.labels else {}
    return {"image": os.path.abspath(sample.image)} | captions | labels


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Prints rows to the terminal, long values cut.

    Args:
        columns: columns to show; by default those of COYO that the table has, or all.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    there = list(rows[0]) if rows else []
    shown = list(columns or [name for name in _SHOWN if name in there][: 8 if "text" in there else 0] or there)
    if missing := [name for name in shown if rows and name not in there]:
        raise ValueError(f"columns: no column {missing[0]}; the table has {', '.join(there)}")
    table = Table(show_lines=False)
    for name in shown:
        width = {"text": 48, "url": 36}.get(name, 14)
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=6, max_width=width)
    for row in rows:
        table.add_row(*(Text(cell(row.get(name), 200)) for name in shown))  # Text: nothing in the data is markup
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(table)


def contact_sheet(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    *,
    columns: Columns = BY_NAME,
    folder: Path | None = None,
    timeout: float = 10.0,
) -> tuple[str, int]:
    """An HTML page with each row's image, text and other columns; and the number of unreadable images.

    Pictures are read as `load_image` reads them, made small and put into the page, which loads nothing from elsewhere.

    Args:
        columns: the image's column, where it has another name than usual.
        folder: what relative paths of images are relative to.
        timeout: seconds for a picture.
    """

    def read(place: int) -> Image.Image:
        return _picture(rows[place], columns, folder, timeout)

    note = f"{len(rows)} rows; {{lost}} pictures could not be read. Pictures belong to their owners."
    return picture_page(rows, title, note, read)


def _picture(row: Mapping[str, Any], columns: Columns, folder: Path | None, timeout: float) -> Image.Image:
    source = row.get("image")
    on_hub = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
    try:
        source = (
            _read_on_hub(on_hub)
            if isinstance(on_hub, str) and _ON_HUB.match(on_hub)
            else image_of(row, folder, columns)
        )
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError("row", str(error)) from error
    if source is None:
        raise ImageError("row", "has no image")
    return load_image(source, size_hint=(SIDE, SIDE), timeout=timeout, max_pixels=MAX_SHOWN_PIXELS)


def _read_on_hub(path: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read(_MAX_BYTES)
    except Exception as error:  # of the network, of the archive, of the Hub: a page with other pictures is still of use
        raise ImageError(path, f"can't be read ({error})") from error


def _type_names(schema: pa.Schema) -> dict[str, str]:
    """Types as Ibis calls them; as Arrow does where Ibis has none, such as string_view."""
    names = {}
    for field in schema:
        try:
            names[field.name] = str(ibis.Schema.from_pyarrow(pa.schema([field]))[field.name])
        except (KeyError, NotImplementedError, ibis.IbisError):
            names[field.name] = str(field.type)
    return names


def _value_type(values: Iterable[Any]) -> str:
    """The type of the first value that is not null, as Ibis calls it."""
    value = next((value for value in values if value is not None), "")
    if isinstance(value, list):
        return f"array<{_value_type(value)}>"
    return {bool: "boolean", int: "int64", float: "float64", str: "string"}.get(type(value), type(value).__name__)
