"""Reads images from paths, bytes, arrays, PIL images and URLs as upright 8-bit RGB."""

import base64
import binascii
import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile

from kakao_models.files.pointers import IS_POINTER, starts_as_pointer
from kakao_models.pixels.fetch import FetchError, fetch_url, is_address
from kakao_models.pixels.formats import HEIC, IMAGE_FORMATS, ImageError, format_of, reads_heic
from kakao_models.pixels.jpeg import check_scans
from kakao_models.pixels.limits import MAX_PIXELS
from kakao_models.pixels.png import has_late_texts, without_large_texts

try:
    import simplejpeg
except ImportError:  # PIL reads everything; this is faster
    simplejpeg = None

_ENCODED = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")  # base64, and its form for URLs
_LEAST_ENCODED = 64  # characters; a shorter string is the name of a file

# A JPEG is decoded at 1/2, 1/4 or 1/8 if it stays at least this much larger than the size asked for. On photographs
# resized with antialiasing, a margin of 2 changes pixels by 0.7 of 255 in the mean at worst; a margin of 1 by 3.
JPEG_MARGIN = 2

_UPRIGHT = {  # EXIF orientation -> transposition that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    size_hint: tuple[int, int] | None = None,
    timeout: float = 10.0,
    max_bytes: int = 64 * 2**20,
    allow_private_addresses: bool = False,
    srgb: bool = False,
) -> Image.Image:
    """Reads one image as upright 8-bit RGB.

    EXIF orientation is applied. Transparency is laid over white. 16-bit grey is scaled to 8 bits (of 16-bit colour
    PIL gives the upper byte), floating point must lie in 0..1. Of an animation, the first frame is taken.

    Args:
        source: path (str or Path), http(s) or data: URL, file content (bytes, or base64 text), file object (read from its
            start), PIL image, the {"bytes": ..., "path": ...} of `datasets`, or array: (H, W), (H, W, C) or, where the last
            axis cannot be channels, (C, H, W), with C of 1, 3 or 4; uint8, bool, other integers in 0..255, uint16 over its
            whole range, floats in 0..1, or whole floats in 0..255. Tensors on the CPU count as arrays.
        max_pixels: more pixels than this, by the header, are refused before anything is decoded.
        size_hint: (height, width) to which the picture will be resized **with antialiasing**. A JPEG much larger than
            that is decoded at a fraction of its size, several times faster, and the resized picture differs by less
            than 1 of 255 in the mean. Leave it out for any other use: the size of the result depends on it.
        timeout, max_bytes, allow_private_addresses: for URLs; see `fetch_url`. `max_bytes` also limits file objects.
        srgb: convert by the ICC profile in the file, such as Display P3 or Adobe RGB. By default the numbers are taken as
            they are, as transformers and the original implementations do.

    Raises:
        ImageError: the source is not a readable image.
    """
    with _sound(source, max_pixels, size_hint, timeout, max_bytes, allow_private_addresses) as picture:
        picture.load()
        return _upright(_in_color(picture, _to_rgb(picture), srgb), _orientation(picture))


def load_pixels(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    size_hint: tuple[int, int] | None = None,
    timeout: float = 10.0,
    max_bytes: int = 64 * 2**20,
    allow_private_addresses: bool = False,
    srgb: bool = False,
) -> np.ndarray:
    """The pixels of `load_image`, uint8 (H, W, 3), read by simplejpeg where that is installed and the file is a sound JPEG.

    PIL reads the header first and decides what is refused; it also decodes every file that simplejpeg complains about. Both
    use libjpeg-turbo, so the pixels are the same if both ship releases of it that decode alike.
    """
    with _sound(source, max_pixels, size_hint, timeout, max_bytes, allow_private_addresses) as picture:
        orientation = _orientation(picture)
        pixels = _by_simplejpeg(picture, max_bytes)
        if pixels is not None and orientation not in _UPRIGHT and not srgb:
            return pixels
        if pixels is None:
            picture.load()
        rgb = _to_rgb(picture) if pixels is None else Image.fromarray(pixels)
        return np.asarray(_upright(_in_color(picture, rgb, srgb), orientation))


def _by_simplejpeg(picture: Image.Image, max_bytes: int) -> np.ndarray | None:
    if simplejpeg is None or picture.format != "JPEG" or picture.mode not in ("RGB", "L") or not picture.tile:
        return None
    picture.fp.seek(0)
    data = picture.fp.read(max_bytes + 1)
    if len(data) > max_bytes:
        return None
    colours = "RGB" if picture.mode == "RGB" else "GRAY"
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, min_height=picture.height, min_width=picture.width)
    except (ValueError, MemoryError):  # also where libjpeg only warns: PIL decides
        return None
    if pixels.shape[:2] != (picture.height, picture.width):
        return None
    return pixels if colours == "RGB" else np.repeat(pixels, 3, 2)


@contextlib.contextmanager
def _sound(source, max_pixels, size_hint, timeout, max_bytes, allow_private_addresses) -> Iterator[Image.Image]:
    """An image with a valid header that is not decoded yet; every problem with it becomes an `ImageError`."""
    name = describe(source)
    try:
        with _opened(source, name, timeout, max_bytes, allow_private_addresses) as picture:
            _checked_size(picture, name, max_pixels)
            if size_hint and picture is not source and picture.format in ("JPEG", "MPO"):
                sideways = _orientation(picture) >= 5
                h, w = reversed(size_hint) if sideways else size_hint
                picture.draft(None, (JPEG_MARGIN * w, JPEG_MARGIN * h))
            yield picture
    except ImageError:
        raise
    except Exception as error:  # PIL's decoders raise nearly everything on broken files
        raise ImageError(name, _reason(error)) from error


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of an image file after EXIF rotation, from its header.

    Raises:
        ImageError: it is no picture, or has more than `max_pixels`.
    """
    return image_header(data, max_pixels)[:2]


def image_header(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int, str | None]:
    """(width, height) of an image file after EXIF rotation, and when its photograph was taken by its EXIF block: local time
    such as "2024-07-31T18:05:00", or None.

    Raises:
        ImageError: it is no picture, or has more than `max_pixels`.
    """
    name = describe(data)
    with _opened(data, name, 0, 0, False) as picture:
        width, height = _checked_size(picture, name, max_pixels)
        taken = _taken(picture, data)
        return (height, width, taken) if _orientation(picture, data) >= 5 else (width, height, taken)


def _checked_size(picture: Image.Image, name: str, max_pixels: int) -> tuple[int, int]:
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(name, f"image too large: {width} x {height} pixels (max_pixels = {max_pixels})")
    return width, height


def is_one_image(source: Any) -> bool:
    """Whether this stands for one image rather than several: a name, bytes, a file object, a PIL image, a dict, or an array of
    two or three axes."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Mapping)
    return isinstance(source, kinds) or getattr(source, "ndim", None) in (2, 3) or is_file_object(source)


def is_image_text(text: str) -> bool:
    """Whether a string holds an image itself, as a data: URL or in base64, and is not the name of one."""
    return _is_data_url(text) or _from_base64(text) is not None


def _is_data_url(text: str) -> bool:
    start = text.lstrip()[:7].lower()
    return start.startswith("data:") and start != "data://"


def is_file_object(source: Any) -> bool:
    """Whether it is an open file, or holds one, as Starlette's `UploadFile` does."""
    return not isinstance(source, type) and hasattr(getattr(source, "file", source), "read")


def read_file_object(source: Any, max_bytes: int = 64 * 2**20) -> bytes:
    """The content of a file object from its start, as far as it can be rewound.

    Raises:
        ImageError: it is closed, in text mode, longer than `max_bytes`, or fails.
    """
    name, file = describe(source), getattr(source, "file", source)
    try:
        if getattr(file, "seekable", lambda: hasattr(file, "seek"))():
            file.seek(0)
        data = file.read(max_bytes + 1)
    except UnicodeDecodeError:
        data = ""
    except Exception as error:  # a file object may be of any library
        raise ImageError(name, f"cannot be read ({error or type(error).__name__})") from error
    if not isinstance(data, (bytes, bytearray)):
        raise ImageError(name, f"its read() returned {type(data).__name__}, expected bytes: open the file in mode 'rb'")
    if len(data) > max_bytes:
        raise ImageError(name, f"file too large: more than max_bytes = {max_bytes} bytes")
    return bytes(data)


def has_fractions(source: Any) -> bool:
    """Whether it is an array, or a tensor on the CPU, whose pixels are fractions in 0..1 rather than numbers in 0..255."""
    if isinstance(source, Image.Image) or not hasattr(source, "__array__"):
        return False
    try:
        array = np.asarray(source)
        return array.dtype.kind in "bf" and array.size > 0 and bool(array.max() <= 1)
    except Exception:  # noqa: BLE001  reading it says what is wrong
        return False


def describe(source: Any) -> str:
    """A short name of an image for messages."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        text = os.fsdecode(text) if isinstance(text, bytes) else text
        if len(text) > _LEAST_ENCODED and is_image_text(text):
            return f"<{text.strip()[:30]!r}..., {len(text)} characters>"
        return text if len(text) <= 200 else text[:197] + "..."
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"<PIL image, {source.mode} {source.width} x {source.height}>"
    shape = getattr(source, "shape", None)
    if shape is None:
        held = getattr(source, "filename", None) or getattr(source, "name", None) if is_file_object(source) else None
        return held if isinstance(held, str) and held else f"<{type(source).__name__}>"
    return f"<{type(source).__name__} {tuple(shape)} {getattr(source, 'dtype', '')}>"


def _reason(error: Exception) -> str:
    if isinstance(error, FetchError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # the file system's own words; PIL's OSErrors have no number
        return error.strerror[0].lower() + error.strerror[1:]
    return f"cannot be decoded ({error or type(error).__name__})"


@contextlib.contextmanager
def _opened(
    source: Any, name: str, timeout: float, max_bytes: int, allow_private_addresses: bool
) -> Iterator[Image.Image]:
    """Opens an image for its header; `name` is its name in errors."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield _from_file(io.BytesIO(source), name)
    elif isinstance(source, str) and _is_data_url(source):
        yield _from_file(io.BytesIO(_from_data_url(source.strip(), name)), name)
    elif isinstance(source, str) and is_address(source):
        data = fetch_url(source, timeout=timeout, max_bytes=max_bytes, allow_private_addresses=allow_private_addresses)
        yield _from_file(io.BytesIO(data), name)
    elif isinstance(source, (str, os.PathLike)):
        try:
            kind = os.stat(source).st_mode
        except (OSError, ValueError) as error:
            if isinstance(source, str) and (data := _from_base64(source)) is not None:
                yield _from_file(io.BytesIO(data), name)
                return
            if isinstance(error, FileNotFoundError) and any(letter in os.fspath(source) for letter in "*?"):
                raise ImageError(
                    name, "no such file; for a pattern of names use Embedder.images or glob.glob"
                ) from error
            raise
        if stat.S_ISDIR(kind):
            raise ImageError(name, "is a folder; list_images(folder) gives the images in it")
        if not stat.S_ISREG(kind):  # reading a pipe or a device might never end
            raise ImageError(name, "is not a regular file")
        with open(source, "rb") as file:
            yield _from_file(file, name)
    elif type(source).__name__ == "DataFrame":
        raise ImageError(name, "is a table; give one of its columns, such as table['path']")
    elif hasattr(source, "__array__"):
        yield _from_array(np.asarray(source), name, whole=True)
    elif isinstance(source, Mapping):
        image = _image_of(source, name)
        with _opened(image, describe(image), timeout, max_bytes, allow_private_addresses) as picture:
            yield picture
    elif is_file_object(source):
        yield _from_file(io.BytesIO(read_file_object(source, max_bytes)), name)
    else:
        raise ImageError(name, _ADVICE.get(type(source), "cannot be read") + _EXPECTED)


_EXPECTED = "; give a path, URL, bytes, file object, PIL image or array"
_ADVICE = {type(None): "None is not an image", list: "a list within a list", tuple: "a tuple within a list"}


def _image_of(record: Mapping, name: str) -> Any:
    """The image in a record as `datasets` stores it."""
    for key in ("bytes", "path"):
        if record.get(key) is not None:
            return record[key]
    if "bytes" in record or "path" in record:
        raise ImageError(name, "both its bytes and its path are None, expected one of them")
    keys = ", ".join(map(str, list(record)[:8]))
    raise ImageError(
        name,
        f"expected an image, or a dict with bytes or path; this one has {keys}. Give its image, such as row['image']",
    )


def _from_data_url(text: str, name: str) -> bytes:
    kind, comma, content = text[5:].partition(",")
    if not comma:
        raise ImageError(name, "a data: URL without a comma before its content; expected data:image/png;base64,...")
    data = unquote_to_bytes(content)
    if not re.search(r";\s*base64\s*$", kind, re.IGNORECASE):
        return data
    try:
        return _decoded_base64(data.decode("ascii"))
    except ValueError as error:
        raise ImageError(name, f"its base64 can't be decoded ({error})") from error


def _from_base64(text: str) -> bytes | None:
    """The content of an image in base64, or None for any other string."""
    if len(text) < _LEAST_ENCODED:
        return None
    try:
        if format_of(_decoded_base64("".join(text[:200].split())[:64])) is None:
            return None
        return _decoded_base64(text)
    except ValueError:
        return None


def _decoded_base64(text: str) -> bytes:
    text = "".join(text.split())
    if not _ENCODED.fullmatch(text):
        raise binascii.Error("it has characters outside the base64 alphabet")
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _from_file(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Parses the header, by the decoders of `IMAGE_FORMATS` only.

    `Image.open` would measure the picture by PIL's global limit first, warn, and refuse what a larger `max_pixels`
    allows; hence its two steps here.
    """
    prefix = file.read(64)
    if not prefix:
        raise ImageError(name, "is empty (0 bytes)")
    kind = format_of(prefix)
    if kind == "HEIF" and not reads_heic():
        raise ImageError(name, HEIC)
    if kind:
        if kind == "PNG":
            file = without_large_texts(file)
        file.seek(0)
        try:
            image = Image.OPEN[kind][0](file, "")
        except Exception as error:  # SyntaxError, IndexError, struct.error, ...: PIL's ways to say "broken"
            raise ImageError(name, f"broken {kind} header ({error or type(error).__name__})") from error
        if kind == "JPEG":
            place = file.tell()
            check_scans(file, name, image.width * image.height)
            file.seek(place)
        return image
    file.seek(0)
    if starts_as_pointer(file.read(64)):
        raise ImageError(name, IS_POINTER)
    raise ImageError(name, f"not an image, or an unsupported image format (supported: {', '.join(IMAGE_FORMATS)})")


def _from_array(array: np.ndarray, name: str, whole: bool = False) -> Image.Image:
    """`whole`: floats may also be whole numbers in 0..255."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))) or 0 in array.shape:
        raise ImageError(name, "an array must be (height, width) or (height, width, channels) with 1, 3 or 4 channels")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(array, name, whole)))


def _to_8_bits(array: np.ndarray, name: str, whole: bool) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)  # rounded x / 257
    if array.dtype.kind not in "buif":
        raise ImageError(name, f"pixels must be numbers, got dtype {array.dtype}")
    scale = 255 if array.dtype.kind in "bf" else 1
    if whole and array.dtype.kind == "f" and array.max() > 1 and (array == np.rint(array)).all():
        scale = 1
    low, high, limit = array.min(), array.max(), 255 // scale
    if not (low >= 0 and high <= limit):  # false for NaN too
        kind = "floating-point" if array.dtype.kind == "f" else str(array.dtype)
        also = "; whole numbers in 0..255 are read too" if whole and scale == 255 else ""
        raise ImageError(name, f"{kind} pixels must lie in 0..{limit}, got {low:g}..{high:g}{also}")
    return np.rint(array * np.float64(scale)).astype(np.uint8)


def _orientation(picture: Image.Image, data: bytes = b"") -> int:
    """The EXIF orientation, 1 to 8. Of a PNG, PIL looks for it behind the pixels too, which it decodes for that; `data`, its
    file, spares this where nothing is there. A TIFF is turned by PIL as it is decoded, and has the size that it will have."""
    if picture.format == "TIFF":
        return 1
    try:
        return int(_exif(picture, data).get(0x0112, 1))
    except Exception:  # noqa: BLE001  broken EXIF, beside a sound picture, fails in as many ways as broken pictures
        return 1


def _taken(picture: Image.Image, data: bytes) -> str | None:
    """When a photograph was taken, or else digitised, or else last changed; None where EXIF does not say or says no date."""
    try:
        exif = _exif(picture, data)
        times = exif.get_ifd(0x8769)
        text = times.get(0x9003) or times.get(0x9004) or exif.get(0x0132)
        return datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S").isoformat()
    except Exception:  # noqa: BLE001  as above
        return None


def _exif(picture: Image.Image, data: bytes) -> Image.Exif:
    return Image.Image.getexif(picture) if data and not has_late_texts(data) else picture.getexif()


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _UPRIGHT:
        return picture
    picture = picture.transpose(_UPRIGHT[orientation])
    picture.info = {}  # PIL copies the EXIF block along: reading the result again would turn it again
    return picture


def _in_color(picture: Image.Image, rgb: Image.Image, srgb: bool) -> Image.Image:
    profile = picture.info.get("icc_profile") if srgb else None
    if not profile:
        return rgb
    from kakao_models.pixels.color import to_srgb

    rgb = to_srgb(picture, rgb, profile)
    rgb.info.pop("icc_profile", None)  # reading the result again would convert it again
    return rgb


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        array = np.asarray(picture)
        if picture.mode == "I" and array.min() >= 0 and array.max() <= 65535:
            array = array.astype(np.uint16)  # how PIL holds a 16-bit PGM
        return _from_array(array.astype(array.dtype.newbyteorder("=")), describe(picture)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        if picture.format in ("BMP", "DIB") and picture.mode == "RGBA" and picture.getextrema()[3] == (0, 0):
            return picture.convert("RGB")  # some software writes a fourth byte without a meaning
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
