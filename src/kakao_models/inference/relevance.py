"""Relevance: the probability that a text fits an image, from their cosine, by a calibration of the model.

A softmax over labels says which of them fits best, not whether any does; nor does a cosine, whose scale is the model's own.
A calibration is a small file beside the weights, `calibration.json`; `kakao-models evaluate relevance` makes it. It also has the
least cosines that guarantee a coverage or a precision.

Axes: K knots
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
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
GUARANTEES = ("coverage", "precision")
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
    guarantees: "coverage" and "precision", and of each the least cosines by levels in 0..1, such as {"0.9": 0.11}; see
        `kakao_models.evaluate.relevance.guarantees`.

    Raises:
        ValueError: numbers other than these.
    """

    cosines: tuple[float, ...]
    probabilities: tuple[float, ...]
    probe: str = ""
    fitted: dict[str, Any] = field(default_factory=dict)
    guarantees: dict[str, dict[str, float]] = field(default_factory=dict)

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
        try:
            numbers = [float(x) for levels in self.guarantees.values() for pair in levels.items() for x in pair]
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"guarantees: expected least cosines by levels ({error})") from error
        if not set(self.guarantees) <= set(GUARANTEES) or not all(abs(x) <= 1 for x in numbers):
            raise ValueError(
                f"guarantees: expected {' and '.join(GUARANTEES)}, with cosines in -1..1 by levels in 0..1, got "
                f"{self.guarantees!r:.100}"
            )

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


def read_least(name: str, value: float | str) -> tuple[str, float]:
    """The kind of a least relevance, "probability" or one of `GUARANTEES`, and the number.

    Raises:
        ValueError: it is neither a number in 0..1 nor "coverage=NUMBER" or "precision=NUMBER" with one between 0 and 1.
    """
    if isinstance(value, str):
        kind, _, text = value.partition("=")
        with suppress(ValueError):
            if kind in GUARANTEES and 0 < float(text) < 1:
                return kind, float(text)
    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and 0 <= value <= 1:
        return "probability", float(value)
    raise ValueError(
        f"{name}: got {value!r}, expected a probability in 0..1, such as 0.5, or a guarantee: coverage=0.9 or precision=0.5"
    )


@dataclass(frozen=True)
class Limit:
    """The limit of what fits: at least this probability by a calibration, and at least this cosine."""

    relevance: Relevance
    probability: float = 0.0
    cosine: float = -1.0

    @classmethod
    def of(cls, relevance: Relevance | None, name: str, value: float | str, model: str) -> "Limit":
        """The limit that an option asks for: a probability, or the least cosine with a guarantee of at least this level.

        Args:
            name: of the option; model: what a command can open. Both are named in errors.

        Raises:
            ValueError: a value that `read_least` refuses, no calibration, or one without this guarantee; the message has the
                command that makes one.
        """
        kind, level = read_least(name, value)
        make = _MAKE.format(model=model)
        if relevance is None:
            raise ValueError(f"{name}: {model} has no calibration, so its scores are not probabilities. {make}")
        if kind == "probability":
            return cls(relevance, probability=level)
        least = {float(text): float(cosine) for text, cosine in relevance.guarantees.get(kind, {}).items()}
        if not (enough := [known for known in least if known >= level]):
            most = f"guarantees a {kind} of at most {max(least):g}" if least else f"guarantees no {kind}"
            raise ValueError(
                f"{name}: got {value!r}, but the calibration of {model} {most}. Ask for less, or calibrate with more words and "
                f"photographs. {make}"
            )
        return cls(relevance, cosine=least[min(enough)])

    def __call__(self, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relevances, float64, of cosines of any shape, and whether they are kept."""
        fits = self.relevance(cosines)
        return fits, (fits >= self.probability) & (np.maximum(cosines, -1) >= self.cosine)

    def entries(
        self, entries: list[dict[str, Any]], labels: Sequence[str], cosines: np.ndarray
    ) -> list[dict[str, Any]]:
        """The entries of labels that fit an image, with their relevance; where no label fits, one entry that says so, whose score
        and relevance are 1 minus the best label's relevance.

        Args:
            labels: of the entries, in any order; cosines: of each with the image.
        """
        known = dict(zip(labels, zip(*(values.tolist() for values in self(cosines)))))
        judged = [entry | {"relevance": known[entry["label"]][0]} for entry in entries]
        if kept := [entry for entry in judged if known[entry["label"]][1]]:
            return kept
        left = 1 - max(entry["relevance"] for entry in judged)
        return [{"score": left, "label": NONE_OF_THESE, "relevance": left}]
