"""The definitions, computed the slow way, and random cases full of ties."""

import numpy as np


def similarities(queries, targets) -> np.ndarray:
    """Every pair by itself: rows of length 1 rounded to float32, products added in float64, rounded to float32."""
    queries, targets = (unit(rows).astype(np.float64) for rows in (queries, targets))
    return (queries[:, None] * targets[None]).sum(-1).astype(np.float32)


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return (rows / np.sqrt(np.square(rows).sum(1, keepdims=True))).astype(np.float32)


def order(similarity: np.ndarray) -> np.ndarray:
    """Most similar first, of equal ones the first."""
    return np.argsort(-similarity, axis=1, kind="stable")


def rows(draw, count: int, width: int, copies: np.ndarray | None = None) -> np.ndarray:
    """Small integers, so that many rows and similarities are equal; some are copies of other rows."""
    found = draw.integers(-2, 3, (count, width)).astype(np.float32)
    if copies is not None and draw.random() < 0.5:
        chosen = draw.random(count) < 0.4
        found[chosen] = copies[draw.integers(0, len(copies), chosen.sum())]
    found[~found.any(1), 0] = 1
    return found
