"""The model inside the package names the photographs inside the package, and finds them."""

import importlib
from pathlib import Path

from kakao_models import Embedder
from kakao_models.checkpoint.hub import BUNDLED

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_photographs_are_named_and_found(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    result = importlib.import_module("evaluate_align_small").of_photographs(Embedder("align-small"))
    right = result["named right"]
    assert (
        min(right[style] for style in ("the demo's labels", "plain", "with an article", "a photo of", "plural")) >= 6
    ), result
    assert not any("cat.jpg" in wrong for wrong in result["wrong names"].values())
    assert result["right first hits"] >= 17, result["wrong first hits"]


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
