"""The resize kernels against the originals' recorded pictures, and what typical mistakes would do."""

import json

import numpy as np
import pytest
from golden import inputs
from goldens import FOLDER, load_arrays
from pictures import difference, recorded
from PIL import Image
from tolerances import TOLERANCE

from kakao_models.pixels.resize import center_box, resize_area, resize_bilinear, shorter_side_to

LIMIT = TOLERANCE["resized pixels, of 255"]


def align(picture: np.ndarray) -> np.ndarray:
    return resize_bilinear(picture, 346, 346, center_box(346, 346, 289, 289))


def pretrain(picture: np.ndarray) -> np.ndarray:
    height, width = shorter_side_to(256, *picture.shape[:2])
    return resize_area(picture, height, width, center_box(height, width, 224, 224))


@pytest.mark.parametrize(("index", "picture"), recorded("align"))
def test_bilinear_equals_the_original_align(index, picture):
    assert difference(align(picture), load_arrays("preprocess_align"), str(index)) <= LIMIT


@pytest.mark.parametrize("index", [0, 1, 3])  # in the other two some pixels lie at .5 up to rounding
def test_every_byte_of_the_original_align(index):
    facts = json.loads((FOLDER / "golden_preprocess_align.json").read_text())["images"][index]
    picture = recorded("align")[index][1]
    assert inputs.digest(np.rint(align(picture)).astype(np.uint8)) == facts["rounded_sha256"]


@pytest.mark.parametrize("size", [384, 512])
@pytest.mark.parametrize(("index", "picture"), recorded("vit"))
def test_bilinear_equals_the_original_vit(index, picture, size):
    result = resize_bilinear(picture, size, size)
    assert difference(result, load_arrays("preprocess_vit"), f"finetune{size}/{index}", 127.5, 127.5) <= LIMIT


@pytest.mark.parametrize(("index", "picture"), recorded("vit"))
def test_area_equals_the_original_vit(index, picture):
    golden = load_arrays("preprocess_vit")
    assert difference(pretrain(picture), golden, f"pretrain224/{index}", 127.5, 127.5) <= LIMIT


def antialiased(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((346, 346), Image.Resampling.BILINEAR))[28:317, 28:317]


def rounded(picture: np.ndarray) -> np.ndarray:
    return np.rint(align(picture))


def corners_aligned(picture: np.ndarray) -> np.ndarray:
    return interpolated(picture, lambda size: np.arange(346) * (size - 1) / 345)


def pixels_not_centred(picture: np.ndarray) -> np.ndarray:
    return interpolated(picture, lambda size: np.arange(346) * size / 346)


def cropped_one_off(picture: np.ndarray) -> np.ndarray:
    return resize_bilinear(picture, 346, 346, (29, 29, 289, 289))


def interpolated(picture: np.ndarray, positions) -> np.ndarray:
    """Bilinear interpolation at other places than the original's."""
    for axis in (0, 1):
        size = picture.shape[axis]
        at = np.clip(positions(size), 0, size - 1)
        low = np.floor(at).astype(int)
        weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        picture = picture.take(low, axis) * (1 - weight) + picture.take(np.minimum(low + 1, size - 1), axis) * weight
    return picture[28:317, 28:317]


@pytest.mark.parametrize("mistake", [antialiased, rounded, corners_aligned, pixels_not_centred, cropped_one_off])
def test_the_align_golden_catches(mistake):
    index, picture = recorded("align")[0]
    assert difference(mistake(picture), load_arrays("preprocess_align"), str(index)) > 10 * LIMIT


def test_the_pretraining_golden_catches_bilinear_and_pil_box():
    index, picture = recorded("vit")[0]
    golden = load_arrays("preprocess_vit")
    box = center_box(256, 341, 224, 224)
    top, left, height, width = box
    whole_pixels = np.asarray(Image.fromarray(picture).resize((341, 256), Image.Resampling.BOX))
    for mistake in (
        resize_bilinear(picture, 256, 341, box),
        whole_pixels[top : top + height, left : left + width],
    ):
        assert difference(mistake, golden, f"pretrain224/{index}", 127.5, 127.5) > 10 * LIMIT


@pytest.mark.parametrize("resize", [resize_bilinear, resize_area])
@pytest.mark.parametrize("size", [(7, 5), (40, 61), (120, 33), (48, 64), (1, 1)])
def test_a_box_is_that_part_of_the_whole(resize, size):
    picture = inputs.image(3, 0, 48, 64)
    height, width = size
    whole = resize(picture, height, width)
    assert whole.shape == (height, width, 3)
    assert whole.dtype == np.float32
    box = (height // 3, width // 4, height - height // 2, width - width // 2)
    top, left, h, w = box
    np.testing.assert_allclose(resize(picture, height, width, box), whole[top : top + h, left : left + w], atol=1e-4)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_area])
def test_same_size_is_the_identity(resize):
    picture = inputs.image(3, 1, 20, 30)
    np.testing.assert_array_equal(resize(picture, 20, 30), picture)


def test_area_keeps_the_mean_and_averages_whole_blocks():
    picture = inputs.image(3, 2, 60, 90)
    blocks = picture.reshape(20, 3, 30, 3, 3).mean((1, 3))
    np.testing.assert_allclose(resize_area(picture, 20, 30), blocks, atol=1e-4)
    small = resize_area(picture, 37, 41)  # pixels shared between neighbours
    np.testing.assert_allclose(small.mean((0, 1)), picture.mean((0, 1)), atol=1e-3)


def test_half_of_the_longer_side_rounds_to_even():
    assert shorter_side_to(256, 512, 1025) == (256, 512)  # 512.5
    assert shorter_side_to(256, 1027, 512) == (514, 256)  # 513.5
    assert shorter_side_to(256, 333, 500) == (256, 384)


def test_errors():
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="box .* must lie inside the 8 x 8 result"):
        resize_bilinear(picture, 8, 8, (4, 0, 5, 8))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        resize_area(picture[:, :, 0], 2, 2)
    with pytest.raises(ValueError, match="cannot crop 289 x 289 .* out of 256 x 300"):
        center_box(256, 300, 289, 289)
