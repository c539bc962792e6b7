"""Shape that a file gives a ViT of Keras or NNX, as in PyTorch: the size of its position table, and
whether it has a pooler."""

import os
from typing import Any, Self

from transformers import PreTrainedConfig

from kakao_models.checkpoint.config import as_pair
from kakao_models.checkpoint.hub import MissingFile, hub_arguments, pin
from kakao_models.checkpoint.pretrained import PretrainedLoading, StoredTensors
from kakao_models.vit.config import ViTConfig


class ViTLoading(PretrainedLoading):
    """`from_pretrained(..., image_size=512)` resizes the position embeddings, by the framework's `set_image_size`."""

    config_class = ViTConfig
    key_prefix = "vit."

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        image_size: Any = None,
        **kwargs: Any,
    ) -> Self:
        """See `PretrainedLoading.from_pretrained`.

        Args:
            image_size: of the images to come (height, width); by default what the configuration says.
        """
        if config is not None:
            kwargs |= (where := pin(name_or_path, **hub_arguments(kwargs)))
            config = cls._copy_config(config)
            image_size = config.image_size if image_size is None else image_size
            try:
                config.image_size = cls.config_class.from_pretrained(name_or_path, **where).image_size
            except MissingFile:  # weights without a config.json
                pass
        model = super().from_pretrained(name_or_path, config=config, **kwargs)
        if image_size is not None and as_pair(image_size) != as_pair(model.config.image_size):
            model.set_image_size(image_size)
        return model

    @classmethod
    def _options_of(cls, config: ViTConfig, stored: StoredTensors, options: dict) -> dict:
        if cls.is_base and options.get("add_pooling_layer") is None:
            in_file = any(key.startswith("vit.pooler.") for key in stored)
            options = options | {"add_pooling_layer": config.representation_size is not None or in_file}
        return options
