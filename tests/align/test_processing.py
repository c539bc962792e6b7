"""AlignImageProcessor and AlignProcessor: the originals' pixels, transformers' pixels, files, and texts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from goldens import load_arrays
from pictures import difference, picture, recorded
from PIL import Image
from tiny import WORDS, align_config, tokenizer, vocabulary
from tolerances import TOLERANCE
from transformers import AutoImageProcessor, AutoProcessor, BertTokenizer, image_transforms
from transformers.processing_utils import ImagesKwargs

from kakao_models import AlignImageProcessor, AlignProcessor, Embedder, ViTImageProcessor
from kakao_models.align.processing import read_tokenizer
from kakao_models.pixels.images import ImageError
from kakao_models.pixels.preprocessing import FOREIGN, _warn_once

PHOTO = Path(__file__).parents[2] / "src" / "kakao_models" / "photos" / "cat.jpg"
LIMIT = TOLERANCE["resized pixels, of 255"]


def transformers_pixels(image: np.ndarray, **given) -> np.ndarray:
    """Transformers' steps for an EfficientNet, one by one from its own functions."""
    field = {
        **{"do_resize": True, "size": (346, 346), "resample": 3, "do_center_crop": False, "crop_size": (289, 289)},
        **{"do_rescale": True, "rescale_factor": 1 / 255, "rescale_offset": False, "do_normalize": True},
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "include_top": True},
        **given,
    }
    if field["do_resize"]:
        image = image_transforms.resize(image, field["size"], field["resample"], input_data_format="channels_last")
    if field["do_center_crop"]:
        image = image_transforms.center_crop(image, field["crop_size"], input_data_format="channels_last")
    if field["do_rescale"]:
        image = image_transforms.rescale(image, field["rescale_factor"], input_data_format="channels_last")
        image = image - 1 if field["rescale_offset"] else image
    if field["do_normalize"]:
        image = image_transforms.normalize(
            image, field["image_mean"], field["image_std"], input_data_format="channels_last"
        )
    if field["include_top"]:
        image = image_transforms.normalize(image, 0, field["image_std"], input_data_format="channels_last")
    return np.moveaxis(image, -1, 0)


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "image"), recorded("align"))
def test_tf_equals_the_original(index, image):
    pixels = AlignImageProcessor(preprocessing="tf")(image, return_tensors="np").pixel_values
    assert pixels.shape == (1, 3, 289, 289)
    assert pixels.dtype == np.float32
    seen = (pixels[0].transpose(1, 2, 0).astype(np.float64) + 1) * 127.5
    assert difference(seen, load_arrays("preprocess_align"), str(index)) <= LIMIT


def test_tf_rescales_in_float32_as_the_original():
    every_byte = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    processor = AlignImageProcessor(preprocessing="tf", do_resize=False, do_center_crop=False)
    expected = every_byte.astype(np.float32) * np.float32(1 / 127.5) + np.float32(-1)
    np.testing.assert_array_equal(processor(every_byte)["pixel_values"][0], expected.transpose(2, 0, 1))


def test_hf_is_not_the_original():
    index, image = recorded("align")[0]
    pixels = AlignImageProcessor()(image, return_tensors="np").pixel_values
    seen = (pixels[0].transpose(1, 2, 0).astype(np.float64) + 1) * 127.5
    assert difference(seen, load_arrays("preprocess_align"), str(index)) > 10 * LIMIT


HUB = {
    "do_center_crop": True,
    "do_normalize": False,
    "include_top": False,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "resample": 2,
}


@pytest.mark.parametrize(
    "fields",
    [
        HUB,  # the released models
        {},  # EfficientNet's own: a file that leaves all out
        {**HUB, "resample": 3, "crop_size": 224, "size": [256, 300]},
        {**HUB, "resample": 0},
        {**HUB, "do_resize": False},
        {**HUB, "do_resize": False, "crop_size": 500},  # padded with zeros
        {**HUB, "do_rescale": False},
        {**HUB, "do_rescale": False, "do_normalize": True, "image_mean": [100, 110, 120], "image_std": [1, 2, 3.5]},
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "include_top": False},
        {"do_normalize": False},
    ],
)
def test_hf_gives_the_pixels_of_transformers(fields, tmp_path):
    file = {"image_processor_type": "EfficientNetImageProcessor", **fields}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    image = picture(430, 365)
    sizes = {name: value for name, value in fields.items() if name in ("size", "crop_size")}
    pairs = {name: (value, value) if isinstance(value, int) else value for name, value in sizes.items()}
    expected = transformers_pixels(image, **{**fields, **pairs})
    for processor in (AlignImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        pixels = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        assert pixels.dtype == expected.dtype
        np.testing.assert_array_equal(pixels[0], expected)


def test_hf_shortest_edge():
    pixels = AlignImageProcessor(size={"shortest_edge": 300}, do_center_crop=False)(picture(400, 613))["pixel_values"]
    assert pixels[0].shape == (3, 300, 459)  # 459.75, cut off as in transformers


def test_hf_shortest_edge_of_a_line_is_refused():
    """300 x 600 million pixels for 2 kB of PNG."""
    line = np.zeros((1, 2_000_000, 3), np.uint8)
    with pytest.raises(ValueError, match="2000000 x 1 becomes 600000000 x 300"):
        AlignImageProcessor(size={"shortest_edge": 300})(line)
    assert AlignImageProcessor()(line)["pixel_values"][0].shape == (3, 289, 289)


def test_decode_size_only_where_resizing_averages():
    assert AlignImageProcessor().decode_size == (346, 346)
    assert AlignImageProcessor(size={"shortest_edge": 300}).decode_size == (300, 300)
    assert AlignImageProcessor(preprocessing="tf").decode_size is None
    assert AlignImageProcessor(resample=0).decode_size is None
    assert AlignImageProcessor(do_resize=False).decode_size is None


def test_a_large_jpeg_gives_the_pixels_of_the_picture(tmp_path):
    path = tmp_path / "large.jpg"
    Image.open(PHOTO).resize((2400, 1600), Image.Resampling.BICUBIC).save(path, quality=95)
    full = Image.open(path).convert("RGB")
    for preprocessing in ("hf", "tf"):
        processor = AlignImageProcessor(preprocessing=preprocessing)
        expected = processor(full, return_tensors="np").pixel_values
        assert np.array_equal(processor(path, return_tensors="np").pixel_values, expected)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_sources_of_all_kinds_and_sizes(tmp_path):
    image = picture(80, 120)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    processor = AlignImageProcessor()
    sources = [path, str(path), path.read_bytes(), Image.open(path), image, image.transpose(2, 0, 1)]
    pixels = processor([*sources, picture(300, 90)], return_tensors="np").pixel_values
    assert pixels.shape == (7, 3, 289, 289)
    for row in pixels[1:6]:
        np.testing.assert_array_equal(row, pixels[0])
    assert not np.array_equal(pixels[6], pixels[0])
    stacked = processor(np.stack([image, image[::-1]]), return_tensors="np").pixel_values
    np.testing.assert_array_equal(stacked[0], pixels[0])
    nested = processor([[image], [image[::-1]]], return_tensors="np").pixel_values
    np.testing.assert_array_equal(nested, stacked)
    as_list = processor([image], return_tensors=None)["pixel_values"]
    assert isinstance(as_list, list)
    np.testing.assert_array_equal(as_list[0], pixels[0])


def test_torch_tensors_in_and_out():
    torch = pytest.importorskip("torch")
    image = picture(80, 120)
    result = AlignImageProcessor()(torch.from_numpy(image.copy()), return_tensors="pt")
    assert result.pixel_values.dtype == torch.float32
    np.testing.assert_array_equal(result.pixel_values.numpy()[0], AlignImageProcessor()(image)["pixel_values"][0])
    assert result.to("cpu").pixel_values.shape == (1, 3, 289, 289)


@pytest.mark.parametrize(
    ("kind", "module", "extra"), [("tf", "tensorflow", "tensorflow"), ("jax", "jax.numpy", "flax")]
)
def test_other_frameworks_or_what_to_install(kind, module, extra, monkeypatch):
    import types

    from kakao_models.pixels import tensors

    def fake(name):
        assert name == module
        return types.SimpleNamespace(convert_to_tensor=tuple, asarray=tuple)

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    images, texts = picture(40, 40), ["a cat"]
    processor = AlignProcessor(AlignImageProcessor(), tokenizer())
    monkeypatch.setattr(tensors.importlib, "import_module", fake)
    batch = processor(images, texts, return_tensors=kind)
    assert batch["pixel_values"][0].shape == (3, 289, 289)
    assert batch["input_ids"][0].dtype == np.int32
    monkeypatch.setattr(tensors.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf"return_tensors='{kind}' needs .*pip install 'kakao-models\[{extra}\]'"):
        processor(images, return_tensors=kind)


def test_fields_can_be_changed_for_one_call():
    processor, image = AlignImageProcessor(), picture(80, 120)
    original = processor(image, preprocessing="tf")["pixel_values"][0]
    np.testing.assert_array_equal(original, AlignImageProcessor(preprocessing="tf")(image)["pixel_values"][0])
    assert processor(image, size=100, crop_size={"height": 64, "width": 32})["pixel_values"][0].shape == (3, 64, 32)
    assert processor.preprocessing == "hf"
    processor.crop_size = 50
    assert processor(image)["pixel_values"][0].shape == (3, 50, 50)
    assert processor.size == {"height": 346, "width": 346}


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda i: AlignImageProcessor(preprocesing="tf"), ValueError, "no field 'preprocesing'; did you mean 'prep"),
        (lambda i: AlignImageProcessor(mine=1), ValueError, "no field 'mine'. It has: preprocessing, "),
        (
            lambda i: AlignImageProcessor.from_pretrained("align-small", croop_size=9),
            ValueError,
            "did you mean 'crop_si",
        ),
        (lambda i: AlignImageProcessor(preprocessing="torch"), ValueError, "must be one of .*got 'torch'"),
        (lambda i: AlignImageProcessor(size={"longest_edge": 3}), ValueError, "size must .*longest_edge"),
        (lambda i: AlignImageProcessor(crop_size={"shortest_edge": 3}), ValueError, "crop_size must"),
        (lambda i: AlignImageProcessor(size=0), ValueError, "size must be a positive"),
        (lambda i: AlignImageProcessor(do_pad=True), ValueError, "does not pad"),
        (
            lambda i: AlignImageProcessor(image_mean=[1, 2]),
            ValueError,
            r"image_mean: got \[1, 2\], expected a number, or three",
        ),
        (
            lambda i: AlignImageProcessor(rescale_factor=0),
            ValueError,
            "rescale_factor: got 0, expected a number above 0",
        ),
        (lambda i: AlignImageProcessor(image_std=float("nan")), ValueError, "image_std: got nan"),
        (lambda i: AlignImageProcessor()(i, sizes=3), TypeError, "has no option 'sizes'"),
        (lambda i: AlignImageProcessor()(i, preprocessing="tf", resample=3), ValueError, "resample 2 .* got 3"),
        (lambda i: AlignImageProcessor(preprocessing="tf", crop_size=400)(i), ValueError, "cannot crop 400 x 400"),
        (lambda i: AlignImageProcessor()(i, return_tensors="xx"), ValueError, "return_tensors must be None or one of"),
        (lambda i: AlignImageProcessor()([]), ValueError, "expected at least one image, got an empty list"),
        (lambda i: AlignImageProcessor()("a photo of a cat"), ImageError, "a photo of a cat: no such file"),
        (
            lambda i: AlignImageProcessor(do_resize=False, do_center_crop=False)([i, i[1:]], return_tensors="np"),
            ValueError,
            "different sizes .*cannot be stacked",
        ),
    ],
)
def test_errors(make, error, reason):
    with pytest.raises(error, match=reason):
        make(picture(80, 120))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"preprocessing": "tf"}, {"size": {"shortest_edge": 99}, "image_mean": 0.4}])
def test_files_keep_every_field(fields, tmp_path):
    processor = AlignImageProcessor(**fields)
    processor.save_pretrained(tmp_path)
    again = AlignImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert {name: getattr(again, name) for name in again.fields} == {
        name: getattr(processor, name) for name in again.fields
    }
    assert AlignImageProcessor.from_pretrained(tmp_path, preprocessing="tf").preprocessing == "tf"


def test_bundled_checkpoints_go_by_their_name():
    assert AlignProcessor.from_pretrained("align-small").image_processor.to_dict() == (
        AlignImageProcessor.from_pretrained("align-small").to_dict()
    )


STRANGER = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # it takes long to import and is not needed
import numpy as np
from transformers import AutoImageProcessor, AutoProcessor

root = Path(sys.argv[1])
image = np.load(root / "image.npy")
for folder in filter(Path.is_dir, root.iterdir()):
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor).__module__.startswith("transformers."), type(processor)
    np.save(folder / "pixels.npy", processor(image, return_tensors="np")["pixel_values"])
    if folder.name.startswith("whole"):
        batch = AutoProcessor.from_pretrained(folder)(text=["a cat"], images=image, return_tensors="np")
        assert batch["input_ids"].shape == (1, 64), batch["input_ids"].shape
        np.save(folder / "pixels.npy", batch["pixel_values"])
assert "kakao_models" not in sys.modules
"""


def test_transformers_alone_loads_what_we_save(tmp_path):
    for preprocessing in ("hf", "tf"):
        ours = AlignImageProcessor(preprocessing=preprocessing)
        for part, saved in (("image", ours), ("whole", AlignProcessor(ours, tokenizer()))):
            saved.save_pretrained(tmp_path / f"{part} {preprocessing}")
            align_config().save_pretrained(tmp_path / f"{part} {preprocessing}")
    AlignImageProcessor().save_pretrained(tmp_path / "alone hf")
    image = picture(120, 160)
    np.save(tmp_path / "image.npy", image)
    subprocess.run([sys.executable, "-c", STRANGER, str(tmp_path)], check=True)
    found = sorted(tmp_path.glob("*/pixels.npy"))
    assert len(found) == 5
    for file in found:
        np.testing.assert_array_equal(np.load(file), AlignImageProcessor()(image, return_tensors="np").pixel_values)


@pytest.mark.parametrize("preprocessing", ["hf", "tf"])
def test_auto_classes_give_one_answer_whatever_is_imported(preprocessing, tmp_path):
    """As `STRANGER` has it: transformers' own, antialiased."""
    AlignProcessor(AlignImageProcessor(preprocessing=preprocessing), tokenizer()).save_pretrained(tmp_path)
    align_config().save_pretrained(tmp_path)
    (tmp_path / "tower").mkdir()
    align_config().vision_config.save_pretrained(tmp_path / "tower")
    AlignImageProcessor(preprocessing=preprocessing).save_pretrained(tmp_path / "tower")
    image = picture(120, 160)
    expected = AlignImageProcessor()(image, return_tensors="np").pixel_values
    whole = AutoProcessor.from_pretrained(tmp_path)
    for found in (
        whole.image_processor,
        *(AutoImageProcessor.from_pretrained(f) for f in (tmp_path, tmp_path / "tower")),
    ):
        assert type(found).__module__.startswith("transformers.")
        np.testing.assert_array_equal(found(image, return_tensors="np")["pixel_values"], expected)


# --- AlignProcessor ---------------------------------------------------------------------------------------------------


@pytest.fixture
def processor() -> AlignProcessor:
    return AlignProcessor(AlignImageProcessor(), tokenizer())


def test_options_by_modality_as_in_transformers_5(processor):
    image, texts = picture(90, 70), ["a cat", "a big house"]
    expected = processor(image, texts, padding="max_length", size=400, return_tensors="np")
    modal = dict(text_kwargs={"padding": "max_length"}, images_kwargs={"size": 400}, audio_kwargs={}, videos_kwargs={})
    for options in (
        modal | {"common_kwargs": {"return_tensors": "np"}},
        modal | {"text_kwargs": {"padding": "max_length", "return_tensors": "np"}},
        {"common_kwargs": {"padding": "max_length", "size": 400, "return_tensors": "np"}},
        {"padding": False, "size": 350, "return_tensors": "np"} | modal,  # what is said of one comes first
    ):
        batch = processor(images=image, text=texts, **options)
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(values, expected[name])
    for more in (dict(videos=[image]), dict(audio=[0.0])):
        with pytest.raises(ValueError, match="takes images and texts, got videos or audio"):
            processor(images=image, **more)


@pytest.mark.parametrize("texts", ["two dogs", ["two dogs", "a cat"], ("a cat",)])
def test_texts_in_place_of_images_are_told_their_name(texts, processor):
    with pytest.raises(
        ValueError, match=r"is not an image \(neither a file nor a URL\). Pass texts by name: text=\[...\]"
    ):
        processor(texts, padding="max_length", max_length=64, return_tensors="np")


def test_texts_are_padded_to_the_longest_and_cut_at_64(processor):
    short, long = "a cat", " ".join(["cat"] * 90)
    batch = processor(text=[short, "the big red dog"], return_tensors="np")
    start, end = processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id
    words = {word: processor.tokenizer.vocab[word] for word in WORDS}
    assert batch["input_ids"].tolist() == [
        [start, words["a"], words["cat"], end, 0, 0],
        [start, words["the"], words["big"], words["red"], words["dog"], end],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["token_type_ids"].tolist() == [[0] * 6] * 2
    assert sorted(batch) == ["attention_mask", "input_ids", "token_type_ids"]
    batch = processor(text=[short, long], return_tensors="np")
    assert batch["input_ids"].shape == (2, 64)
    assert batch["input_ids"][1].tolist() == [start, *[words["cat"]] * 62, end]


def test_the_layout_of_transformers_on_request(processor):
    ids = processor(text=["a cat", "a dog"], padding="max_length", return_tensors="np")["input_ids"]
    assert ids.shape == (2, 64)
    assert not ids[:, 4:].any()
    long = " ".join(["cat"] * 90)
    assert len(processor(text=long, truncation=False)["input_ids"]) == 92
    assert len(processor(text=long, max_length=7)["input_ids"]) == 7
    assert len(processor(text=long, text_kwargs={"max_length": 9})["input_ids"]) == 9


def test_one_text_and_one_image(processor):
    assert processor(text="a cat")["input_ids"][0] == processor.tokenizer.cls_token_id
    batch = processor(images=picture(50, 50), text="a cat", return_tensors="np")
    assert batch["input_ids"].shape == (1, 4)
    assert batch["pixel_values"].shape == (1, 3, 289, 289)
    assert batch["input_ids"].dtype == np.int64


def test_options_find_their_part(processor):
    batch = processor(
        [picture(50, 50), picture(70, 40)],
        ["a cat", "a big dog"],
        size=64,
        crop_size=32,
        padding="max_length",
        max_length=10,
        return_tensors="np",
    )
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["input_ids"].shape == (2, 10)
    again = processor(picture(50, 50), images_kwargs={"size": 64, "crop_size": 32}, return_tensors="np")
    np.testing.assert_array_equal(again["pixel_values"][0], batch["pixel_values"][0])


def test_errors_of_the_processor(processor):
    with pytest.raises(ValueError, match="needs text, images or both; got neither"):
        processor()
    with pytest.raises(TypeError, match="no option 'sise'"):
        processor(text="a cat", sise=3)
    for text in ([], [3], 3.0):
        with pytest.raises(ValueError, match="text must be a string or a list"):
            processor(text=text)


@pytest.mark.parametrize("preprocessing", ["hf", "tf"])
def test_the_processor_keeps_itself(preprocessing, processor, tmp_path):
    processor.image_processor.preprocessing = preprocessing
    processor.save_pretrained(tmp_path / "sub")
    again = AlignProcessor.from_pretrained(tmp_path, subfolder="sub")
    assert type(again) is AlignProcessor
    assert type(again.image_processor) is AlignImageProcessor
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    image, text = picture(50, 50), ["a photo of the sea"]
    before, after = (p(image, text, return_tensors="np") for p in (processor, again))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert AlignProcessor.from_pretrained(tmp_path / "sub", size=99).image_processor.size == {"height": 99, "width": 99}


def test_a_processor_saved_by_transformers_loads(tmp_path):
    from transformers.models.align.processing_align import AlignProcessor as TheirProcessor

    align_config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "EfficientNetImageProcessor", **HUB})
    )
    theirs = TheirProcessor(AutoImageProcessor.from_pretrained(tmp_path), tokenizer())
    theirs.save_pretrained(tmp_path / "saved")
    image, texts = picture(90, 70), ["a cat", "a big house"]
    ours = AlignProcessor.from_pretrained(tmp_path / "saved")
    expected = theirs(images=image, text=texts, return_tensors="np")
    batch = ours(images=image, text=texts, padding="max_length", return_tensors="np")
    assert sorted(batch) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])
    taken_over = AlignProcessor(theirs.image_processor, tokenizer())
    assert type(taken_over.image_processor) is AlignImageProcessor
    np.testing.assert_array_equal(taken_over(image, return_tensors="np")["pixel_values"], expected["pixel_values"])


# --- without any framework --------------------------------------------------------------------------------------------

BARE = """
import sys
for name in ("torch", "torchvision", "tensorflow", "jax"):
    sys.modules[name] = None
import numpy as np
from kakao_models import AlignImageProcessor, ViTImageProcessor

image = np.zeros((40, 50, 3), np.uint8)
assert AlignImageProcessor(preprocessing="tf")(image, return_tensors="np").pixel_values.shape == (1, 3, 289, 289)
assert ViTImageProcessor()(image, return_tensors="np").pixel_values.min() == -1
try:
    AlignImageProcessor()(image, return_tensors="pt")
except ImportError as error:
    assert "pip install 'kakao-models[torch]'" in str(error), error
else:
    raise AssertionError("torch was imported")
"""


def test_no_framework_is_needed():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torchvision" not in done.stderr  # what isn't needed isn't asked for


# --- files of others


@pytest.mark.parametrize("reader", [AlignImageProcessor.from_pretrained, AlignProcessor.from_pretrained, Embedder])
def test_an_unknown_field_in_a_file_is_a_warning(reader, align, tmp_path, caplog):
    """As in config.json. The file of a processor may hold that of the image processor, in which the same is true."""
    for file in Path(align).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "preprocessor_config.json"
    fields = json.loads(file.read_text()) | {"croop_size": 9, "mine": [1], "do_pad": False, "_private": 1, "size": 36}
    file.write_text(json.dumps(fields))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "AlignProcessor", "chat": 1}))
    _warn_once.cache_clear()
    read = reader(tmp_path)
    image_processor = getattr(read, "image_processor", read)
    assert image_processor.size["height"] == 36 and image_processor.crop_size["height"] == 32
    assert sorted(record.getMessage() for record in caplog.records if "changes nothing" in record.getMessage()) == [
        "preprocessor_config.json: the field 'croop_size' is not known and changes nothing; did you mean 'crop_size'?",
        "preprocessor_config.json: the field 'mine' is not known and changes nothing",
        "processor_config.json: the field 'chat' is not known and changes nothing",
    ]
    image_processor.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())["mine"] == [1]


def test_what_transformers_writes_is_known():
    assert FOREIGN | set(AlignImageProcessor.fields) >= ImagesKwargs.__annotations__.keys()
    _warn_once.cache_clear()
    for kind in (AlignImageProcessor, ViTImageProcessor):
        assert kind.from_dict(kind().to_dict()).fields == kind.fields
    assert _warn_once.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("words", "fields", "lower"),
    [
        ([], None, True),
        (["House"], None, False),
        ([], {"do_lower_case": False}, False),
        (["House"], {"do_lower_case": True, "model_max_length": 64}, True),
    ],
)
def test_a_vocabulary_alone_is_a_berts(words, fields, lower, tmp_path):
    """transformers' AutoTokenizer needs a file that names a class; older folders of BERT have none."""
    (tmp_path / "vocab.txt").write_text("\n".join([*vocabulary(), *words]) + "\n")
    if fields is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    read = read_tokenizer(tmp_path)
    assert isinstance(read, BertTokenizer) and read.do_lower_case is lower
    assert (
        read("a Cat")["input_ids"] == BertTokenizer(vocab=read.get_vocab(), do_lower_case=lower)("a Cat")["input_ids"]
    )


def test_a_tokenizer_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(ValueError, match=f"^{tmp_path}: Couldn't instantiate the backend") as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


# --- as transformers' tests of every processor expect it


def test_arguments_of_the_tokenizer_go_to_it(align):
    read = AlignProcessor.from_pretrained(align, bos_token="(BOS)", do_normalize=True, trust_remote_code=False)
    assert read.tokenizer.bos_token == "(BOS)" and read.image_processor.do_normalize
    assert "trust_remote_code" not in read.tokenizer.init_kwargs and "size" not in read.tokenizer.init_kwargs
    with pytest.raises(ValueError, match="did you mean 'crop_size'"):
        AlignProcessor.from_pretrained(align, croop_size=9)


def test_what_a_tokenizer_was_made_with_is_the_default_of_a_call():
    words = BertTokenizer(vocab=vocabulary(), padding="max_length", max_length=40)
    processor = AlignProcessor(AlignImageProcessor(), words)
    assert processor(text="a cat", return_tensors="np")["input_ids"].shape == (1, 40)
    assert processor(text="a cat", return_tensors="np", padding=True)["input_ids"].shape == (1, 4)
    assert processor(text="a cat", return_tensors="np", max_length=30)["input_ids"].shape == (1, 30)
