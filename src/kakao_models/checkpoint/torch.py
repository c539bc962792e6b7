"""Loading PyTorch models: transformers' `from_pretrained`, made a bijection."""

import contextlib
import logging
import os
import pickle
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, modeling_utils
from transformers.activations import ACT2FN

from kakao_models.checkpoint.checks import activation_named
from kakao_models.checkpoint.formats import find_weights, read_weights
from kakao_models.checkpoint.hub import cached_only, hub_arguments, pin, remember_place, resolve
from kakao_models.checkpoint.tensors import TensorPatterns, check_sizes

_FILES = ("model.safetensors", "pytorch_model.bin")
_OTHER_FILES = {"variant", "use_safetensors", "gguf_file", "state_dict"}  # arguments by which transformers reads others
_MOST_MISSING = 2**28  # numbers, a gigabyte; of what may be missing, a head of 21,841 classes has 22 million


def wide_dtype(x: torch.Tensor) -> torch.dtype:
    """float32, or the type of x if it is wider: in it, sums and small steps are not rounded away."""
    return torch.promote_types(x.dtype, torch.float32)


def activation(name: str, field: str = "hidden_act") -> Any:
    """The module of an activation by transformers' name; see `activation_named`."""
    return activation_named(ACT2FN, name, field)


class BijectiveLoading(TensorPatterns):
    """Mixin for `PreTrainedModel` classes: every tensor of the file is used once, every variable is filled once."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        """transformers' `from_pretrained` (hub id or folder, `revision`, `subfolder`, `dtype`, `token`, ...),
        which also takes the name of a checkpoint that ships with this package.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; the message names each one.
            OSError: no such checkpoint, no network, or a file that can't be read.
        """
        source = pretrained_model_name_or_path  # None: the weights are in `state_dict`
        place: dict[str, Any] = {}
        format = None
        if source is not None:
            where = place = pin(source, **hub_arguments(kwargs))
            if not any(kwargs.get(name) is not None for name in _OTHER_FILES):
                config = kwargs.get("config")
                if config is None:  # an error in it is reported before weights are downloaded
                    config = cls.config_class.from_pretrained(source, **where)
                format, files = find_weights(source, _FILES, **where)
                _check_sizes(config, source, format, files)
                where = cached_only(where)
            source, kwargs = resolve(source), kwargs | where
        if isinstance(kwargs.get("config"), PreTrainedConfig):
            kwargs["config"] = cls.config_class.from_config(kwargs["config"])
        if cls.tensors_renamed:
            kwargs["key_mapping"] = dict(cls.tensors_renamed) | (kwargs.get("key_mapping") or {})
        with_info = kwargs.pop("output_loading_info", False)
        may_replace = kwargs.pop("ignore_mismatched_sizes", False)
        try:
            with _quiet_loading_report():
                model, info = super().from_pretrained(
                    source, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
        except SafetensorError as error:
            raise OSError(f"{source}: not a readable safetensors file ({error}). Is the download complete?") from error
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # PyTorch's own reader is stricter than ours
            if format != _FILES[1]:
                raise
            raise OSError(f"{source}: PyTorch can't read {format} ({str(error).splitlines()[0]})") from error
        mismatched = {key: (tuple(stored), tuple(expected)) for key, stored, expected in info["mismatched_keys"]}
        cls._check_tensors(
            source or "state_dict", info["missing_keys"], info["unexpected_keys"], mismatched, may_replace
        )
        if source is not None:
            remember_place(model.config, source, place)
        if cls.tensors_renamed:
            model._weight_conversions = None  # or `save_pretrained` gives tensors back the names of the file
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """transformers' `save_pretrained`; whoever may read config.json may read the weights too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if (config := Path(save_directory, "config.json")).is_file():  # absent on all processes but the main one
            for file in config.parent.glob("*.safetensors"):
                file.chmod(config.stat().st_mode)  # safetensors makes them 0600

    def _move_missing_keys_from_meta_to_device(self, missing_keys, *arguments, **options):
        """Refuses a checkpoint that lacks most of the model, before transformers allocates memory for the missing tensors."""
        numbers = sum(self.get_parameter_or_buffer(key).numel() for key in missing_keys)
        if numbers > _MOST_MISSING:
            raise ValueError(
                f"{len(missing_keys)} tensors of this {type(self).__name__}, with {numbers:,} values, are missing in the file or have "
                f"another shape there, such as {min(missing_keys)}. Does config.json belong to another checkpoint?"
            )
        super()._move_missing_keys_from_meta_to_device(missing_keys, *arguments, **options)


def _check_sizes(config: Any, source: str | os.PathLike, format: str, files: list[Path]) -> None:
    try:
        stored = read_weights(source, format, files)
    except ValueError as error:
        if format == _FILES[0]:  # transformers reads it too, and logs a message
            return
        raise OSError(str(error)) from error  # before a hostile pickle is opened
    if isinstance(config, PreTrainedConfig):
        check_sizes(config, {key: shape for key, (shape, _) in stored.items()}, source)


@contextlib.contextmanager
def _quiet_loading_report():
    """transformers logs what did not fit as a warning; here it is a single error with the same content."""
    report = logging.getLogger(modeling_utils.__name__)

    def drop_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in str(record.msg)

    report.addFilter(drop_report)
    try:
        yield
    finally:
        report.removeFilter(drop_report)
