"""Checks with one message for all frameworks: of what a model is called with, and of the activations in a configuration.

An array is anything with a shape and a dtype.
"""

from collections.abc import Mapping
from typing import Any


def check_images(model: Any, pixel_values: Any) -> None:
    """Raises ValueError where these are not floating-point images (B, channels, height, width)."""
    name, channels, shape = type(model).__name__, model.config.num_channels, getattr(pixel_values, "shape", None)
    if shape is None or len(shape) != 4 or shape[1] != channels:
        hint = _hint(pixel_values)
        if shape is not None and len(shape) == 4 and shape[3] == channels:
            turn = "permute" if hasattr(pixel_values, "permute") else "transpose"
            hint = f". Channels come first: {turn}(0, 3, 1, 2)"
        raise ValueError(
            f"{name}: pixel_values must be (batch, {channels}, height, width), got {_described(pixel_values)}{hint}"
        )
    dtype = type_name(pixel_values.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"{name}: pixel_values must be floating-point numbers in [-1, 1], got {dtype}. Use the processor"
        )


def check_texts(model: Any, input_ids: Any, inputs_embeds: Any) -> None:
    """Raises ValueError where these are not either token ids (B, L) or vectors of tokens (B, L, D), at most as many as there
    are positions."""
    name, config = type(model).__name__, model.config
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(f"{name} takes either input_ids or inputs_embeds: got both or neither")
    argument, given, axes = "input_ids", input_ids, ("batch", "tokens")
    if input_ids is None:
        argument, given, axes = "inputs_embeds", inputs_embeds, (*axes, config.hidden_size)
    shape = getattr(given, "shape", None)
    if shape is None or len(shape) != len(axes) or (len(axes) == 3 and shape[2] not in (None, config.hidden_size)):
        expected = f"({', '.join(map(str, axes))})"
        raise ValueError(f"{name}: {argument} must be {expected}, got {_described(given)}{_hint(given)}")
    if shape[1] is not None and shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"{name}: got texts of {shape[1]} tokens, but there are {config.max_position_embeddings} positions. Truncate "
            "them: AlignProcessor does, at 64."
        )


def activation_named(functions: Mapping[str, Any], name: str, field: str) -> Any:
    """The function of the name that a field of a configuration has.

    Raises:
        ValueError: no function has this name.
    """
    if name not in functions:
        raise ValueError(f"{field}: got {name!r}, expected one of {', '.join(sorted(functions))}")
    return functions[name]


def type_name(dtype: Any) -> str:
    """The name of a type of numpy, JAX, TensorFlow or PyTorch."""
    return getattr(dtype, "name", str(dtype)).removeprefix("torch.")  # TensorFlow's and numpy's have a name


def _described(given: Any) -> Any:
    shape = getattr(given, "shape", None)
    if shape is not None:
        return tuple(shape)
    return None if given is None else f"a {type(given).__name__}"


def _hint(given: Any) -> str:
    if isinstance(given, Mapping):
        return ". Arguments go by name: model(**inputs)"
    if isinstance(given, (list, tuple)):
        return '. Give the processor return_tensors="pt", "tf" or "jax"'
    return ""
