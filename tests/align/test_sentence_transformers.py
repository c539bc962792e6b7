"""Other libraries on our folders: the same embeddings with transformers' classes, and with ours once they are imported."""

import subprocess
import sys

import numpy as np
import pytest
import tiny
import transformers

from kakao_models import Embedder
from kakao_models.checkpoint.hub import resolve

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

root = Path(sys.argv[1])
model = SentenceTransformer(sys.argv[2], device="cpu")
images = [Image.open(path) for path in sorted(root.glob("*.png"))]
np.savez(root / "out.npz", texts=model.encode(["a cat", "two dogs on a beach"]), images=model.encode(images))
assert "kakao_models" not in sys.modules
"""


def test_sentence_transformers_before_and_after_our_classes_are_imported(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    paths = tiny.picture_folder(tmp_path, 2)
    embedder = Embedder("align-small")
    folder = resolve("align-small")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), folder], check=True)
    before = np.load(tmp_path / "out.npz")
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    texts, images = ["a cat", "two dogs on a beach"], [tiny.picture(place) for place in range(2)]
    for name, sources, ours in (("texts", texts, embedder.texts(texts)), ("images", images, embedder.images(paths))):
        after = model.encode(sources)
        np.testing.assert_allclose(after, before[name], atol=1e-5)
        np.testing.assert_allclose(after, ours, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_feature_extraction_by_transformers_gives_image_embeddings(align, batch_size):
    run = transformers.pipeline("image-feature-extraction", model=align, device="cpu")
    assert type(run.model).__module__ == "kakao_models.align.modeling_torch"
    pictures = [tiny.picture(0), tiny.picture(1)]
    found = np.concatenate(run(pictures, batch_size=batch_size))
    np.testing.assert_allclose(found, Embedder(align).images(pictures, normalize=True), atol=1e-6)
