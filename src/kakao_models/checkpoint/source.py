"""What a conversion reads: the checkpoint of an original program, recognised, with each tensor read when asked for."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from kakao_models.align.config import AlignConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.recognize import align_config, family_of, vit_config
from kakao_models.checkpoint.tensorflow import SUFFIX, kind_of, open_checkpoint
from kakao_models.checkpoint.weightmap import Slot
from kakao_models.vit.config import ViTConfig
from kakao_models.vit.weights import vit_tpu_slots

_AVERAGE = "/.OPTIMIZER_SLOT/optimizer/average"


class LazyTensors(Mapping):
    """key → array, read each time it is asked for; shapes are known beforehand.

    Args:
        entries: key → (shape, function that reads the tensor).
    """

    def __init__(self, entries: Mapping[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]):
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._entries[key][1]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key][0]


@dataclass(frozen=True)
class Source:
    """A checkpoint of an original program."""

    family: str  # "align" or "vit"
    config: AlignConfig | ViTConfig
    slots: list[Slot]
    tensors: LazyTensors
    spelling: str | None  # of ViT's keys, see TPU_SPELLINGS
    weights: str  # "raw" or "average": which were taken
    has_averages: bool
    skipped: dict[str, int] = field(default_factory=dict)  # kind of key → how many were left out
    files: list[Path] = field(default_factory=list)


def read_source(path: str | Path, *, weights: str | None = None, wanted: str | None = None, **overrides) -> Source:
    """Recognises the checkpoint at `path`: a prefix, an .index file, or a folder.

    Args:
        weights: "raw" or "average"; by default the moving averages where there are any, as the original evaluated.
        wanted: "align" or "vit"; by default whichever it is.
        overrides: sizes that tensors do not show, see `recognize`.

    Raises:
        ValueError: a broken file, a key of unknown kind, tensors of no known model, or averages that are not there.
    """
    checkpoint = open_checkpoint(path)
    kinds = {key: kind_of(key) for key in checkpoint.entries}
    raw = {key.removesuffix(SUFFIX): key for key, kind in kinds.items() if kind == "weight"}
    averages = {
        key.removesuffix(SUFFIX).removesuffix(_AVERAGE): key for key in kinds if key.endswith(_AVERAGE + SUFFIX)
    }
    if weights not in (None, "raw", "average"):
        raise ValueError(f"weights: got {weights!r}, wanted 'raw' or 'average'")
    if weights == "average" and not averages:
        raise ValueError(f"{path} holds no moving averages (keys that end in {_AVERAGE}); its weights are the raw ones")
    if averages and averages.keys() != raw.keys():
        differing = sorted(averages.keys() ^ raw.keys())
        raise ValueError(f"{path}: moving averages are there for some weights only; they differ in {differing[:5]}")
    taken = weights or ("average" if averages else "raw")
    stored = averages if taken == "average" else raw
    tensors = LazyTensors(
        {key: (checkpoint.entries[name].shape, partial(checkpoint.read, name)) for key, name in stored.items()}
    )
    shapes = {key: tensors.shape(key) for key in tensors}
    family, spelling = family_of(shapes), None
    if wanted not in (None, family):
        raise ValueError(f"{path} holds a model of family {family!r}, wanted {wanted!r}")
    if family == "align":
        config = align_config(shapes, **overrides)
        slots = align_tpu_slots(config)
    else:
        config, spelling = vit_config(shapes, **overrides)
        slots = vit_tpu_slots(config, spelling)
    return Source(
        family=family,
        config=config,
        slots=slots,
        tensors=tensors,
        spelling=spelling,
        weights=taken,
        has_averages=bool(averages),
        skipped=dict(Counter(kind for kind in kinds.values() if kind != "weight")),
        files=list(checkpoint.files),
    )
