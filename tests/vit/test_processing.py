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

from kakao_models import AlignImageProcessor, ViTImageProcessor

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


def forms(image: np.ndarray) -> dict:
    """The same picture in every form that an image processor takes it, and as transformers gives it back from floats."""
    import torch

    floats = np.float32(image) / 255
    return {
        "uint8": image,
        "PIL": Image.fromarray(image),
        "tensor": torch.from_numpy(image.copy()).permute(2, 0, 1),
        "floats": floats,
        "float64": floats.astype(np.float64),
        "channels first": np.ascontiguousarray(floats.transpose(2, 0, 1)),
        "float tensor": torch.from_numpy(floats).permute(2, 0, 1),
        "whole floats": np.float32(image),
    }


OPTIONS = [
    {},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_rescale": False, "do_resize": False},
    {"do_rescale": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.5, 2.0, 0.5]},
    {"rescale_factor": 1.0},
    {"rescale_factor": 2.0, "do_normalize": False},
    {"size": 20, "resample": 3, "do_center_crop": True, "crop_size": 30, "do_rescale": False},
]
ALIGN_OPTIONS = [
    *OPTIONS,
    {"do_rescale": False, "include_top": True},
    {"rescale_factor": 2.0, "rescale_offset": True},
]


@pytest.mark.parametrize(
    ("align", "options"),
    [*((False, options) for options in OPTIONS), *((True, options) for options in ALIGN_OPTIONS)],
)
def test_every_option_sees_the_scale_that_transformers_sees(align, options):
    """Floats in 0..1 keep their scale where nothing rescales bytes; with the default they are the picture itself, where
    transformers warns and gives almost black. It also truncates where it should round: by 1 of 255."""
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    fixed = dict(size=28, do_normalize=True) | (dict(include_top=False) if align else {})
    ours = (AlignImageProcessor if align else ViTImageProcessor)(
        **fixed | (dict(rescale_factor=1 / 255, rescale_offset=False, do_center_crop=False) if align else {})
    )
    kind = EfficientNetImageProcessorPil if align else ViTImageProcessorPil
    theirs = kind(**fixed | {"resample": 2} | (dict(rescale_offset=False) if align else {}))
    image = picture(40, 36)
    for form, source in forms(image).items():
        pixels = ours(source, return_tensors="np", **options)["pixel_values"]
        fractions = form not in ("uint8", "PIL", "tensor", "whole floats")
        of_theirs = source if options else image
        expected = np.asarray(theirs(of_theirs, return_tensors="np", **options)["pixel_values"])
        step = 1.01 * np.ptp(expected) / 255 if fractions else 0
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=step + 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{"do_rescale": False}, {"rescale_factor": 1.0}])
def test_the_originals_preprocessing_sees_the_scale_too(options):
    processor, image = ViTImageProcessor(preprocessing="tf", size=28, do_normalize=False), picture(40, 36)
    expected = processor(image, return_tensors="np")["pixel_values"]  # in 0..1
    for form, source in forms(image).items():
        scale = 255 if form in ("uint8", "PIL", "tensor", "whole floats") else 1
        pixels = processor(source, return_tensors="np", **options)["pixel_values"]
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, scale * expected, rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(processor(source, return_tensors="np")["pixel_values"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("data_format", "transpose the result"),
        ("input_data_format", "leave it out"),
        ("do_resise", "did you mean 'do_resize'"),
    ],
)
def test_an_option_of_transformers_that_is_not_taken_is_answered(option, instead):
    with pytest.raises(TypeError, match=f"ViTImageProcessor has no option '{option}'; .*{instead}"):
        ViTImageProcessor()(picture(40, 28), **{option: 1})
