"""Queries of texts and images, put together as in ALIGN's paper (Jia et al. 2021, section 5.3, figures 4 and 5)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kakao_models.inference.embedder import Embedder, l2_normalize

QUERY_WEIGHTS = {"text": 2.0, "image": 1.0}  # the paper scales the text by two


def compose_query(
    embedder: Embedder,
    text: str | Sequence[str] | None = None,
    image: Any = None,
    *,
    plus: Iterable[Any] = (),
    minus: Iterable[Any] = (),
    weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """One vector (D,) of length 1 that stands for texts and images, some of them taken away.

    Each text and image is embedded and scaled to length 1, multiplied by the weight of its kind, added or subtracted;
    the sum is scaled to length 1 again.

    Args:
        text: a text, or several.
        image: an image as `load_image` reads it (a string is a path or URL), or a list of such.
        plus, minus: what else is added or subtracted: strings are texts; a `Path`, PIL image, array or bytes is an image.
            A mapping of texts and paths gives each a factor beside the weight of its kind: {"laces": 0.5}.
        weights: weights of "text" and "image"; 2 and 1 by default.

    Raises:
        ValueError: nothing is asked for, a text is blank, a weight is no positive number, or what is added and subtracted cancels out.
        ImageError: an image can't be read.
    """
    weights = check_weights(weights or {})
    texts = [(1.0, part) for part in _several(text, str)]
    images = [(1.0, part) for part in _several(image, (str, os.PathLike, bytes, Image.Image, np.ndarray))]
    for sign, terms in ((1.0, plus), (-1.0, minus)):
        for term in [terms] if isinstance(terms, str) else terms:
            factor = check_weight("a factor", terms[term]) if isinstance(terms, Mapping) else 1.0
            (texts if isinstance(term, str) else images).append((sign * factor, term))
    if not texts and not images:
        raise ValueError("nothing to search for: give a text, an image or both")
    if any(not part.strip() for _, part in texts):
        raise ValueError("a text to search for is empty, so it has no meaning")
    total = np.zeros(embedder.dim, np.float64)
    if texts:
        rows = embedder.texts([part for _, part in texts], progress=False)
        total += weights["text"] * _signed_sum(texts, rows)
    if images:
        rows = embedder.images([part for _, part in images], on_error="raise", progress=False)
        total += weights["image"] * _signed_sum(images, rows)
    length = np.linalg.norm(total)
    if not np.isfinite(length):
        raise ValueError("the query's embedding has NaN or infinity. Is the model damaged?")
    if length < 1e-4:  # the terms have length 1: what is left of them is rounding
        raise ValueError("the added and the subtracted parts of the query cancel out, so nothing is left to search for")
    return (total / length).astype(np.float32)


def tokens_read(embedder: Embedder, text: str) -> int:
    """Number of tokens that the model reads of a text that has more; 0 if it reads the whole text."""
    limit = embedder.max_tokens
    [ids] = embedder.inputs.token_ids([text], limit + 1)
    return limit if len(ids) > limit else 0


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """`weights` over the defaults.

    Raises:
        ValueError: a kind other than text and image, or a weight that is not a positive number.
    """
    if unknown := set(weights) - set(QUERY_WEIGHTS):
        raise ValueError(f"weights: got {', '.join(sorted(unknown))}, expected {' and '.join(QUERY_WEIGHTS)}")
    return QUERY_WEIGHTS | {name: check_weight(name, value) for name, value in weights.items()}


def check_weight(name: str, value: float) -> float:
    if not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"weights: {name} is {value!r}, expected a number above 0. To subtract, use minus")
    return float(value)


def _signed_sum(terms: Sequence[tuple[float, Any]], rows: np.ndarray) -> np.ndarray:
    signs = np.array([sign for sign, _ in terms])
    return signs @ l2_normalize(rows).astype(np.float64)


def _several(value: Any, single: type | tuple[type, ...]) -> list:
    if value is None:
        return []
    return [value] if isinstance(value, single) or not isinstance(value, Iterable) else list(value)
