"""An HTML page with images and their metadata, without external resources."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from kakao_models.pixels.images import ImageError

SIDE = 240  # pixels, the largest side of a picture on the page

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


def picture_page(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    note: str,
    read: Callable[[int], Image.Image],
) -> tuple[str, int]:
    """The page, and the number of pictures that are not available; the page gives the reason in their place.

    Args:
        rows: columns of each picture; the one named text, caption or captions comes first.
        note: a sentence above the pictures; {lost} in it becomes the number of pictures that are not available.
        read: the picture of a row, by its place; raises `ImageError` if it can't be read.
    """

    def picture(place: int) -> str | None:
        try:
            return _thumbnail(read(place))
        except ImageError as error:
            return f'<div class="lost">{html.escape(error.reason)}</div>'

    with ThreadPoolExecutor(16) as pool:
        pictures = list(pool.map(picture, range(len(rows))))
    lost = sum(picture.startswith("<div") for picture in pictures)
    figures = "\n".join(map(_figure, rows, pictures))
    note = html.escape(note.replace("{lost}", str(lost)))
    return _PAGE.format(title=html.escape(title), note=note, figures=figures), lost


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _figure(row: Mapping[str, Any], picture: str) -> str:
    text = next((row[name] for name in ("text", "caption", "captions") if row.get(name)), "")
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(cell(value, 200))}</td></tr>"
        for name, value in row.items()
        if name != "text"
    )
    caption = f"<p>{html.escape(cell(text, 600))}</p><table>{cells}</table>"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def cell(value: Any, most: int) -> str:
    """A value as text of at most `most` characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    text = str(value if value is not None else "")
    text = "".join(letter if letter.isprintable() else " " for letter in text[: most + 1])  # no control sequences
    return text if len(text) <= most else text[: most - 1] + "…"
