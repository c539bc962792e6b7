"""The model inside the package names the photographs inside the package, and finds them."""

import importlib.util
from pathlib import Path

import pytest

from kakao_models import Embedder
from kakao_models.checkpoint.hub import BUNDLED
from kakao_models.evaluate.relevance import nonsense

SCRIPT = Path(__file__).parents[2] / "examples/evaluate_align_small.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_align_small", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_photographs_are_named_and_found(script):
    result = script.of_photographs(Embedder("align-small"))
    right = result["named right"]
    assert right["the demo's labels"] == right["plain"] == right["with an article"] == right["a photo of"] == 8, result
    assert result["right first hits"] >= 18, result["wrong first hits"]


def test_its_size_and_terms():
    assert (BUNDLED / "align-small" / "model.safetensors").stat().st_size < 30e6
    terms = (BUNDLED / "align-small" / "LICENSE").read_text(encoding="utf-8")
    assert "research and education only" in " ".join(terms.split())


def test_its_calibration_says_no_to_nonsense():
    embedder = Embedder("align-small")
    relevance = embedder.relevance
    assert relevance is not None and relevance.fitted["measured"]["ece"] <= 0.01
    images = embedder.images(BUNDLED.parent / "photos", normalize=True)
    assert (relevance(embedder.similarity(images, embedder.texts(nonsense()))).max(0) < 0.5).mean() >= 0.9
    cat = embedder.images(BUNDLED.parent / "photos" / "cat.jpg")
    fits, other = relevance(embedder.similarity(cat, embedder.texts(["a cat", "a quarterly tax report"])))[0]
    assert fits > 2 * other
