"""A kind of model is known wherever models are read, run and converted: each place that does not know one fails here."""

import json

import numpy as np
import pytest
import tiny
from tolerances import TOLERANCE

import kakao_models
from kakao_models import Embedder
from kakao_models.checkpoint.kinds import MODEL_KINDS, kind_of, model_class_name
from kakao_models.conversion.convert import convert
from kakao_models.conversion.info import describe_checkpoint


@pytest.fixture(params=MODEL_KINDS)
def folder(request, tmp_path):
    return getattr(tiny, f"{request.param}_folder")(tmp_path / request.param)


@pytest.mark.parametrize("model_type", MODEL_KINDS)
def test_the_names_are_public(model_type):
    kind = MODEL_KINDS[model_type]
    assert getattr(kakao_models, kind.config).model_type == model_type
    for name in (
        kind.processor,
        *kind.models,
        *(f"{prefix}{name}" for prefix in ("TF", "Flax") for name in kind.models),
    ):
        assert name in kakao_models.__all__


def test_info_knows_it(folder):
    assert describe_checkpoint(folder)["towers"]


def test_it_runs_fast_as_it_runs_plainly(folder):
    kind, pictures = kind_of(Embedder(folder).config.model_type, folder), [tiny.picture(seed) for seed in range(3)]
    with open(f"{folder}/config.json") as file:
        name = model_class_name(json.load(file), folder)
    model, processor = (getattr(kakao_models, name).from_pretrained(folder) for name in (name, kind.processor))
    fast, plain = (embedder.images(pictures) for embedder in (Embedder(folder), Embedder(model, processor=processor)))
    assert np.abs(fast - plain).max() <= TOLERANCE["batching"] * max(1, np.abs(plain).max())


def test_its_folder_is_converted_and_verified(folder, tmp_path):
    assert convert(folder, tmp_path / "out")["verification"]


def test_the_class_is_the_one_that_config_json_names():
    named = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    assert model_class_name(named, "x") == "ViTForImageClassification"
    assert model_class_name({"model_type": "vit"}, "x") == "ViTModel"
    assert model_class_name({"model_type": "vit", "architectures": ["Other"]}, "x") == "ViTModel"
    assert model_class_name({"model_type": "align_vision_model"}, "x") == "AlignVisionModel"
    with pytest.raises(
        ValueError, match="x: model_type is 'clip', expected one of 'align', 'align_vision_model', 'vit'"
    ):
        model_class_name({"model_type": "clip"}, "x")
