"""Relevance: the probability that a text fits an image, from their cosine, by a calibration of the model.

A softmax over labels says which of them fits best, not whether any does; nor does a cosine, whose scale is the model's own.
A calibration is a small file beside the weights, `calibration.json`; `kakao-models evaluate relevance` makes it.

Axes: K knots
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.checkpoint.hub import HubError, MissingFile, fetch, read_object
from kakao_models.files.atomic import write_text
from kakao_models.inference.probe import SAME, likeness

if TYPE_CHECKING:
    from kakao_models.inference.embedder import Embedder

CALIBRATION = "calibration.json"
NONE_OF_THESE = "none of these"
_MAKE = (
    "Make one from captioned photographs: kakao-models evaluate relevance --model {model} --data PHOTOS.parquet --save "
    f"{CALIBRATION}, and put it into the model's folder, or pass it with --calibration"
)


@dataclass(frozen=True)
class Relevance:
    """A calibration: a polyline from cosine to probability, constant beyond its ends.

    cosines: (K,) in -1..1, increasing.
    probabilities: (K,) in 0..1, not decreasing.
    probe: the embeddings by which the model is known, as `probe` gives them; empty: of any model.
    fitted: the data that it is of, and what was measured on other words and photographs.

    Raises:
        ValueError: numbers other than these.
    """

    cosines: tuple[float, ...]
    probabilities: tuple[float, ...]
    probe: str = ""
    fitted: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        try:
            x, y = (np.asarray(numbers, np.float64) for numbers in (self.cosines, self.probabilities))
        except (TypeError, ValueError) as error:
            raise ValueError(f"cosines and probabilities: expected two lists of numbers ({error})") from error
        if x.ndim != 1 or x.shape != y.shape or not len(x):
            raise ValueError(
                f"got cosines {x.shape} and probabilities {y.shape}, expected the same number of each, at least one"
            )
        if not (np.abs(x) <= 1).all() or not (np.diff(x) > 0).all():
            raise ValueError(f"cosines: expected increasing numbers in -1..1, got {x.tolist()!r:.100}")
        if not ((y >= 0) & (y <= 1)).all() or not (np.diff(y) >= 0).all():
            raise ValueError(f"probabilities: expected numbers in 0..1 that do not decrease, got {y.tolist()!r:.100}")
        if not isinstance(self.probe, str) or not isinstance(self.fitted, dict):
            raise ValueError("probe: expected a string; fitted: expected an object")

    def __call__(self, cosines: np.ndarray) -> np.ndarray:
        """Probabilities, float64, of cosines of any shape; NaN of NaN."""
        return np.interp(cosines, self.cosines, self.probabilities)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: str | os.PathLike) -> None:
        """The file is complete or not there."""
        write_text(Path(path), json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def from_dict(cls, value: Any, where: str) -> "Relevance":
        """The calibration that `as_dict` gave; `where` is named in an error."""
        names = {"cosines", "probabilities"}
        if not isinstance(value, dict) or not names <= set(value) <= set(cls.__dataclass_fields__):
            raise ValueError(
                f"{where} is not a calibration of kakao-models: expected an object with {', '.join(sorted(names))}"
            )
        try:
            return cls(**value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Relevance":
        """Raises OSError for a file that can't be read, ValueError for one that is no calibration."""
        return cls.from_dict(read_object(Path(path)), os.fspath(path))


def calibration_of(embedder: "Embedder", checkpoint: str | None, place: dict[str, Any]) -> Relevance | None:
    """The calibration in the folder of an embedder's checkpoint; None where there is none.

    Raises:
        ValueError: the file is no calibration, or is of other weights.
    """
    if checkpoint is None or not embedder.engine.reads_texts:
        return None
    try:
        file = fetch(checkpoint, CALIBRATION, **place)
    except (HubError, MissingFile, FileNotFoundError):
        return None
    return checked(Relevance.read(file), str(file), embedder)


def checked(relevance: Relevance, where: str, embedder: "Embedder") -> Relevance:
    """The calibration.

    Raises:
        ValueError: it is of another model than the embedder's, or that has been trained since.
    """
    try:
        alike = likeness(relevance.probe, embedder) if relevance.probe else 1.0
    except ValueError as error:
        raise ValueError(f"{where}: probe is not readable ({error})") from error
    if not alike >= SAME:  # NaN is no likeness
        raise ValueError(
            f"{where} was made for other weights than those of {embedder.name}: their embeddings of the same input have a cosine "
            f"of {alike:.4f}. {_MAKE.format(model=embedder.name)}"
        )
    return relevance


def needed(relevance: Relevance | None, option: str, model: str) -> Relevance:
    """The calibration.

    Raises:
        ValueError: there is none; the message has the command that makes one.
    """
    if relevance is None:
        raise ValueError(
            f"{option}: {model} has no calibration, so its scores are not probabilities. {_MAKE.format(model=model)}"
        )
    return relevance


def check_least(name: str, value: float | None) -> None:
    """Raises ValueError where a least relevance is no number in 0..1."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1
    ):
        raise ValueError(f"{name}: got {value!r}, expected a probability in 0..1, such as 0.5")


def fitting(entries: list[dict[str, Any]], least: float) -> list[dict[str, Any]]:
    """The entries of labels with a relevance of at least `least`; where no label has it, one entry that says so, whose score and
    relevance are 1 minus the best label's relevance.
    """
    if kept := [entry for entry in entries if entry["relevance"] >= least]:
        return kept
    left = 1 - max(entry["relevance"] for entry in entries)
    return [{"score": left, "label": NONE_OF_THESE, "relevance": left}]
