"""Embeddings in the plane.

Axes: N rows  D width of an embedding
"""

import numpy as np

METHODS = ("PCA", "t-SNE")
_FEWEST = 5  # rows that t-SNE can tell neighbours in


def project(rows: np.ndarray, method: str) -> tuple[np.ndarray, str]:
    """(N, D) → (N, 2), and a sentence on what it shows. The same rows always give the same points.

    Args:
        method: "PCA", the two directions of the largest variance; "t-SNE" (van der Maaten & Hinton 2008), which keeps
            neighbours together and says nothing by distances, by scikit-learn.

    Raises:
        ValueError: another method, or too few rows for it.
        ImportError: no scikit-learn.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected {' or '.join(METHODS)}")
    return _pca(rows) if method == "PCA" else _tsne(rows)


def _pca(rows: np.ndarray) -> tuple[np.ndarray, str]:
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    # Either sign is right: take the one in which the largest number is positive.
    directions = directions * np.sign(np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1))
    points = np.zeros((len(rows), 2))
    points[:, : len(directions)] = centred @ directions.T
    variances = lengths**2
    share = variances[:2].sum() / variances.sum() if variances.sum() > 0 else 1.0
    return points, f"PCA: the two directions hold {share:.0%} of the variance."


def _tsne(rows: np.ndarray) -> tuple[np.ndarray, str]:
    if len(rows) < _FEWEST:
        raise ValueError(f"t-SNE needs at least {_FEWEST} images, got {len(rows)}: choose PCA")
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install 'kakao-models[demo]'. Or choose PCA") from error
    perplexity = min(30.0, (len(rows) - 1) / 3)
    points = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=0).fit_transform(rows)
    return points, "t-SNE: neighbours stay together; larger distances mean nothing."
