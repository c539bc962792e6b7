"""Configuration of ALIGN, one for all frameworks. Every config.json of a Hub checkpoint loads unchanged."""

import os
from typing import Any, ClassVar

import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from kakao_models.align.blocks import BlockSpec, block_specs, output_channels, round_filters
from kakao_models.checkpoint.config import StrictConfig

# EfficientNet's compound scaling, (width, depth): Tan & Le 2019 for B0-B7; Xie et al. 2020 (Noisy Student) for L2,
# the image tower of the ALIGN paper.
EFFICIENTNET_SIZES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "l2": (4.3, 5.3),
}
# BERT's (layers, width); a head is 64 wide and the inner layer four times the width (Devlin et al. 2018, Turc et al. 2019).
BERT_SIZES = {"mini": (4, 256), "base": (12, 768), "large": (24, 1024)}


@strict
class AlignTextConfig(StrictConfig, transformers.AlignTextConfig):
    """Configuration of the text tower, a BERT. Fields and defaults are those of `transformers.AlignTextConfig`.

    The config.json of a BERT will do as well.
    """

    _model_types: ClassVar[frozenset[str]] = frozenset({"bert"})
    # Of heads, and of the program that trained BERT
    _derived_fields: ClassVar[frozenset[str]] = frozenset(
        "classifier_dropout gradient_checkpointing directionality pooler_fc_size pooler_num_attention_heads "
        "pooler_num_fc_layers pooler_size_per_head pooler_type".split()
    )

    def __post_init__(self, **kwargs):
        if kwargs.get("position_embedding_type") not in (None, "absolute"):
            raise ValueError(
                f"AlignTextConfig: position_embedding_type is {kwargs['position_embedding_type']!r}, expected 'absolute'"
            )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> tuple[dict, dict]:
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (
            values | {"model_type": cls.model_type} if values.get("model_type") in cls._model_types else values
        ), kwargs

    @classmethod
    def bert(cls, size: str, **kwargs: Any) -> "AlignTextConfig":
        """The text tower of a published size: "mini", "base" or "large"."""
        layers, width = _look_up(BERT_SIZES, size, "BERT")
        sizes = dict(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width
        )
        return cls(**(sizes | kwargs))


@strict
class AlignVisionConfig(StrictConfig, transformers.AlignVisionConfig):
    r"""
    Configuration of the image tower, an EfficientNet without its top. Fields are those of
    `transformers.AlignVisionConfig` (defaults: the released B7 at 289 pixels) and:

    virtual_batch_size (`int`, *optional*, defaults to 16):
        Samples that are normalised together in training (ghost batch normalisation); `None` for the whole batch.
    """

    image_size: int | list[int] | tuple[int, int] = 289
    hidden_dim: int = 640
    virtual_batch_size: int | None = 16
    _derived_fields: ClassVar[frozenset[str]] = frozenset({"num_hidden_layers", "dropout_rate"})

    @classmethod
    def efficientnet(cls, size: str, **kwargs: Any) -> "AlignVisionConfig":
        """The image tower of a published size: "b0" to "b7" or "l2"."""
        width, depth = _look_up(EFFICIENTNET_SIZES, size, "EfficientNet")
        config = cls(**(dict(width_coefficient=width, depth_coefficient=depth) | kwargs))
        if "hidden_dim" not in kwargs:
            config.hidden_dim = config.output_channels
        return config

    def round_filters(self, channels: int) -> int:
        """`channels` scaled by the width, to a multiple of `depth_divisor` that is at most 10 % lower."""
        return round_filters(self, channels)

    @property
    def stem_channels(self) -> int:
        return self.round_filters(32)

    @property
    def output_channels(self) -> int:
        """Width of the last block, which is the width of the pooled output."""
        return output_channels(self)

    def blocks(self) -> list[BlockSpec]:
        """The inverted-residual blocks, in the order of the forward pass."""
        return block_specs(self)


@strict
class AlignConfig(StrictConfig, transformers.AlignConfig):
    r"""
    Configuration of ALIGN. Fields are those of `transformers.AlignConfig` and:

    use_visual_projection (`bool`, *optional*):
        Whether a Dense layer follows the image tower, as in every original but B7. By default there is one exactly
        where the tower's width is not `projection_dim`.
    label_smoothing (`float`, *optional*, defaults to 0.1):
        Of the contrastive loss; in [0, 1).
    logit_bias_init_value (`float`, *optional*):
        The model has a learned `logit_bias`, which is added to the logits and begins with this value (SigLIP: -10); `None`
        for a model without.
    """

    sub_configs_defaults = {"vision_config": AlignVisionConfig, "text_config": AlignTextConfig}

    use_visual_projection: bool | None = None
    label_smoothing: float = 0.1
    logit_bias_init_value: float | None = None

    def __post_init__(self, **kwargs):
        for name, kind in self.sub_configs.items():  # a tower's configuration may be one of transformers
            if isinstance(tower := getattr(self, name), PreTrainedConfig):
                setattr(self, name, kind.from_config(tower))
        super().__post_init__(**kwargs)
        same_width = self.vision_config.output_channels == self.projection_dim
        if self.use_visual_projection is None:
            self.use_visual_projection = not same_width
        elif not self.use_visual_projection and not same_width:
            raise ValueError(
                f"AlignConfig: use_visual_projection=False needs projection_dim ({self.projection_dim}) to equal the "
                f"dimension of the image tower ({self.vision_config.output_channels})"
            )

    @classmethod
    def mini(cls, **kwargs: Any) -> "AlignConfig":
        """EfficientNet-B3 and BERT-mini: the CC3M model of the original code."""
        return cls._sized("b3", "mini", **kwargs)

    @classmethod
    def base(cls, **kwargs: Any) -> "AlignConfig":
        """EfficientNet-B7 and BERT-base: the released COYO-ALIGN-B7-Base."""
        return cls._sized("b7", "base", **kwargs)

    @classmethod
    def large(cls, **kwargs: Any) -> "AlignConfig":
        """EfficientNet-B7 and BERT-large."""
        return cls._sized("b7", "large", **kwargs)

    @classmethod
    def _sized(cls, image: str, text: str, **kwargs) -> "AlignConfig":
        for name, build, size in (
            ("vision_config", AlignVisionConfig.efficientnet, image),
            ("text_config", AlignTextConfig.bert, text),
        ):
            changes = kwargs.get(name) or {}  # fields of a tower change that tower and leave it its size
            kwargs[name] = build(size, **changes) if isinstance(changes, dict) else changes
        return cls(**kwargs)


def _look_up(sizes: dict, size: str, family: str):
    if size not in sizes:
        raise ValueError(f"{family} has no size {size!r}, expected one of {', '.join(sizes)}")
    return sizes[size]


AutoConfig.register("align", AlignConfig, exist_ok=True)
AutoConfig.register("align_text_model", AlignTextConfig, exist_ok=True)
AutoConfig.register("align_vision_model", AlignVisionConfig, exist_ok=True)
