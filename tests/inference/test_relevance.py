import json
import shutil

import numpy as np
import pytest
import tiny

from kakao_models import Embedder, pipeline
from kakao_models.inference.probe import likeness, probe
from kakao_models.inference.relevance import CALIBRATION, NONE_OF_THESE, Limit, Relevance

LABELS = ["a red cat", "a blue bird", "the sea"]


@pytest.fixture(scope="module")
def picture():
    return tiny.picture(3)


@pytest.fixture(scope="module")
def plain(align):
    return Embedder(align)


@pytest.fixture(scope="module")
def calibrated(plain, align, tmp_path_factory):
    """A copy of the model's folder, with a calibration that says 0 at a cosine of -1 and 1 at 1."""
    folder = shutil.copytree(align, tmp_path_factory.mktemp("calibrated") / "model")
    Relevance((-1.0, 1.0), (0.0, 1.0), probe(plain)).write(folder / CALIBRATION)
    return str(folder)


def test_probabilities_lie_on_the_polyline_and_end_where_it_ends():
    relevance = Relevance((0.0, 0.2, 0.4), (0.1, 0.1, 0.9))
    assert relevance(np.array([[-1, 0.1], [0.3, 1]])).tolist() == pytest.approx(np.array([[0.1, 0.1], [0.5, 0.9]]))
    assert np.isnan(relevance(np.array([np.nan]))[0])


def test_a_file_gives_back_what_was_written(tmp_path):
    relevance = Relevance((0.1, 0.3), (0.0, 1.0), "cHJvYmU=", {"data": "photographs"})
    relevance.write(tmp_path / CALIBRATION)
    read = Relevance.read(tmp_path / CALIBRATION)
    assert read.as_dict() == json.loads(json.dumps(relevance.as_dict())) and read(0.2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a JSON file"),
        ("[]", "expected a JSON object"),
        ('{"cosines": [0, 1]}', "is not a calibration of kakao-models"),
        ('{"cosines": [0, 1], "probabilities": [0, 1], "more": 1}', "is not a calibration of kakao-models"),
        ('{"cosines": [0], "probabilities": [0, 1]}', "expected the same number"),
        ('{"cosines": [], "probabilities": []}', "at least one"),
        ('{"cosines": [1, 0], "probabilities": [0, 1]}', "expected increasing numbers"),
        ('{"cosines": [0, 2], "probabilities": [0, 1]}', "expected increasing numbers"),
        ('{"cosines": [0, 1], "probabilities": [1, 0]}', "do not decrease"),
        ('{"cosines": [0, NaN], "probabilities": [0, 1]}', "expected increasing numbers"),
        ('{"cosines": [0, "x"], "probabilities": [0, 1]}', "two lists of numbers"),
        ('{"cosines": [0, 1], "probabilities": [0, 1], "probe": 3}', "expected a string"),
        ('{"cosines": [0], "probabilities": [0], "guarantees": {"recall": {}}}', "expected coverage and precision"),
        ('{"cosines": [0], "probabilities": [0], "guarantees": {"coverage": {"0.9": 2}}}', "cosines in -1..1"),
        ('{"cosines": [0], "probabilities": [0], "guarantees": {"coverage": {"high": 0}}}', "least cosines by levels"),
        ('{"cosines": [0], "probabilities": [0], "guarantees": {"coverage": [0.9]}}', "least cosines by levels"),
    ],
)
def test_a_file_that_is_no_calibration(tmp_path, content, message):
    path = tmp_path / CALIBRATION
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Relevance.read(path)
    assert str(path) in str(error.value)


def test_the_pipeline_says_how_probable_it_is_that_a_label_fits(plain, calibrated, picture):
    classify = pipeline(model=calibrated, candidate_labels=LABELS)
    entries = classify(picture, min_relevance=0)
    before = pipeline(model=plain, candidate_labels=LABELS)(picture)
    cosines = plain.similarity(plain.images(picture), plain.texts(LABELS))[0]
    assert [{name: entry[name] for name in ("score", "label")} for entry in entries] == before
    expected = {label: (1 + cosine) / 2 for label, cosine in zip(LABELS, cosines.tolist())}
    assert {entry["label"]: entry["relevance"] for entry in entries} == pytest.approx(expected)
    second = sorted(expected.values())[1]
    kept = classify(picture, min_relevance=second - 1e-6)
    assert kept == [entry for entry in entries if entry["relevance"] >= second - 1e-6] and len(kept) == 2
    left = pytest.approx(1 - max(expected.values()))
    for [none] in classify([picture, picture], min_relevance=1.0, top_k=1):
        assert none == {"label": NONE_OF_THESE, "score": left, "relevance": left}


def test_without_a_calibration_the_message_has_the_command_that_makes_one(plain, picture):
    assert plain.relevance is None
    with pytest.raises(ValueError, match=r"min_relevance: .* has no calibration.*evaluate relevance --model .* --save"):
        pipeline(model=plain)(picture, LABELS, min_relevance=0.5)
    for wrong in (
        -0.1,
        1.1,
        np.nan,
        "0.5",
        True,
        "coverage=1",
        "recall=0.5",
        "precision",
        "precision=",
        "coverage=nan",
    ):
        with pytest.raises(ValueError, match="min_relevance: got .* expected a probability"):
            pipeline(model=plain)(picture, LABELS, min_relevance=wrong)


def test_a_calibration_of_other_weights_is_refused(plain, calibrated, align, tmp_path):
    assert likeness(probe(plain), plain) == pytest.approx(1, abs=1e-3) and likeness("AAA=", plain) == 0
    folder = tiny.align_folder(tmp_path / "other", seed=1)
    shutil.copy(f"{calibrated}/{CALIBRATION}", folder)
    with pytest.raises(ValueError, match="was made for other weights"):
        Embedder(folder).relevance  # noqa: B018
    Relevance((0.0,), (0.5,), "no base64").write(tmp_path / CALIBRATION)
    with pytest.raises(ValueError, match="probe is not readable"):
        Embedder(align, calibration=tmp_path / CALIBRATION).relevance  # noqa: B018


def test_a_file_can_be_named_in_place_of_the_checkpoints_own(calibrated, tmp_path):
    Relevance((0.0,), (0.25,)).write(tmp_path / "mine.json")
    named = Embedder(calibrated, calibration=tmp_path / "mine.json").relevance
    assert named is not None and named(0.9) == 0.25 and Embedder(calibrated).relevance(0.0) == 0.5


def test_what_fits_is_kept():
    entries, relevance = [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.1}], Relevance((0.0, 1.0), (0.0, 1.0))
    names, cosines = ["b", "a"], np.array([0.25, 0.5])  # in another order
    judged = [{"label": "a", "score": 0.9, "relevance": 0.5}, {"label": "b", "score": 0.1, "relevance": 0.25}]
    for limit, kept in ((0.25, judged), (0.5, judged[:1])):
        assert Limit.of(relevance, "limit", limit, "m").entries(entries, names, cosines) == kept
    none = Limit.of(relevance, "limit", 0.7, "m").entries(entries, names, cosines)
    assert none == [{"label": NONE_OF_THESE, "score": 0.5, "relevance": 0.5}]
    assert Limit(relevance)(np.array([np.nan]))[1].tolist() == [False]


def test_a_guarantee_keeps_by_its_least_cosine(calibrated, picture):
    levels = {"coverage": {"0.8": 0.3, "0.9": 0.2}, "precision": {"0.5": 0.4}}
    relevance = Relevance((0.0, 0.1), (0.0, 0.5), guarantees=levels)  # probabilities tell none of these apart
    cosines = np.array([0.1, 0.2, 0.3, 0.4])

    def kept(least: str) -> int:
        return int(Limit.of(relevance, "limit", least, "m")(cosines)[1].sum())

    assert [kept(least) for least in ("coverage=0.9", "coverage=0.85", "coverage=0.8", "precision=.45")] == [3, 3, 2, 1]
    with pytest.raises(
        ValueError, match="limit: got 'precision=0.6', but the calibration of m guarantees .* at most 0.5"
    ):
        kept("precision=0.6")
    with pytest.raises(ValueError, match="guarantees no coverage.*evaluate relevance --model m"):
        Limit.of(Relevance((0.0,), (0.5,)), "limit", "coverage=0.5", "m")
    classify = pipeline(model=calibrated, candidate_labels=LABELS)
    embedder = classify.embedder
    scores = sorted(embedder.similarity(embedder.images(picture), embedder.texts(LABELS))[0].tolist())
    embedder.relevance = Relevance((-1.0, 1.0), (0.0, 1.0), guarantees={"precision": {"0.5": scores[1] - 1e-6}})
    assert len(classify(picture, min_relevance="precision=0.5")) == 2
    embedder.relevance = Relevance((-1.0, 1.0), (0.0, 1.0), guarantees={"precision": {"0.5": scores[2] + 1e-6}})
    assert [entry["label"] for entry in classify(picture, min_relevance="precision=0.5")] == [NONE_OF_THESE]
