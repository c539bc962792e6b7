"""Git LFS pointers in the place of files, wherever files are read: what they are is said, and what to do."""

import shutil
from pathlib import Path

import goldens
import numpy as np
import pytest
import tiny

from kakao_models import (
    AlignImageProcessor,
    AlignModel,
    AlignProcessor,
    Embedder,
    FlaxAlignModel,
    TFAlignModel,
    pipeline,
)
from kakao_models.align.towers import read_published
from kakao_models.conversion.info import describe_checkpoint
from kakao_models.conversion.read import read_source
from kakao_models.conversion.report import verify_report
from kakao_models.files.pointers import PointerError, refuse_pointers
from kakao_models.pixels.images import ImageError, load_image
from kakao_models.samples.sources import open_source

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
SAID = "is a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository, or download it again"


def cloned(folder: str, to: Path, *names: str) -> Path:
    """A copy of a folder in which these files are pointers."""
    shutil.copytree(folder, to)
    for name in names:
        (to / name).write_bytes(POINTER)
    return to


def refused(read, *arguments, name: str) -> None:
    with pytest.raises((OSError, ValueError)) as caught:
        read(*arguments)
    assert f"{name}: {SAID}" in str(caught.value) and "\n" not in str(caught.value)


READERS = {
    "torch": AlignModel.from_pretrained,
    "tf": TFAlignModel.from_pretrained,
    "flax": FlaxAlignModel.from_pretrained,
    "embedder": Embedder,
    "embedder in flax": lambda name: Embedder(name, framework="flax"),
    "pipeline": lambda name: pipeline("zero-shot-image-classification", name),
    "info": describe_checkpoint,
    "convert": read_source,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_of_a_checkpoint(reader, name, align, tmp_path):
    folder = cloned(align, tmp_path / "clone", name)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    refused(READERS[reader], str(folder), name=folder / name)


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack"])
@pytest.mark.parametrize("reader", ["info", "convert"])
def test_of_older_formats(reader, name, align, tmp_path):
    folder = cloned(align, tmp_path / "clone", name)
    (folder / "model.safetensors").unlink()
    refused(READERS[reader], folder, name=folder / name)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "preprocessor_config.json"])
def test_of_processors(name, align, tmp_path):
    folder = cloned(align, tmp_path / "clone", name)
    refused(AlignProcessor.from_pretrained, folder, name=folder / name)
    if name != "vocab.txt":  # not read where there is a tokenizer.json
        refused(lambda: Embedder(folder).texts(["a cat"]), name=folder / name)
    if name == "preprocessor_config.json":
        refused(AlignImageProcessor.from_pretrained, folder, name=folder / name)
    else:
        assert AlignImageProcessor.from_pretrained(folder).size["height"] == 40


def test_of_a_converted_folder_that_is_verified(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    (tmp_path / "conversion_report.json").write_text('{"files": {"model.safetensors": ""}, "tensors": {}}')
    assert verify_report(tmp_path)[0] == f"model.safetensors: {SAID}"


@pytest.mark.parametrize("name", ["model-weights.index", "model-weights.data-00000-of-00001", "checkpoint"])
def test_of_tensorflow_checkpoints(name, tmp_path):
    folder = cloned(goldens.FOLDER / "checkpoints" / "align_nano", tmp_path / "clone", name)
    refused(read_source, folder, name=folder / name)


@pytest.mark.parametrize("name", ["efficientnet.h5", "efficientnet.pth", "vit.npz"])
def test_of_files_of_others(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    refused(read_source, tmp_path / name, name=tmp_path / name)
    refused(read_published, tmp_path / name, name=tmp_path / name)


def test_of_images(tmp_path, command):
    tiny.picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(POINTER)
    with pytest.raises(ImageError, match="b.png: is a Git LFS pointer"):
        load_image(tmp_path / "b.png")
    with pytest.raises(ImageError, match="<.* bytes>: is a Git LFS pointer"):
        load_image(POINTER)
    code, _, err = command("embed", tmp_path, "-o", tmp_path / "out.npy", "--model", "align-small")
    assert code == 1 and f"failed: {tmp_path / 'b.png'}: {SAID}" in err
    assert np.load(tmp_path / "out.npy").shape == (1, Embedder("align-small").dim)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.tar", "a.tfrecord"])
def test_of_tables_and_shards(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    refused(open_source, str(tmp_path / name), name=tmp_path / name)
    if name != "a.csv":
        refused(open_source, str(tmp_path), name=tmp_path / name)


def test_of_labels_and_captions(tmp_path, command):
    """Its three lines would be three labels."""
    tiny.picture(0).save(tmp_path / "a.png")
    (tmp_path / "labels.txt").write_bytes(POINTER)
    arguments = ["classify", tmp_path / "a.png", "--labels-file", tmp_path / "labels.txt", "--model", "align-small"]
    assert command(*arguments) == (2, "", f"kakao-models: {tmp_path / 'labels.txt'}: {SAID}\n")


def test_what_is_no_pointer(tmp_path):
    for content in (b"", POINTER[:20], b"x" + POINTER, POINTER + b"x" * 2000):
        (tmp_path / "file").write_bytes(content)
        refuse_pointers([tmp_path / "file"])
    refuse_pointers([tmp_path, tmp_path / "absent", "a\0b"])
    (tmp_path / "pointer").write_bytes(POINTER)
    with pytest.raises(PointerError):
        refuse_pointers([tmp_path / "absent", tmp_path / "pointer"])
