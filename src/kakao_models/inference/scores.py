"""Turns logits into the scores of labels, for everything that classifies."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores that add up to 1 along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A score in 0..1 for each logit, without overflow at large ones."""
    return np.exp(-np.logaddexp(0, -logits))


SCORE_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": np.asarray,
}


def score_function(config: Any) -> str:
    """The key of `SCORE_FUNCTIONS` that a classifier's configuration asks for, as in transformers: by its `problem_type`;
    without one, sigmoid of a single class and softmax of several."""
    of_problem = {
        "regression": "none",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    return of_problem.get(config.problem_type) or ("sigmoid" if config.num_labels == 1 else "softmax")


def ranked(scores: np.ndarray, labels: Sequence[str], top_k: int | None) -> list[dict[str, Any]]:
    """The `top_k` best labels of one image, the best first. Of equal scores, the first label comes first."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"score": score, "label": labels[index]} for score, index in zip(scores[best].tolist(), best)]
