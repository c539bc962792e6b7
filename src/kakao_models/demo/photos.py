"""The photographs inside the package, and images for the page."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from kakao_models.pixels.formats import list_images

BUNDLED = Path(__file__).resolve().parent.parent / "photos"
_GLOW = (255, 122, 24)  # orange over grey: told apart by brightness too


def bundled_photos() -> list[Path]:
    """The photographs that ship inside the package, sorted. README.md beside them names authors and licences."""
    return list_images(BUNDLED)


def bundled_labels() -> list[str]:
    """Labels to try on them; seven belong to none."""
    return (BUNDLED / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1]


def data_uri(picture: Image.Image, side: int) -> str:
    """The picture, at most `side` pixels wide and high, inside a URI: nothing has to be served.

    It is encoded again as WebP, without the file's other data, such as where it was taken.
    """
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def overlay(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photograph in grey with a glow where `heat` (H, W) is high: none at its least value, most at its greatest.

    `heat` lies over the whole picture, regardless of its shape, with linear interpolation between the patches' middles.
    """
    low, high = float(heat.min()), float(heat.max())
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    alpha = Image.fromarray((scaled * 200).astype(np.uint8)).resize(photo.size, Image.Resampling.BILINEAR)
    grey = photo.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", photo.size, _GLOW), grey, alpha)
