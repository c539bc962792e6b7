"""examples/train_align_tiny.py: its targets by hand, and all of its stages on a few made-up pictures."""

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

from kakao_models import AlignImageProcessor, Embedder
from kakao_models.samples.sources import open_source
from kakao_models.train.augment import RandomCrop

SCRIPT = Path(__file__).parents[2] / "examples/train_align_tiny.py"
CAPTIONS = [
    ["a dog runs", "the dog plays", "a puppy on grass"],
    ["two dogs run", "the dogs play on the grass", "a man with a dog"],
    ["a man on a boat", "the man in water", "a sailing man"],
    ["a red tree", "the tree on grass", "trees"],
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_align_tiny", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their fields
    spec.loader.exec_module(module)
    module.WORDS, module.MIN_PHOTOS, module.VOCABULARY = 3, 2, 120
    yield module
    del sys.modules[spec.name]


def png(seed: int) -> bytes:
    out = io.BytesIO()
    tiny.picture(seed).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("data")
    captioned, labelled = str(folder / "captioned.parquet"), str(folder / "labelled.parquet")
    pq.write_table(pa.table({"image": [png(n) for n in range(12)], "captions": CAPTIONS * 3}), captioned)
    names = ["cat", "dog", "ship"]
    labels = [n % 3 for n in range(12)]
    table = {"image": [png(n) for n in range(12)], "label": labels, "label_name": [names[n] for n in labels]}
    pq.write_table(pa.table(table), labelled)
    return captioned, labelled


def test_targets_are_those_described(example, data):
    texts = example.read_texts([data[0]], [data[1]])
    assert texts.classes == ["cat", "dog", "ship"] and {"dog", "man", "grass"} <= set(texts.words)
    assert texts.mentions[:4].tolist() == [
        [False, True, False],
        [False, True, False],
        [False, False, True],
        [False] * 3,
    ]
    assert texts.sure.nonzero().tolist() == [[0, 1], [1, 1], [4, 1], [5, 1], [8, 1], [9, 1]]
    prepare = example.Targets(RandomCrop(36, 32), AlignImageProcessor(), tiny.tokenizer(), texts=texts)
    source = open_source(list(data))
    samples = [
        source.read(0, 0),
        source.read(1, 2),
        source.read(0, 2),
    ]  # a dog's captions, a ship's label, a man's captions
    made = None
    for seed in range(20):  # until one is not mixed
        items = [prepare(sample, np.random.default_rng([seed, k])) for k, sample in enumerate(samples)]
        batch = prepare.collate(items)
        if torch.equal(batch["pixel_values"][2], items[1]["pixel_values"]):
            made = batch
            break
    assert [key.split(":")[0] for key in made["keys"]] == ["captioned.parquet"] * 2 + ["labelled.parquet"]
    assert (
        len(made["input_ids"]) == 4 and len(made["prompt_input_ids"]) == 3 + 3
    )  # two captions each; classes and words
    # columns: both first captions, both second ones, then cat, dog, ship
    targets, alike = made["targets"], made["alike"]
    torch.testing.assert_close(alike.sum(1), torch.ones(2))
    assert alike[0, 0] > 0.7 and 0 < alike[0, 1] < 0.3
    torch.testing.assert_close(targets[:2, :4], torch.cat([alike, alike], 1) / 2)
    assert targets[:, 4:].tolist() == [[0, 0.25, 0], [0, 0, 0], [0, 0, 1]] and targets[2, :4].sum() == 0
    assert made["ignored"][:2, 4:].tolist() == [[False, True, False], [False, False, True]]  # a boat is named
    assert made["ignored"][2, :4].tolist() == [False, True, False, True]  # its captions are no negatives of the ship
    assert (made["word_targets"][2] == 0).all()


def test_all_stages_end_in_a_model_that_embeds(example, data, tmp_path, monkeypatch):
    stages = {name: [*changes, "steps=2", "warmup=0"] for name, changes in example.STAGES.items()}
    monkeypatch.setattr(example, "STAGES", stages)
    settings = ["batch_size=8", "log_every=1", "trainer={use_cpu: true, report_to: []}"]
    arguments = ["--captioned", data[0], "--labelled", data[1], "--output", str(tmp_path), "--dev", data[0]]
    monkeypatch.setattr(sys, "argv", ["train_align_tiny.py", *arguments, *settings])
    example.main()
    folder = tmp_path / "full"
    assert load_file(folder / "model.safetensors")["text_projection.weight"].dtype == torch.float16
    assert Embedder(folder).texts(["a dog"]).shape == (1, 256)
    start = load_file(tmp_path / "start" / "model.safetensors")
    value = start["text_model.encoder.layer.0.attention.self.value.weight"]
    torch.testing.assert_close(value @ value.T, 2.25 * torch.eye(len(value)), rtol=0, atol=1e-4)
    texts = load_file(tmp_path / "texts" / "model.safetensors")
    assert all(torch.equal(x, start[name]) == name.startswith("vision_model") for name, x in texts.items()
               if "pooler" not in name and "position_ids" not in name and name != "temperature")  # fmt: skip
