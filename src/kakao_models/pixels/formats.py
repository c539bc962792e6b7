"""The formats of image files that are read, by suffix and by first bytes, and the images in a folder."""

import contextlib
import os
from pathlib import Path

from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  importing a plugin registers its decoder

from kakao_models.lazy import is_installed
from kakao_models.warn import warn

with contextlib.suppress(ImportError):  # since Pillow 11.3
    from PIL import AvifImagePlugin  # noqa: F401

Image.preinit()  # registers the decoders of BMP, GIF, JPEG, PNG and PPM

# The formats of web images and photographs. PIL reads some forty more formats, many of them by code that few people
# use, and attacks are unlikely until a server decodes untrusted files with it.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # PPM: also PGM, PBM, PFM; JPEG: also MPO
HEIC = "HEIC needs pillow-heif: pip install 'kakao-models[heic]'"
_HEIC_SUFFIXES = (".heic", ".heif", ".hif")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif"),
    *(_HEIC_SUFFIXES if is_installed("pillow_heif") else ()),
)
# Images of formats that are not read, which a folder's listing names
_OTHER_SUFFIXES = (
    *(".jxl", ".jp2", ".svg", ".psd", ".xcf", ".ico", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".raf", ".orf", ".rw2"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_LISTED = 5  # names in a warning


class ImageError(ValueError):
    """Raised for an image that cannot be read: `source` names it, `reason` says why."""

    def __init__(self, source: str, reason: str):
        super().__init__(source, reason)
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def format_of(prefix: bytes) -> str | None:
    """The format of a file by its first bytes, of those in `IMAGE_FORMATS` that this build of PIL reads, or HEIF."""
    if prefix[4:8] == b"ftyp":
        brands = {
            prefix[place : place + 4] for place in range(8, min(len(prefix), int.from_bytes(prefix[:4], "big")), 4)
        }
        if brands & _HEIC_BRANDS and not brands & {b"avif", b"avis"}:
            return "HEIF"
    for kind in IMAGE_FORMATS:
        _, accept = Image.OPEN.get(kind, (None, None))
        if accept is not None and accept(prefix) is True:  # a string: this build of PIL cannot decode the format
            return kind
    return None


def reads_heic() -> bool:
    """Whether pillow-heif is installed, whose decoder is then registered."""
    if "HEIF" not in Image.OPEN and is_installed("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return "HEIF" in Image.OPEN


def list_images(folder: str | os.PathLike, unlisted: list[Path] | None = None) -> list[Path]:
    """All images under a folder, sorted; recognised by suffix, or without one by their first bytes.

    Hidden files and folders, and links to folders, are left out. Images of formats that can't be read, and folders that can't
    be listed, are counted and named in a warning. `unlisted` receives these folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(str(folder), "not a folder")
    paths, skipped = [], []
    errors: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in files if not name.startswith(".")):
            suffix = path.suffix.lower()
            kind = None if suffix else _kind_of_file(path)
            if suffix in SUFFIXES or kind and (kind != "HEIF" or is_installed("pillow_heif")):
                paths.append(path)
            elif kind or suffix in (*_HEIC_SUFFIXES, *_OTHER_SUFFIXES):
                skipped.append(path)
    if skipped:
        _warn_of_skipped(folder, sorted(skipped))
    if errors:
        names = ", ".join(f"{error.filename}: {error.strerror}" for error in errors[:_LISTED])
        more = f" and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
        warn(
            f"{folder}: {len(errors)} folder{'s' * (len(errors) > 1)} can't be listed, so their images are left out ({names}{more})"
        )
        if unlisted is not None:
            unlisted += [Path(error.filename) for error in errors]
    return sorted(paths)


def _kind_of_file(path: Path) -> str | None:
    """The format of a file without a suffix, by its first bytes; None where it is not an image."""
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            prefix = file.read(64)
            return format_of(prefix) if is_image_file(prefix) else None
    except OSError:
        return None


def _warn_of_skipped(folder: Path, paths: list[Path]) -> None:
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:_LISTED])
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    others = [path for path in paths if path.suffix.lower() in _OTHER_SUFFIXES]
    advice = [HEIC] if len(others) < len(paths) else []
    if others:
        advice.append(f"convert {', '.join(sorted({path.suffix.lower() for path in others}))} to PNG or JPEG")
    one = len(paths) == 1
    warn(
        f"{folder}: {len(paths)} image{'' if one else 's'} of formats that can't be read {'was' if one else 'were'} skipped "
        f"({names}{more}). {'; '.join(advice)}"
    )


def is_image_file(data: bytes) -> bool:
    """Whether the content of a file begins as an image of a format in `IMAGE_FORMATS`, or as HEIC."""
    if len(data) < 12:
        return False
    kind = format_of(data[:64])
    if kind == "PPM":  # a text may begin with "Py" or "BM"
        return data[2:3].isspace()
    return kind is not None and (kind != "BMP" or data[6:10] == bytes(4))
