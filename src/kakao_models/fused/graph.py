"""ONNX graphs, written straight from arrays: ONNX Runtime and OpenVINO read them, and neither PyTorch nor onnx is needed.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3; operators: https://onnx.ai/onnx/operators.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  N heads  K width per head
"""

import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.files.wire import BYTES, FIXED32, bytes_field, number_field, varint
from kakao_models.fused.weights import Weights, folded_norm, heads_of

OPSET, _IR_VERSION = 20, 9  # the first with Gelu, and the version of the format that came with it
_TYPES = {"float32": 1, "uint8": 2, "int64": 7, "bool": 9}  # TensorProto.DataType
_LARGEST = 2_000_000_000  # bytes; a message of protocol buffers has less than 2 GiB
_SMALL = 256  # bytes
_DATA = "weights"  # name of the file beside a larger graph

_ACTIVATIONS = {
    "gelu": lambda graph, x: graph.op("Gelu", x),
    "gelu_pytorch_tanh": lambda graph, x: graph.op("Gelu", x, approximate="tanh"),
    "gelu_new": lambda graph, x: graph.op("Gelu", x, approximate="tanh"),
    "relu": lambda graph, x: graph.op("Relu", x),
    "relu6": lambda graph, x: graph.op("Clip", x, graph.constant(np.float32(0)), graph.constant(np.float32(6))),
    "sigmoid": lambda graph, x: graph.op("Sigmoid", x),
    "silu": lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)),
    "swish": lambda graph, x: graph.op("Mul", x, graph.op("Sigmoid", x)),
    "tanh": lambda graph, x: graph.op("Tanh", x),
}


class Graph:
    """A graph that is built node by node: methods take and return names of values.

    Attributes:
        inputs: name → (dtype, shape), where a text is a size that differs from call to call.
        output: name of the one output, and its shape.
        arrays: name → constant.
    """

    def __init__(self, inputs: dict[str, tuple[str, tuple[int | str, ...]]]):
        self.inputs = inputs
        self.output: tuple[str, tuple[int | str, ...]] = ("", ())
        self.arrays: dict[str, np.ndarray] = {}
        self._nodes: list[bytes] = []

    def constant(self, values: Any) -> str:
        name = f"w{len(self.arrays)}"
        self.arrays[name] = np.asarray(values)  # a view stays one until the message is written
        return name

    def indices(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; the name of its output, or of each if there are several."""
        names = [f"v{len(self._nodes)}_{index}" for index in range(outputs)]
        parts = [bytes_field(1, name) for name in inputs] + [bytes_field(2, name) for name in names]
        parts += [bytes_field(4, kind), *(bytes_field(5, _attribute(*item)) for item in attributes.items())]
        self._nodes.append(b"".join(parts))
        return names[0] if outputs == 1 else names

    # --- layers

    def activate(self, x: str, name: str | None) -> str:
        if name is not None and name not in _ACTIVATIONS:
            raise ValueError(f"the activation {name!r} has no fused form, expected one of {', '.join(_ACTIVATIONS)}")
        return x if name is None else _ACTIVATIONS[name](self, x)

    def convolution(
        self,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        *,
        stride: Sequence[int] = (1, 1),
        pad: tuple[int, int] = (0, 0),
        groups: int = 1,
        activation: str | None = None,
    ) -> str:
        """A convolution padded by two numbers of pixels, at the low and at the high end of both axes."""
        low, high = pad
        parameters = [self.constant(array) for array in (weight, bias) if array is not None]
        y = self.op("Conv", x, *parameters, strides=list(stride), pads=[low, low, high, high], group=groups)
        return self.activate(y, activation)

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None) -> str:
        y = self.op("MatMul", x, self.constant(weight.T))
        return y if bias is None else self.op("Add", y, self.constant(bias))

    def layer_norm(self, x: str, weights: Weights, name: str, width: int, eps: float) -> str:
        parameters = (self.constant(weights(f"{name}.{leaf}", width)) for leaf in ("weight", "bias"))
        return self.op("LayerNormalization", x, *parameters, axis=-1, epsilon=float(eps))

    def attention(
        self,
        x: str,
        weights: Weights,
        projections: tuple[str, str, str],
        output: str,
        width: int,
        heads: int,
        *,
        mask: str | None,
        first: bool,
        bias: bool = True,
    ) -> str:
        """Self-attention (B, L, D); with `first`, of the first token only: (B, 1, D). `mask` is added to the logits."""
        heads, per_head = heads_of(width, heads)
        w = [weights(f"{name}.weight", width, width) for name in projections]
        b = [weights(f"{name}.bias", width) for name in projections] if bias else None
        scale = np.float32(per_head**-0.5)
        w[0] = w[0] * scale
        if b:
            b[0] = b[0] * scale
        if first:
            q = self.linear(self.first_token(x), w[0], b and b[0])
            both = self.linear(x, np.concatenate(w[1:]), b and np.concatenate(b[1:]))
            k, v = self.op("Split", both, outputs=2, axis=-1, num_outputs=2)
        else:
            whole = self.linear(x, np.concatenate(w), b and np.concatenate(b))
            q, k, v = self.op("Split", whole, outputs=3, axis=-1, num_outputs=3)
        shape = self.indices(0, 0, heads, per_head)
        q, k, v = (
            self.op("Transpose", self.op("Reshape", part, shape), perm=order)
            for part, order in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )  # (B, N, L, K), of k (B, N, K, L)
        scores = self.op("MatMul", q, k)
        scores = scores if mask is None else self.op("Add", scores, mask)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)  # (B, N, L, K)
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.indices(0, 0, width))
        return self.linear(y, weights(f"{output}.weight", width, width), weights(f"{output}.bias", width))

    def first_token(self, x: str) -> str:
        """(B, L, D) → (B, 1, D)."""
        return self.op("Slice", x, self.indices(0), self.indices(1), self.indices(1))

    # --- messages

    def large_arrays(self) -> dict[str, np.ndarray]:
        """The constants that may lie outside the message: all but those that runtimes infer shapes from."""
        return {name: array for name, array in self.arrays.items() if array.nbytes > _SMALL}

    def message(self, location: str | None = None) -> bytes:
        """The graph as a ModelProto.

        Args:
            location: name of a file beside it that holds `large_arrays`, one behind the other; by default they are inside.
        """
        parts: list[bytes | memoryview] = []
        parts += [part for node in self._nodes for part in _framed(1, [node])]
        parts += _framed(2, [b"kakao_models"])
        begin, large = 0, self.large_arrays()
        for name, array in self.arrays.items():
            head = [_numbers(1, array.shape), number_field(2, _TYPES[array.dtype.name]), bytes_field(8, name)]
            if location is None or name not in large:
                parts += _framed(5, [*head, *_framed(9, [_bytes(array)])])
            else:
                where = {"location": location, "offset": begin, "length": array.nbytes}
                entries = [bytes_field(13, bytes_field(1, k) + bytes_field(2, str(v))) for k, v in where.items()]
                parts += _framed(5, [*head, *entries, number_field(14, 1)])
                begin += array.nbytes
        for name, (dtype, shape) in self.inputs.items():
            parts += _framed(11, [_value(name, dtype, shape)])
        name, shape = self.output
        parts += _framed(12, [_value(name, "float32", shape)])
        opset = bytes_field(8, number_field(2, OPSET))
        return b"".join([number_field(1, _IR_VERSION), bytes_field(2, "kakao-models"), *_framed(7, parts), opset])

    @contextmanager
    def readable(self) -> Iterator[bytes | Path]:
        """Yields the graph for a runtime: the message itself, or where it is too large for one, a file."""
        if sum(array.nbytes for array in self.arrays.values()) < _LARGEST:
            yield self.message()
            return
        with tempfile.TemporaryDirectory(prefix="kakao-models-") as folder:
            file = Path(folder, "model.onnx")
            file.write_bytes(self.message(_DATA))
            with Path(folder, _DATA).open("wb") as data:
                for array in self.large_arrays().values():
                    data.write(_bytes(array))
            yield file


def folded_convolution(
    weights: Weights, conv: str, norm: str, shape: tuple[int, ...], eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a convolution with the batch normalisation behind it."""
    weight = weights(f"{conv}.weight", *shape)
    leaves = ("running_mean", "running_var", "weight", "bias")
    scale, shift = folded_norm(*(weights(f"{norm}.{leaf}", shape[0]).astype(np.float64) for leaf in leaves), eps)
    return weight * scale[:, None, None, None].astype(weight.dtype), shift.astype(weight.dtype)


def pixel_input(
    channels: int,
    size: tuple[int | str, int | str],
    weight: np.ndarray,
    pixels: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[Graph, str, np.ndarray]:
    """A graph that takes images, the first value in it, and the weight (D, C, H, W) of the convolution of that.

    The zero of bytes is subtracted, so that padding stays 0, and their scale is in the weight.
    """
    graph = Graph({"pixel_values": ("float32" if pixels is None else "uint8", ("batch", channels, *size))})
    if pixels is None:
        return graph, "pixel_values", weight
    scale, zero = pixels
    x = graph.op("Cast", "pixel_values", to=1)
    x = graph.op("Sub", x, graph.constant(zero.astype(np.float32)[:, None, None]))
    return graph, x, (weight.astype(np.float64) * scale[None, :, None, None]).astype(np.float32)


def feed_forward(graph: Graph, x: str, y: str, config: Any, weights: Weights, name: str, norm: str | None) -> str:
    """x + the two products of y, and the normalisation behind the sum if there is one."""
    width, inner = config.hidden_size, config.intermediate_size
    for part, shape, activation in (
        ("intermediate.dense", (inner, width), config.hidden_act),
        ("output.dense", (width, inner), None),
    ):
        arrays = weights(f"{name}.{part}.weight", *shape), weights(f"{name}.{part}.bias", shape[0])
        y = graph.activate(graph.linear(y, *arrays), activation)
    x = graph.op("Add", x, y)
    return x if norm is None else graph.layer_norm(x, weights, norm, width, config.layer_norm_eps)


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array)).cast("B")


def _framed(number: int, parts: list) -> list:
    """A field of bytes, given in parts: large arrays are copied once, when all is joined."""
    length = sum(len(part) for part in parts)
    return [varint(number << 3 | BYTES) + varint(length), *parts]


def _numbers(number: int, values: Sequence[int]) -> bytes:
    """A repeated field of 64-bit numbers, which may be negative."""
    return b"".join(varint(number << 3) + varint(value % (1 << 64)) for value in values)


def _attribute(name: str, value: Any) -> bytes:
    """An AttributeProto: a number, a text or a list of whole numbers."""
    if isinstance(value, float):
        field, kind = varint(2 << 3 | FIXED32) + struct.pack("<f", value), 1
    elif isinstance(value, int):
        field, kind = _numbers(3, [value]), 2
    elif isinstance(value, str):
        field, kind = bytes_field(4, value), 3
    else:
        field, kind = _numbers(8, value), 7
    return bytes_field(1, name) + field + number_field(20, kind)


def _value(name: str, dtype: str, shape: tuple[int | str, ...]) -> bytes:
    """A ValueInfoProto."""
    sizes = (bytes_field(2, size) if isinstance(size, str) else number_field(1, size) for size in shape)
    tensor = number_field(1, _TYPES[dtype]) + bytes_field(2, b"".join(bytes_field(1, size) for size in sizes))
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor))
