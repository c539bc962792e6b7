"""A model before anything runs it: the fields of its configuration and its tensors.

Reading them takes config.json and model.safetensors, and not transformers, whose import takes longer than PyTorch's.
Whatever is unusual about a checkpoint (shards, an older format, a field or a tensor that does not fit) is left to
`from_pretrained`, which knows more, and says what is wrong. What the Hub does not give it can't give either.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import kakao_models
from kakao_models.align.blocks import output_channels
from kakao_models.checkpoint.hub import MissingFile, described_by, fetch, pin, read_config
from kakao_models.checkpoint.kinds import MODEL_KINDS, model_class_name, whole_keys
from kakao_models.checkpoint.tensors import check_sizes
from kakao_models.fused.layers import ByteValues
from kakao_models.fused.towers import tensors_of, towers
from kakao_models.inference.engine import feature_dim
from kakao_models.inference.engine_torch import TorchEngine

_WEIGHTS = "model.safetensors"
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
_LISTS = (
    "in_channels",
    "out_channels",
    "kernel_sizes",
    "strides",
    "expand_ratios",
    "num_block_repeats",
    "depthwise_padding",
)


class ModelTensors:
    """The tensors of a checkpoint, or of a model object at the time of the call.

    Attributes:
        fields: the configuration, or an object with its fields.
        fingerprint: text that changes with the weights and the configuration.
    """

    def __init__(self, model: Any, where: dict):
        self._model = model
        self._tensors: Mapping[str, torch.Tensor]
        if isinstance(model, (str, os.PathLike)):
            self._where = pin(model, **where)
            self._open(model)
        else:
            TorchEngine.check_kind(model)
            self._take(model)

    def _open(self, name: str | os.PathLike) -> None:
        config_file = fetch(name, "config.json", **self._where)
        config = read_config(config_file)
        class_name = model_class_name(config, name)  # another kind of model is said at once
        try:
            file = fetch(name, _WEIGHTS, **self._where)
        except MissingFile:  # shards, or an older format
            self._take(self.plain.model)
            return
        try:
            self.fields, self._tensors = _read(config, class_name, file)
            self.fingerprint = _of_file(file, config_file)
        except _UNUSUAL:
            self._take(self.plain.model)

    def _take(self, model) -> None:
        self.fields, self._tensors = model.config, tensors_of(model)
        if not getattr(model.config, "num_labels", 0):
            self._tensors = {key: value for key, value in self._tensors.items() if not key.startswith("classifier.")}
        self.fingerprint = _of_tensors(self._tensors, model.config)

    @cached_property
    def plain(self) -> TorchEngine:
        """The model as it is, in float32 on the CPU, with nothing done to make it fast."""
        if isinstance(self._model, (str, os.PathLike)):
            return TorchEngine.load(self._model, device="cpu", dtype="float32", **self._where)
        return TorchEngine(self._model)

    def forget_plain(self) -> None:
        """Lets go of the plain model, if it can be loaded again."""
        if isinstance(self._model, (str, os.PathLike)) and isinstance(self.fields, SimpleNamespace):
            self.__dict__.pop("plain", None)

    @cached_property
    def config(self):
        """The configuration."""
        if not isinstance(self.fields, SimpleNamespace):
            return self.fields
        config_class = getattr(kakao_models, MODEL_KINDS[self.fields.model_type].config)
        with described_by(fetch(self._model, "config.json", **self._where)):
            return config_class.from_pretrained(self._model, **self._where)

    @property
    def reads_texts(self) -> bool:
        return MODEL_KINDS[self.fields.model_type].reads_texts

    @property
    def classifier(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weight (classes, D) and bias (classes,), float32 on the CPU."""
        if "classifier.weight" not in self._tensors:
            return None
        return tuple(self._tensors[f"classifier.{leaf}"].float().cpu() for leaf in ("weight", "bias"))

    @property
    def dim(self) -> int:
        pooler = self._tensors.get("vit.pooler.dense.bias")
        return feature_dim(self.fields, None if pooler is None else len(pooler))

    @property
    def temperature(self) -> float:
        return self._tensors["temperature"].item()

    def towers(self, pixels: ByteValues | None) -> dict[str, torch.nn.Module]:
        """The towers of `fused`, in float32.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape.
        """
        try:
            return towers(self.fields, self._tensors, pixels, torch.float32)
        except _UNUSUAL:
            if self.fields is self.plain.config:
                raise
            self._take(self.plain.model)  # or it says what is wrong
            return towers(self.fields, self._tensors, pixels, torch.float32)


def _read(config: dict, class_name: str, file: Path) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    with safe_open(file, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}
    fields, tensors = SimpleNamespace(**config), whole_keys(tensors, config["model_type"])
    if class_name == "AlignModel":
        fields.text_config, fields.vision_config = (
            SimpleNamespace(**config[f"{name}_config"]) for name in ("text", "vision")
        )
        if config.get("use_visual_projection") is None:
            fields.use_visual_projection = output_channels(fields.vision_config) != fields.projection_dim
    elif not class_name.endswith("ForImageClassification"):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("classifier.")}
    elif len(tensors["classifier.bias"]) != len(config.get("id2label") or range(config.get("num_labels", 2))):
        raise ValueError("classes that have no names, or names without a class")
    if class_name == "ViTForImageClassification":
        if ("vit.pooler.dense.weight" in tensors) != bool(config.get("representation_size")):
            raise ValueError("a pooler that the classifier does not have")
    _check_types(config)
    check_sizes(fields, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, file)
    return fields, tensors


def _check_types(config: dict) -> None:
    """Raises a ValueError where a number or a list of numbers is something else, also in a tower's part."""
    for name, value in config.items():
        kinds = (int, float) if name.endswith(_NUMBERS) else list if name in _LISTS else None
        wrong = kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool))
        if wrong or name in _LISTS and not all(type(number) is int for number in value):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, dict) and name.endswith("_config"):
            _check_types(value)


def _of_file(file: Path, config_file: Path) -> str:
    """Hash of a file's header, size and time of change: reading it all would take longer than loading it."""
    whole = hashlib.sha256(config_file.read_bytes())
    with open(file, "rb") as stored:
        whole.update(stored.read(8 + int.from_bytes(stored.read(8), "little")))
        fields = os.fstat(stored.fileno())
    whole.update(json.dumps([str(file.resolve()), fields.st_size, fields.st_mtime_ns]).encode())
    return whole.hexdigest()


def _of_tensors(tensors: Mapping[str, torch.Tensor], config) -> str:
    whole = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for key, tensor in sorted(tensors.items()):
        whole.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()
