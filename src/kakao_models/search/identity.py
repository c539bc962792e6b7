"""Identity of the model and preprocessing that made an index, and the check that an embedder has the same."""

import base64
import json
import os
from typing import Any

import numpy as np

from kakao_models.inference.embedder import Embedder, l2_normalize
from kakao_models.inference.identity import described

# Least cosine of two programs' embeddings of one picture by the same weights; in float32 they differ by 1e-6.
SAME = 0.999
_SIDE = 64


def identity(embedder: Embedder) -> dict[str, Any]:
    """The identity that an index stores: the model's name, the SHA-256 of its weights, its preprocessing, and its
    embeddings of one picture and one text, by which another program that runs the same model is recognised."""
    config = described(embedder)
    return {
        "model": os.path.abspath(embedder.name) if os.path.isdir(embedder.name) else embedder.name,
        "dim": embedder.dim,
        "weights": config["weights"],
        "engine": [config["engine"], config["package"]],
        "preprocessing": config["image processor"],
        "tokenizer": config["tokenizer"],
        "tokens": config["tokens"],
        "srgb": bool(embedder.image_options.get("srgb")),
        "probe": base64.b64encode(_probe(embedder).astype("<f2").tobytes()).decode(),
    }


def check_identity(where: str, stored: dict[str, Any], embedder: Embedder) -> None:
    """Refuses an embedder whose embeddings can't be compared with those of an index.

    The same weights run by the same program are known by their hash. Those that another program or precision runs
    (PyTorch, Keras, Flax, another release of this package) are known by what they make of one picture and one text.

    Raises:
        ValueError: it has another model or preprocessing; the message names what differs.
    """
    other = f"{where} holds embeddings of {stored.get('model')} ({str(stored.get('weights'))[:12]})"
    hint = "Search with the model that built it, or build another index"
    if stored.get("dim") != embedder.dim:
        raise ValueError(f"{other} of width {stored.get('dim')}, {embedder.name} makes {embedder.dim}. {hint}")
    config = described(embedder)
    ours = f"{embedder.name} ({config['weights'][:12]})"
    if differences := _differences(stored, config):
        raise ValueError(f"{other}, made with another preprocessing than that of {ours}: {differences}. {hint}")
    before, now = (bool(options.get("srgb")) for options in (stored, embedder.image_options))
    if before != now:
        raise ValueError(
            f"{other}, made with srgb={before}, {ours} has srgb={now}. Pass srgb={before} (--{'' if before else 'no-'}srgb)"
        )
    if stored["weights"] == config["weights"]:
        return
    if not (likeness := _likeness(stored, embedder)) >= SAME:  # NaN is no likeness
        raise ValueError(f"{other}, not of {ours}: of one picture and text their cosine is {likeness:.4f}. {hint}")


def _differences(stored: dict[str, Any], config: dict[str, Any]) -> str:
    (kind, before), (our_kind, now) = stored["preprocessing"], config["image processor"]
    differences = [] if kind == our_kind else [f"image processor was {kind}, is {our_kind}"]
    for name in sorted(set(before) & set(now)):  # a name that another release adds has a default
        if _plain(before[name]) != _plain(now[name]):
            differences.append(f"{name} was {before[name]!r}, is {now[name]!r}")
    differences += [f"{name} is another" for name in ("tokenizer", "tokens") if stored[name] != config[name]]
    return "; ".join(differences)


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _probe(embedder: Embedder) -> np.ndarray:
    """Unit embeddings (1 or 2, D) of one picture and, if the model reads texts, one text."""
    x = np.linspace(0, 1, _SIDE)
    waves = [np.outer(np.sin(3 * x + color), np.cos(5 * x + 2 * color)) for color in range(3)]
    pixels = (127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)
    rows = [embedder.images([pixels], on_error="raise", progress=False)]
    if embedder.engine.reads_texts:
        rows.append(embedder.texts(["a red ball beside a blue box"], progress=False))
    probes = np.concatenate(rows)
    if not np.isfinite(probes).all():
        raise ValueError(
            f"{embedder.name}: its embeddings are not finite. Is the checkpoint whole, the type of numbers wide enough?"
        )
    return l2_normalize(probes)


def _likeness(stored: dict[str, Any], embedder: Embedder) -> float:
    """The smaller one of the cosines of picture and text."""
    before = np.frombuffer(base64.b64decode(stored["probe"]), "<f2").astype(np.float32).reshape(-1, embedder.dim)
    now = _probe(embedder)
    return float((l2_normalize(before) * now).sum(-1).min()) if len(before) == len(now) else 0.0
