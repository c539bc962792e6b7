"""Evaluations while a model is trained."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch

from kakao_models import ViTForImageClassification, ViTImageProcessor
from kakao_models.train.evaluations import accuracy, build_evaluations, knn


def folder_of(path: Path, classes: dict[str, int]) -> str:
    """A folder of pictures for each class, so many of each."""
    for name, count in classes.items():
        for number in range(count):
            (path / name).mkdir(parents=True, exist_ok=True)
            tiny.picture(number).save(path / name / f"{number}.png")
    return str(path)


def test_accuracy_finds_classes_by_their_names(tmp_path):
    model = tiny.fill(ViTForImageClassification(tiny.vit_config(id2label={0: "bird", 1: "cat", 2: "dog"})))
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # each picture is a dog
    data = folder_of(tmp_path / "val", {"cat": 1, "dog": 3})
    assert accuracy(data)(model, ViTImageProcessor(size=32))["top1"] == 0.75
    Path(data, "dog").rename(Path(data, "wolf"))
    with pytest.raises(ValueError, match="val has 2 classes .* but the model has 3 .* Give both the same names"):
        accuracy(data)(model, ViTImageProcessor(size=32))


def test_knn_finds_classes_by_their_names(tmp_path):
    train = folder_of(tmp_path / "train", {"bird": 1, "cat": 2})
    (test := tmp_path / "test").mkdir()
    shutil.copytree(Path(train, "cat"), test / "cat")
    tiny.picture(7).save(Path(train, "bird", "0.png"))
    model = ViTForImageClassification(tiny.vit_config())
    assert knn(str(test), train)(tiny.fill(model), ViTImageProcessor(size=32))["top1"] == 1
    with pytest.raises(ValueError, match="train has classes that test does not have: bird"):
        knn(train, str(test))


@pytest.mark.parametrize("setting", [None, ["dev.parquet"], 3])
def test_a_setting_that_is_neither_data_nor_arguments_is_refused(setting):
    with pytest.raises(ValueError, match="evaluate.retrieval: expected data, or arguments with data among them, got "):
        build_evaluations({"retrieval": setting})
