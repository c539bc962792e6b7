"""One picture and one text, by whose embeddings a model is known again, whatever program or precision runs it."""

import base64
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kakao_models.inference.embedder import Embedder

# Least cosine of two programs' embeddings of one picture by the same weights; in float32 they differ by 1e-6.
SAME = 0.999
_SIDE = 64


def probe(embedder: "Embedder") -> str:
    """The embeddings of one picture and, if the model reads texts, one text: halves of unit length, in base64.

    Raises:
        ValueError: they are not finite.
    """
    return base64.b64encode(_embedded(embedder).astype("<f2").tobytes()).decode()


def likeness(stored: str, embedder: "Embedder") -> float:
    """The smaller one of the cosines of picture and text to those of a stored probe; 0 for one of another width.

    Raises:
        ValueError: `stored` is no base64.
    """
    numbers = np.frombuffer(base64.b64decode(stored, validate=True), "<f2").astype(np.float32)
    now = _embedded(embedder)
    if numbers.size != now.size:
        return 0.0
    before = numbers.reshape(now.shape)
    return float(((before * now).sum(-1) / np.linalg.norm(before, axis=1)).min())


def _embedded(embedder: "Embedder") -> np.ndarray:
    x = np.linspace(0, 1, _SIDE)
    waves = [np.outer(np.sin(3 * x + color), np.cos(5 * x + 2 * color)) for color in range(3)]
    pixels = (127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)
    rows = [embedder.images([pixels], normalize=True, on_error="raise", progress=False)]
    if embedder.engine.reads_texts:
        rows.append(embedder.texts(["a red ball beside a blue box"], normalize=True, progress=False))
    probes = np.concatenate(rows)  # (1 or 2, D)
    if not np.isfinite(probes).all():
        raise ValueError(
            f"{embedder.name}: its embeddings have NaN or infinity. Is the checkpoint damaged? With a 16-bit dtype, try float32"
        )
    return probes
