"""The base of our Keras 3 models: loading and saving, dtype policies, layers and outputs."""

import math
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kakao_models.checkpoint.checks import activation_named
from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.pretrained import PretrainedLoading, Replaced, find_variable

Tensor = Any  # a tensor of Keras' backend: TensorFlow's, JAX's or PyTorch's


class ModelOutput(dict):
    """Base of what a model returns: fields by name (`output.logits`, None where absent, or `output["logits"]`) and, of
    those that are there, by place (`output[0]`).

    A dictionary, so it passes through `tf.function`, `jax.jit` and `model.predict`. A subclass lists its fields as
    annotations, in their order.
    """

    fields: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        cls.fields = tuple(cls.__annotations__)
        _register(cls)

    def __init__(self, *args: Any, **values: Any):
        super().__init__(*args)
        self.update({name: values[name] for name in self.fields if values.get(name) is not None})

    def __getattr__(self, name: str) -> Any:
        if name not in type(self).fields:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self.fields)}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        values = [self[name] for name in self.fields if name in self]
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in values)


def _register(cls: type[ModelOutput]) -> None:
    """Makes a class of outputs a tree for Keras, and for its backend."""

    def flatten(output: ModelOutput) -> tuple[tuple, tuple[str, ...]]:
        names = tuple(name for name in cls.fields if name in output)
        return tuple(output[name] for name in names), names

    def unflatten(names: tuple[str, ...], values: tuple) -> ModelOutput:
        return cls(zip(names, values))

    if keras.backend.backend() == "torch":
        from torch.utils import _pytree

        _pytree.register_pytree_node(cls, flatten, lambda values, names: unflatten(names, values))
    else:
        import optree

        optree.register_pytree_node(cls, flatten, unflatten, namespace="keras")
    if keras.backend.backend() == "jax":
        import jax

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)


class TFBaseModelOutputWithPooling(ModelOutput):
    last_hidden_state: Any
    pooler_output: Any
    hidden_states: tuple
    attentions: tuple


class Layer(keras.layers.Layer):
    """A layer that has made all its variables by the end of its constructor."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.built = True


class TFPreTrainedModel(PretrainedLoading, keras.Model):
    """Base of the Keras models. Their variables are made by the constructor, in the global dtype policy
    (`keras.config.set_dtype_policy("mixed_bfloat16")`) or in the `dtype` of `from_pretrained`.
    """

    prepare_tf_dataset = Replaced(
        "datasets has it: dataset.to_tf_dataset(batch_size=32, columns='pixel_values', label_cols='labels')"
    )
    serving, eager_serving, serving_output, input_signature = (
        Replaced("Write model.export(folder): it writes a SavedModel with the functions of model.signatures()")
        for _ in range(4)
    )
    hf_compute_loss = Replaced(
        "compile() without a loss uses the model's own. In a loop of your own: model(pixel_values, labels=labels).loss"
    )
    dummy_inputs = Replaced("No call is needed before weights are loaded. Pass images of your own")

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable("kakao_models")(cls)  # else load_model refuses what save wrote

    def __init__(self, config: Any, **kwargs: Any):
        keras.Model.__init__(self, **kwargs)
        self.config = config
        self.built = True

    def __call__(self, *args: Any, **kwargs: Any):
        """`model(pixels)`, `model(pixel_values=pixels)` or, as `fit` and Keras' functional models give inputs, a mapping of
        arguments: `model({"pixel_values": pixels}, training=True)`.
        """
        args, kwargs = self._by_name(args, kwargs)
        for name in kwargs.keys() & self.arguments_replaced.keys():
            raise TypeError(f"{type(self).__name__} has no argument {name!r}. {self.arguments_replaced[name]}")
        return super().__call__(*args, **kwargs)

    def load_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Loads what `save_weights("name.weights.h5")` wrote."""
        name = str(filepath)
        if name.endswith(".h5") and not name.endswith(".weights.h5"):
            raise ValueError(
                f"{name}: expected a file .weights.h5, which Keras 3 writes. A .h5 of transformers 4 is converted once, with its "
                "config.json: kakao-models convert OLD NEW; then write from_pretrained(NEW)"
            )
        super().load_weights(filepath, *args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        self.loss = self._compile_loss = None  # Keras keeps that of an earlier `compile`
        super().compile(*args, **kwargs)

    def compile_from_config(self, config: dict) -> None:
        """Compiles a saved model. Keras' own method does nothing where `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def stateless_call(self, trainable_variables: Any, non_trainable_variables: Any, *args: Any, **kwargs: Any):
        # Keras on JAX goes from here to `call`, which therefore hands `training` on: layers do not take it from Keras there
        args, kwargs = self._by_name(args, kwargs)
        return super().stateless_call(trainable_variables, non_trainable_variables, *args, **kwargs)

    def _by_name(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if not args or not isinstance(args[0], Mapping):
            return args, kwargs
        if len(args) > 1:
            raise TypeError(f"{type(self).__name__}: after a mapping of arguments, pass further arguments by name")
        if twice := args[0].keys() & kwargs.keys():
            raise TypeError(
                f"{type(self).__name__}: {sorted(twice)[0]} is given twice: in the mapping of arguments and by name"
            )
        return (), {**args[0], **kwargs}

    @classmethod
    def _build(cls, config, dtype: str | None, **options):
        policy = keras.config.dtype_policy()
        try:
            if dtype is not None:
                keras.config.set_dtype_policy(dtype)
            return cls(config, **options)
        finally:
            keras.config.set_dtype_policy(policy)

    def _variables(self) -> dict[str, keras.Variable]:
        named = {slot.local_key: find_variable(self, slot.local_key) for slot in self._slots()}
        seen = {id(variable) for variable in named.values()}
        return named | {variable.path: variable for variable in self.weights if id(variable) not in seen}

    def _fill(self, variable: keras.Variable, array: np.ndarray) -> None:
        variable.assign(array)

    def options(self) -> dict:
        """The constructor's arguments beside the configuration."""
        return {}

    def get_config(self) -> dict:
        return {"config": self.config.to_dict(), "dtype": self.dtype_policy.name, "options": self.options()}

    @classmethod
    def from_config(cls, values: Any, custom_objects: Any = None):
        """A model from what `get_config` gave; from a configuration, as in transformers 4, a new one."""
        if isinstance(values, cls.config_class):
            return cls(values)
        return cls._build(cls.config_class.from_dict(values["config"]), values["dtype"], **values["options"])

    def export(self, filepath: str | os.PathLike, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """Writes the model for use without this package.

        Args:
            format: "tf_saved_model", a folder with the signatures of `signatures()`; "litert", a .tflite file with the
                same; or another that `keras.Model.export` knows.
        """
        if format not in ("tf_saved_model", "litert"):
            return super().export(filepath, format, **kwargs)
        if format == "tf_saved_model":
            from kakao_models.checkpoint.keras_export import export_saved_model as write
        else:
            from kakao_models.checkpoint.keras_export import export_litert as write
        write(self, filepath, **kwargs)

    def signatures(self) -> dict[str, tuple]:
        """name → (function of keyword arguments that returns a dict, {argument: (shape, dtype)}) of `export`."""
        raise NotImplementedError


def image_signatures(model: TFPreTrainedModel) -> dict[str, tuple]:
    """`signatures` of a model that reads images only: `image_features`, and `logits` of one with a classifier."""
    height, width = as_pair(model.config.image_size)
    pixels = {"pixel_values": ((None, model.config.num_channels, height, width), "float32")}

    def image_features(pixel_values):
        output = model.backbone()(pixel_values, return_dict=True, training=False)
        return {"image_features": output.get("pooler_output", output.last_hidden_state[:, 0])}

    def logits(pixel_values):
        return {"logits": model(pixel_values, return_dict=True, training=False).logits}

    classifies = getattr(model, "classifier", None) is not None
    return {"image_features": (image_features, pixels)} | ({"logits": (logits, pixels)} if classifies else {})


def dense(inputs: int, outputs: int, std: float | None = 0.02, bias: bool = True) -> keras.layers.Dense:
    """(..., inputs) → (..., outputs). `std` of the normal distribution it starts from, None for Glorot's uniform."""
    start = "glorot_uniform" if std is None else keras.initializers.RandomNormal(stddev=std)
    layer = keras.layers.Dense(outputs, use_bias=bias, kernel_initializer=start)
    layer.build((None, inputs))
    return layer


def convolution(
    inputs: int, outputs: int, kernel_size: int | tuple[int, int], stride: int = 1, bias: bool = True, start: Any = None
) -> keras.layers.Conv2D:
    """(B, H, W, inputs) → (B, H', W', outputs), without padding."""
    layer = keras.layers.Conv2D(
        outputs, kernel_size, strides=stride, use_bias=bias, data_format="channels_last",
        kernel_initializer=start or FAN_OUT,
    )  # fmt: skip
    layer.build((None, None, None, inputs))
    return layer


# EfficientNet's initialiser
FAN_OUT = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def layer_norm(width: int, eps: float) -> keras.layers.LayerNormalization:
    layer = keras.layers.LayerNormalization(epsilon=eps)
    layer.build((None, width))
    return layer


def embedding(rows: int, width: int, std: float) -> keras.layers.Embedding:
    layer = keras.layers.Embedding(rows, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=std))
    layer.build((None,))
    return layer


def gelu(x: Tensor):
    return 0.5 * x * (1 + ops.erf(x * 0.5**0.5))  # TensorFlow's own rounds the root to float32, in float64 too


def gelu_tanh(x: Tensor):
    return 0.5 * x * (1 + ops.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": ops.relu,
    "relu6": ops.relu6,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}


def activation(name: str, field: str = "hidden_act"):
    """The function of an activation by transformers' name; see `activation_named`."""
    return activation_named(_ACTIVATIONS, name, field)


def at_least_float32(x: Tensor):
    return ops.cast(x, "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32")


def gather_replicas(x: Tensor) -> tuple[Any, Any]:
    """(B, ...) → the rows of all replicas of a tf.distribute step (global B, ...), and where this replica's begin.

    Gradients flow back to the replica that a row is from.
    """
    if count_replicas() == 1:
        return x, 0
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    sizes = context.all_gather(tf.shape(x)[:1], axis=0)
    return context.all_gather(x, axis=0), ops.sum(sizes[: context.replica_id_in_sync_group])


def global_count(x: Tensor):
    """The number of rows of x on all replicas of a tf.distribute step together."""
    if count_replicas() == 1:
        return ops.shape(x)[0]
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.shape(x)[0])


def count_replicas() -> int:
    """The number of replicas of the tf.distribute step that is running; else 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync
