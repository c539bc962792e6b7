"""The base of every configuration class: a misspelt field is an error, a file from the Hub is not."""

import difflib
import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import GenerationConfig, PreTrainedConfig

from kakao_models.checkpoint.hub import described_by, fetch, fetch_all, hub_arguments, read_config
from kakao_models.checkpoint.kinds import classes_of

logger = logging.getLogger(__name__)

# Names that transformers 4 and 5 themselves write into every config.json, or accept beside the fields of a class,
# other than those with an underscore in front.
_KNOWN_TO_TRANSFORMERS = frozenset(
    "add_cross_attention attn_implementation base_model_pp_plan base_model_tp_plan cross_attention_hidden_size "
    "experts_implementation finetuning_task is_composition is_decoder keys_to_ignore_at_inference model_type name_or_path "
    "num_labels output_attentions per_layer_config prefix pruned_heads sep_token_id decoder_start_token_id bos_token_id "
    "eos_token_id pad_token_id task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states "
    "tie_word_embeddings tokenizer_class torch_dtype torchscript use_bfloat16 use_cache position_embedding_type".split()
)

_SIZES = frozenset(
    "hidden_size num_attention_heads intermediate_size patch_size image_size vocab_size projection_dim".split()
)
_LARGEST, _MOST_PIXELS = 2**31, 2**16  # of these sizes; sides in pixels are squared
_OF_STAGES = frozenset("num_block_repeats expand_ratios kernel_sizes strides in_channels out_channels".split())
_MOST_IN_STAGE = 1000  # blocks, times as many channels, ...; EfficientNet-L2 has 37 blocks in a stage


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be a single number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def name_of_size(sizes: Mapping[str, tuple], size: tuple) -> str | None:
    """The name of a published size; None where it is another."""
    return next((name for name, published in sizes.items() if published == size), None)


class StrictConfig(PreTrainedConfig):
    """Mixin for configuration classes: an unknown field is a `ValueError` that suggests the right name.

    A file may carry fields this class does not know: a user's own, or those of other tools. `from_dict`, and so
    `from_pretrained`, keeps them as attributes with a warning, which also suggests the right name.
    """

    # Other model_types of the same model
    _model_types: ClassVar[frozenset[str]] = frozenset()
    # Fields of other versions of the class that decide nothing; accepted and dropped.
    _derived_fields: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self, **kwargs):
        for name in self._derived_fields & kwargs.keys():
            kwargs.pop(name)
        for name in self._unknown(kwargs):
            hint = self._close_to(name)
            raise ValueError(
                f"{type(self).__name__} has no field {name!r} (given {kwargs[name]!r})"
                + (f"; did you mean {hint!r}?" if hint else f". It has: {', '.join(sorted(self._field_names()))}")
            )
        super().__post_init__(**kwargs)
        self._check_sizes()

    def _check_sizes(self) -> None:
        for name in _SIZES & self._field_names():
            value = getattr(self, name)
            for size in value if isinstance(value, (list, tuple)) else [value]:
                most = _MOST_PIXELS if name in ("image_size", "patch_size") else _LARGEST
                if isinstance(size, int) and not 1 <= size <= most:
                    raise ValueError(f"{type(self).__name__}: {name} is {value!r}, expected 1 to {most}")
        for name in _OF_STAGES & self._field_names():
            most = _LARGEST if name.endswith("channels") else _MOST_IN_STAGE
            if any(isinstance(number, (int, float)) and not number <= most for number in getattr(self, name) or ()):
                raise ValueError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}, expected at most {most}")
        dtype = getattr(self, "dtype", None)
        if not (dtype is None or isinstance(dtype, str) or type(dtype).__name__ == "dtype"):  # "float32", torch.float32
            raise ValueError(f"{type(self).__name__}: dtype is {dtype!r}, expected a name such as 'float32'")
        width, heads = (getattr(self, name, None) for name in ("hidden_size", "num_attention_heads"))
        if isinstance(width, int) and isinstance(heads, int) and width % heads:
            raise ValueError(
                f"{type(self).__name__}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
            )
        if strange := [label for label in (self.id2label or {}).values() if not isinstance(label, str)]:
            raise ValueError(f"{type(self).__name__}: id2label has the label {strange[0]!r:.80}, expected text")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """transformers' `from_pretrained`, which also takes the name of a checkpoint that ships with this package.

        Raises:
            ValueError: the file describes another model.
            OSError: it is missing or damaged.
        """
        name = source = pretrained_model_name_or_path
        if os.path.isfile(name):  # a file of another name
            file, where = Path(name), {}
        else:
            source, where = fetch_all(name, ["config.json"], **hub_arguments(kwargs))
            file = fetch(source, "config.json", **where)
        try:
            values = read_config(file)
        except ValueError as error:
            raise OSError(str(error)) from error
        cls._check_model_type(values, name)
        with described_by(file):
            return super().from_pretrained(source, **(kwargs | where))

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values.pop("_loaded_from", None)  # see `remember_place`
        return values

    @classmethod
    def _check_model_type(cls, values: dict, name: str | os.PathLike) -> None:
        """transformers only warns, and continues with the defaults of a model that is not in the file."""
        model_type = values.get("model_type", cls.model_type)
        parts = [part.get("model_type") for part in values.values() if isinstance(part, dict)]
        if cls.model_type not in (model_type, *parts) and model_type not in cls._model_types:
            classes = classes_of(model_type)
            hint = f". {' or '.join(classes)} can load it" if classes else ""
            raise ValueError(f"{name}: model_type is {model_type!r}, {cls.__name__} expected {cls.model_type!r}{hint}")

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        """`config`, or this class's with the values of `config` where that is transformers' class for the same model."""
        if isinstance(config, cls) or config.model_type != cls.model_type:
            return config
        return cls.from_dict(config.to_dict(), attn_implementation=config._attn_implementation)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        values, foreign = cls._parted(config_dict)
        result = super().from_dict(values, **kwargs)
        (result[0] if isinstance(result, tuple) else result)._keep(foreign)
        return result

    @classmethod
    def _parted(cls, values: dict) -> tuple[dict, dict]:
        """The fields that the class knows, and the others; of its parts as well."""
        # transformers 4 stored every setting of text generation in every sub-configuration.
        settings = GenerationConfig._get_default_generation_params().keys()
        unknown = cls._unknown(values)
        foreign = {name: values[name] for name in unknown if name not in settings}
        kept = {name: value for name, value in values.items() if name not in unknown}
        for name, part in cls.sub_configs.items():
            if isinstance(kept.get(name), dict):
                kept[name], foreign[name] = part._parted(kept[name])
        return kept, foreign

    def _keep(self, foreign: dict) -> None:
        for name, value in foreign.items():
            if name in self.sub_configs:
                getattr(self, name)._keep(value)
                continue
            hint = self._close_to(name)
            _warn_once(
                f"{type(self).__name__} ignores the unknown field {name!r} of this configuration"
                + (f"; did you mean {hint!r}?" if hint else "")
            )
            setattr(self, name, value)

    @classmethod
    def _field_names(cls) -> set[str]:
        return {field.name for field in fields(cls)}

    @classmethod
    def _unknown(cls, values) -> list[str]:
        known = cls._field_names() | cls._derived_fields | _KNOWN_TO_TRANSFORMERS | cls.attribute_map.keys()
        return [name for name in values if name not in known and not name.startswith("_")]

    @classmethod
    def _close_to(cls, name: str) -> str | None:
        return next(iter(difflib.get_close_matches(name, cls._field_names(), n=1, cutoff=0.8)), None)
