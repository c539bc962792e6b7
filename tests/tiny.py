"""Small checkpoints with random weights, and pictures, for tests that need a whole folder.

Every tensor is random, biases and moving averages too: on a freshly initialised model many mistakes go unseen.
Any of the three frameworks is enough.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from transformers import BertTokenizer

import kakao_models
from kakao_models import (
    AlignConfig,
    AlignImageProcessor,
    AlignProcessor,
    AlignVisionConfig,
    ViTConfig,
    ViTImageProcessor,
)
from kakao_models.checkpoint.shards import write_safetensors
from kakao_models.checkpoint.weightmap import permute

if TYPE_CHECKING:
    from torch import nn

WORDS = (
    "a an the this is of photo picture small big red green blue cat dog bird car tree house sea and with in on".split()
)
IMAGE_SIZE = 32
# Of an image tower with three blocks, which Keras and JAX compile in half the time of `align_config`'s
FEW_BLOCKS = dict(
    kernel_sizes=[3, 5], in_channels=[32, 16], out_channels=[16, 24], strides=[1, 2], num_block_repeats=[1, 2],
    expand_ratios=[1, 6], hidden_dim=8,
)  # fmt: skip


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers in every tensor of a PyTorch model, of a size that keeps activations near 1; in evaluation mode."""
    import torch

    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name == "temperature":
                continue
            noise = torch.randn(tensor.shape, generator=random)
            if name.endswith("running_var"):
                tensor.copy_(noise.square() + 0.5)
            elif tensor.ndim > 1 and "embeddings.weight" not in name:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            else:  # norms' scales around 1; biases, means and tables around 0
                tensor.copy_(0.2 * noise + (1.0 if _is_scale(name, model) else 0.0))
    return model.eval()


def _is_scale(name: str, model: nn.Module) -> bool:
    from torch import nn

    module = model.get_submodule(name.rpartition(".")[0])
    return name.endswith("weight") and isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))


def align_config(**kwargs) -> AlignConfig:
    """Three stages of EfficientNet at a quarter of its width, two layers of BERT, 16 dimensions."""
    vision = {
        "image_size": IMAGE_SIZE,
        "width_coefficient": 0.25,
        "depth_coefficient": 1.0,
        "kernel_sizes": [3, 3, 5],
        "in_channels": [32, 16, 24],
        "out_channels": [16, 24, 40],
        "strides": [1, 2, 2],
        "num_block_repeats": [1, 2, 2],
        "expand_ratios": [1, 6, 6],
        "depthwise_padding": [],
        "hidden_dim": 16,
    }
    text = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
    }
    sizes = {"vision_config": vision, "text_config": text, "projection_dim": 16, "temperature_init_value": 0.01}
    return AlignConfig(**(sizes | kwargs))


def short_align_config(**kwargs) -> AlignConfig:
    """`align_config` with three blocks and one layer of BERT."""
    vision = align_config().vision_config.to_dict() | FEW_BLOCKS
    text = align_config().text_config.to_dict() | {"num_hidden_layers": 1}
    return align_config(**({"vision_config": vision, "text_config": text} | kwargs))


def one_block_config() -> AlignConfig:
    """One block, one layer, no dropout: for what is compiled in backward."""
    whole = align_config()
    block = dict(
        kernel_sizes=[3], in_channels=[32], out_channels=[16], strides=[1], num_block_repeats=[1], expand_ratios=[1],
        hidden_dim=8, drop_connect_rate=0.0,
    )  # fmt: skip
    layer = dict(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return align_config(
        vision_config=whole.vision_config.to_dict() | block,
        text_config=whole.text_config.to_dict() | layer,
        temperature_init_value=0.5,
    )


def vit_config(**kwargs) -> ViTConfig:
    """Two layers, 32 wide, patches of 8, seven classes."""
    sizes = {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "id2label": dict(enumerate(["cat", "dog", "bird", "car", "tree", "house", "sea"])),
    }
    return ViTConfig(**(sizes | kwargs))


@cache
def vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *letters, *(f"##{letter}" for letter in letters)]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces + WORDS))}


def tokenizer() -> BertTokenizer:
    """WordPiece over `WORDS`, and single letters for all others."""
    return BertTokenizer(vocab=vocabulary())


def save_model(name: str, config: AlignConfig | AlignVisionConfig | ViTConfig, folder: Path, seed: int = 0) -> str:
    """Writes the configuration and random weights of the class `name` ("AlignModel") and returns the folder's path."""
    if find_spec("torch"):
        fill(getattr(kakao_models, name)(config), seed).save_pretrained(folder)
        return str(folder)
    # shapes from another framework; their values differ from PyTorch's, which no test knows
    model = getattr(kakao_models, ("Flax" if find_spec("flax") else "TF") + name)._build(config, None)
    variables, random, tensors = model._variables(), np.random.default_rng(seed), {}
    for slot in model._slots():
        shape = permute(np.empty(variables[slot.local_key].shape), slot.local_axes, slot.axes).shape
        noise = random.standard_normal(shape)
        if slot.key == "temperature":
            noise = config.temperature_init_value + 0 * noise
        elif slot.key.endswith("running_var"):
            noise = noise**2 + 0.5
        elif noise.ndim > 1 and "embeddings.weight" not in slot.key:
            noise *= (2 / noise[0].size) ** 0.5
        else:
            noise = 0.2 * noise + (noise.ndim == 1 and slot.key.endswith("weight"))
        tensors[slot.key] = noise.astype(np.float32)
    config.architectures = [name]
    config.save_pretrained(folder)
    write_safetensors(Path(folder) / "model.safetensors", tensors)
    return str(folder)


def align_folder(folder: Path, seed: int = 0, config: AlignConfig | None = None, **image_processor) -> str:
    """Writes a complete ALIGN checkpoint (by default with Hugging Face's preprocessing) and returns its path."""
    save_model("AlignModel", config or align_config(), folder, seed)
    sizes = {"size": 40, "crop_size": IMAGE_SIZE}
    AlignProcessor(AlignImageProcessor(**(sizes | image_processor)), tokenizer()).save_pretrained(folder)
    return str(folder)


def align_vision_config(**kwargs) -> AlignVisionConfig:
    """The image tower of `align_config`, with the classes of `vit_config`."""
    return AlignVisionConfig(**(align_config().vision_config.to_dict() | {"id2label": vit_config().id2label} | kwargs))


def align_vision_model_folder(folder: Path, seed: int = 0, **config) -> str:
    """Writes the image tower of an ALIGN alone, and its image processor, and returns its path."""
    return _image_folder("AlignVisionModel", align_vision_config(**config), folder, seed)


def align_classifier_folder(folder: Path, seed: int = 0, **config) -> str:
    """Writes a classifier on the image tower of an ALIGN, and its image processor, and returns its path."""
    return _image_folder("AlignForImageClassification", align_vision_config(**config), folder, seed)


def _image_folder(name: str, config: AlignVisionConfig, folder: Path, seed: int) -> str:
    save_model(name, config, folder, seed)
    AlignImageProcessor(size=40, crop_size=IMAGE_SIZE).save_pretrained(folder)
    return str(folder)


def vit_folder(folder: Path, seed: int = 0, **config) -> str:
    """Writes a complete ViT classifier and returns its path."""
    save_model("ViTForImageClassification", vit_config(**config), folder, seed)
    ViTImageProcessor(size=IMAGE_SIZE).save_pretrained(folder)
    return str(folder)


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """Smooth random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def picture_folder(folder: Path, count: int) -> list[Path]:
    """Writes `count` pictures as PNG: 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(count)]
    for index, path in enumerate(paths):
        picture(index).save(path)
    return paths
