import sys
from functools import partial

import brute
import numpy as np
import pytest
from tolerances import TOLERANCE

from kakao_models import Embedder
from kakao_models.evaluate import (
    SMALL_TEMPLATES,
    class_embeddings,
    read_class_index,
    read_class_names,
    read_templates,
    zero_shot,
    zero_shot_scores,
)
from kakao_models.evaluate.tasks import _real_labels
from kakao_models.evaluate.templates import imagenet_class_names

OPEN_CLIP = """
OPENAI_IMAGENET_TEMPLATES = (
    lambda c: f"a bad photo of a {c}.",
    lambda c: f"the {{odd}} {c} in a video game.",
)
SIMPLE_IMAGENET_TEMPLATES = [lambda c: f"itap of a {c}."]
IMAGENET_CLASSNAMES = ["tench", "kite (bird of prey)"]
"""


def test_scores_are_those_of_brute_force():
    draw = np.random.default_rng(0)
    for _ in range(500):
        width = draw.integers(1, 6)
        classes = brute.rows(draw, draw.integers(1, 9), width)
        images = brute.rows(draw, draw.integers(1, 30), width, copies=classes)
        labels = draw.integers(-1, len(classes), len(images))
        labels[0] = 0
        found = zero_shot_scores(images, classes, labels, at=(1, 3), temperature=0.1)
        similarity = brute.similarities(images, classes)
        order, known = brute.order(similarity), labels >= 0
        assert np.array_equal(found.predictions, order[:, 0])
        assert found.top[3] == np.mean([a in row for a, row in zip(labels[known], order[known, :3])])
        scores = np.exp(similarity.astype(np.float64) / 0.1)
        wanted = scores.max(1) / scores.sum(1)
        assert np.abs(found.confidences - wanted).max() < TOLERANCE["scores"]


def test_no_confidence_is_above_1_by_rounding():
    """Of a single class all are 1; similarities are computed twice, and differ in their last bit now and then."""
    draw = np.random.default_rng(0)
    images, classes = draw.standard_normal((2000, 37)), draw.standard_normal((1, 37))
    found = zero_shot_scores(images, classes, np.zeros(2000, int), temperature=1e-8)
    assert found.confidences.max() == 1


def test_class_embeddings_are_the_normalised_mean_of_normalised_prompts(align):
    embedder = Embedder(align)
    names = [f"{a} {b}" for a in ("red", "blue", "big") for b in ("cat", "dog", "house")]
    templates = ("a photo of a {}.", "{}", "the small {}")
    found = class_embeddings(embedder, names, templates)
    for name, row in zip(names, found):
        prompts = brute.unit(embedder.texts([template.format(name) for template in templates]))
        assert np.abs(row - brute.unit(prompts.mean(0, keepdims=True))[0]).max() < TOLERANCE["batching"]


def test_more_classes_than_are_embedded_at_a_time(align, monkeypatch):
    names = [f"the {i}" for i in range(7)]
    whole = class_embeddings(Embedder(align), names, SMALL_TEMPLATES)
    monkeypatch.setattr("kakao_models.evaluate.zero_shot._CLASSES", 3)
    assert np.abs(class_embeddings(Embedder(align), names, SMALL_TEMPLATES) - whole).max() < TOLERANCE["batching"]


# Names that real lists of ImageNet's classes have twice, with the places of the classes there
REPEATED = {
    "CLIP's": {"missile": (657, 744), "sunglasses": (836, 837)},
    "imagenet_class_index.json": {"crane": (134, 517), "maillot": (638, 639)},
}


@pytest.mark.parametrize("repeated", REPEATED.values(), ids=REPEATED)
def test_classes_of_the_same_name_score_equally_and_the_first_one_wins(align, repeated, caplog):
    names = [f"thing {number}" for number in range(850)]
    for name, places in repeated.items():
        for place in places:
            names[place] = name
    embedder = Embedder(align)
    zero_shot._warn.cache_clear()
    rows = class_embeddings(embedder, names, ("{}",))
    for name, (first, second) in repeated.items():
        assert np.array_equal(rows[first], rows[second])
        assert caplog.text.count(f"{name!r} (classes {first}, {second})") == 1
        scores = zero_shot_scores(rows[[second]], rows, np.array([second]), at=(1, 2), temperature=1.0)
        assert scores.predictions.tolist() == [first] and scores.top == {1: 0, 2: 1}
    class_embeddings(embedder, names, ("{}",))
    assert caplog.text.count("have the same name") == 1  # an evaluation while training repeats nothing


@pytest.mark.parametrize(
    "names, message",
    [
        (["cat", ""], "class 1 has no name"),
        ([], "at least one label, got none"),
    ],
)
def test_bad_class_names(align, names, message):
    with pytest.raises(ValueError, match=message):
        class_embeddings(Embedder(align), names, SMALL_TEMPLATES)


def test_bad_labels():
    rows = np.eye(3)
    with pytest.raises(ValueError, match="row 1 is class 3, but there are 3 classes"):
        zero_shot_scores(rows, rows, np.array([0, 3, 1]))
    with pytest.raises(ValueError, match="all are missing"):
        zero_shot_scores(rows, rows, np.array([-1, -1, -1]))
    with pytest.raises(ValueError, match="temperature: got 0"):
        zero_shot_scores(rows, rows, np.array([0, 1, 2]), temperature=0)


def test_templates_of_open_clip_are_read_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('open_clip was imported')")
    (package / "zero_shot_metadata.py").write_text(OPEN_CLIP)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_templates("clip") == ("a bad photo of a {}.", "the {{odd}} {} in a video game.")
    assert read_templates("clip-simple") == ("itap of a {}.",)
    assert imagenet_class_names() == ["tench", "kite (bird of prey)"]
    assert "open_clip" not in sys.modules
    assert read_templates(str(package / "zero_shot_metadata.py")) == read_templates("clip")


def test_templates_from_files_and_what_is_wrong_with_some(tmp_path, monkeypatch):
    file = tmp_path / "templates.txt"
    file.write_text("a {}\n\nthe {} there\n")
    assert read_templates(str(file)) == ("a {}", "the {} there")
    (tmp_path / "t.json").write_text('["one {}"]')
    assert read_templates(str(tmp_path / "t.json")) == ("one {}",)
    assert read_templates("small") is SMALL_TEMPLATES
    assert read_templates("a photo of a {}.") == ("a photo of a {}.",)
    with pytest.raises(ValueError, match="exactly one"):
        read_templates("a {} and a {}")
    for text, message in (("a cat", "exactly one"), ("{} and {}", "exactly one"), ("", "got none")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_templates(str(file))
    with pytest.raises(ValueError, match="expected small, clip"):
        read_templates("clp")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="open_clip, which is not installed"):
        read_templates("clip")


def test_bad_k():
    with pytest.raises(ValueError, match="at: got \\[\\]"):
        zero_shot_scores(np.eye(2), np.eye(2), np.array([0, 1]), at=())


@pytest.mark.parametrize("name", ["t.json", "t.py"])
def test_a_damaged_file_is_named(name, tmp_path):
    place = tmp_path / name
    place.write_text("(")
    readers = [read_templates] if name == "t.py" else [read_templates, partial(read_class_names, keys=["a"])]
    readers += [] if name == "t.py" else [read_class_index, partial(_real_labels, data=None)]
    for read in readers:
        with pytest.raises(ValueError, match=f"{name}: not valid"):
            read(str(place))
    place.with_suffix(".json").write_text("5")
    with pytest.raises(ValueError, match="expected a JSON list of templates, got int"):
        read_templates(str(place.with_suffix(".json")))
    with pytest.raises(ValueError, match="expected a list with a list of classes for each image"):
        _real_labels(place.with_suffix(".json"), None)
