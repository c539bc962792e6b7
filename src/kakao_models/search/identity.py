"""Identity of the model and preprocessing that made an index, and the check that an embedder has the same."""

import json
import os
from typing import Any

from kakao_models.inference.embedder import Embedder
from kakao_models.inference.identity import described
from kakao_models.inference.probe import SAME, likeness, probe


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
        "probe": probe(embedder),
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
        raise ValueError(f"{other} of dimension {stored.get('dim')}, but {embedder.name} gives {embedder.dim}. {hint}")
    config = described(embedder)
    ours = f"{embedder.name} ({config['weights'][:12]})"
    if differences := _differences(stored, config):
        raise ValueError(f"{other}. Its preprocessing differs from that of {ours}: {differences}. {hint}")
    before, now = (bool(options.get("srgb")) for options in (stored, embedder.image_options))
    if before != now:
        raise ValueError(
            f"{other}, made with srgb={before}, but {ours} has srgb={now}. Pass srgb={before} (--{'' if before else 'no-'}srgb)"
        )
    if stored["weights"] == config["weights"]:
        return
    if not (alike := likeness(stored["probe"], embedder)) >= SAME:  # NaN is no likeness
        raise ValueError(f"{other}, not of {ours}: for the same input, their cosine is {alike:.4f}. {hint}")


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
