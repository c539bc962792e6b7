"""Every public model class is run by the Embedder, the pipelines and the command, in its own framework."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from tolerances import TOLERANCE

import kakao_models
from kakao_models import AlignTextModel, Embedder, ViTModel, pipeline
from kakao_models.checkpoint.kinds import kind_of

FRAMEWORKS = {"TF": "tf", "Flax": "flax", "": "torch"}
LABELS = ["cat", "dog", "a car"]


def vit_backbone_folder(folder: Path) -> str:
    tiny.vit_folder(folder)
    ViTModel.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


def text_tower_folder(folder: Path) -> str:
    tiny.align_folder(folder, config=tiny.short_align_config())
    AlignTextModel.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


# class without its framework's prefix → a small checkpoint of it
FOLDERS = {
    "AlignModel": partial(tiny.align_folder, config=tiny.short_align_config()),
    "AlignVisionModel": partial(tiny.align_vision_model_folder, **tiny.FEW_BLOCKS),
    "AlignForImageClassification": partial(tiny.align_classifier_folder, **tiny.FEW_BLOCKS),
    "AlignTextModel": text_tower_folder,
    "ViTModel": vit_backbone_folder,
    "ViTForImageClassification": tiny.vit_folder,
}
MODELS = [name for name in kakao_models.__all__ if name.endswith(("Model", "ForImageClassification"))]


def split(name: str) -> tuple[str, str]:
    """The framework of a class, and its name without the framework's prefix."""
    prefix = next(prefix for prefix in FRAMEWORKS if name.startswith(prefix))
    return FRAMEWORKS[prefix], name.removeprefix(prefix)


def test_every_class_is_there_in_every_framework():
    assert {split(name) for name in MODELS} == {(f, name) for f in FRAMEWORKS.values() for name in FOLDERS}


@pytest.mark.parametrize("name", [name for name in MODELS if "Text" not in name])
def test_it_is_run_by_all(name, command, tmp_path):
    framework, plain = split(name)
    source, folder, photo = FOLDERS[plain](tmp_path / "source"), tmp_path / "model", tmp_path / "photo.png"
    model = getattr(kakao_models, name).from_pretrained(source)
    processor = getattr(kakao_models, kind_of(model.config.model_type, name).processor).from_pretrained(source)
    for part in (model, processor):
        part.save_pretrained(folder)
    tiny.picture(0).save(photo)

    embedder = Embedder(folder, framework=framework)
    assert type(embedder.engine.model).__name__ == name
    features = Embedder(source, framework="torch").images(photo)
    assert features.shape == (1, embedder.dim)
    extracted = pipeline("image-feature-extraction", embedder, pool=True)(photo)
    close = dict(rtol=0, atol=TOLERANCE["batching"] * max(1, np.abs(features).max()))
    np.testing.assert_allclose(extracted, features, **close)
    if plain in ("AlignVisionModel", "ViTModel"):  # no classes, and no texts that could name some
        arguments = ["embed", photo, "-o", tmp_path / "out.npy", "--model", folder, "--framework", framework]
        assert command(*arguments)[0] == 0
        return np.testing.assert_allclose(np.load(tmp_path / "out.npy"), features, **close)
    zero_shot = plain == "AlignModel"
    task = "zero-shot-image-classification" if zero_shot else "image-classification"
    scores = pipeline(task, embedder)(photo, **({"candidate_labels": LABELS} if zero_shot else {"top_k": 3}))
    options = ["--labels", ",".join(LABELS)] if zero_shot else []
    arguments = ["classify", photo, "--model", folder, "--framework", framework, "--json", "-k", 3, *options]
    code, out, err = command(*arguments)
    assert code == 0, err
    said = json.loads(out)[0]["scores"]
    assert [entry["label"] for entry in said] == [entry["label"] for entry in scores] and len(said) == 3
    got, wanted = ([entry["score"] for entry in entries] for entries in (said, scores))
    assert got == pytest.approx(wanted, abs=TOLERANCE["scores"])


@pytest.mark.parametrize("name", [name for name in MODELS if "Text" in name])
def test_a_text_tower_alone_is_refused_by_name(name, command, tmp_path):
    framework, _ = split(name)
    folder = text_tower_folder(tmp_path)
    model = getattr(kakao_models, name).from_pretrained(folder)
    message = "model_type is 'align_text_model', expected one of 'align', .*loads only a text tower"
    for given in (folder, model):
        with pytest.raises(ValueError, match=message):
            Embedder(given, framework=framework)
    code, _, err = command("embed", "--text", "a cat", "-o", tmp_path / "out.npy", "--model", folder)
    assert code == 2 and "align_text_model" in err and "Traceback" not in err
