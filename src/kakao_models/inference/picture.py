"""One picture of photographs beside bars of their label scores, and how pictures are written."""

import os
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kakao_models.files.atomic import replacing
from kakao_models.pixels.images import load_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Sequence[dict]  # [{"score": 0.97, "label": "cat"}, ...], the best first

BACKGROUND = "#f4f5f7"
CARD = "#ffffff"
INK = "#1f2933"
FAINT = "#7b8794"
TRACK = "#e9edf1"
BEST = "#2563eb"
OTHER = "#a9c4f5"

PHOTO = 248  # side of the square a photograph is fitted into
BARS = 320  # width of the part beside it
PAD = 20
ROW = 44  # a label and its bar
SCALE = 2  # drawn larger and reduced at the end, for smooth edges
LONGEST = 300  # characters of a text that can be drawn at all
MOST_PHOTOS = 30  # in one picture

# PIL's own font has ASCII only. For other labels, a font of the system that has their letters, if there is one.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NanumGothic.ttf",
    "AppleSDGothicNeo.ttc",
    "malgun.ttf",
)


def draw_scores(photos: Sequence[tuple[str, Image.Image, Scores]], columns: int = 0) -> Image.Image:
    """A grid of cards: a photograph, its name, and a bar per label.

    Args:
        photos: name, picture and scores (in 0..1) of each; of more than 30 the first 30 are drawn. Of the labels, the
            best five.
        columns: cards side by side; by default one for up to two photographs, then two, then three from seven on.
    """
    if not photos:
        raise ValueError("draw_scores: got no images, expected at least one")
    photos = photos[:MOST_PHOTOS]
    columns = columns or (1 if len(photos) < 3 else 2 if len(photos) < 7 else 3)
    columns = min(columns, len(photos))
    rows = -(-len(photos) // columns)
    width, height = PHOTO + BARS + 3 * PAD, PHOTO + 2 * PAD
    canvas = Image.new(
        "RGB", (SCALE * (columns * (width + PAD) + PAD), SCALE * (rows * (height + PAD) + PAD)), BACKGROUND
    )
    for place, (name, photo, result) in enumerate(photos):
        row, column = divmod(place, columns)
        corner = (PAD + column * (width + PAD), PAD + row * (height + PAD))
        _draw_card(canvas, corner, (width, height), name, photo, result)
    return canvas.resize((canvas.width // SCALE, canvas.height // SCALE), Image.Resampling.LANCZOS)


def draw_files(
    path: str | os.PathLike, names: Sequence[str], sources: Sequence, results: Sequence[Scores | None]
) -> int:
    """Writes the picture of those images that have results, and says how many of them are in it.

    Args:
        names, sources: of each image, and the image as `load_image` reads it.
    """
    shown = [row for row in zip(names, sources, results) if row[2] is not None][:MOST_PHOTOS]
    hint = (SCALE * PHOTO, SCALE * PHOTO)
    photos = [(Path(name).name, load_image(source, size_hint=hint), scores) for name, source, scores in shown]
    if photos:
        save_picture(draw_scores(photos), path)
    return len(photos)


def save_picture(picture: "Image.Image | Figure", path: str | os.PathLike) -> None:
    """Writes a PIL image or a matplotlib figure as .png or .jpg."""
    path = Path(path)
    form = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    with replacing(path) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary, form)
        else:
            picture.savefig(temporary, format=form.lower(), dpi=120)


def _draw_card(canvas: Image.Image, corner, size, name: str, photo: Image.Image, result: Scores) -> None:
    draw = ImageDraw.Draw(canvas)
    left, top = corner
    _box(draw, (left, top, left + size[0], top + size[1]), CARD, radius=14)
    side = SCALE * PHOTO
    square = ImageOps.fit(photo.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), SCALE * 8, fill=255)
    canvas.paste(square, (SCALE * (left + PAD), SCALE * (top + PAD)), mask)

    x, y = left + PHOTO + 2 * PAD, top + PAD
    _text(draw, (x, y), name, 13, FAINT, BARS)
    y += 28
    for place, entry in enumerate(result[: (PHOTO - 28) // ROW]):
        percent = f"{100 * entry['score']:.1f} %"
        ink, bar = (INK, BEST) if place == 0 else (FAINT, OTHER)
        reserved = _font(15).getlength(percent) / SCALE + 12
        _text(draw, (x, y), entry["label"], 15, INK, BARS - reserved)
        _text(draw, (x + BARS, y), percent, 15, ink, BARS, anchor="ra")
        _box(draw, (x, y + 22, x + BARS, y + 30), TRACK, radius=4)
        length = BARS * min(max(entry["score"], 0), 1)
        if length >= 1:
            _box(draw, (x, y + 22, x + max(length, 8), y + 30), bar, radius=4)
        y += ROW


def _box(draw: ImageDraw.ImageDraw, box, color: str, radius: int) -> None:
    draw.rounded_rectangle([SCALE * edge for edge in box], SCALE * radius, fill=color)


def _text(draw: ImageDraw.ImageDraw, at, text: str, size: int, color: str, room: float, anchor: str = "la") -> None:
    font = _font(size, text)
    if font is None:  # without accents the usual font may do
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        font = _font(size)
    text = " ".join(text[:LONGEST].split("\n"))
    if font.getlength(text) > SCALE * room:
        while text and font.getlength(text + "...") > SCALE * room:
            text = text[:-1]
        text = text.rstrip() + "..."
    draw.text([SCALE * edge for edge in at], text, fill=color, font=font, anchor=anchor)


@cache
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont | None:
    """A font that has all letters of `text`; None if there is none."""
    if text.isascii():
        return ImageFont.load_default(SCALE * size)
    for name in _SYSTEM_FONTS:
        try:
            font = ImageFont.truetype(name, SCALE * size)
        except OSError:
            continue
        absent = bytes(font.getmask("\U0010ffff"))  # what the font draws for a letter it lacks
        if not any(bytes(font.getmask(letter)) == absent for letter in set(text) if not letter.isspace()):
            return font
    return None
