"""Tensors of a file, read when asked for."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

# What PyTorch models store and no model loads: batch norm's counter, and tables of numbers of older transformers
COUNTER = "num_batches_tracked"
UNUSED = (COUNTER, "embeddings.position_ids", "embeddings.token_type_ids")
# What is stored and not trained
BUFFERS = (*UNUSED, "running_mean", "running_var")

TensorEntry = tuple[tuple[int, ...], Callable[[], np.ndarray]]  # shape, function that reads the tensor


class LazyTensors(Mapping):
    """key → array, read each time it is asked for; shapes and dtypes are known beforehand.

    Args:
        entries: key → (shape, function that reads the tensor).
        dtypes: key → numpy's name of the dtype, where it is not float32 (of batch norm's counters: int64).
    """

    def __init__(self, entries: Mapping[str, TensorEntry], dtypes: Mapping[str, str] | None = None):
        self._entries, self._dtypes = dict(entries), dtypes or {}

    def __getitem__(self, key: str) -> np.ndarray:
        return self._entries[key][1]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key][0]

    def dtype(self, key: str) -> str:
        return self._dtypes.get(key, "int64" if key.endswith(COUNTER) else "float32")

    def only(self, keys: Iterable[str]) -> "LazyTensors":
        """The tensors with these keys."""
        return LazyTensors({key: self._entries[key] for key in keys}, self._dtypes)

    def with_entries(self, entries: Mapping[str, TensorEntry]) -> "LazyTensors":
        """These tensors, and more."""
        return LazyTensors(self._entries | dict(entries), self._dtypes)


def float32(array: np.ndarray, name: str) -> np.ndarray:
    """`array` in float32, if no digit is lost by that.

    Raises:
        ValueError: another dtype than float32, float16 and bfloat16.
    """
    if array.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
        raise ValueError(f"{name} is {array.dtype}, expected float32, float16 or bfloat16")
    return array.astype(np.float32, copy=False)


def check_keys(expected: Iterable[str], keys: Iterable[str], where: Any) -> None:
    """Compares the keys of a checkpoint with the expected ones.

    Raises:
        ValueError: a key is missing or unknown; the message names them.
    """
    missing, unknown = sorted(set(expected) - set(keys)), sorted(set(keys) - set(expected))
    if missing or unknown:
        parts = (
            [f"{len(missing)} of {len(set(expected))} tensors are missing ({', '.join(missing[:5])})"]
            if missing
            else []
        )
        parts += [f"{len(unknown)} are unknown ({', '.join(unknown[:5])})"] if unknown else []
        raise ValueError(f"{where}: {' and '.join(parts)}. Is this another model or size?")


def shape_of(shapes: Mapping[str, tuple[int, ...]], key: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
        ValueError: there is no such tensor, or it has another number of axes.
    """
    if key not in shapes:
        raise ValueError(f"the checkpoint has no tensor {key}. Is a part of it missing?")
    if len(shapes[key]) != axes or 0 in shapes[key]:
        raise ValueError(f"{key} has shape {shapes[key]}, expected {axes} axes. Is this another model?")
    return shapes[key]


# Fields of configurations, each of which is the length of an axis of some tensor
_AXES = (
    *("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size", "projection_dim"),
    *("num_channels", "patch_size", "representation_size"),
)


def check_sizes(config: Any, shapes: Mapping[str, tuple[int, ...]], source: Any) -> None:
    """Compares the sizes in a configuration with the tensors of a file, before anything of these sizes is built.

    Raises:
        ValueError: there are more layers than tensors, or a size is larger than every axis of every tensor.
    """
    longest = max((axis for shape in shapes.values() for axis in shape), default=0)
    no_axis, tensors = f"the longest axis of the weights is {longest}", f"the weights have {len(shapes)} tensors"
    for part in ("", "text_config", "vision_config"):
        values = getattr(config, part, None) if part else config
        sizes = [(name, getattr(values, name, None), longest, no_axis) for name in _AXES]
        sizes.append(("num_hidden_layers", getattr(values, "num_hidden_layers", None), len(shapes), tensors))
        if hasattr(values, "width_coefficient"):  # channels are rounded to multiples of 8, by at most a tenth
            channels, repeats = (getattr(values, name, ()) for name in ("out_channels", "num_block_repeats"))
            width, depth = values.width_coefficient, getattr(values, "depth_coefficient", 1)
            sizes.append(("width_coefficient", width * max(channels, default=0) * 0.9 - 8, longest, no_axis))
            sizes.append(("depth_coefficient", depth * sum(repeats), len(shapes), tensors))
        for name, size, most, there in sizes:
            if isinstance(size, (int, float)) and size > most:
                raise ValueError(
                    f"{source}: {part}{'.' if part else ''}{name} is {getattr(values, name)} in the configuration, but {there}. "
                    "Does config.json belong to other weights?"
                )


class TensorPatterns:
    """Base of the classes that load a checkpoint as a bijection: which of its tensors they may skip, replace or rename.

    Class attributes:
        tensors_elsewhere: patterns of keys that a complete checkpoint has and this class has no use for (the other
            tower, a head), which it may therefore skip.
        tensors_replaceable: patterns of keys that `ignore_mismatched_sizes=True` may leave freshly initialised.
        tensors_renamed: (pattern, replacement) for keys that other checkpoints have for the same tensors.
    """

    tensors_elsewhere: ClassVar[tuple[str, ...]] = ()
    tensors_replaceable: ClassVar[tuple[str, ...]] = ()
    tensors_renamed: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def _check_tensors(
        cls,
        source: Any,
        missing: Iterable[str],
        unknown: Iterable[str],
        mismatched: Mapping[str, Any],
        may_replace: bool,
    ) -> None:
        """Refuses a file that does not hold every tensor of the model once.

        Args:
            missing, unknown: keys that only the model has, and keys that only the file has.
            mismatched: key → (shape in the file, shape in the model), where they differ.
            may_replace: whether `tensors_replaceable` may start anew.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; the message names each one.
        """
        replaceable = cls.tensors_replaceable if may_replace else ()
        problems = {key: f"missing {key}" for key in _outside(missing, replaceable)}
        problems |= {key: f"unknown {key}" for key in _outside(unknown, cls.tensors_elsewhere + replaceable)}
        for key in _outside(mismatched, replaceable):
            stored, expected = mismatched[key]
            problems[key] = f"{key}: the file has {stored}, the model expects {expected}"
        if not problems:
            return
        lines = list(problems.values())
        shown = "\n  ".join(lines[:20] + [f"... and {len(lines) - 20} more"] * (len(lines) > 20))
        advice = "Is this another model or size, or does config.json belong to another checkpoint?"
        if not _outside(problems, cls.tensors_replaceable):
            advice = "To start with a new head of another size, pass ignore_mismatched_sizes=True"
        raise ValueError(f"{source} does not hold the weights of this {cls.__name__}:\n  {shown}\n{advice}")


def _outside(keys: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    """The keys that no pattern matches."""
    return sorted(key for key in keys if not any(re.match(pattern, key) for pattern in patterns))
