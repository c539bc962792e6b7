"""A model before anything runs it: the fields of its configuration and its tensors.

Reading them takes config.json and model.safetensors, and not transformers, whose import takes longer than PyTorch's.
Whatever is unusual about a checkpoint (shards, an older format, a field or a tensor that does not fit) is left to
`from_pretrained`, which knows more, and says what is wrong. What the Hub does not give it can't give either.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

import kakao_models
from kakao_models.align.blocks import STAGE_FIELDS, output_channels
from kakao_models.checkpoint.formats import find_weights, stored_tensors
from kakao_models.checkpoint.hub import MissingFile, described_by, fetch, pin, read_config
from kakao_models.checkpoint.kinds import MODEL_KINDS, model_class_name, whole_keys
from kakao_models.checkpoint.tensors import UNUSED, LazyTensors, check_sizes
from kakao_models.fused.graph import Graph
from kakao_models.fused.graph_towers import BytePixels, as_float32, graphs
from kakao_models.inference.engine import Engine, feature_dim
from kakao_models.lazy import is_installed

if TYPE_CHECKING:
    import torch

    from kakao_models.fused.layers import ByteValues
    from kakao_models.inference.engine_torch import TorchEngine

_WEIGHTS = "model.safetensors"
_HEADER = 100 << 20  # bytes; a header of safetensors has no more
_UNUSUAL = (OSError, SafetensorError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


# Fields that are read without the configuration's class, which would check them
_NUMBERS = (
    "_eps",
    "_coefficient",
    "_ratio",
    "_rate",
    "_divisor",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "num_channels",
)
_LISTS = (*STAGE_FIELDS, "depthwise_padding")


# Fields that do not change what is computed
_NAMES = (
    *("id2label", "label2id", "num_labels", "architectures", "_name_or_path", "transformers_version"),
    *("dtype", "torch_dtype"),
)


class ModelTensors:
    """The tensors of a checkpoint, or of a model object at the time of the call.

    Args:
        model: a checkpoint's name, or a PyTorch model.
        where: arguments of `fetch`.
        light: read the checkpoint in numpy, without PyTorch, which need not be installed.

    Attributes:
        fields: the configuration, or an object with its fields.
    """

    def __init__(self, model: Any, where: dict, *, light: bool = False):
        self._model, self.light = model, light
        self._tensors: Mapping[str, Any]
        if isinstance(model, (str, os.PathLike)):
            self._where = pin(model, **where)
            self._open(model)
        else:
            Engine.check_kind(model)
            self._take(model)

    def _open(self, name: str | os.PathLike) -> None:
        config_file = fetch(name, "config.json", **self._where)
        config = read_config(config_file)
        class_name = model_class_name(config, name)  # another kind of model is said at once
        if self.light:
            self._open_light(config, class_name, config_file)
            return
        try:
            file = fetch(name, _WEIGHTS, **self._where)
        except MissingFile:  # shards, or an older format
            self._take(self.plain.model)
            return
        try:
            with safe_open(file, "pt") as stored:
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}
            shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
            fields = _read(config, class_name)
            keys = _keys(fields, class_name, shapes, file)
            self.fields, self._tensors = fields, {key: tensors[stored] for key, stored in keys.items()}
            self.fingerprint = _of_files(config_file, file)
        except _UNUSUAL:
            self._take(self.plain.model)

    def _open_light(self, config: dict, class_name: str, config_file: Path) -> None:
        """Reads files of any number and format that Keras and Flax load too; tensors are read when they are asked for."""

        def take(read: Callable[[], Any]) -> None:
            entries = stored_tensors(self._model, self._where)
            shapes = {key: shape for key, (shape, _) in entries.items()}
            self.fields = read()
            keys = _keys(self.fields, class_name, shapes, self._model)
            self._tensors = LazyTensors({key: entries[stored] for key, stored in keys.items()})

        try:
            take(lambda: _read(config, class_name))
        except _UNUSUAL:
            if is_installed("torch"):  # it says what is wrong
                self._take(self.plain.model)
                return
            with described_by(config_file):
                fields = self._config(config["model_type"])  # the configuration's class has defaults, and checks them
                take(lambda: fields)

    @cached_property
    def fingerprint(self) -> str:
        """Text that changes with the weights and the configuration."""
        _, files = find_weights(self._model, **self._where)  # known already, unless there are several or older ones
        return _of_files(fetch(self._model, "config.json", **self._where), *files)

    def _take(self, model) -> None:
        from kakao_models.fused.towers import tensors_of

        self.fields, self._tensors = model.config, tensors_of(model)
        if not getattr(model.config, "num_labels", 0):
            self._tensors = {key: value for key, value in self._tensors.items() if not key.startswith("classifier.")}
        self.fingerprint = _of_tensors(self._tensors, model.config.to_dict())  # now: weights may change

    @cached_property
    def plain(self) -> "TorchEngine":
        """The model as it is, in float32 on the CPU, with nothing done to make it fast.

        Raises:
            ImportError: PyTorch is not installed.
        """
        try:
            from kakao_models.inference.engine_torch import TorchEngine
        except ModuleNotFoundError as error:
            raise ImportError(f"the model object needs {error.name}: pip install 'kakao-models[torch]'") from error
        if isinstance(self._model, (str, os.PathLike)):
            return TorchEngine.load(self._model, device="cpu", dtype="float32", **self._where)
        return TorchEngine(self._model)

    @property
    def architecture(self) -> str:
        """Text that is the same for all models that differ only in their weights and the names of classes."""

        def described(fields: Any) -> dict:
            values = fields.to_dict() if hasattr(fields, "to_dict") else vars(fields)
            return {name: value for name, value in values.items() if name not in _NAMES}

        fields = described(self.fields) | {"classes": self.classifies, "dim": self.dim}
        return hashlib.sha256(json.dumps(fields, sort_keys=True, default=described).encode()).hexdigest()

    @cached_property
    def config(self):
        """The configuration."""
        if not isinstance(self.fields, SimpleNamespace):
            return self.fields
        return self._config(self.fields.model_type)

    def _config(self, model_type: str) -> Any:
        config_class = getattr(kakao_models, MODEL_KINDS[model_type].config)
        with described_by(fetch(self._model, "config.json", **self._where)):
            return config_class.from_pretrained(self._model, **self._where)

    @property
    def reads_texts(self) -> bool:
        return MODEL_KINDS[self.fields.model_type].reads_texts

    @property
    def classifies(self) -> bool:
        """Whether there is a classifier."""
        return "classifier.weight" in self._tensors

    @cached_property
    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight (classes, D) and bias (classes,) in float32, where the model `classifies`."""
        return as_float32(self._tensors["classifier.weight"]), as_float32(self._tensors["classifier.bias"])

    @property
    def dim(self) -> int:
        pooler = self._tensors.get("vit.pooler.dense.bias")
        return feature_dim(self.fields, None if pooler is None else len(pooler))

    @cached_property
    def temperature(self) -> float:
        return self._tensors["temperature"].item()

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Keys and float32 arrays of what the model is made of."""
        for key in self._tensors:
            if not key.endswith(UNUSED):
                yield key, as_float32(self._tensors[key])

    def graphs(self, pixels: BytePixels | None, *, hidden: bool = False) -> dict[str, Graph]:
        """The towers as graphs, in float32; arguments as of `graph_towers.graphs`.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape.
        """
        try:
            return graphs(self.fields, self._tensors, pixels, hidden=hidden)
        except _UNUSUAL as error:
            if not is_installed("torch"):
                if isinstance(self.fields, SimpleNamespace):
                    self.fields = self._config(self.fields.model_type)  # or it says what is wrong
                    return self.graphs(pixels, hidden=hidden)
                raise ValueError(f"{self._model} does not hold the weights of this model: {error}") from error
            if self.fields is self.plain.config:
                raise
            self._take(self.plain.model)  # or it says what is wrong
            return graphs(self.fields, self._tensors, pixels, hidden=hidden)

    def towers(self, pixels: "ByteValues | None") -> "dict[str, torch.nn.Module]":
        """The towers of `fused`, in float32.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape.
        """
        import torch

        from kakao_models.fused.towers import towers

        try:
            return towers(self.fields, self._tensors, pixels, torch.float32)
        except _UNUSUAL:
            if self.fields is self.plain.config:
                raise
            self._take(self.plain.model)  # or it says what is wrong
            return towers(self.fields, self._tensors, pixels, torch.float32)


def _read(config: dict, class_name: str) -> SimpleNamespace:
    """The fields of a usual configuration.

    Raises:
        ValueError: something is unusual.
    """
    fields = SimpleNamespace(**config)
    if class_name == "AlignModel":
        fields.text_config, fields.vision_config = (
            SimpleNamespace(**config[f"{name}_config"]) for name in ("text", "vision")
        )
        if config.get("use_visual_projection") is None:
            fields.use_visual_projection = output_channels(fields.vision_config) != fields.projection_dim
    _check_types(config)
    count = config.get("num_labels", 2)  # names and defaults as of transformers
    named = config.get("id2label") or {index: f"LABEL_{index}" for index in range(count)}
    fields.id2label = {int(index): name for index, name in named.items()}
    if not all(isinstance(name, str) for name in named.values()):
        raise ValueError("id2label has a label that is not text")
    if not {config.get("dtype"), config.get("torch_dtype")} <= {None, "float32", "float16", "bfloat16"}:
        raise ValueError("an unusual dtype")
    fields.num_labels, fields.problem_type = len(named), config.get("problem_type")
    return fields


def _keys(fields: Any, class_name: str, shapes: dict[str, tuple[int, ...]], source: Any) -> dict[str, str]:
    """Key in a checkpoint of the whole model → key in the file, of the tensors that a class has.

    Raises:
        ValueError: the tensors are not those of this class.
    """
    keys = whole_keys({key: key for key in shapes}, fields.model_type)
    if not class_name.endswith("ForImageClassification"):
        keys = {key: stored for key, stored in keys.items() if not key.startswith("classifier.")}
    elif "classifier.bias" not in keys:
        raise ValueError(f"{source}: missing classifier.bias")
    elif shapes[keys["classifier.bias"]] != (fields.num_labels,):
        raise ValueError(f"{source}: classes that have no names, or names without a class")
    if class_name == "ViTForImageClassification":
        if ("vit.pooler.dense.weight" in keys) != bool(getattr(fields, "representation_size", None)):
            raise ValueError(f"{source}: a pooler that the classifier does not have")
    check_sizes(fields, {key: shapes[stored] for key, stored in keys.items()}, source)
    return keys


def _check_types(config: dict) -> None:
    """Raises a ValueError where a number or a list of numbers is something else, also in a tower's part."""
    for name, value in config.items():
        kinds = (int, float) if name.endswith(_NUMBERS) else list if name in _LISTS else None
        wrong = kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool))
        if wrong or name in _LISTS and not all(type(number) is int for number in value):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, dict) and name.endswith("_config"):
            _check_types(value)


def _of_files(config_file: Path, *files: Path) -> str:
    """Hash of each file's header, size and time of change: reading it all would take longer than loading it."""
    whole = hashlib.sha256(config_file.read_bytes())
    for file in files:
        with open(file, "rb") as stored:
            whole.update(stored.read(8 + min(_HEADER, int.from_bytes(stored.read(8), "little"))))
            fields = os.fstat(stored.fileno())
        whole.update(json.dumps([str(file.resolve()), fields.st_size, fields.st_mtime_ns]).encode())
    return whole.hexdigest()


def _of_tensors(tensors: Mapping[str, Any], config: dict) -> str:
    whole = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key in sorted(tensors):
        array = as_float32(tensors[key])
        whole.update(f"{key} {tensors[key].dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return whole.hexdigest()
