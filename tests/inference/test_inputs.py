"""Which image processor and tokenizer an `Embedder` has, and when transformers is imported for them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from kakao_models import AlignImageProcessor, AlignModel, AlignProcessor, Embedder, ViTImageProcessor
from kakao_models.inference.inputs import ModelInputs

TEXTS = ["a cat", "zebra " * 100]


def test_light_parts_run_and_complete_ones_replace_them(align):
    inputs = ModelInputs("align", align, {})
    assert inputs.preprocessing is not None and not callable(inputs.preprocessing)
    ids = inputs.token_ids(TEXTS, 64)
    pixels = inputs.preprocessing.pixel_values(tiny.picture(0))
    assert isinstance(inputs.image_processor, AlignImageProcessor) and inputs.image_processor is inputs.preprocessing
    assert inputs.tokenizer is inputs.tokenizer and inputs.token_ids(TEXTS, 64) == ids
    assert np.array_equal(inputs.preprocessing.pixel_values(tiny.picture(0)), pixels)
    inputs.image_processor.do_rescale = False  # what is changed later counts
    assert np.abs(inputs.preprocessing.pixel_values(tiny.picture(0)) - pixels).max() > 1
    images_only = ModelInputs("vit", "align-small", {}, image_processor=ViTImageProcessor())
    assert images_only.tokenizer is None
    with pytest.raises(ValueError, match="the model has no text tower, so it has no tokenizer"):
        images_only.tokenizer = inputs.tokenizer


@pytest.mark.parametrize("complete", [False, True])
def test_of_a_long_text_only_the_start_is_tokenized(align, complete):
    inputs = ModelInputs("align", align, {})
    tokenizer = inputs.tokenizer if complete else inputs._text_part().current
    random, pieces = (
        np.random.default_rng(0),
        ["cat", "a", "  ", "\n", "\u200b", "東", "[SEP]", "é", "x" * 120, "\t", "dog ", "\x1f"],
    )
    texts = ["cat " * 5000, "x" * 20_000, "東京" * 9000, " " * 20_000 + "cat", "a"]
    texts += ["".join(random.choice(pieces, 1500)) for _ in range(50)]
    unbroken = ["cat", "東", "京", "。", "[SEP]", "[", "é", "x" * 120, "、", "!"]
    texts += ["".join(random.choice(unbroken, 1500)) for _ in range(50)]
    expected = [tokenizer([text], truncation=True, max_length=64)["input_ids"][0] for text in texts]
    assert inputs.token_ids(texts, 64) == expected
    seen, part = [], inputs._text_part()
    part.current = type(
        "BertTokenizer", (), {"__call__": lambda self, texts, **o: seen.extend(texts) or tokenizer(texts, **o)}
    )()
    inputs.token_ids([texts[0], "，".join(["東京"] * 9000)], 64)
    assert [len(text) for text in seen] == [1023, 1023]
    part.current.tokenize_chinese_chars = True
    inputs.token_ids(["東京" * 9000], 64)
    assert len(seen[-1]) == 1024


def test_a_part_by_the_name_of_another_checkpoint(align, vit, tmp_path):
    other = tmp_path / "other"
    AlignProcessor(AlignImageProcessor(size=36, crop_size=32), tiny.tokenizer()).save_pretrained(other)
    assert Embedder(align, processor=str(other)).image_processor.size["height"] == 36
    assert Embedder(align, image_processor=other).image_processor.size["height"] == 36
    assert Embedder(align).image_processor.size["height"] == 40
    parts = Embedder(align, processor=other, image_processor=align, tokenizer=str(other))
    assert parts.image_processor.size["height"] == 40
    alone = tmp_path / "alone"  # an image processor without a tokenizer beside it
    AlignImageProcessor(size=38, crop_size=32).save_pretrained(alone)
    assert Embedder(align, image_processor=alone).image_processor.size["height"] == 38
    with pytest.raises(OSError, match="nowhere"):
        Embedder(align, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(TypeError, match="tokenizer: got 1, expected a callable, or the name"):
        Embedder(align, tokenizer=1)


def test_a_model_without_a_checkpoint_needs_its_parts(align):
    model = tiny.fill(AlignModel(tiny.align_config()))
    with pytest.raises(ValueError, match="no image_processor: .* that has one. Pass image_processor"):
        Embedder(model)
    with pytest.raises(ValueError, match="no tokenizer: .*Pass tokenizer= or processor="):
        Embedder(model, image_processor=AlignImageProcessor())
    assert Embedder(model, processor=align).texts(TEXTS).shape == (2, 16)


def test_a_class_that_prepares_images_in_its_own_way_is_called(align):
    class Black(AlignImageProcessor):
        def preprocess(self, images, **options):
            batch = super().preprocess(images, **options)
            return batch | {"pixel_values": 0 * batch["pixel_values"]}

    class Named(AlignImageProcessor):
        pass

    sizes = {"size": 40, "crop_size": 32}
    black = Embedder(align, image_processor=Black(**sizes))
    named = Embedder(align, image_processor=Named(**sizes))
    assert black.inputs.preprocessing is None and named.inputs.preprocessing is not None
    rows = black.images([tiny.picture(0), tiny.picture(1)])
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(*named.images([tiny.picture(0), tiny.picture(1)]))


def test_unusual_files_are_read_by_the_complete_classes(align, tmp_path):
    shutil.copytree(align, tmp_path / "model")
    Path(tmp_path / "model/tokenizer.json").unlink()
    embedder = Embedder(tmp_path / "model")
    assert type(embedder.inputs._text.current).__name__ != "Tokenizer"


def test_serving_texts_and_images_imports_no_transformers(align):
    code = f"""
import asyncio, io, sys
from PIL import Image
from kakao_models import Embedder
from kakao_models.serve.app import create_app
from kakao_models.serve.schemas import ClassifyRequest, ContentPart, EmbeddingsRequest
from kakao_models.serve.service import Limits, Service
import base64

file = io.BytesIO()
Image.new("RGB", (40, 40), "red").save(file, "PNG")
image = ContentPart(image=base64.b64encode(file.getvalue()).decode())

async def serve():
    service = Service(Embedder({align!r}), "tiny", Limits())
    await service.warm_up()
    rows, tokens = await service.embed(EmbeddingsRequest(input=["a cat", "a cat", image]))
    scores, _ = await service.classify(ClassifyRequest(input=image, labels=["cat", "dog"]))
    print(rows.shape, tokens, len(scores[0]), "transformers" in sys.modules)

asyncio.run(serve())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 16) 8 2 False", done.stderr[-2000:]


def test_a_tokenizer_of_another_model_is_named(align):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"new{number}" for number in range(1000)])
    with pytest.raises(
        ValueError, match=r"the tokenizer gives 'new999' the id \d+, but .* has a vocabulary of \d+: the tokenizer"
    ):
        Embedder(align, tokenizer=tokenizer).texts(["a cat", "new999"])


def test_a_hostile_pickle_is_one_error(align, tmp_path):
    folder = shutil.copytree(align, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for content in (b"cos\nsystem\n(S'true'\ntR.", b"PK\x03\x04", b"", b"\x80\x02}q\x00."):
        (folder / "pytorch_model.bin").write_bytes(content)
        for load in (Embedder, AlignModel.from_pretrained):
            with pytest.raises(OSError, match=r"pytorch_model\.bin"):
                load(folder)
