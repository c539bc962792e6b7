"""The photographs inside the package, and those an index leads to."""

import base64
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from kakao_models.data.images import SUFFIXES, ImageError, list_images, load_image

BUNDLED = Path(__file__).resolve().parent.parent / "photos"
MAX_PIXELS = 50_000_000  # of a photograph on the page, by its header
_GLOW = (255, 122, 24)  # orange over grey: told apart by brightness too


def bundled_photos() -> list[Path]:
    """The photographs that ship inside the package, sorted. README.md beside them names authors and licences."""
    return list_images(BUNDLED)


def bundled_labels() -> list[str]:
    """Labels to try on them; half of them belong to no photograph."""
    return (BUNDLED / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1]


def thumbnail(source: str | os.PathLike, side: int, root: Path | None = None) -> Image.Image:
    """The picture at `source`, at most `side` pixels wide and high. It is drawn anew: what else is in the file stays there.

    Args:
        root: a path that leads out of this folder, by `..`, by a link or from `/`, is refused.

    Raises:
        ImageError: it can't be read, is no picture, or lies outside.
    """
    path = Path(source)
    if root is not None:
        path = _inside(root, path)
    picture = load_image(path, max_pixels=MAX_PIXELS, size_hint=(side, side))
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture


def _inside(root: Path, path: Path) -> Path:
    try:
        found = (root / path).resolve()
        inside = found.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a loop of links
        raise ImageError(str(path), f"is no path of a file ({error})") from error
    if not inside:
        raise ImageError(str(path), f"lies outside of {root}")
    if found.suffix.lower() not in SUFFIXES:
        raise ImageError(str(path), "has no suffix of a picture")
    return found


def data_uri(picture: Image.Image) -> str:
    """The picture as WebP inside a URI: nothing is written, and nothing has to be served."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def blank(side: int) -> Image.Image:
    """What stands for a picture that can't be shown."""
    return Image.new("RGB", (side, side), (128, 128, 128))


def overlay(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photograph in grey with a glow where `heat` (H, W) is high: none at its least value, most at its greatest.

    `heat` lies over the whole picture, whatever its shape, with linear interpolation between the patches' middles.
    """
    low, high = float(heat.min()), float(heat.max())
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    alpha = Image.fromarray((scaled * 200).astype(np.uint8)).resize(photo.size, Image.Resampling.BILINEAR)
    grey = photo.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", photo.size, _GLOW), grey, alpha)
