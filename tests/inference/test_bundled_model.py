"""The model inside the package names the photographs inside the package, and finds them."""

import importlib.util
from pathlib import Path

import pytest

from kakao_models import Embedder
from kakao_models.checkpoint.hub import BUNDLED

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


def test_its_calibration_is_of_its_weights_and_says_no_to_nonsense():
    embedder = Embedder("align-small")
    relevance = embedder.relevance
    assert relevance is not None, "kakao-models evaluate relevance --save"
    measured = relevance.fitted["measured"]
    assert measured["ece"] <= 0.01 and measured["nonsense_refused"] >= 0.9
    texts = embedder.texts(["a photo of a cat", "a quarterly tax report"])
    fits, other = relevance(embedder.similarity(embedder.images([script_photo("cat.jpg")]), texts))[0]
    assert fits > 0.5 > other


def script_photo(name: str) -> Path:
    return BUNDLED.parent / "photos" / name
