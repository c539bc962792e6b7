import io
import threading
import warnings

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageSequence
from tolerances import TOLERANCE

from kakao_models import AlignModel, AlignProcessor, Embedder, ViTForImageClassification, ViTImageProcessor
from kakao_models.inference import stream
from kakao_models.pixels.images import ImageError

TEXTS = [
    "a cat",
    "this is a photo of a small red bird in the big green tree",
    "",
    "a cat",
    "the sea with a house",
    "zebra " * 100,
]


@pytest.fixture(scope="module")
def embedder(align) -> Embedder:
    return Embedder(align, batch_size=3)


@pytest.fixture(scope="module")
def expected(align, photos) -> np.ndarray:
    """Image features of the model itself, one image at a time."""
    model, processor = AlignModel.from_pretrained(align), AlignProcessor.from_pretrained(align)
    with torch.no_grad():
        rows = [
            model.get_image_features(**processor(images=Image.open(path), return_tensors="pt")).pooler_output
            for path in photos
        ]
    return torch.cat(rows).numpy()


def close(a, b) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.abs(a - b).max() <= TOLERANCE["batching"]


def test_images_in_every_form_are_the_models_features(embedder, expected, photos):
    content = open(photos[0], "rb").read()
    picture = Image.open(photos[1])
    mixed = [content, picture, np.asarray(Image.open(photos[2])), photos[3]]
    assert close(embedder.images(photos), expected)
    assert close(embedder.images(mixed), expected[:4])
    assert close(embedder.images(path for path in photos), expected)
    assert close(embedder.images(photos[2]), expected[2:3])
    assert close(embedder.images(photos[0].rsplit("/", 1)[0]), expected)
    assert close(embedder.images([picture] * 8), np.repeat(expected[1:2], 8, 0))
    assert embedder.images([]).shape == (0, embedder.dim)


def test_the_order_and_number_of_rows_do_not_depend_on_the_batch_size(embedder, expected, photos):
    assert np.abs(np.diff(expected, axis=0)).max() > 100 * TOLERANCE["batching"]  # swapped rows would show
    for batch_size in (1, 2, 7, 100):
        assert close(embedder.images(photos, batch_size=batch_size), expected)


def test_a_result_of_unknown_length_grows(embedder, monkeypatch):
    batches = [
        stream.ImageBatch(np.arange(i, i + 700), np.full((700, 2), i, np.float32), []) for i in range(0, 3500, 700)
    ]
    rows = stream.collect(iter(batches), None, 2)
    assert rows.shape == (3500, 2) and (rows[:, 0] == np.arange(3500) // 700 * 700).all()


def test_normalize_scales_rows_to_one(embedder, expected, photos):
    rows = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert close(embedder.images(photos, normalize=True), rows)
    assert np.linalg.norm(embedder.texts(TEXTS, normalize=True), axis=1) == pytest.approx(1, abs=1e-6)


def test_an_unreadable_image_is_a_row_of_nan_and_named(embedder, expected, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not a jpeg")
    sources = [photos[0], broken, photos[1], b"nothing", tmp_path / "absent.png"]
    with pytest.warns(UserWarning, match=r"(?s)3 of 5 .*broken\.jpg.*image 3 \(bytes\).*absent\.png"):
        rows = embedder.images(sources)
    assert close(rows[[0, 2]], expected[:2]) and np.isnan(rows[[1, 3, 4]]).all()
    assert [failure.index for failure in embedder.failures] == [1, 3, 4]
    assert embedder.failures[0].source == str(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(embedder.images(sources, on_error="ignore")[1]).all()
        embedder.images(photos)
    assert embedder.failures == []
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        embedder.images(sources, on_error="raise")
    with pytest.raises(ValueError, match="on_error"):
        embedder.images(sources, on_error="stop")


def test_failures_are_those_of_a_threads_own_run(embedder, photos):
    embedder.images([b"no picture", photos[0]], on_error="ignore")
    others = []
    thread = threading.Thread(target=lambda: others.append((embedder.images([photos[0]]), list(embedder.failures))))
    thread.start()
    thread.join()
    assert others[0][1] == [] and [failure.index for failure in embedder.failures] == [0]


def test_a_generator_is_read_only_a_little_ahead(embedder, photos):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield photos[taken % len(photos)]

    before = threading.active_count()
    batches = embedder.iter_images(endless(), batch_size=2)
    for count in range(1, 4):
        assert len(next(batches).indices) == 2
        assert taken <= 2 * count + 4
    batches.close()
    assert threading.active_count() == before


def test_a_picture_given_several_times_is_not_decoded_by_several_threads():
    seen = []
    picture = tiny.picture(0)

    def prepare(source):
        seen.append(source)
        return np.asarray(source, np.float32)

    options = {"batch_size": 4, "num_workers": 4, "stop_at_failure": True}
    batches = list(stream.stream_batches([picture] * 6, prepare, **options))
    assert len(seen) == 1 and [len(batch.indices) for batch in batches] == [4, 2]
    assert all((row == np.asarray(picture)).all() for batch in batches for row in batch.values)


def test_a_refilled_buffer_is_not_mixed_up(embedder, expected, photos):
    def frames():
        buffer = np.empty((48, 60, 3), np.uint8)
        for path in photos:
            buffer[:] = np.asarray(Image.open(path))
            yield buffer

    assert close(embedder.images(frames()), expected)


def test_options_reach_load_image(align, photos):
    small = Embedder(align, image_options={"max_pixels": 1000})
    with pytest.raises(ImageError, match="max_pixels"):
        small.images(photos[0], on_error="raise")


def test_large_jpegs_are_decoded_at_reduced_size_only_where_that_is_asked_for(embedder, align):
    file = io.BytesIO()
    tiny.picture(3, 1600, 1200).save(file, "JPEG", quality=95)
    sources = [file.getvalue(), Image.open(io.BytesIO(file.getvalue())), file]
    exact = embedder.images(sources)
    assert np.array_equal(exact, exact[[0, 0, 0]])
    assert np.array_equal(
        embedder.image_processor(sources[:1])["pixel_values"], embedder.image_processor(sources[1:2])["pixel_values"]
    )
    decoded = []

    def processor(images, **options):
        decoded.append(images.size)
        return embedder.image_processor(images, **options)

    processor.decode_size = embedder.image_processor.decode_size
    rows = Embedder(align, image_processor=processor, fast_images=True).images(sources[:2])
    assert min(decoded)[0] < 400 and max(decoded) == (1600, 1200)
    assert 0 < np.abs(rows[0] - rows[1]).max() < 0.05 * np.abs(rows).max()


def test_texts_equal_the_model_padded_to_64(embedder, align):
    tokens = tiny.tokenizer()(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = AlignModel.from_pretrained(align).get_text_features(**tokens).pooler_output.numpy()
    assert close(embedder.texts(TEXTS), features)
    assert close(embedder.texts(iter(TEXTS), batch_size=1), features)
    assert close(embedder.texts(TEXTS[1]), features[1:2])
    assert embedder.texts([]).shape == (0, embedder.dim)


def test_texts_are_sorted_by_length_padded_little_and_encoded_once(embedder, monkeypatch):
    seen = []
    run = embedder.engine.texts
    monkeypatch.setattr(embedder.engine, "texts", lambda ids, mask: seen.append(mask) or run(ids, mask))
    texts = [" ".join(["cat"] * length) for length in (50, 1, 30, 2, 48, 1, 3, 90)]
    embedder.texts(texts, batch_size=2)
    assert sum(len(mask) for mask in seen) == 7  # the second "cat" is the first
    assert max(mask.shape[1] for mask in seen) == 64
    assert all(mask.size <= 2 * 64 for mask in seen)
    assert sum(mask.size for mask in seen) < 64 * 7 / 1.5
    assert all((mask.sum(1) > 0).all() and mask.sum(1).max() == mask.shape[1] for mask in seen)


def test_counts_are_the_tokens_that_the_model_reads(embedder):
    rows, counts = embedder.texts_and_counts(TEXTS)
    tokens = tiny.tokenizer()(TEXTS, max_length=64, truncation=True)["input_ids"]
    assert counts.tolist() == list(map(len, tokens)) and counts[-1] == 64 and counts[2] == 2  # [CLS] [SEP]
    assert np.array_equal(rows, embedder.texts(TEXTS))


def test_texts_must_be_strings(embedder, vit):
    with pytest.raises(ValueError, match=r"texts\[1\].*int"):
        embedder.texts(["cat", 3])
    with pytest.raises(ValueError, match="has no text tower"):
        Embedder(vit).texts("a cat")


def test_similarity_and_logits_are_the_models(embedder, align, photos):
    processor, model = AlignProcessor.from_pretrained(align), AlignModel.from_pretrained(align)
    batch = processor(images=[Image.open(path) for path in photos], text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    images, texts = embedder.images(photos), embedder.texts(TEXTS)
    # the temperature, 0.01, magnifies differences of cosines a hundredfold
    assert np.abs(embedder.logits(images, texts) - output.logits_per_image.numpy()).max() < 100 * TOLERANCE["batching"]
    cosines = (output.image_embeds @ output.text_embeds.T).numpy()
    assert np.abs(embedder.similarity(images, texts) - cosines).max() < TOLERANCE["batching"]


def test_a_loaded_model_is_used_as_it_is(align, photos, expected):
    model = AlignModel.from_pretrained(align)
    model.train()
    model.text_model.eval()
    embedder = Embedder(model, processor=AlignProcessor.from_pretrained(align))
    assert close(embedder.images(photos), expected)  # in evaluation mode, and then back
    assert model.training and model.vision_model.training and not model.text_model.training
    assert close(Embedder(model).images(photos), expected)  # its folder gives the processor
    half = Embedder(align, dtype="bfloat16")
    rows = half.images(photos)
    assert half.engine.choices["image"].dtype == "bfloat16" and rows.dtype == np.float32
    assert 0 < np.abs(rows - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("representation_size", [None, 24])
def test_vit_gives_pre_logits_or_class_token_and_class_logits(tmp_path, photos, representation_size):
    folder = tiny.vit_folder(tmp_path, representation_size=representation_size)
    model, processor = ViTForImageClassification.from_pretrained(folder), ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        inputs = processor([Image.open(path) for path in photos], return_tensors="pt")
        body, logits = model.vit(**inputs), model(**inputs).logits.numpy()
    features = body.pooler_output if representation_size else body.last_hidden_state[:, 0]
    embedder = Embedder(folder, batch_size=2)
    assert embedder.dim == features.shape[1]
    assert close(embedder.images(photos), features.numpy())
    assert close(embedder.class_logits(photos), logits)
    assert close(np.concatenate([b.values for b in embedder.iter_images(photos, output="hidden")]), body[0].numpy())


def test_wrong_arguments_are_named(embedder, align, photos, tmp_path):
    with pytest.raises(ValueError, match="no classifier"):
        embedder.class_logits(photos)
    with pytest.raises(ValueError, match="'float31'"):
        Embedder(align, dtype="float31")
    with pytest.raises(ValueError, match="device 'gpu'"):
        Embedder(align, device="gpu")
    with pytest.raises(ValueError, match="batch_size"):
        Embedder(align, batch_size=0)
    with pytest.raises(ValueError, match="this folder has no images"):
        embedder.images(tmp_path)
    with pytest.raises(OSError, match=r"no config\.json"):
        Embedder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="'clip'"):
        Embedder(tmp_path)


def test_frames_that_a_generator_replaces_are_not_mixed_up(embedder, expected, photos, tmp_path):
    pictures = [Image.open(path).convert("RGB") for path in photos]
    pictures[0].save(tmp_path / "frames.png", save_all=True, append_images=pictures[1:])
    animation = Image.open(tmp_path / "frames.png")
    assert close(embedder.images(ImageSequence.Iterator(animation)), expected)  # one object, again and again

    def painted():
        canvas = Image.new("RGB", pictures[0].size)
        for picture in pictures:
            canvas.paste(picture)
            yield canvas

    def refilled():
        buffer = torch.empty(48, 60, 3, dtype=torch.uint8)
        for picture in pictures:
            buffer[:] = torch.from_numpy(np.array(picture))
            yield buffer

    assert close(embedder.images(painted()), expected)
    assert close(embedder.images(refilled()), expected)


def test_a_text_that_is_no_unicode_is_named(embedder):
    with pytest.raises(ValueError, match=r"texts\[1\].*not valid Unicode"):
        embedder.texts(["cat", "caf\udce9"])


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_a_clear_error(align, device):
    with pytest.raises(ValueError, match=f"device '{device}' can't be used") as error:
        Embedder(align, device=device)
    offered = str(error.value).rpartition("write ")[2]
    assert "'cpu'" in offered and ("cuda" in offered) == torch.cuda.is_available()


def test_fast_images_differ_by_rounding(align, vit, photos, tmp_path):
    paths = [tmp_path / f"{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        tiny.picture(seed, 150, 112).save(path, quality=90)
    for folder in (align, vit):
        exact, fast = Embedder(folder).images(paths), Embedder(folder, fast_images=True).images(paths)
        assert 0 < np.abs(fast - exact).max() < 0.01 * np.abs(exact).max()
    original = AlignProcessor.from_pretrained(align, preprocessing="tf")
    with pytest.raises(ValueError, match=r"fast_images=True changes nothing .* preprocessing needs every pixel"):
        Embedder(align, processor=original, fast_images=True)


def test_a_processor_that_is_changed_later_counts(align, photos):
    embedder = Embedder(align)
    embedder.image_processor.rescale_factor /= 2
    wanted = Embedder(
        AlignModel.from_pretrained(align), processor=embedder.image_processor, tokenizer=embedder.tokenizer
    )
    np.testing.assert_allclose(embedder.images(photos[:2]), wanted.images(photos[:2]), atol=1e-5)
    assert np.abs(embedder.images(photos[:2]) - Embedder(align).images(photos[:2])).max() > 1e-3


def test_one_image_that_fails_or_all_raise_and_a_warning_points_here(embedder, photos, tmp_path):
    absent = tmp_path / "absent.png"
    for run in (embedder.images, lambda source: list(embedder.iter_images(source))):
        for source in (absent, str(absent), b"nothing", io.BytesIO(b"nothing"), {"bytes": b"nothing"}):
            with pytest.raises(ImageError):
                run(source)
        with pytest.raises(ImageError, match=r"^all 2 images: 2 of 2 images could not be read:\n  .*absent\.png"):
            run([absent, b"nothing"])
        with pytest.raises(ImageError, match=r"absent\.png: no such file"):
            run([absent])
        with pytest.warns(UserWarning, match="1 of 2 images") as warned:
            run([absent, photos[0]])
        assert warned[0].filename == __file__
    assert np.isnan(embedder.images([absent], on_error="ignore")).all()


def test_file_objects_patterns_and_columns(embedder, expected, photos):
    folder = photos[0].rpartition("/")[0]

    def closed_soon():
        for path in photos:
            with open(path, "rb") as file:
                yield file

    again = io.BytesIO(open(photos[1], "rb").read())
    assert close(embedder.images(open(photos[0], "rb")), expected[:1])
    assert close(embedder.images(closed_soon()), expected)
    assert close(embedder.images([again, again, {"bytes": again.getvalue()}]), np.repeat(expected[1:2], 3, 0))
    assert close(embedder.images(f"{folder}/00[0-2].p*"), expected[:3])
    assert close(embedder.images(np.array(photos[:2])), expected[:2])
    with pytest.raises(ValueError, match="no file matches this pattern"):
        embedder.images(f"{folder}/*.gif")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": photos[:2]})
    assert close(embedder.images(table["path"]), expected[:2])
    with pytest.raises(ImageError, match="give one of its columns"):
        embedder.images(table)


def test_floats_keep_their_scale_where_the_processor_does_not_rescale(align, photos):
    image = np.asarray(Image.open(photos[0]))
    floats, options = np.float32(image) / 255, {"do_rescale": False}
    right = Embedder(align).images(image)
    parts = AlignProcessor.from_pretrained(align)
    parts.image_processor.rescale_factor, parts.image_processor.rescale_offset = 1 / 255, False
    exact = Embedder(align, processor=parts).images(image)
    for embedder in (Embedder(align, processor=parts), Embedder(AlignModel.from_pretrained(align), processor=parts)):
        assert close(embedder.images(floats), exact)
        (batch,) = embedder.iter_images(floats, processor_options=options)
        assert close(batch.values, exact)
    parts.image_processor.do_rescale = False
    assert close(Embedder(align, processor=parts).images(floats), exact)
    assert close(Embedder(align).images(floats), right)  # a checkpoint's own rescaling is of bytes
