"""The model inside the package names the photographs inside the package, and finds them."""

import importlib
from pathlib import Path

from kakao_models import Embedder
from kakao_models.checkpoint.hub import BUNDLED
from kakao_models.evaluate.relevance import nonsense

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


def test_its_calibration_says_no_to_nonsense():
    embedder = Embedder("align-small")
    relevance = embedder.relevance
    assert relevance is not None and relevance.fitted["measured"]["ece"] <= 0.01
    assert {"0.5", "0.9"} <= set(relevance.guarantees["coverage"]) and relevance.guarantees["precision"]
    images = embedder.images(BUNDLED.parent / "photos", normalize=True)
    assert (relevance(embedder.similarity(images, embedder.texts(nonsense()))).max(0) < 0.5).mean() >= 0.9
    cat = embedder.images(BUNDLED.parent / "photos" / "cat.jpg")
    fits, other = relevance(embedder.similarity(cat, embedder.texts(["a cat", "a quarterly tax report"])))[0]
    assert fits > 2 * other
