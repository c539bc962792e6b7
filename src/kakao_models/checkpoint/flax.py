"""The base of our Flax NNX models: loading and saving, outputs that are pytrees, placing on a mesh of devices."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from transformers import PreTrainedConfig

from kakao_models.checkpoint.checks import activation_named
from kakao_models.checkpoint.pretrained import PretrainedLoading, Replaced, dtype_name


# Activations, by functions that a model can be pickled with: most of JAX's own can't be.
def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x)


def relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x)


def relu6(x: jax.Array) -> jax.Array:
    return jax.nn.relu6(x)


def sigmoid(x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x)


def silu(x: jax.Array) -> jax.Array:
    return jax.nn.silu(x)


def tanh(x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "swish": silu,
    "tanh": tanh,
}


def activation(name: str, field: str = "hidden_act") -> Callable[[jax.Array], jax.Array]:
    """The function of an activation by transformers' name; see `activation_named`."""
    return activation_named(_ACTIVATIONS, name, field)


def compute_dtype(layer: nnx.Linear | nnx.Conv) -> jnp.dtype:
    """The type that a layer computes in: its own, or else that of its kernel."""
    return layer.dtype or layer.kernel.dtype


def wide_dtype(x: jax.Array) -> jnp.dtype:
    """The type of x, but at least float32: what sums and exponentials are computed in."""
    return jnp.promote_types(x.dtype, jnp.float32)


# --- outputs


def output_class(cls: type) -> type:
    """Decorator: a dataclass that is a pytree, and stays one through `jax.export`."""
    cls = jax.tree_util.register_dataclass(dataclasses.dataclass(cls))
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"kakao_models.{cls.__name__}",
        serialize_auxdata=lambda aux: b"",  # the fields are the class's
        deserialize_auxdata=lambda data: (),
    )
    return cls


class FlaxModelOutput(Mapping):
    """Fields by attribute, by name and by position, as in transformers' `ModelOutput`; those that are None are left out."""

    def keys(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has {', '.join(self.keys())}")
        return getattr(self, key)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, FlaxModelOutput) else value for value in self.values())


@output_class
class FlaxBaseModelOutputWithPooling(FlaxModelOutput):
    """Output of a tower: `last_hidden_state`, `pooler_output`; when asked for, `hidden_states` (the embeddings' and each
    layer's) and `attentions` (each layer's)."""

    last_hidden_state: jax.Array | None = None
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


# --- layers


class LayerNorm(nnx.LayerNorm):
    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        # the fast variance is a difference of large numbers
        super().__init__(width, epsilon=eps, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu":
            # or XLA computes x anew for each use of its mean and variance, in backward many times: a training step of
            # ViT-B takes a third longer, and its compilation twice as long
            x = lax.optimization_barrier(x)
        return super().__call__(x)


def run_layer(encoder: nnx.Module, layer: nnx.Module, *inputs: Any):
    """`layer(*inputs)`; with `encoder.gradient_checkpointing` backward computes it again instead of keeping it."""
    if not encoder.gradient_checkpointing:
        return layer(*inputs)
    return nnx.remat(lambda layer, *inputs: layer(*inputs))(layer, *inputs)


# --- models


class _Config:
    """A configuration as an attribute that takes part in a jit's cache key: equal where it was written equal."""

    def __init__(self, config: PreTrainedConfig):
        self.value = config

    def __eq__(self, other) -> bool:
        return isinstance(other, _Config) and (self.value is other.value or self._text() == other._text())

    def __hash__(self) -> int:
        return hash(type(self.value))

    def _text(self) -> str:
        return self.value.to_json_string(use_diff=False)


def _check_dtype(dtype: str | None) -> None:
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            'dtype float64: JAX would turn it into float32. Call jax.config.update("jax_enable_x64", True) first'
        )
    if dtype is not None and dtype.startswith("mixed_"):
        raise ValueError(
            f"dtype {dtype!r} is a Keras policy. For mixed precision in Flax pass "
            f"dtype={dtype.removeprefix('mixed_')!r}, param_dtype='float32'"
        )


def _names_replacements(method: Callable) -> Callable:
    """The method, with a TypeError that says what replaces an argument of transformers 4."""
    takes = inspect.signature(method).parameters

    @wraps(method)
    def call(self, *args, **kwargs):
        for name in kwargs:
            if name not in takes and (instead := self.arguments_replaced.get(name)):
                raise TypeError(f"{type(self).__name__} has no argument {name!r}. {instead}")
        return method(self, *args, **kwargs)

    return call


class FlaxLoading(PretrainedLoading, nnx.Module):
    """Base of the Flax models: `from_pretrained` gives a model in evaluation mode, as in PyTorch."""

    arguments_replaced: ClassVar[dict[str, str]] = {
        **PretrainedLoading.arguments_replaced,
        "params": "The model holds its values: graph, params, rest = nnx.split(model, nnx.Param, ...), and later "
        "nnx.merge(graph, params, rest)(...)",
        "train": "Call model.train() or model.eval() before",
        "dropout_rng": "The model keeps its keys: nnx.reseed(model, dropout=0)",
        "seed": "Write rngs=nnx.Rngs(0)",
        "input_shape": "Leave it out: no parameter depends on it",
        "_do_init": "nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(0))) makes a model without values",
    }

    tensor_parallel_columns: ClassVar[tuple[str, ...]] = ()
    tensor_parallel_rows: ClassVar[tuple[str, ...]] = ()

    params = Replaced(arguments_replaced["params"])
    to_bf16 = Replaced("Write from_pretrained(..., dtype='bfloat16'), or model.set_compute_dtype('bfloat16')")
    to_fp16 = Replaced("Write from_pretrained(..., dtype='float16'), or model.set_compute_dtype('float16')")
    to_fp32 = Replaced("Write from_pretrained(..., dtype='float32')")
    init_weights = Replaced("The constructor makes all values: Model(config, rngs=nnx.Rngs(0))")

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        for name in ("__init__", "__call__"):
            if name in vars(cls):
                setattr(cls, name, _names_replacements(vars(cls)[name]))

    def __init__(self, config: PreTrainedConfig):
        self._config = _Config(config)

    @property
    def config(self) -> PreTrainedConfig:
        return self._config.value

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike, *, dtype: Any = None, param_dtype: Any = None, **options: Any
    ) -> Self:
        """`PretrainedLoading.from_pretrained`, with mixed precision.

        Args:
            dtype: type to compute in.
            param_dtype: type of the parameters, by default `dtype`. "float32" beside `dtype="bfloat16"` trains in mixed
                precision.
        """
        if param_dtype is None:
            return super().from_pretrained(name_or_path, dtype=dtype, **options)
        model = super().from_pretrained(name_or_path, dtype=param_dtype, **options)
        model.set_compute_dtype(dtype)
        return model

    def set_compute_dtype(self, dtype: Any) -> None:
        """Sets the type that all layers compute in. Parameters and the averages of batch norm keep theirs.

        Args:
            dtype: "bfloat16" or "float16", by name or as jnp.bfloat16; None or "auto" for the type of the parameters.
        """
        name = None if dtype is None or isinstance(dtype, str) and dtype == "auto" else dtype_name(dtype)
        _check_dtype(name)
        self.set_attributes(dtype=None if name is None else jnp.dtype(name))

    @classmethod
    def _build(cls, config: PreTrainedConfig, dtype: str | None, *, rngs: nnx.Rngs | None = None, **options) -> Self:
        _check_dtype(dtype)
        rngs = rngs or nnx.Rngs(0)
        model = nnx.eval_shape(  # no time and no memory for values
            lambda: cls(config, rngs=nnx.Rngs(params=0, dropout=0), **options)
        )
        model._config = _Config(config)
        for variable in model._variables().values():
            if dtype is not None:
                variable.set_value(jax.ShapeDtypeStruct(variable.shape, dtype))
        for _, variable in nnx.to_flat_state(nnx.state(model, nnx.RngState)):  # of dropout
            variable.set_value(rngs.dropout() if isinstance(variable, nnx.RngKey) else jnp.zeros((), jnp.uint32))
        return model.eval() or model

    def _variables(self) -> dict[str, nnx.Variable]:
        state = nnx.state(self, (nnx.Param, nnx.BatchStat))
        return {".".join(str(name) for name in path): variable for path, variable in nnx.to_flat_state(state)}

    def _fill(self, variable: nnx.Variable, array: np.ndarray) -> None:
        variable.set_value(jnp.array(array))

    def _load(self, *arguments) -> None:
        super()._load(*arguments)
        self._initialise(nnx.Rngs(0))  # a head that starts anew

    def _initialise(self, rngs: nnx.Rngs) -> None:
        """Gives the variables of `_build` that have no value yet their random ones."""
        new = {path: v for path, v in self._variables().items() if isinstance(v.get_value(), jax.ShapeDtypeStruct)}
        if not new:
            return
        graph, state = nnx.split(rngs)

        def fresh(state: nnx.State) -> dict[str, jax.Array]:
            variables = type(self)(self.config, rngs=nnx.merge(graph, state))._variables()
            return {path: variables[path].get_value() for path in new}

        for path, value in jax.jit(fresh)(state).items():  # compiled, it computes nothing else
            new[path].set_value(value.astype(new[path].dtype))

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Makes training recompute activations inside a block or layer in backward, instead of keeping them; or not."""
        self.set_attributes(gradient_checkpointing=enable)

    def partition_specs(self, axis: str = "tensor") -> nnx.State:
        """A `PartitionSpec` for every variable (nested as `nnx.state(model)`), by the kind of its layer.

        Layers into attention, into the inner layer of a transformer and into the expanded channels of EfficientNet's
        blocks are split by their outputs, what works there by channels, and the layers out of them by their inputs
        (Shoeybi et al. 2019, Megatron-LM): XLA needs two all-reduces a layer. All else is on every device.
        The axis' size must divide the number of heads and the widths.

        Args:
            axis: the mesh's axis for tensors. Data go over another axis, by the sharding of the batch.
        """

        def spec(path: tuple, variable: nnx.Variable) -> PartitionSpec:
            module, kernel = ".".join(str(name) for name in path[:-1]), path[-1] == "kernel"
            if any(re.fullmatch(pattern, module) for pattern in self.tensor_parallel_columns):
                return PartitionSpec(*[None] * (len(variable.shape) - 1), axis)
            if kernel and any(re.fullmatch(pattern, module) for pattern in self.tensor_parallel_rows):
                return PartitionSpec(*[None] * (len(variable.shape) - 2), axis, None)
            return PartitionSpec()

        return nnx.from_flat_state([(path, spec(path, v)) for path, v in nnx.to_flat_state(nnx.state(self))])

    def shard(self, mesh: Mesh, axis: str = "tensor") -> None:
        """Places the variables on a mesh: split by `partition_specs` where the mesh has that axis, else on every device.

        Raises:
            ValueError: an axis of the mesh is not of the type Auto, the only type for which JAX chooses the collectives.
        """
        if any(kind != AxisType.Auto for kind in mesh.axis_types):
            raise ValueError(
                f"{type(self).__name__}.shard: expected a mesh whose axes are Auto, got {mesh.axis_types}. Create it with "
                f"jax.make_mesh({mesh.axis_sizes}, {mesh.axis_names}, "
                f"axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)})"
            )
        state = nnx.state(self)
        if axis in mesh.axis_names:
            shardings = jax.tree.map(
                partial(NamedSharding, mesh), self.partition_specs(axis), is_leaf=lambda x: isinstance(x, PartitionSpec)
            )
        else:
            shardings = NamedSharding(mesh, PartitionSpec())
        nnx.update(self, jax.device_put(state, shardings))
