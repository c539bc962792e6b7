"""The place of every tensor: rows of a table, kinds of modules, dialects of frameworks.

A table (`align/weights.py`, `vit/weights.py`) has one row per kind of module. A kind names its leaves and their axes
once, as they are in `model.safetensors`; a dialect says how a framework names them. From both follow the slots of a
model: one per tensor, with its name and axes on either side. Moving arrays is one loop, the same in both directions.

Axes: O output  I input  H, W height, width of a kernel  C channels  D width  V rows of a table  1 a single entry
      (empty: the tensor as it is)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kakao_models.checkpoint.tensors import TensorEntry, float32

# kind -> leaf -> axes, in model.safetensors ("" is a tensor without leaves, such as a parameter of its own)
MODULE_KINDS: dict[str, dict[str, str]] = {
    "dense": {"weight": "OI", "bias": "O"},
    "matrix": {"weight": "OI"},
    "conv": {"weight": "OIHW"},
    "conv_bias": {"weight": "OIHW", "bias": "O"},
    "depthwise": {"weight": "C1HW"},
    "norm": {"weight": "D", "bias": "D"},
    "batchnorm": {"weight": "D", "bias": "D", "running_mean": "D", "running_var": "D"},
    "embedding": {"weight": "VD"},
    "array": {"": ""},
}

# A dialect: kind -> leaf -> its name and axes in a framework
Dialect = Mapping[str, Mapping[str, tuple[str, str]]]
_SHARED: Dialect = {  # by TensorFlow, Keras and Flax
    "dense": {"weight": ("kernel", "IO"), "bias": ("bias", "O")},
    "matrix": {"weight": ("kernel", "IO")},
    "conv": {"weight": ("kernel", "HWIO")},
    "conv_bias": {"weight": ("kernel", "HWIO"), "bias": ("bias", "O")},
    "array": {"": ("", "")},
}

# A checkpoint of the original code. Rows have the complete keys of tables and arrays, hence no leaf.
TPU: Dialect = {
    **_SHARED,
    "depthwise": {"weight": ("depthwise_kernel", "HWC1")},
    "norm": {"weight": ("gamma", "D"), "bias": ("beta", "D")},
    "batchnorm": {
        "weight": ("gamma", "1111D"),
        "bias": ("beta", "1111D"),
        "running_mean": ("moving_mean", "1111D"),
        "running_var": ("moving_variance", "1111D"),
    },
    "embedding": {"weight": ("", "VD")},
}

# Attributes of our classes in Keras 3 and in Flax NNX
KERAS: Dialect = {
    **_SHARED,
    "depthwise": {"weight": ("kernel", "HWC1")},
    "norm": {"weight": ("gamma", "D"), "bias": ("beta", "D")},
    "batchnorm": {
        "weight": ("gamma", "D"),
        "bias": ("beta", "D"),
        "running_mean": ("moving_mean", "D"),
        "running_var": ("moving_variance", "D"),
    },
    "embedding": {"weight": ("embeddings", "VD")},
}
NNX: Dialect = {
    **_SHARED,
    "depthwise": {"weight": ("kernel", "HW1C")},
    "norm": {"weight": ("scale", "D"), "bias": ("bias", "D")},
    "batchnorm": {
        "weight": ("scale", "D"),
        "bias": ("bias", "D"),
        "running_mean": ("mean", "D"),
        "running_var": ("var", "D"),
    },
    "embedding": {"weight": ("embedding", "VD")},
}
DIALECTS = {"keras": KERAS, "nnx": NNX}


@dataclass(frozen=True)
class Row:
    """One kind of module. `{x}` in a key stands for every member of the index set x."""

    key: str  # the module's name in model.safetensors
    kind: str
    path: str  # the attribute path in our Keras and NNX classes
    tpu: str = ""  # the module's key in a checkpoint of the original code

    @classmethod
    def same(cls, key: str, kind: str, tpu: str) -> "Row":
        """A row for a module that has the same path in our classes as in model.safetensors."""
        return cls(key, kind, key, tpu)


@dataclass(frozen=True)
class Slot:
    """One tensor: its name and axes in model.safetensors and in another dialect."""

    key: str
    axes: str
    local_key: str
    local_axes: str


class BlockIndex(int):
    """A member of an index set: a number that may also know the numbers of the layers it stands for.

    `"{x}"` is the number itself, `"{x:name}"` the number of its layer `name`.
    """

    layers: dict[str, int]

    def __new__(cls, number: int, layers: Mapping[str, int] | None = None):
        index = super().__new__(cls, number)
        index.layers = dict(layers or {})
        return index

    def __format__(self, spec: str) -> str:
        return str(self.layers[spec]) if spec else str(int(self))


def tpu_slots(rows: Iterable[Row], index_sets: Mapping[str, Iterable[int]]) -> list[Slot]:
    """The slots of a model against a checkpoint of the original code.

    Args:
        rows: the rows of the model's table that apply to its configuration.
        index_sets: the members of each index set that the rows name: plain numbers, or `BlockIndex`.
    """
    return list(_slots(rows, index_sets, TPU, "/", lambda row: row.tpu))


def framework_slots(rows: Iterable[Row], index_sets: Mapping[str, Iterable[int]], dialect: str) -> list[Slot]:
    """The slots of a model against our class in a framework: a local key is the attribute path of a variable.

    Args:
        rows, index_sets: as for `tpu_slots`.
        dialect: "keras" or "nnx".
    """
    return list(_slots(rows, index_sets, DIALECTS[dialect], ".", lambda row: row.path))


def pytorch_slots(rows: Iterable[Row], index_sets: Mapping[str, Iterable[int]]) -> list[Slot]:
    """The slots of a model against a state dict of PyTorch that uses other module names: `Row.path`. Leaves and axes are
    those of model.safetensors."""
    same = {kind: {leaf: (leaf, axes) for leaf, axes in leaves.items()} for kind, leaves in MODULE_KINDS.items()}
    return list(_slots(rows, index_sets, same, ".", lambda row: row.path))


def _slots(
    rows: Iterable[Row],
    index_sets: Mapping[str, Iterable[int]],
    dialect: Dialect,
    separator: str,
    local: Callable[[Row], str],
) -> Iterator[Slot]:
    for row in rows:
        names = [name for name in index_sets if "{" + name + "}" in row.key]
        members = index_sets[names[0]] if names else [None]
        for member in members:
            fill = {names[0]: member} if names else {}
            for leaf, axes in MODULE_KINDS[row.kind].items():
                local_leaf, local_axes = dialect[row.kind][leaf]
                yield Slot(
                    ".".join(filter(None, (row.key.format(**fill), leaf))),
                    axes,
                    separator.join(filter(None, (local(row).format(**fill), local_leaf))),
                    local_axes,
                )


def permute(array: np.ndarray, axes: str, expected: str) -> np.ndarray:
    """`array` with axes named `axes`, brought into the order `expected`. Swapping the two names inverts it.

    Axes of one entry ("1") may differ in number and place.

    Raises:
        ValueError: the array does not have these axes.
    """
    if not axes:
        return array
    if array.ndim != len(axes) or any(size != 1 for size, axis in zip(array.shape, axes) if axis == "1"):
        raise ValueError(f"got shape {array.shape}, expected axes {axes}")
    letters = axes.replace("1", "")
    core = array.reshape([size for size, axis in zip(array.shape, axes) if axis != "1"])
    core = core.transpose([letters.index(axis) for axis in expected if axis != "1"])
    sizes = iter(core.shape)
    return core.reshape([1 if axis == "1" else next(sizes) for axis in expected])


def permuted_shape(shape: tuple[int, ...], axes: str, expected: str, name: str) -> tuple[int, ...]:
    """The shape that `permute` gives a tensor.

    Raises:
        ValueError: the tensor `name` does not have these axes.
    """
    try:
        return permute(np.broadcast_to(np.int8(0), shape), axes, expected).shape
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Is this another model or size?") from None


def permuted(entry: TensorEntry, axes: str, expected: str, name: str) -> TensorEntry:
    """A tensor of a file with its axes in another order and in float32, once it is read.

    Raises:
        ValueError: the tensor `name` does not have these axes; when it is read, it is of another dtype than `float32` takes.
    """
    shape, read = entry
    return permuted_shape(shape, axes, expected, name), lambda: permute(float32(read(), name), axes, expected)
