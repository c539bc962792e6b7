"""The first rows of a table of image-text pairs: for the terminal, and as a page with pictures."""

import base64
import html
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from kakao_models.data.coyo import Finding, check_columns
from kakao_models.data.images import ImageError, load_image
from kakao_models.data.tables import connect, is_hub, open_table

MAX_PIXELS = 50_000_000  # of a picture on the page
_THUMBNAIL = 240
_SHOWN = ("id", "text", "width", "height", "word_count", "clip_similarity_vitb32", "aesthetic_score_laion_v2", "url")
_IMAGES = ("image", "jpg", "url", "image_path", "file_name", "filepath", "path")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 14px system-ui, sans-serif; margin: 24px; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 20px }}
figure {{ margin: 0; border: 1px solid #ddd; padding: 10px; overflow-wrap: anywhere }}
img, .lost {{ display: block; width: 240px; height: 240px; object-fit: contain; background: #f4f4f4; margin: auto }}
.lost {{ color: #a33; font-size: 12px; padding: 8px; box-sizing: border-box }}
table {{ font-size: 11px; color: #555; border-spacing: 0 }} td {{ padding: 0 8px 0 0; vertical-align: top }}
</style></head><body><h1>{title}</h1><p>{note}</p><main>
{figures}
</main></body></html>
"""


def first_rows(source: str | os.PathLike, count: int, split: str = "train") -> tuple[list[dict], dict[str, str]]:
    """The first rows of a source, and the types of its columns; of a data set of the Hub nothing more is downloaded.

    Args:
        source: as of `tables.open_table`.
        split: of a data set of the Hub.
    """
    if not is_hub(os.fspath(source)):
        table = open_table(connect(), source).limit(count)
        return table.to_pyarrow().to_pylist(), {name: str(kind) for name, kind in table.schema().items()}
    import datasets

    data = datasets.load_dataset(os.fspath(source).removeprefix("hf://"), split=split, streaming=True)
    for name, feature in (data.features or {}).items():
        if type(feature).__name__ == "Image":
            data = data.cast_column(name, datasets.Image(decode=False))
    rows = list(islice(data, count))
    return rows, {name: _type(feature) for name, feature in (data.features or {}).items()} or dict.fromkeys(
        rows[0] if rows else (), "unknown"
    )


def findings(types: Mapping[str, str]) -> list[Finding]:
    """What differs from the columns that are published."""
    return check_columns(types)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Prints rows to the terminal, long values cut.

    Args:
        columns: these alone; by default those of COYO that fit, or all of another table.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    there = list(rows[0]) if rows else []
    shown = list(columns or [name for name in _SHOWN if name in there][: 8 if "text" in there else 0] or there)
    if missing := [name for name in shown if rows and name not in there]:
        raise ValueError(f"columns: there is no {missing[0]}; there are {', '.join(there)}")
    table = Table(show_lines=False)
    for name in shown:
        width = {"text": 48, "url": 36}.get(name, 14)
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=6, max_width=width)
    for row in rows:
        table.add_row(*(Text(_cell(row[name], 200)) for name in shown))  # Text: nothing in the data is markup
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(table)


def contact_sheet(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    *,
    folder: Path | None = None,
    timeout: float = 10.0,
    workers: int = 16,
    allow_private_addresses: bool = False,
) -> tuple[str, int]:
    """A page of HTML with each row's picture, text and other columns; and how many pictures could not be had.

    Pictures are read as `load_image` reads them, made small and put into the page, which loads nothing from elsewhere.

    Args:
        folder: what relative paths of images are relative to.
        timeout: seconds for a picture.
    """

    def picture(row: Mapping[str, Any]) -> str | None:
        try:
            return _thumbnail(row, folder, timeout, allow_private_addresses)
        except ImageError as error:
            return f'<div class="lost">{html.escape(error.reason)}</div>'

    with ThreadPoolExecutor(workers) as pool:
        pictures = list(pool.map(picture, rows))
    lost = sum(found.startswith("<div") for found in pictures)
    figures = "\n".join(_figures(rows, pictures))
    note = f"{len(rows)} rows; {lost} pictures could not be had. Pictures belong to their owners."
    return _PAGE.format(title=html.escape(title), note=note, figures=figures), lost


def _figures(rows: Iterable[Mapping[str, Any]], pictures: Iterable[str]) -> Iterator[str]:
    for row, picture in zip(rows, pictures):
        text = html.escape(
            _cell(next((row[name] for name in ("text", "caption", "captions") if row.get(name)), ""), 600)
        )
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(_cell(value, 200))}</td></tr>"
            for name, value in row.items()
            if name != "text"
        )
        yield f"<figure>{picture}<figcaption><p>{text}</p><table>{cells}</table></figcaption></figure>"


def _thumbnail(row: Mapping[str, Any], folder: Path | None, timeout: float, allow_private: bool) -> str:
    source = next((row[name] for name in _IMAGES if row.get(name) is not None), None)
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if source is None:
        raise ImageError("row", "has no image")
    if isinstance(source, str) and "://" not in source:
        source = (folder or Path()) / source
    size = (_THUMBNAIL, _THUMBNAIL)
    options = {"timeout": timeout, "max_pixels": MAX_PIXELS, "allow_private_addresses": allow_private}
    image = load_image(source, size_hint=size, **options)
    image.thumbnail(size)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _cell(value: Any, most: int) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    text = str(value if value is not None else "")
    text = "".join(letter if letter.isprintable() else " " for letter in text[: most + 1])  # no control sequences
    return text if len(text) <= most else text[: most - 1] + "…"


def _type(feature: Any) -> str:
    """As Ibis would call a feature of `datasets`."""
    inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) else None)
    return f"array<{_type(inner)}>" if inner is not None else str(getattr(feature, "dtype", type(feature).__name__))
