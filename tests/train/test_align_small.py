"""What examples/align_small_data.py writes for examples/align_small.yaml, from a few made-up pictures."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from kakao_models import AlignModel, AlignProcessor
from kakao_models.train.distill import read_embeddings
from kakao_models.train.recipe import read_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("align_small_data", EXAMPLES / "align_small_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(seed: int) -> bytes:
    out = io.BytesIO()
    tiny.picture(seed).save(out, "PNG")
    return out.getvalue()


def test_captions_of_a_class(script):
    prompts = script.prompts("ant")
    assert prompts[:2] == ["ant", "an ant"] and {"a photo of an ant.", "a photo of ants."} <= set(prompts)
    assert len(script.prompts("cat")) == 2 * len(prompts)  # and of kittens
    assert "glasses" in script.prompts("glasses") and "glassess" not in script.prompts("glasses")


def test_the_word_that_most_captions_have(script):
    captions = ["A dog runs.", "The dog plays", "a puppy, on grass", "a dog on the grass", "grass"]
    assert script.with_keyword(captions) == [*captions, "dog"]  # of two as frequent, the first of the alphabet
    assert script.with_keyword(captions[:3]) == captions[:3]


def test_every_seventh_of_a_class_is_held_out(script):
    names = ["a"] * 15 + ["b"] * 6
    kept, held_out = script.split(pa.table({"label_name": names, "row": list(range(21))}))
    assert held_out["row"].to_pylist() == [6, 13] and len(kept) == 19


def test_its_tables_fit_together(script, tmp_path, monkeypatch):
    images = [png(seed) for seed in range(8)]
    captions = [["a dog runs", "the dog plays", "a dog on grass"]] * 8
    pq.write_table(pa.table({"image": images, "captions": captions}), tmp_path / "captioned.parquet")
    for name in ("caltech", "cifar"):
        pq.write_table(pa.table({"image": images, "label_name": ["ant"] * 8}), tmp_path / f"{name}.parquet")
    (tmp_path / "classes.txt").write_text("tench\nlynx\n")
    tokenizer = tiny.tokenizer()
    config = dict(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(vocab_size=len(tokenizer), **config)).save_pretrained(tmp_path / "minilm")
    tokenizer.save_pretrained(tmp_path / "minilm")

    class Classifier:
        def __init__(self, path, tokenizer, engine):
            self.number = int(path)

        def logits(self, table):
            return np.full((len(table), 2), [self.number, 0.0])

    monkeypatch.setattr(script, "Classifier", Classifier)
    output = tmp_path / "out"
    arguments = {
        "flickr8k": "captioned.parquet", "caltech101": "caltech.parquet", "cifar10": "cifar.parquet",
        "minilm": "minilm", "classes": "classes.txt", "output": "out",
    }  # fmt: skip
    options = [text for name, path in arguments.items() for text in (f"--{name}", str(tmp_path / path))]
    monkeypatch.setattr(sys, "argv", ["align_small_data.py", *options, "--lite", "1", "3"])
    script.main()

    assert BertModel.from_pretrained(output / "minilm").config.num_hidden_layers == len(script.LAYERS)
    assert {"dog", "an ant", "a photo of a lynx."} <= set((output / "texts.txt").read_text().splitlines())
    recipe = read_recipe("align", str(EXAMPLES / "align_small.yaml"))
    for name, rows in (("captioned", 8), ("caltech", 7), ("cifar", 8)):
        assert len(pq.read_table(output / f"{name}.parquet")) == rows
        sentences = read_embeddings(output / "teacher" / f"sentences-{name}.parquet")
        assert list(sentences) == [str(row) for row in range(rows)] and sentences["0"].shape == (16,)
        if name != "cifar":
            classes = read_embeddings(output / "teacher" / f"classes-{name}.parquet")
            np.testing.assert_allclose(classes["6"], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))], rtol=1e-6)
    named = {*recipe.data, *recipe.distill["sentences"]["targets"], *recipe.distill["names"]["targets"]} - {None}
    assert all((output / path.removeprefix("align-small-data/")).is_file() for path in named)
    assert len(recipe.data) == len(recipe.distill["sentences"]["targets"]) == len(recipe.distill["names"]["targets"])


def test_the_last_matrix_of_features_gives_the_embeddings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    finish = importlib.import_module("align_small_finish")
    stages = dict(
        in_channels=[32, 16, 24], out_channels=[16, 24, 16], num_block_repeats=[1, 1, 1], width_coefficient=1.0
    )
    vision = tiny.align_config().vision_config.to_dict() | stages
    align = tiny.align_folder(tmp_path / "align", config=tiny.align_config(vision_config=vision))
    model = AlignModel.from_pretrained(align).eval()
    pictures = [tiny.picture(seed) for seed in range(3)]
    features = finish.feature_embedder(model, AlignProcessor.from_pretrained(align), None).images(pictures)
    matrix, bias = finish.last_matrix(model)
    assert features.shape == (3, matrix.shape[1])
    own = model.vision_model(
        AlignProcessor.from_pretrained(align)(images=pictures, return_tensors="pt")["pixel_values"]
    )
    np.testing.assert_allclose(
        features @ matrix.numpy().T + bias.numpy(), own.pooler_output.detach(), rtol=1e-4, atol=1e-5
    )
    half = finish.averaged(Path(align), Path(align), 0.5)
    assert all(torch.equal(half[key], value) for key, value in load_file(f"{align}/model.safetensors").items())
