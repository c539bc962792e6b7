"""JAX's exported programs: StableHLO for CPUs, NVIDIA and AMD cards and TPUs, without Flax and this package.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from kakao_models.export.contract import Contract, Function, ImageInput
from kakao_models.export.samples import RunFunction
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.engine_flax import FUNCTIONS, FlaxEngine

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_OUTPUTS = {"image": "features", "text": "texts", "classifier": "logits"}  # name of a function → that of the engine's


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """A file for each function: what `jax.export.deserialize` takes."""
    model = contract.source_model(embedder, FlaxEngine)
    evaluating = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, state = nnx.split(evaluating)
    narrow = jax.tree.map(partial(_narrow, dtype=contract.quantize), state)
    files = {}
    for name, function in contract.functions.items():

        def called(*inputs: jax.Array, name: str = name) -> jax.Array:
            if name != "text":
                inputs = (_prepare(*inputs, contract.pixels),)
            wide = jax.tree.map(_widen, narrow, state)
            x = FUNCTIONS[_OUTPUTS[name]](nnx.merge(graph, wide), *inputs)
            if contract.normalize:
                x /= jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
            return x

        program = jax_export.export(jax.jit(called), platforms=PLATFORMS)(*_arguments(embedder, function))
        files[name] = f"{name}.stablehlo"
        (folder / files[name]).write_bytes(program.serialize())
    return files


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function out of its file, by `jax.export.deserialize`."""
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    return lambda inputs: np.asarray(program.call(*(inputs[tensor.name] for tensor in function.inputs)))


def _narrow(array: jax.Array, dtype: str | None) -> jax.Array:
    wide = dtype is None or array.ndim < 2 or not jnp.issubdtype(array.dtype, jnp.floating)
    return array if wide else array.astype(dtype)


def _widen(array: jax.Array, full: jax.Array) -> jax.Array:
    return array if array.dtype == full.dtype else array.astype(full.dtype)


def _arguments(embedder: Embedder, function: Function) -> list[jax.ShapeDtypeStruct]:
    """Shapes with names for free sizes; those of one function are the same sizes."""
    names = dict.fromkeys(size for tensor in function.inputs for size in tensor.shape if isinstance(size, str))
    bounds = [f"tokens <= {embedder.max_tokens}"] if "tokens" in names else []
    free = dict(zip(names, jax_export.symbolic_shape(", ".join(names), constraints=bounds)))
    return [
        jax.ShapeDtypeStruct([free.get(size, size) for size in tensor.shape], tensor.dtype)
        for tensor in function.inputs
    ]


def _prepare(images: jax.Array, pixels: ImageInput) -> jax.Array:
    """Images as they come in → pixel values (B, C, H, W)."""
    if pixels.kind == "float":
        return images
    x = images.astype(jnp.float32)
    if pixels.kind == "picture":
        top, left, height, width = pixels.box
        x = _interpolated(x, 1, pixels.resized[0], top, height)
        x = _interpolated(x, 2, pixels.resized[1], left, width)
    x = x * jnp.array(pixels.scale, jnp.float32) + jnp.array(pixels.offset, jnp.float32)
    return x.transpose(0, 3, 1, 2)


def _interpolated(x: jax.Array, axis: int, resized: int, start: int, count: int) -> jax.Array:
    """Pixels start, start + 1, ... of an axis resized as in `kakao_models.pixels.resize`; the old size may be unknown."""
    size = jnp.asarray(x.shape[axis], jnp.float32)
    position = (jnp.arange(start, start + count, dtype=jnp.float32) + 0.5) * (size / resized) - 0.5
    below = jnp.floor(position)
    weight = (position - below).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    first, second = (jnp.clip(below + i, 0, size - 1).astype(jnp.int32) for i in (0, 1))
    return jnp.take(x, first, axis) * (1 - weight) + jnp.take(x, second, axis) * weight
