"""The result of an evaluation, and its file: results.json."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import kakao_models
from kakao_models.files.atomic import write_text

TASKS = (
    *("zero-shot", "classify", "retrieval", "pairs", "knn", "linear-probe", "similarity", "robustness", "calibration"),
    *("mieb", "audit", "relevance"),
)

_TEXTS, _OBJECTS = ("model", "dataset", "version"), ("metrics", "counts", "settings", "details", "fingerprints")


@dataclass(frozen=True)
class Result:
    """One task, one model, one data set.

    Shares, correlations and errors are as computed, not in percent. `metrics` is shown in tables, `details` is too long
    for them; `fingerprints` are the SHA-256 of the model and of the data, so that two results can be told apart.
    """

    task: str
    model: str
    dataset: str
    metrics: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    version: str = kakao_models.__version__

    def as_dict(self) -> dict:
        return asdict(self)

    def to_json(self) -> str:
        """Raises ValueError for a number that JSON does not have."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, path: str | os.PathLike) -> None:
        """The file is written completely or not at all."""
        write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Result":
        """Raises ValueError if the file is no result."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file ({error})") from error
        expected = {"task", "model", "dataset", "metrics"}
        fields = set(cls.__dataclass_fields__)
        if not isinstance(value, dict) or not expected <= set(value) <= fields or value["task"] not in TASKS:
            raise ValueError(
                f"{path} is not a result of kakao-models evaluate: expected the fields {', '.join(sorted(expected))}"
            )
        for names, kind, described in ((_TEXTS, str, "text"), (_OBJECTS, dict, "JSON object")):
            for name in names:
                if not isinstance(value.get(name, kind()), kind):
                    raise ValueError(f"{path}: the field {name} is {value[name]!r:.80}, expected a {described}")
        for name, number in value["metrics"].items():
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{path}: the metric {name} is {number!r}, expected a number")
        return cls(**value)
