"""Arguments in transformers' form: what `transformers.pipeline` takes, as arguments of `Embedder`.

What can't be taken is refused by name, with what to do instead.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from kakao_models.warn import warn

# Names that are not arguments of `Embedder`, but are taken in their place or refused.
TRANSFORMERS_ARGUMENTS = (
    *("torch_dtype", "device_map", "feature_extractor", "model_kwargs", "use_fast", "trust_remote_code"),
    *("config", "video_processor", "pipeline_class", "code_revision"),
)
# transformers 5 has one tokenizer of each kind, and loads a model once into memory, whatever these say.
_WITHOUT_EFFECT = ("use_fast", "low_cpu_mem_usage")
_MODEL_KWARGS = (
    *("revision", "token", "subfolder", "cache_dir", "local_files_only", "dtype", "torch_dtype", "device_map"),
    *("trust_remote_code", "config", "code_revision", *_WITHOUT_EFFECT),
)
_NO_CODE = "no code of a checkpoint is ever run here. Leave it out; a model that needs its own code needs transformers.pipeline"
_ADVICE = {
    "trust_remote_code": _NO_CODE,
    "code_revision": _NO_CODE,
    "config": "the checkpoint's own is used. For another one, pass a model object: "
    "AlignModel.from_pretrained(name, config=config)",
    "video_processor": "these models read images. Pass image_processor=",
    "pipeline_class": "a pipeline is chosen by its task. Pass task=, or call the class on an Embedder",
}


def takes_transformers_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__(self, model, *, ...)` that also takes the arguments of `transformers.pipeline`."""

    @functools.wraps(init)
    def wrapped(self, model: Any, **arguments: Any) -> None:
        init(self, model, **translated(arguments))

    return wrapped


def translated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Embedder`, from those of it and of `transformers.pipeline`.

    Raises:
        ValueError: an unsupported argument, or a duplicate one.
    """
    arguments = _with_model_kwargs(dict(arguments))
    for name in _WITHOUT_EFFECT:
        arguments.pop(name, None)
    for name, advice in _ADVICE.items():
        if arguments.pop(name, None) not in (None, False):
            raise ValueError(f"{name} is not supported: {advice}")
    if arguments.get("torch_dtype") is not None:
        warn(f"torch_dtype is deprecated: use dtype={arguments['torch_dtype']!r}", FutureWarning)
    _rename(arguments, "torch_dtype", "dtype")
    _rename(arguments, "feature_extractor", "image_processor")
    if arguments.get("device_map") is not None:
        arguments["device_map"] = _one_device(arguments["device_map"])
    _rename(arguments, "device_map", "device")
    if "device" in arguments:
        arguments["device"] = device_name(arguments["device"])
    if "dtype" in arguments:
        arguments["dtype"] = dtype_name(arguments["dtype"])
    return arguments


def device_name(device: Any) -> str | int:
    """A device of any framework by name, or an accelerator's number; "auto" for None."""
    if device is None:
        return "auto"
    if hasattr(device, "platform") and hasattr(device, "id"):  # jax.Device
        return f"{device.platform}:{device.id}"
    return device if isinstance(device, int) else str(device)


def dtype_name(dtype: Any) -> str | None:
    """A dtype of any framework by name, such as "bfloat16"."""
    if dtype is None:
        return None
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", str(dtype))
    return name.removeprefix("torch.")


def _with_model_kwargs(arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in (arguments.pop("model_kwargs", None) or {}).items():
        if name not in _MODEL_KWARGS:
            raise ValueError(
                f"model_kwargs: {name!r} is not supported. Pass a model object: AlignModel.from_pretrained(name, {name}=...)"
            )
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is given as an argument and in model_kwargs: pass it once")
        arguments[name] = value
    return arguments


def _rename(arguments: dict[str, Any], theirs: str, ours: str) -> None:
    value = arguments.pop(theirs, None)
    if value is None:
        return
    if arguments.get(ours) is not None:
        raise ValueError(f"{theirs} and {ours} are both given: pass {ours} only")
    arguments[ours] = value


def _one_device(device_map: Any) -> Any:
    devices = set(map(device_name, device_map.values() if isinstance(device_map, Mapping) else [device_map]))
    if len(devices) != 1 or devices & {"balanced", "balanced_low_0", "sequential", "disk", "meta"}:
        raise ValueError(
            f"device_map={device_map!r} is not supported: a model runs on one device. Pass device='cuda:0'"
        )
    return devices.pop()
