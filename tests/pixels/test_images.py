"""Reading pictures: every kind of file and array, what is refused and how, and downloads."""

import base64
import contextlib
import http.server
import io
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import urllib.parse
import zlib
from pathlib import Path

import numpy as np
import pictures
import profiles
import pytest
from PIL import Image, ImageFile
from tolerances import TOLERANCE

from kakao_models.pixels import fetch as fetch_module, formats, images
from kakao_models.pixels.fetch import FetchError, fetch_url, is_public
from kakao_models.pixels.formats import list_images
from kakao_models.pixels.images import ImageError, image_header, image_size, load_image, load_pixels
from kakao_models.warn import KakaoWarning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of what it skips in broken files
PHOTOS = Path(__file__).parents[2] / "src" / "kakao_models" / "photos"


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(height: int = 6, width: int = 8) -> np.ndarray:
    """Four corners of different colours: no turn or flip leaves it as it is."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 30 + 10, x * 25 + 5, (y + x) * 9], axis=-1).astype(np.uint8)


RAMP = ramp()


# --- kinds of sources -------------------------------------------------------------------------------------------------


def test_path_bytes_pil_and_array_give_the_same(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RAMP), "PNG"))
    for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), Image.open(path), RAMP):
        picture = load_image(source)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), RAMP)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG", "AVIF"])
def test_formats(kind):
    if kind == "AVIF" and kind not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    picture = Image.new("RGB", (40, 30), (200, 40, 90))
    result = np.asarray(load_image(encoded(picture, kind)))
    assert result.shape == (30, 40, 3)
    assert np.abs(result.astype(int) - (200, 40, 90)).max() <= (5 if kind in ("WEBP", "JPEG", "AVIF") else 0)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RAMP.transpose(2, 0, 1), RAMP),  # channels first
        (RAMP[:, :, 0], np.repeat(RAMP[:, :, :1], 3, axis=2)),
        (RAMP[:, :, :1], np.repeat(RAMP[:, :, :1], 3, axis=2)),
        (RAMP.astype(np.int64), RAMP),
        (RAMP.astype(np.uint16) * 257, RAMP),
        (RAMP / 255, RAMP),
        ((RAMP / 255).astype(np.float32), RAMP),
        (RAMP > 100, np.where(RAMP > 100, 255, 0)),
        (np.uint16([[0, 128, 129, 32768, 65535]]), np.repeat(np.uint8([[[0], [0], [1], [128], [255]]]), 3, axis=2)),
        (np.dstack([RAMP, np.full((6, 8), 255, np.uint8)]), RAMP),
        (np.dstack([RAMP, np.zeros((6, 8), np.uint8)]), np.full_like(RAMP, 255)),  # transparent: white
    ],
)
def test_arrays(array, expected):
    np.testing.assert_array_equal(np.asarray(load_image(array)), expected)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (RAMP / 100, r"floating-point pixels must lie in 0\.\.1, got"),
        (RAMP - 300.0, r"must lie in 0\.\.1"),
        (np.full((4, 4), np.nan), r"must lie in 0\.\.1, got nan"),
        (RAMP.astype(np.int32) * 2, r"int32 pixels must lie in 0\.\.255"),
        (np.zeros((5, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 4, 4, 3), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), "must be"),
        (np.array([["a"]]), "must be numbers"),
        (np.ones((4, 4), complex), "must be numbers"),
    ],
)
def test_arrays_that_are_refused(array, reason):
    with pytest.raises(ImageError, match=reason) as error:
        load_image(array)
    assert str(array.shape) in error.value.source


class Upload:
    """Like Starlette's `UploadFile`: its own read() is a coroutine."""

    def __init__(self, data: bytes):
        self.file, self.filename = io.BytesIO(data), "phone.png"

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


def whole_forms(path: Path) -> dict:
    """The picture in a file, in every form that is one image."""
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    read_to_its_end = io.BytesIO(data)
    read_to_its_end.read()
    return {
        "BytesIO": io.BytesIO(data),
        "at its end": read_to_its_end,
        "open file": path.open("rb"),
        "unbuffered file": path.open("rb", buffering=0),
        "upload": Upload(data),
        "dict": {"bytes": data, "path": None},
        "dict with a path": {"bytes": None, "path": str(path)},
        "data URL": "data:image/png;base64," + text,
        "data URL without a type": "DATA:;base64," + text,
        "data URL in percent": "data:image/png," + urllib.parse.quote(data),
        "base64": text,
        "base64 in lines": "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        "base64 for URLs": base64.urlsafe_b64encode(data).decode().rstrip("="),
    }


def test_files_in_memory_and_texts_are_one_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RAMP), "PNG"))
    for form, source in whole_forms(path).items():
        assert images.is_one_image(source), form
        np.testing.assert_array_equal(np.asarray(load_image(source)), RAMP, err_msg=form)
    np.testing.assert_array_equal(np.asarray(load_image(np.float32(RAMP))), RAMP)  # whole floats


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "None is not an image"),
        ([RAMP], "a list within a list"),
        ({"image": RAMP, "label": 3}, "this one has image, label. Give its image"),
        ({"bytes": None, "path": None}, "both its bytes and its path are None"),
        (io.StringIO("text"), r"expected bytes: open the file in mode 'rb'"),
        (io.BytesIO(), "is empty"),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,(((", "base64 can't be decoded"),
        ("photos/*.jpg", "for a pattern of names use Embedder.images"),
    ],
)
def test_what_is_not_an_image_is_refused_by_name(source, reason):
    with pytest.raises(ImageError, match=reason):
        load_image(source)


def test_a_long_text_is_not_printed_and_a_long_file_not_read():
    text = "data:image/png;base64," + "A" * 30_000
    with pytest.raises(ImageError) as error:
        load_image(text)
    assert len(str(error.value)) < 300 and "30022 characters" in str(error.value)
    with pytest.raises(ImageError, match="(max_bytes = 10)"):
        load_image(io.BytesIO(bytes(11)), max_bytes=10)
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="closed file"):
        load_image(closed)


# --- modes ------------------------------------------------------------------------------------------------------------


def test_palette_with_and_without_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    assert np.asarray(load_image(encoded(picture, "PNG"))).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert np.asarray(load_image(encoded(picture, "PNG", transparency=1))).tolist() == [[[255, 0, 0], [255] * 3]]


def test_alpha_is_laid_over_white():
    colour = Image.fromarray(np.uint8([[[0, 100, 200, 255], [0, 100, 200, 0], [0, 100, 200, 128]]]), "RGBA")
    expected = [[0, 100, 200], [255, 255, 255], [127, 177, 227]]
    assert np.abs(np.int16(load_image(encoded(colour, "PNG")))[0] - expected).max() <= 1
    grey = Image.fromarray(np.uint8([[[60, 255], [60, 0]]]), "LA")
    assert np.asarray(load_image(encoded(grey, "PNG")))[0].tolist() == [[60] * 3, [255] * 3]


def test_colour_key_is_transparent():
    data = encoded(Image.fromarray(RAMP), "PNG", transparency=tuple(int(v) for v in RAMP[0, 0]))
    expected = RAMP.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.uint16([[0, 257, 30000, 65535]])
    result = np.asarray(load_image(encoded(Image.fromarray(values), kind)))
    assert result[0, :, 0].tolist() == [0, 1, 117, 255]
    assert (result == result[:, :, :1]).all()


def test_16_bit_pgm():
    data = b"P5 2 1 65535\n" + struct.pack(">HH", 30000, 65535)
    assert np.asarray(load_image(data))[0, :, 0].tolist() == [117, 255]


def test_float_tiff():
    data = encoded(Image.fromarray(np.float32([[0, 0.5, 1]])), "TIFF")
    assert np.asarray(load_image(data))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ImageError, match=r"0\.\.1"):
        load_image(encoded(Image.fromarray(np.float32([[0, 7]])), "TIFF"))


def test_grey_one_bit_and_cmyk():
    assert np.asarray(load_image(encoded(Image.new("L", (3, 2), 77), "PNG")))[1, 2].tolist() == [77] * 3
    assert np.asarray(load_image(encoded(Image.new("1", (3, 2), 1), "PNG")))[1, 2].tolist() == [255] * 3
    cmyk = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")
    assert np.abs(np.int16(load_image(cmyk))[8, 8] - (0, 255, 255)).max() <= 3


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", profiles.SPACES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_profiles_are_ignored_unless_srgb_is_asked_for(space, kind):
    seen = (90 + 0.4 * ramp(7, 9)).astype(np.uint8)  # of dark saturated colours, a byte of a wide space is several here
    stored = profiles.in_space(seen, space)
    data = encoded(
        Image.fromarray(stored), kind, icc_profile=profiles.profile(space), **{"WEBP": {"lossless": True}}.get(kind, {})
    )
    for read in (load_image, load_pixels):
        assert np.abs(np.int16(read(data)) - stored).max() <= 1  # lossless WEBP of some builds rounds
        converted = read(data, srgb=True)
        assert np.abs(np.int16(converted) - seen).max() <= 3
        np.testing.assert_array_equal(load_image(converted, srgb=True), converted)  # not converted twice
    assert np.abs(np.int16(stored) - seen).max() > 5


def test_profiles_of_turned_transparent_grey_and_broken_pictures():
    space = "Adobe RGB"
    data, exif = np.full((4, 6, 3), (100, 170, 120), np.uint8), Image.Exif()
    exif[0x0112] = 6
    stored = profiles.in_space(data, space)
    turned = encoded(Image.fromarray(stored), "JPEG", quality=100, exif=exif, icc_profile=profiles.profile(space))
    for read in (load_image, load_pixels):
        pixels = np.int16(read(turned, srgb=True))
        assert pixels.shape == (6, 4, 3) and np.abs(pixels - data[0, 0]).max() <= 4
    clear = np.dstack([stored, np.zeros((4, 6), np.uint8)])
    transparent = encoded(Image.fromarray(clear), "PNG", icc_profile=profiles.profile(space))
    assert np.asarray(load_image(transparent, srgb=True)).min() >= 254
    for mode, profile in (("L", profiles.profile(space)), ("RGB", b"no profile"), ("CMYK", profiles.profile(space))):
        picture = Image.fromarray(stored).convert(mode)
        source = encoded(picture, "TIFF", icc_profile=profile)
        if mode != "L":  # grey with a profile of colours is converted as colours are
            np.testing.assert_array_equal(load_image(source, srgb=True), load_image(source))
        load_image(source, srgb=True)


# --- orientation ------------------------------------------------------------------------------------------------------

TURNED = {  # orientation -> the picture as stored, given the picture as seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation(orientation, kind):
    seen = np.repeat(np.repeat(RAMP, 8, axis=0), 8, axis=1)  # large blocks: survive JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 100}}.get(kind, {})
    if kind not in Image.SAVE:
        pytest.skip(f"this build of PIL does not write {kind}")
    data = encoded(Image.fromarray(np.ascontiguousarray(TURNED[orientation](seen))), kind, exif=exif, **options)
    picture = load_image(data)
    assert picture.size == (seen.shape[1], seen.shape[0])
    assert np.abs(np.int16(picture) - seen)[4::8, 4::8].max() <= (12 if kind in ("JPEG", "AVIF") else 0)
    np.testing.assert_array_equal(np.asarray(load_image(picture)), np.asarray(picture))  # not turned twice
    np.testing.assert_array_equal(load_pixels(data), np.asarray(picture))
    assert image_size(data) == picture.size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_when_a_photograph_was_taken(kind):
    exif = Image.Exif()  # written as bytes: PIL leaves inner blocks of an object out of a TIFF
    exif[0x0132] = "2024:08:01 00:00:00"
    assert image_header(encoded(Image.fromarray(RAMP), kind, exif=exif.tobytes()))[2] == "2024-08-01T00:00:00"
    exif.get_ifd(0x8769)[0x9003] = "2024:07:31 18:05:00"
    assert image_header(encoded(Image.fromarray(RAMP), kind, exif=exif.tobytes()))[2] == "2024-07-31T18:05:00"
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    assert image_header(encoded(Image.fromarray(RAMP), kind, exif=exif.tobytes()))[2] is None


def test_broken_exif_does_not_matter():
    data = encoded(Image.fromarray(RAMP), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff nonsense")
    np.testing.assert_array_equal(np.asarray(load_image(data)), RAMP)


def test_size_hint_of_a_picture_on_its_side():
    """The hint is about the upright picture, so here about the other sides of the stored one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (1600, 400)), "JPEG", exif=exif)
    assert load_image(data, size_hint=(200, 50)).size == (100, 400)
    assert load_image(data, size_hint=(50, 200)).size == (400, 1600)


# --- decoding at reduced size -----------------------------------------------------------------------------------------


def large_photos() -> dict[str, bytes]:
    """12 megapixels: photographs enlarged, with a sensor's noise, and side by side, which has more detail than any."""
    random = np.random.default_rng(0)
    photos = [Image.open(PHOTOS / f"{name}.jpg").convert("RGB") for name in ("cat", "mountains", "dogs")]
    noisy = np.int16(photos[1].resize((4000, 3000), Image.Resampling.BICUBIC))
    noisy = noisy + random.integers(-12, 13, (3000, 4000, 1), dtype=np.int16)
    half = np.hstack([np.asarray(photos[0].resize((500, 500))), np.asarray(photos[2].resize((500, 500)))])
    made = {
        "enlarged": photos[0].resize((4000, 3000), Image.Resampling.BICUBIC),
        "noisy": Image.fromarray(noisy.clip(0, 255).astype(np.uint8)),
        "mosaic": Image.fromarray(np.tile(half, (6, 4, 1))),
    }
    return {name: encoded(picture, "JPEG", quality=92) for name, picture in made.items()}


def test_reduced_decoding_of_photographs():
    for name, data in large_photos().items():
        full = load_image(data)
        for size, reduced in (((375, 375), 4), ((224, 224), 4), ((384, 384), 2)):  # 375: exactly at the margin
            small = load_image(data, size_hint=size)
            assert small.size == (full.width // reduced, full.height // reduced)
            for method in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                expected = np.int16(full.resize(size[::-1], method))
                error = np.abs(np.int16(small.resize(size[::-1], method)) - expected).mean()
                assert error <= TOLERANCE["reduced decoding, mean of 255"], (name, size, method)
        tiny = Image.open(io.BytesIO(data))
        tiny.draft("RGB", (375, 375))  # a margin of 1 instead
        if name == "mosaic":
            error = np.abs(np.int16(tiny.resize((375, 375), 2)) - np.int16(full.resize((375, 375), 2))).mean()
            assert error > TOLERANCE["reduced decoding, mean of 255"]


def test_small_or_other_pictures_are_decoded_in_full():
    data = encoded(Image.new("RGB", (600, 600)), "JPEG")
    assert load_image(data, size_hint=(346, 346)).size == (600, 600)
    assert load_image(encoded(Image.new("RGB", (2000, 2000)), "PNG"), size_hint=(100, 100)).size == (2000, 2000)
    callers_own = Image.open(io.BytesIO(encoded(Image.new("RGB", (2000, 2000)), "JPEG")))
    assert load_image(callers_own, size_hint=(100, 100)).size == callers_own.size == (2000, 2000)


# --- formats ----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LARGE = zlib.compress(b"x" * 2_000_000)
LARGE_CHUNKS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "iCCP": chunk(b"iCCP", b"press\0\0" + LARGE),
    "many": b"".join(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(b"x" * 1_000_000)) for i in range(70)),
    "not packed": chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"x" * 2_000_000),
}


@pytest.mark.parametrize("name", LARGE_CHUNKS)
def test_a_png_with_large_texts_is_a_sound_picture(name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encoded(Image.fromarray(TURNED[6](RAMP).copy()), "PNG", exif=exif)
    for place in (33, len(png) - 12):  # behind the header, and behind the pixels
        data = png[:place] + LARGE_CHUNKS[name] + png[place:]
        (tmp_path / "a.png").write_bytes(data)
        for source in (data, tmp_path / "a.png"):
            np.testing.assert_array_equal(np.asarray(load_image(source)), RAMP)
        np.testing.assert_array_equal(load_pixels(data), RAMP)
        assert image_size(data) == (8, 6)


def bmp(bgra: np.ndarray) -> bytes:
    """A BMP of 32 bits with a V5 header."""
    height, width = bgra.shape[:2]
    header = struct.pack("<IiiHHIIiiII", 124, width, -height, 1, 32, 3, bgra.nbytes, 2835, 2835, 0, 0)
    header = (header + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs").ljust(124, b"\0")
    return b"BM" + struct.pack("<IHHI", 138 + bgra.nbytes, 0, 0, 138) + header + bgra.tobytes()


def test_a_bmp_whose_alpha_is_zero_throughout_is_opaque():
    bgra = np.dstack([RAMP[..., ::-1], np.zeros(RAMP.shape[:2], np.uint8)])
    for read in (load_image, load_pixels):
        np.testing.assert_array_equal(np.asarray(read(bmp(bgra))), RAMP)
    bgra[0, 0, 3] = 255  # now it means something
    expected = np.full_like(RAMP, 255)
    expected[0, 0] = RAMP[0, 0]
    np.testing.assert_array_equal(np.asarray(load_image(bmp(bgra))), expected)


HEIC_HEADER = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic"


def test_a_folder_names_the_images_that_it_skips(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.fromarray(RAMP).save(tmp_path / "0123abc", "JPEG")  # a name without a suffix, as caches have them
    for name, data in {
        "README": b"BM Python",
        "P": b"P",
        "b.HEIC": b"",
        "hashed": HEIC_HEADER,
        "sub/c.nef": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(formats, "is_installed", lambda name: False)
    monkeypatch.setattr(formats, "SUFFIXES", tuple(name for name in formats.SUFFIXES if "hei" not in name))
    message = r"3 images .* skipped \(b\.HEIC, hashed, sub/c\.nef\)\. HEIC needs .*kakao-models\[heic\].* convert \.nef"
    with pytest.warns(UserWarning, match=message) as warned:
        assert [path.name for path in list_images(tmp_path)] == ["0123abc", "a.png"]
    assert warned[0].filename == __file__
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match=r"HEIC needs pillow-heif: pip install"):
        load_image(tmp_path / "hashed")


def test_heic_is_read_where_its_decoder_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    seen = np.repeat(np.repeat(RAMP, 16, axis=0), 16, axis=1)
    heif.from_pillow(Image.fromarray(seen)).save(tmp_path / "a.heic", quality=95)
    assert list_images(tmp_path) == [tmp_path / "a.heic"]
    data = (tmp_path / "a.heic").read_bytes()
    assert image_size(data) == (128, 96)
    for read in (load_image, load_pixels):
        assert np.abs(np.int16(read(data)) - seen)[8::16, 8::16].max() <= 12


# --- what is refused --------------------------------------------------------------------------------------------------


def png_of_size(width: int, height: int) -> bytes:
    """A valid header of a picture of that size, and no pixels."""
    parts = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pixels_are_counted_before_decoding(monkeypatch):
    def decoded(*_):
        raise AssertionError("decoding began")

    data = encoded(Image.new("RGB", (100, 50)), "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(data, max_pixels=5000)).shape, (50, 100, 3))
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(ImageError, match=r"image too large: 100 x 50 pixels \(max_pixels = 4999\)"):
        load_image(data, max_pixels=4999)
    with pytest.raises(ImageError, match=r"image too large: 13378 x 13377 pixels \(max_pixels = 178956970\)"):
        load_image(png_of_size(13378, 13377))


def test_a_jpeg_of_many_scans_is_refused():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(picture, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert load_image(data[:-2] + data[last:-2] * 80 + b"\xff\xd9").size == (64, 64)
    for read in (load_image, load_pixels, image_size):
        with pytest.raises(ImageError, match="more than 100 scans"):
            read(data[:-2] + data[last:-2] * 20_000 + b"\xff\xd9")
    large = data.replace(
        struct.pack(">HH", 64, 64), struct.pack(">HH", 8000, 8000), 1
    )  # each scan costs as much as the picture
    with pytest.raises(ImageError, match="more than 20 scans"):
        image_size(large[:-2] + large[last:-2] * 20 + b"\xff\xd9")
    segment = b"\xff\xe1" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000  # what looks like scans in metadata
    assert load_image(data[:2] + segment + data[2:]).size == (64, 64)


BOMBS = """
import io, resource, struct, sys, zlib
from PIL import Image
from kakao_models.pixels.images import ImageError, image_size, load_image, load_pixels

def png(late):
    rows = zlib.compress(bytes(2001 * 16_000), 9)  # 16,000 x 16,000 pixels of one bit
    parts = [b"IHDR" + struct.pack(">IIBBBBB", 16_000, 16_000, 1, 0, 0, 0, 0), b"IDAT" + rows]
    parts += [b"tEXtDescription\\0late"] * late + [b"IEND"]
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunks)

def other(kind):
    out = io.BytesIO()
    Image.new("L", (100, 100)).save(out, kind)
    data = bytearray(out.getvalue())
    if kind == "JPEG":
        place = data.index(b"\\xff\\xc0") + 5
        data[place:place + 4] = struct.pack(">HH", 65_000, 65_000)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif kind == "PPM":
        return b"P5 60000 60000 255 " + bytes(data[-10_000:])
    elif kind == "TIFF":
        for tag in (256, 257):
            place = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data[place:place + 4] = struct.pack("<I", 60_000)
    return bytes(data)

bombs = {"PNG": png(0), "PNG with a late text": png(1)}
bombs |= {kind: other(kind) for kind in ("JPEG", "GIF", "BMP", "PPM", "TIFF")}
for name, data in bombs.items():
    for read in (image_size, load_image, load_pixels):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read(data)
            print(name, read.__name__, "was read")
        except ImageError as error:
            if "image too large" not in str(error):
                print(name, read.__name__, error)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if grown > 64:
            print(name, read.__name__, f"took {grown:.0f} MB")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="resource is of Unix")
def test_bombs_of_every_format_take_no_memory():
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_the_limit_is_ours_and_not_pils(monkeypatch, recwarn):
    before = Image.MAX_IMAGE_PIXELS
    data = encoded(Image.new("RGB", (100, 50)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL alone would raise from 2000 pixels on
    assert load_image(data).size == (100, 50)
    assert not recwarn.list
    monkeypatch.undo()
    assert before == Image.MAX_IMAGE_PIXELS


PHOTO = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>not found</html>", "unsupported image format"),
        (b"%PDF-1.7 ...", "unsupported image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported image format"),
        (PHOTO[: len(PHOTO) // 2], "truncated"),
        (PHOTO[:20], "broken JPEG header|cannot be decoded"),
        (PHOTO[:2], "unsupported image format"),
        (encoded(Image.fromarray(RAMP), "PNG")[:50], "broken PNG header|cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "broken PNG header"),
        (png_of_size(8, 8), "cannot be decoded"),
        (png_of_size(2**31 - 1, 2**31 - 1), "image too large"),
        (b"GIF89a\0\0", "broken GIF header"),
        (b"BM" + b"\xff" * 60, "broken BMP header"),
        (b"II*\0\xff\xff\xff\xff", "broken TIFF header|cannot be decoded"),
        (b"P6 9999999999 9999999999 255\n", "broken PPM header|image too large"),
        (b"RIFF\xff\0\0\0WEBPVP8 nonsense", "broken WEBP header|cannot be decoded"),
    ],
)
def test_broken_files(data, reason, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, f"<{len(data)} bytes>")):
        with pytest.raises(ImageError, match=reason) as error:
            load_image(source)
        assert error.value.source == name
        assert str(error.value) == f"{name}: {error.value.reason}"


def test_every_truncation_and_many_corruptions_are_image_errors_or_pictures():
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encoded(Image.fromarray(RAMP), kind)
        for length in range(0, len(data), max(1, len(data) // 40)):
            with contextlib.suppress(ImageError):
                load_image(data[:length])
        for _ in range(60):
            broken = bytearray(data)
            for place in random.integers(0, len(data), 3):
                broken[place] = random.integers(256)
            with contextlib.suppress(ImageError):
                load_image(bytes(broken), max_pixels=10**6)


def test_paths_that_are_no_files(tmp_path):
    for source, reason in (
        (tmp_path / "none.jpg", "no such file"),
        (str(tmp_path), "is a folder"),
        ("", "no such file"),
        ("x" * 5000, "file name too long"),
        ("nul\0byte.jpg", "null"),
    ):
        with pytest.raises(ImageError, match=reason) as error:
            load_image(source)
        assert len(error.value.source) <= 200
    with pytest.raises(ImageError, match="cannot be read; give a path"):
        load_image(42)
    with pytest.raises(ImageError, match="NoneType"):
        load_image(None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.jpg").write_bytes(PHOTO), daemon=True)
    writer.start()  # so that reading it would end, and this test fail, instead of hanging
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


def test_list_images(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/notes.txt", ".hidden.png", ".cache/d.png", "sub/._e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "sub" / "c.webp"]
    with pytest.raises(ImageError, match="not a folder"):
        list_images(tmp_path / "a.png")


def test_folders_that_can_not_be_listed(tmp_path, monkeypatch):
    for name in ("a.png", "shut/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pictures.shut(monkeypatch, tmp_path / "shut")
    unlisted = []
    with pytest.warns(KakaoWarning, match="1 folder can't be listed, .*shut: Permission denied"):
        assert list_images(tmp_path, unlisted) == [tmp_path / "a.png"]
    assert unlisted == [tmp_path / "shut"]


def test_many_threads_at_once():
    data = encoded(Image.fromarray(np.repeat(np.repeat(RAMP, 40, axis=0), 40, axis=1)), "JPEG")
    expected = np.asarray(load_image(data))
    results = [None] * 16

    def read(index: int) -> None:
        results[index] = np.asarray(load_image(data))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, expected) for result in results)


# --- downloads --------------------------------------------------------------------------------------------------------

PICTURE = encoded(Image.fromarray(RAMP), "PNG")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/redirect":
            target = query if ":" in query else f"/redirect?{int(query) - 1}" if int(query) else "/a%20b.png"
            self.answer(302, b"", {"Location": target})
        elif path == "/slow":
            self.answer(200, b"", {"Content-Length": str(len(PICTURE))})
            with contextlib.suppress(OSError):  # a byte now and then: no read times out by itself, and all would come
                for byte in PICTURE:
                    self.wfile.write(bytes([byte]))
                    self.server.stopped.wait(0.02)
        elif path == "/silent":
            self.server.stopped.wait(30)
        elif path == "/endless":
            self.answer(200, b"", {})
            with contextlib.suppress(OSError):
                while not self.server.stopped.is_set():
                    self.wfile.write(b"\0" * 65536)
        elif path == "/short":
            self.answer(200, PICTURE, {"Content-Length": str(len(PICTURE) + 10)})
        elif path == "/large":
            self.answer(200, b"", {"Content-Length": str(10**12)})
        elif path == "/a%20b.png":
            self.answer(200, PICTURE, {"Content-Length": str(len(PICTURE))})
        else:
            self.answer(404, b"nothing here", {})

    def answer(self, status: int, body: bytes, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.stopped = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stopped.set()
    server.shutdown()
    server.server_close()


def test_download(server):
    for path in ("/a%20b.png", "/a b.png", "/a b.png#fragment", "/redirect?0", "/redirect?4"):
        picture = load_image(server + path, allow_private_addresses=True)
        np.testing.assert_array_equal(np.asarray(picture), RAMP)


@pytest.mark.parametrize(
    ("path", "options", "reason"),
    [
        ("/none.png", {}, "the server answered 404"),
        ("/redirect?5", {}, "more than 5 redirects"),
        ("/redirect?file:///etc/passwd", {}, "expected an http or https URL"),
        ("/redirect?ftp://127.0.0.1/a.png", {}, "expected an http or https URL"),
        ("/short", {}, "the connection closed after"),
        ("/large", {}, "response too large: 1000000000000 bytes (max_bytes = 67108864)"),
        ("/endless", {"max_bytes": 10**6}, "response too large (max_bytes = 1000000)"),
        ("/a%20b.png", {"max_bytes": 10}, "(max_bytes = 10)"),
        ("/slow", {"timeout": 0.3}, "no complete response within 0.3 s"),
        ("/silent", {"timeout": 0.3}, "no complete response within 0.3 s"),
    ],
)
def test_downloads_that_fail(server, path, options, reason):
    with pytest.raises(ImageError, match=re.escape(reason)) as error:
        load_image(server + path, allow_private_addresses=True, **options)
    assert error.value.source == server + path


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org/a.png", "data://x", "http://", "http:///a.png"]
)
def test_only_http(url):
    with pytest.raises(ImageError, match="expected an http or https URL"):
        load_image(url)


def test_private_addresses_are_refused_by_default(server):
    with pytest.raises(ImageError, match=r"is at 127\.0\.0\.1, which is not a public address"):
        load_image(server + "/a%20b.png")
    port = server.rpartition(":")[2]
    for spelling in ("localhost", "2130706433", "0x7f.1", "127.1"):
        with pytest.raises(ImageError, match="not a public address|no address found"):
            load_image(f"http://{spelling}:{port}/a%20b.png")


def test_a_redirect_to_a_private_address_is_refused(server, monkeypatch):
    """The first address counts as public here, the one that the redirect leads to does not."""
    monkeypatch.setattr(fetch_module, "is_public", lambda address: address == "127.0.0.1")
    assert fetch_url(server + "/a%20b.png") == PICTURE
    monkeypatch.setattr(socket, "getaddrinfo", with_host("inside.test", "169.254.169.254", socket.getaddrinfo))
    with pytest.raises(FetchError, match=r"'inside.test' is at 169\.254\.169\.254, which is not a public address"):
        fetch_url(server + "/redirect?http://inside.test/latest/meta-data")


def with_host(name: str, address: str, real):
    def getaddrinfo(host, port, *args, **kwargs):
        return real(address if host == name else host, port, *args, **kwargs)

    return getaddrinfo


def test_a_name_is_looked_up_once(server, monkeypatch):
    """A name server that answers with a public address first and a private one afterwards gains nothing."""
    port = int(server.rpartition(":")[2])
    answers = iter(["93.184.215.14", "127.0.0.1"])
    looked_up, connected = [], []

    def getaddrinfo(host, *_, **__):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(_, address):
        connected.append(address[0])
        raise OSError("unreachable in this test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(FetchError, match="unreachable in this test"):
        fetch_url(f"http://rebinding.test:{port}/a.png")
    assert looked_up == ["rebinding.test"]
    assert connected == ["93.184.215.14"]


def test_a_slow_name_server_is_not_waited_for(monkeypatch):
    answered = threading.Event()

    def getaddrinfo(*_, **__):
        answered.wait(2)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(FetchError, match="no complete response within 0.2 s"):
        fetch_url("http://slow.test/a.png", timeout=0.2)
    answered.set()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),  # 93.184.215.14 through NAT64
        ("64:ff9b::7f00:1", False),  # 127.0.0.1 through NAT64
        ("64:ff9b:1::7f00:1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1 through 6to4
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_are_those_of_the_picture_by_every_decoder(mode, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    picture = noise.resize((450, 350), Image.Resampling.BICUBIC).convert(mode)
    decoded = []
    by_simplejpeg = images._by_simplejpeg
    monkeypatch.setattr(images, "_by_simplejpeg", lambda *a: decoded.append(by_simplejpeg(*a)) or decoded[-1])
    for orientation in range(9):
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        for progressive in (False, True):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=80, progressive=progressive, exif=exif)
            for hint in (None, (50, 60)):
                wanted = np.asarray(load_image(file.getvalue(), size_hint=hint))
                assert np.array_equal(images.load_pixels(file.getvalue(), size_hint=hint), wanted)
    if images.simplejpeg is not None:
        assert all((pixels is None) == (mode == "CMYK") for pixels in decoded)
    for array in (np.zeros((4, 5), np.uint8), np.full((4, 5, 3), 0.5)):
        assert np.array_equal(images.load_pixels(array), np.asarray(load_image(array)))


def test_hostile_files_are_as_safe_by_every_decoder(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)).save(file, "JPEG")
    sound = file.getvalue()
    for broken in (b"", b"\xff\xd8\xff no", sound[: len(sound) // 2], sound[:300]):
        with pytest.raises(ImageError) as by_pil:
            load_image(broken)
        with pytest.raises(ImageError) as by_any:
            images.load_pixels(broken)
        assert str(by_any.value) == str(by_pil.value)
    with pytest.raises(ImageError, match="image too large: .*max_pixels = 9999"):
        images.load_pixels(sound, max_pixels=9999)
    large = tmp_path / "large.jpg"
    large.write_bytes(sound + b"\0" * 5000)
    assert np.array_equal(images.load_pixels(large, max_bytes=4000), np.asarray(load_image(large)))
