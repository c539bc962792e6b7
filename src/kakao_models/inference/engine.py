"""Base class of the engines that run a model for the `Embedder`: arrays in, float32 arrays out.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from kakao_models.align.blocks import output_channels
from kakao_models.checkpoint.hub import described_by, fetch, pin, read_config
from kakao_models.checkpoint.kinds import MODEL_KINDS, kind_of, model_class_name

# model_type → D, by the configuration (or its fields) and the width of the pooler's layer, None where there is none
_FEATURE_DIMS: dict[str, Callable[[Any, int | None], int]] = {
    "align": lambda config, pooler: config.projection_dim,
    "align_vision_model": lambda config, pooler: output_channels(config),
    "vit": lambda config, pooler: pooler or config.hidden_size,
}


def feature_dim(config: Any, pooler: int | None) -> int:
    """D, the width of the features that a model makes of an image."""
    return _FEATURE_DIMS[config.model_type](config, pooler)


class Engine:
    """A model of any kind, always in evaluation mode.

    Class attributes:
        prefix: of the framework's model classes ("TF", "Flax").

    Attributes:
        model: the model object.
        config: its configuration.
    """

    prefix: ClassVar[str] = ""
    model: Any
    config: Any

    if TYPE_CHECKING:  # how `engine_class` is called; this class has nothing to set up

        def __init__(self, model: Any, *, device: str | int = "auto", dtype: str | None = None): ...

    @staticmethod
    def check_kind(model: Any) -> None:
        kind_of(model.config.model_type, type(model).__name__)

    @classmethod
    def load_model(cls, name_or_path: str | os.PathLike, dtype: Any, where: dict) -> Any:
        """The model of a checkpoint, by the `model_type` of its config.json.

        Raises:
            OSError: no such checkpoint, or a file of it can't be read.
            ValueError: a checkpoint of another kind of model.
        """
        where = pin(name_or_path, **where)
        config_file = fetch(name_or_path, "config.json", **where)
        with described_by(config_file):
            name = cls.prefix + model_class_name(read_config(config_file), name_or_path)
            model_class = getattr(importlib.import_module("kakao_models"), name)
            return model_class.from_pretrained(name_or_path, dtype=dtype, **where)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike, *, device: str | int, dtype: str | None, **where: Any) -> Self:
        """The engine for a checkpoint; see the class for `device` and `dtype`, and `load_model` for errors."""
        raise NotImplementedError

    @property
    def fields(self) -> Any:
        """The configuration, or an object with those of its fields that running the model needs."""
        return self.config

    @property
    def reads_texts(self) -> bool:
        return MODEL_KINDS[self.config.model_type].reads_texts

    @property
    def classifies(self) -> bool:
        """Whether the model has a classifier, and so `logits`."""
        return getattr(self.model, "classifier", None) is not None

    @property
    def dim(self) -> int:
        """D, the width of `features` and `texts`."""
        return feature_dim(self.config, self._pooled_width())

    def _pooled_width(self) -> int | None:
        """Width of the layer of the backbone's pooler, None where it has none."""
        raise NotImplementedError

    @property
    def max_positions(self) -> int:
        """Tokens that a text may have at most. Only where the model `reads_texts`."""
        return self.config.text_config.max_position_embeddings

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows. Only where it `reads_texts`."""
        return self.config.text_config.vocab_size

    @property
    def description(self) -> str:
        """Name of the backend, for a line of text."""
        return type(self).__name__

    @property
    def device(self) -> Any:
        """Device of the model, in its framework's own type: a `torch.device`, a `jax.Device`, a name of TensorFlow's."""
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """dtype that the model (or its image tower) computes in: a `torch.dtype`, a numpy dtype of JAX, a name of Keras."""
        raise NotImplementedError

    @property
    def takes_bytes(self) -> bool:
        """Whether pixels may be bytes (B, H, W, C), as `ImageProcessor.pixels` gives them."""
        return False

    @property
    def temperature(self) -> float:
        raise NotImplementedError

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W), as a processor gives it → (B, D), not normalised.

        The projected features of ALIGN, the pooled output of its image tower alone; the pre-logits of ViT, or the final
        [CLS] of a model without them.
        """
        raise NotImplementedError

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W) → the image tower's last hidden state: (B, tokens, D) of ViT, (B, C', H', W') of ALIGN."""
        raise NotImplementedError

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W) → (B, classes), before any softmax or sigmoid. Only where the model `classifies`."""
        raise NotImplementedError

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """(B, L), (B, L) → (B, D), not normalised. Only where the model `reads_texts`."""
        raise NotImplementedError
