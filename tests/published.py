"""Towers as others publish them, with small or random weights: EfficientNets of PyTorch's packages, and BERTs."""

import json
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import BertConfig, BertModel

# stage -> blocks, kernel, stride, expansion, output channels: EfficientNet-Lite0
LITE0 = [
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]  # fmt: skip
State = dict[str, torch.Tensor]


def lite0(seed: int = 0, head: int = 1280, classes: int = 10) -> State:
    """A state dict of efficientnet-lite with random numbers everywhere."""
    random, state = torch.Generator().manual_seed(seed), {}

    def conv(name: str, *shape: int) -> None:
        deviation = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[f"{name}.weight"] = deviation * torch.randn(shape, generator=random)

    def norm(name: str, channels: int) -> None:
        noise = torch.randn(4, channels, generator=random)
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.2 * noise[0], 0.2 * noise[1]
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = 0.2 * noise[2], 0.5 + noise[3].square()
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    entry, number = 32, 0
    for blocks, kernel, _, expand, output in LITE0:
        for _ in range(blocks):
            block, wide = f"_blocks.{number}.", entry * expand
            if expand != 1:
                conv(block + "_expand_conv", wide, entry, 1, 1)
                norm(block + "_bn0", wide)
            conv(block + "_depthwise_conv", wide, 1, kernel, kernel)
            norm(block + "_bn1", wide)
            conv(block + "_project_conv", output, wide, 1, 1)
            norm(block + "_bn2", output)
            entry, number = output, number + 1
    conv("_conv_head", head, entry, 1, 1)
    norm("_bn1", head)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(classes, head), torch.zeros(classes)
    return state


def lite0_features(state: State, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled outputs of the last block (B, 320) and of the head (B, 1280), by plain operations on the state dict."""

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"].to(x.dtype)
        groups, size = (len(weight) if "depthwise" in name else 1), x.shape[-1]
        missing = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)  # TensorFlow's "same"
        x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        leaves = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (state[f"{name}.{leaf}"].to(x.dtype)[:, None, None] for leaf in leaves)
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x, number = F.relu6(norm(conv(pixels, "_conv_stem", 2), "_bn0")), 0
    for blocks, _, stride, expand, _ in LITE0:
        for position in range(blocks):
            block, y = f"_blocks.{number}.", x
            if expand != 1:
                y = F.relu6(norm(conv(y, block + "_expand_conv"), block + "_bn0"))
            y = F.relu6(norm(conv(y, block + "_depthwise_conv", 1 if position else stride), block + "_bn1"))
            y = norm(conv(y, block + "_project_conv"), block + "_bn2")
            x, number = (x + y if position else y), number + 1
    head = F.relu6(norm(conv(x, "_conv_head"), "_bn1"))
    return x.mean((2, 3)), head.mean((2, 3))


def as_timm(state: State) -> State:
    """The same under timm's names."""
    own = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    places = [(stage, place) for stage, blocks in enumerate(LITE0) for place in range(blocks[0])]
    renamed = {}
    for key, tensor in state.items():
        name, _, leaf = key.rpartition(".")
        if name.startswith("_blocks."):
            _, number, layer = name.split(".")
            stage, place = places[int(number)]
            plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
            expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
            expanding |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
            name = f"blocks.{stage}.{place}.{(expanding if stage else plain)[layer]}"
        else:
            name = own[name]
        renamed[f"{name}.{leaf}"] = tensor
    return renamed


def timm_folder(folder: Path, state: State, architecture: str = "tf_efficientnet_lite0", size: int = 64) -> Path:
    """As timm saves a model for the Hub."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    trained = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": trained}))
    return folder


def bert_folder(folder: Path, **sizes) -> Path:
    """A BERT of transformers with random numbers everywhere, and its tokenizer."""
    defaults = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    defaults |= {"vocab_size": len(tiny.vocabulary()), "max_position_embeddings": 80}
    tiny.fill(BertModel(BertConfig(**defaults | sizes))).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder
