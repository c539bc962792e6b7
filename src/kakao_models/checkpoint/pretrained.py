"""Loading and saving of the Keras and NNX models: model.safetensors to variables and back, by the weight table.

Only numpy: no framework is imported here, nor those parts of transformers that need one.
"""

import inspect
import math
import os
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import ml_dtypes  # noqa: F401  gives numpy the type bfloat16
import numpy as np
from transformers import PreTrainedConfig

from kakao_models.checkpoint.checks import type_name
from kakao_models.checkpoint.config import StrictConfig
from kakao_models.checkpoint.formats import stored_tensors
from kakao_models.checkpoint.hub import pin, remember_place
from kakao_models.checkpoint.shards import write_shards
from kakao_models.checkpoint.tensors import LazyTensors, TensorEntry, TensorPatterns, check_sizes
from kakao_models.checkpoint.upload import upload
from kakao_models.checkpoint.weightmap import Slot, permute, permuted_shape
from kakao_models.files.sizes import parse_bytes
from kakao_models.warn import warn

# Types of variables; in Keras also a policy, such as "mixed_bfloat16"
_DTYPES = ("float32", "bfloat16", "float16", "float64")

StoredTensors = Mapping[str, TensorEntry]  # by key: shape, and the function that reads the tensor


class Replaced:
    """An attribute of transformers 4's classes that these do not have. Its error says what to write instead."""

    def __init__(self, instead: str):
        self.instead = instead

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type) -> Self:
        if model is None:
            return self
        raise AttributeError(f"{owner.__name__} has no {self.name}. {self.instead}")


class PretrainedLoading(TensorPatterns):
    """Mixin of our Keras and NNX models: `from_pretrained`, `save_pretrained`, `push_to_hub`.

    Loading is a bijection: every tensor of the file is used once, every variable is filled once. The base class of a
    framework implements the hooks `_build`, `_variables`, `_fill`; a model class implements `_slots`.

    Class attributes:
        config_class: class of the model's configuration.
        key_prefix: prefix of the base model's keys ("vit.") in a checkpoint of the whole model; a checkpoint of only the
            base model lacks it.
        is_base: whether this class is that base model.
        arguments_replaced: argument of transformers 4's classes → what to write instead.
        saving_replaced: the same of `save_pretrained`.
    """

    config: StrictConfig
    config_class: ClassVar[type[StrictConfig]]
    key_prefix: ClassVar[str] = ""
    is_base: ClassVar[bool] = False
    arguments_replaced: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("from_pt", "from_tf", "from_flax", "use_safetensors"),
            "Leave it out: one model.safetensors is for all frameworks",
        ),
        **dict.fromkeys(
            ("framework", "framework_type"),
            "The class says it: AlignModel is PyTorch's, TFAlignModel Keras', FlaxAlignModel Flax'. Embedder has framework=",
        ),
        **dict.fromkeys(
            ("device", "device_map"), "Load the model on the framework's own device. Embedder and pipeline have device="
        ),
        **dict.fromkeys(("low_cpu_mem_usage", "use_fast"), "Leave it out: a model is loaded once into memory"),
        **dict.fromkeys(
            ("output_loading_info", "load_weight_prefix", "tf_to_pt_weight_rename"),
            "Leave it out: loading fails unless every tensor has its place",
        ),
        "head_mask": "Leave it out: no attention here masks heads",
    }
    saving_replaced: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("saved_model", "signatures", "version"),
            "Write model.export(folder) for a SavedModel (Keras), or use kakao-models export",
        ),
        "safe_serialization": "Leave it out: weights are always written as safetensors",
        "is_main_process": "Leave it out, and call it in the main process only",
    }

    get_input_embeddings = Replaced(
        "Take the layer: embeddings.word_embeddings of an ALIGN's text_model, embeddings.convolution of its vision_model, "
        "embeddings.patch_embeddings of a ViT"
    )
    resize_token_embeddings = Replaced("Resize them with the PyTorch class, and save: the folder is for all frameworks")

    # --- hooks

    @classmethod
    def _build(cls, config: PreTrainedConfig, dtype: str | None, **options) -> Self:
        """A model with all its variables; `options` are arguments of its constructor. dtype None is the framework's."""
        raise NotImplementedError

    def _slots(self) -> list[Slot]:
        """The slots of this model's tensors; their local keys are attribute paths."""
        raise NotImplementedError

    def _variables(self) -> dict[str, Any]:
        """attribute path → variable (with `shape` and `dtype`, readable by numpy), of every weight of the model."""
        raise NotImplementedError

    def _fill(self, variable: Any, array: np.ndarray) -> None:
        """Gives a variable of `_variables` a value of its shape and dtype."""
        raise NotImplementedError

    @classmethod
    def _options_of(cls, config: PreTrainedConfig, stored: StoredTensors, options: dict) -> dict:
        """The arguments of `_build`, where the file has a say in them."""
        return options

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)

    # --- loading

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        dtype: Any = None,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Self:
        """The model of a folder, of a name on the Hub, or of a checkpoint that ships with this package.

        Args:
            revision, token, subfolder, cache_dir, force_download, local_files_only: of a checkpoint on the Hub, as in
                transformers.
            dtype: type of the variables ("bfloat16", ...); by default what config.json says, where that is another than
                float32, else the framework's own.
            config: a configuration, or the checkpoint or file that has it, instead of the checkpoint's config.json.
            ignore_mismatched_sizes: whether `tensors_replaceable` (a head) may start anew where they don't fit.
            overrides: fields of the configuration to change, and arguments of the constructor.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape; the message names each one.
            OSError: no such checkpoint, no network, or a file that can't be read.
            TypeError: an argument that neither this, nor the configuration, nor the constructor has.
        """
        if (old := overrides.pop("torch_dtype", None)) is not None:
            if dtype is not None:
                raise TypeError("torch_dtype and dtype are both given: pass dtype only")
            dtype = str(old).removeprefix("torch.") if "torch" in str(old) else old
            warn(f"torch_dtype is deprecated: use dtype={dtype!r}", FutureWarning)
        where = pin(
            name_or_path, revision=revision, token=token, subfolder=subfolder, cache_dir=cache_dir,
            force_download=force_download, local_files_only=local_files_only,
        )  # fmt: skip
        config, options = cls._configure(name_or_path, where, config, overrides)
        _check_options(cls, options)
        stored = stored_tensors(name_or_path, where)
        for pattern, name in cls.tensors_renamed:
            stored = {re.sub(pattern, name, key): entry for key, entry in stored.items()}
        prefix = cls.key_prefix
        if prefix and not any(key.startswith(prefix) for key in stored):
            stored = {prefix + key: entry for key, entry in stored.items()}  # only the base model was saved
        check_sizes(config, {key: shape for key, (shape, _) in stored.items()}, name_or_path)
        options = cls._options_of(config, stored, options)
        model = cls._build(config, _dtype(dtype, config), **options)
        model._load(stored, name_or_path, ignore_mismatched_sizes)
        remember_place(model.config, name_or_path, where)
        return model

    @property
    def name_or_path(self) -> str:
        """The folder or the name on the Hub that the model was loaded from; empty if it was not loaded."""
        return self.config.name_or_path or ""

    @classmethod
    def _configure(cls, name_or_path, where: dict, config, overrides: dict) -> tuple[PreTrainedConfig, dict]:
        """The configuration, and those of `overrides` that are not fields of it."""
        if config is not None:
            config = cls._copy_config(config)
            for name in [name for name in overrides if hasattr(config, name)]:
                setattr(config, name, overrides.pop(name))
            return config, overrides
        loaded: Any = cls.config_class.from_pretrained(name_or_path, return_unused_kwargs=True, **where, **overrides)
        return loaded  # a pair, by `return_unused_kwargs`

    @classmethod
    def _copy_config(cls, config: PreTrainedConfig | str | os.PathLike) -> StrictConfig:
        """A configuration of this class: a copy of the caller's, or that of a checkpoint or file."""
        if isinstance(config, (str, os.PathLike)):
            return cls.config_class.from_pretrained(config)
        return cls.config_class.from_dict(cls.config_class.from_config(config).to_dict())

    def _load(self, stored: StoredTensors, source, may_replace: bool) -> None:
        slots, variables = self._slots(), self._variables()
        if unnamed := variables.keys() ^ {slot.local_key for slot in slots}:
            raise ValueError(f"{type(self).__name__}: the weight table and the variables differ: {sorted(unnamed)}")
        expected = {slot.key: slot for slot in slots}
        shapes = {
            key: (stored[key][0], _canonical_shape(variables[slot.local_key], slot))
            for key, slot in expected.items()
            if key in stored
        }
        mismatched = {key: pair for key, pair in shapes.items() if pair[0] != pair[1]}
        missing, unknown = expected.keys() - stored.keys(), stored.keys() - expected.keys()
        self._check_tensors(source, missing, unknown, mismatched, may_replace)
        for key in sorted(shapes.keys() - mismatched.keys()):
            slot = expected[key]
            variable = variables[slot.local_key]
            array = permute(stored[slot.key][1](), slot.axes, slot.local_axes)
            self._fill(variable, np.asarray(array, dtype_name(variable.dtype)))

    def copy_from(self, part: "PretrainedLoading") -> None:
        """Takes over every tensor of a model that is a part of this one, such as a tower."""
        own = {slot.key: slot.local_key for slot in self._slots()}
        variables, others = self._variables(), part._variables()
        for slot in part._slots():
            variable = variables[own[slot.key]]
            self._fill(variable, np.asarray(others[slot.local_key], dtype_name(variable.dtype)))

    def num_parameters(self) -> int:
        """The number of parameters, as of the PyTorch class: without the averages of batch norm."""
        variables = self._variables()
        slots = [slot for slot in self._slots() if not slot.key.endswith(("running_mean", "running_var"))]
        return sum(math.prod(variables[slot.local_key].shape) for slot in slots)

    # --- saving

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        max_shard_size: int | str = "50GB",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **upload_options: Any,
    ) -> None:
        """Writes config.json and model.safetensors, as our PyTorch class would: it reads them, and so does transformers.

        Args:
            max_shard_size: bytes of tensors in a file, or text such as "5GB"; more become several files and an index.
            push_to_hub: whether to upload the folder, to `repo_id` or else to the folder's name.
            upload_options: `token`, `private`, `create_pr`, `commit_message` of the upload.

        Raises:
            TypeError: another argument, such as the `params` that transformers' Flax classes took.
        """
        if unknown := upload_options.keys() - {"token", "private", "create_pr", "commit_message"}:
            instead = self.saving_replaced.get(min(unknown), "It saves the current values of the model")
            raise TypeError(f"save_pretrained has no argument {min(unknown)!r}. {instead}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        variables = self._variables()
        strip = self.key_prefix if self.is_base else ""
        tensors = {slot.key.removeprefix(strip): (variables[slot.local_key], slot) for slot in self._slots()}
        entries = {
            key: (_canonical_shape(variable, slot), partial(_canonical, variable, slot))
            for key, (variable, slot) in sorted(tensors.items())
        }
        dtypes = {key: dtype_name(variable.dtype) for key, (variable, _) in tensors.items()}
        types = set(dtypes.values())
        config = self.config_class.from_dict(self.config.to_dict())
        config.architectures = [re.sub("^(TF|Flax)", "", type(self).__name__)]
        config.dtype = types.pop() if len(types) == 1 else "float32"
        write_shards(folder, LazyTensors(entries, dtypes), parse_bytes(max_shard_size, "max_shard_size"))
        config.save_pretrained(folder)
        if push_to_hub:
            upload(folder, repo_id or folder.resolve().name, **upload_options)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **upload_options: Any) -> str:
        """Saves the model and uploads it to `repo_id` ("owner/name"); returns the address. Arguments as above."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return upload(Path(folder), repo_id, **upload_options).url


def find_variable(model: Any, path: str) -> Any:
    """The object at an attribute path; numbers in it are places in a list."""
    for name in path.split("."):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def _check_options(cls: type[PretrainedLoading], options: dict) -> None:
    unknown = sorted(options.keys() - inspect.signature(cls.__init__).parameters.keys())
    if not unknown:
        return
    name = unknown[0]
    instead = cls.arguments_replaced.get(name)
    raise TypeError(
        f"{cls.__name__}.from_pretrained has no argument {name!r}, {cls.config_class.__name__} no such field, and the "
        "constructor no such argument" + (f". {instead}" if instead else "")
    )


def _canonical_shape(variable: Any, slot: Slot) -> tuple[int, ...]:
    return permuted_shape(tuple(variable.shape), slot.local_axes, slot.axes, slot.key)


def _canonical(variable: Any, slot: Slot) -> np.ndarray:
    return permute(np.asarray(variable), slot.local_axes, slot.axes)


def _dtype(dtype: Any, config: PreTrainedConfig) -> str | None:
    """The name of the variables' type, None for the framework's own."""
    if dtype is None or isinstance(dtype, str) and dtype == "auto":
        stored = str(config.dtype or "float32").removeprefix("torch.")
        return None if stored == "float32" else stored
    return dtype_name(dtype)


def dtype_name(dtype: Any) -> str:
    """The name of a type of numpy, JAX, TensorFlow or PyTorch, or of a policy of Keras; ValueError for others."""
    name = np.dtype(dtype).name if isinstance(dtype, type) else type_name(dtype)  # a type: jnp.bfloat16, np.float16
    if name.removeprefix("mixed_") not in _DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(map(repr, _DTYPES))}")
    return name
