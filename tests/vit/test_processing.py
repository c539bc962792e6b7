"""ViTImageProcessor: the originals' pixels, transformers' pixels, and files."""

import json
import subprocess
import sys

import numpy as np
import pytest
from goldens import load_arrays
from pictures import difference, picture, recorded
from PIL import Image
from tiny import vit_config
from tolerances import TOLERANCE
from transformers import AutoImageProcessor, image_transforms

from kakao_models import ViTImageProcessor

LIMIT = TOLERANCE["resized pixels, of 255"]
PRETRAINING = {"size": {"shortest_edge": 256}, "resample": 4, "do_center_crop": True, "crop_size": 224}
ORIGINALS = {"pretrain224": PRETRAINING, "finetune384": {"size": 384}, "finetune512": {"size": 512}}


@pytest.mark.parametrize("pipeline", ORIGINALS)
@pytest.mark.parametrize(("index", "image"), recorded("vit"))
def test_tf_equals_the_originals(pipeline, index, image):
    processor = ViTImageProcessor(preprocessing="tf", **ORIGINALS[pipeline])
    pixels = processor(image, return_tensors="np").pixel_values
    assert pixels.dtype == np.float32
    seen = pixels[0].transpose(1, 2, 0)
    golden = load_arrays("preprocess_vit")
    assert difference(seen, golden, f"{pipeline}/{index}") <= LIMIT / 127.5
    half_a_step = 2**-9  # of bfloat16, to which the originals round at last, just below 1
    error = np.abs(seen[::64, ::64] - golden[f"{pipeline}/{index}/slice_bfloat16"]).max()
    assert error <= half_a_step + LIMIT / 127.5


@pytest.mark.parametrize("pipeline", ORIGINALS)
def test_hf_is_not_the_original(pipeline):
    index, image = recorded("vit")[0]
    seen = ViTImageProcessor(**ORIGINALS[pipeline])(image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    golden = load_arrays("preprocess_vit")
    if pipeline != "pretrain224":  # PIL's box method works out other sizes too
        assert difference(seen, golden, f"{pipeline}/{index}") > 10 * LIMIT / 127.5
    assert np.abs(seen[::16, ::16] - golden[f"{pipeline}/{index}/slice"]).max() > 10 * LIMIT / 127.5


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": 384, "resample": 3},
        {"size": {"height": 100, "width": 60}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_rescale": False, "do_normalize": False},
        {"do_center_crop": None, "image_mean": 0.3, "image_std": 0.2},
    ],
)
def test_hf_gives_the_pixels_of_transformers(fields, tmp_path):
    file = {"image_processor_type": "ViTImageProcessor", **fields}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    image = picture(130, 165)
    size = fields.get("size", 224)
    size = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    expected = image_transforms.resize(image, size, fields.get("resample", 2), input_data_format="channels_last")
    if fields.get("do_rescale", True):
        expected = image_transforms.rescale(expected, 1 / 255, input_data_format="channels_last")
        mean, std = (fields.get(name, [0.5] * 3) for name in ("image_mean", "image_std"))
        expected = image_transforms.normalize(expected, mean, std, input_data_format="channels_last")
    for processor in (ViTImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        pixels = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(pixels[0], np.moveaxis(expected, -1, 0))


def test_decode_size():
    assert ViTImageProcessor(size=384).decode_size == (384, 384)
    assert ViTImageProcessor(preprocessing="tf", size=384).decode_size is None


STRANGER = """
import sys
sys.modules["torch"] = None  # it takes long to import and is not needed
import numpy as np
from transformers import AutoImageProcessor

folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(folder)
assert "kakao_models" not in sys.modules
assert type(processor).__module__.startswith("transformers."), type(processor)
np.save(folder + "/pixels.npy", processor(np.load(folder + "/image.npy"), return_tensors="np")["pixel_values"])
"""


def test_transformers_alone_loads_what_we_save(tmp_path):
    processor = ViTImageProcessor(size=64, preprocessing="tf")
    vit_config().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = picture(120, 160)
    np.save(tmp_path / "image.npy", image)
    subprocess.run([sys.executable, "-c", STRANGER, str(tmp_path)], check=True)
    expected = processor(image, preprocessing="hf", return_tensors="np").pixel_values
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), expected)


@pytest.mark.parametrize("fields, name", [(PRETRAINING, "CLIPImageProcessor"), ({"size": 64}, "ViTImageProcessor")])
def test_the_auto_classes_give_what_they_give_without_this_package(fields, name, tmp_path):
    vit_config().save_pretrained(tmp_path)
    processor = ViTImageProcessor(preprocessing="tf", **fields)
    processor.save_pretrained(tmp_path)
    auto = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(auto).__name__.startswith(name) and not isinstance(auto, ViTImageProcessor)
    image = picture(300, 260)
    expected = processor(image, preprocessing="hf", return_tensors="np").pixel_values
    np.testing.assert_allclose(auto(image, return_tensors="np")["pixel_values"], expected, rtol=0, atol=1e-6)
    assert ViTImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_fields_that_only_align_has_change_nothing():
    """transformers' ViT processor ignores them in a file."""
    processor = ViTImageProcessor.from_dict(
        ViTImageProcessor().to_dict() | {"include_top": True, "rescale_offset": True}
    )
    image, expected = picture(40, 28), ViTImageProcessor()
    assert np.array_equal(processor(image)["pixel_values"], expected(image)["pixel_values"])
    assert np.array_equal(processor.byte_values, expected.byte_values)
