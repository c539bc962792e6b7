"""Checkpoints read without transformers: the same rows, and its errors where something is unusual."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file, save_file

from kakao_models import AlignModel, AlignProcessor, Embedder, ViTModel


def test_running_a_checkpoint_imports_no_transformers(align, photos):
    script = f"""
import sys
from kakao_models import Embedder, pipeline
pipeline("zero-shot-image-classification", {align!r})({photos[0]!r}, ["a cat", "a dog"])
print([name for name in ("transformers", "huggingface_hub", "sympy", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def copied(folder: str, place: Path, **config) -> Path:
    shutil.copytree(folder, place)
    if config:
        file = place / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return place


def test_what_users_ask_for_is_there(align, photos):
    embedder = Embedder(align)
    assert type(embedder.image_processor).__name__ == "AlignImageProcessor"
    assert type(embedder.tokenizer).__name__ == "BertTokenizer"
    assert type(embedder.config).__name__ == "AlignConfig" and type(embedder.engine.model).__name__ == "AlignModel"
    rows = embedder.images(photos)
    embedder.image_processor = AlignProcessor.from_pretrained(align).image_processor
    assert np.abs(embedder.images(photos) - rows).max() < 1e-5
    changed = next(embedder.iter_images(photos, processor_options={"resample": 0})).values
    assert np.abs(changed - rows).max() > 1e-3


def test_shards_and_half_precision_load_the_same(align, tmp_path, photos):
    wanted = Embedder(align).images(photos)
    model = AlignModel.from_pretrained(align)
    shutil.copytree(align, tmp_path / "shards")
    (tmp_path / "shards/model.safetensors").unlink()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards/model.safetensors.index.json").exists()
    np.testing.assert_allclose(Embedder(tmp_path / "shards").images(photos), wanted, rtol=0, atol=1e-6)
    half = copied(align, tmp_path / "half")
    tensors = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in load_file(half / "model.safetensors").items()
    }
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    rows = Embedder(half).images(photos)
    assert np.abs(rows - Embedder(AlignModel.from_pretrained(half, dtype="float32")).images(photos)).max() < 1e-5


def test_what_does_not_fit_is_named(align, vit, tmp_path, caplog):
    folder = copied(align, tmp_path / "missing")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("text_projection.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing text_projection\.bias"):
        Embedder(folder)
    with pytest.raises(ValueError, match="does not hold the weights of this ViTForImageClassification"):
        Embedder(copied(vit, tmp_path / "depth", num_hidden_layers=1))
    torn = copied(align, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(OSError, match="not a readable safetensors file"):
        Embedder(torn)
    assert Embedder(copied(vit, tmp_path / "misspelt", image_sise=3)).config.image_size == 32
    assert "'image_sise' of this configuration; did you mean 'image_size'?" in caplog.text


def test_a_backbone_alone_and_one_with_a_classifier_it_does_not_use(tmp_path, photos):
    folder = tiny.vit_folder(tmp_path / "whole", representation_size=24)
    wanted = Embedder(ViTModel.from_pretrained(folder), processor=Embedder(folder).image_processor).images(photos)
    ViTModel.from_pretrained(folder).save_pretrained(tmp_path / "alone")
    shutil.copy(f"{folder}/preprocessor_config.json", tmp_path / "alone")
    unused = copied(folder, tmp_path / "unused", architectures=["ViTModel"])
    for place in (tmp_path / "alone", unused):
        embedder = Embedder(place)
        assert not embedder.engine.classifies and embedder.dim == 24
        np.testing.assert_allclose(embedder.images(photos), wanted, rtol=0, atol=1e-5)
    assert Embedder(folder).engine.classifies
