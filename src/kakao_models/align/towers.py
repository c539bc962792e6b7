"""An ALIGN from towers that were published on their own: an EfficientNet, and a BERT.

What is new, the projections and the temperature, starts at random; everything else comes from the towers, tensor by tensor.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kakao_models.align.config import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.efficientnet import PublishedTower
from kakao_models.align.efficientnet_keras import read_keras
from kakao_models.align.efficientnet_pytorch import read_pytorch
from kakao_models.checkpoint.hub import pin, read_config
from kakao_models.checkpoint.shards import WEIGHTS, write_safetensors
from kakao_models.files.pointers import refuse_pointers

logger = logging.getLogger(__name__)

Tower = str | os.PathLike


def is_published(path: str | os.PathLike) -> bool:
    """Whether `read_published` is for what is at `path`: a file, or timm's folder."""
    config = Path(path, "config.json")
    return os.path.isfile(path) or config.is_file() and "model_type" not in read_config(config)


def read_published(
    path: str | os.PathLike, *, image_size: int | None = None, head: int | None = None
) -> PublishedTower:
    """Recognises the EfficientNet at `path`.

    Args:
        path: weights of Keras 2 or (`.weights.h5`) 3; a state dict of efficientnet_pytorch or efficientnet-lite (`.pth`, `.pt`,
            `.bin` or `.safetensors`); or timm's folder, config.json and weights, of an architecture tf_efficientnet_...
        image_size: the even number of pixels that the tower is for; by default the published one of its size.
        head: number of channels that a new convolution projects the head of an EfficientNet-Lite to; None leaves the head out.
            Other EfficientNets lose theirs always: no `AlignVisionModel` can hold it.

    Raises:
        ValueError: a damaged file, a tensor that is missing or unknown, another model, an odd `image_size`.
        ImportError: a package that reads this format is missing.
    """
    path = Path(path)
    refuse_pointers(path.iterdir() if path.is_dir() else [path])
    return read_keras(path, image_size) if path.suffix == ".h5" else read_pytorch(path, image_size, head)


@dataclass(frozen=True)
class Towers:
    """The configuration of the whole, and where `from_pretrained` of a tower's class finds it: a name, and
    HUB_ARGUMENTS of one commit. None starts it at random."""

    config: AlignConfig
    image: tuple[str, dict[str, Any]] | None
    text: tuple[str, dict[str, Any]] | None
    new: tuple[str, ...]  # names of the tensors that no tower has


@contextmanager
def open_towers(
    image: Tower | AlignVisionConfig,
    text: Tower | AlignTextConfig,
    projection_dim: int,
    changes: Mapping[str, Any],
) -> Iterator[Towers]:
    """The towers that `from_towers` of the three frameworks joins.

    Args:
        image: an `AlignVisionModel` or an ALIGN (folder, Hub id, name of a checkpoint in this package), or what
            `read_published` reads: Keras' weights (.h5), a state dict (.pth), or timm's folder. The head of an
            EfficientNet-Lite becomes the tower's last stage, and gives `projection_dim` channels. A configuration
            gives a tower that starts at random.
        text: a BERT, an `AlignTextModel` or an ALIGN; or a configuration, as for `image`.
        changes: fields of `AlignConfig`; those of `vision_config` and `text_config` change the towers' own. `image_size` of
            an EfficientNet of others also decides how its convolutions pad.

    Raises:
        ValueError, OSError: as of `read_published`, and of `from_pretrained` of a configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        new: tuple[str, ...] = ()
        if isinstance(image, AlignVisionConfig):
            vision, image = image, None
        else:
            image = os.fspath(image)
            if is_published(image):
                size = (changes.get("vision_config") or {}).get("image_size")
                tower = read_published(image, image_size=size, head=projection_dim)
                tower.config.save_pretrained(folder)
                write_safetensors(Path(folder, WEIGHTS), tower.tensors)
                image, new = folder, tuple(f"vision_model.{key}" for key in tower.new)
            image = image, pin(image)
            vision = AlignVisionConfig.from_pretrained(image[0], **image[1])
        if isinstance(text, AlignTextConfig):
            bert, text = text, None
        else:
            text = os.fspath(text), pin(text)
            bert = AlignTextConfig.from_pretrained(text[0], **text[1])
        values = {"vision_config": vision.to_dict(), "text_config": bert.to_dict(), "projection_dim": projection_dim}
        config = AlignConfig(**merged(values, changes))
        projections = ["text_projection", *(["visual_projection"] if config.use_visual_projection else [])]
        new += tuple(f"{name}.{leaf}" for name in projections for leaf in ("weight", "bias")) + ("temperature",)
        new += () if config.logit_bias_init_value is None else ("logit_bias",)
        new += tuple(f"{name}_model" for name, source in (("vision", image), ("text", text)) if source is None)
        if image is not None or text is not None:
            logger.warning("from_towers: these parts are randomly initialised and need training: %s", ", ".join(new))
        yield Towers(config, image, text, new)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, which in a mapping inside of them change single entries."""
    result = dict(values)
    for name, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if inner else value
    return result
