"""Conversion to sRGB by the ICC profile inside an image."""

import functools
import io

from PIL import Image, ImageCms

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's space → the mode that it is about


def to_srgb(picture: Image.Image, rgb: Image.Image, profile: bytes) -> Image.Image:
    """An image in sRGB.

    Args:
        picture: the image as it was decoded.
        rgb: the same as 8-bit RGB, over white where it is transparent.
        profile: its ICC profile. Where that is broken, or of another kind of image, the result is `rgb`.
    """
    if (found := _conversion(profile)) is None:
        return rgb
    mode, convert = found
    if (mode == "CMYK") != (picture.mode == "CMYK") or mode == "L" and picture.mode not in ("1", "L", "LA", "La"):
        return rgb
    return ImageCms.applyTransform(picture if mode == "CMYK" else rgb.convert(mode), convert)


@functools.lru_cache(maxsize=16)
def _conversion(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode of images that a profile is about, and their conversion; None where there is nothing to convert."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space)
        if mode is None or mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC  # as browsers do where a profile asks for nothing else
        target = ImageCms.createProfile("sRGB")
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        return mode, ImageCms.buildTransform(source, target, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
