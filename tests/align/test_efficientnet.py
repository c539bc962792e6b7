"""EfficientNets that others published, as ALIGN's image tower: every tensor once, and the same features."""

import json

import numpy as np
import published
import pytest
import torch
from safetensors.torch import save_file
from tolerances import TOLERANCE

from kakao_models import AlignVisionConfig, AlignVisionModel
from kakao_models.align.efficientnet import LITE_SIZES, match_efficientnet
from kakao_models.align.towers import read_published

SIZE = 64


def tower_of(read) -> AlignVisionModel:
    """In float64; a tensor of the table that the model lacks, or the other way round, is an error."""
    model = AlignVisionModel(read.config)
    state = {key: torch.from_numpy(np.array(read.tensors[key])) for key in read.tensors}
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown and all(key.endswith("num_batches_tracked") for key in missing)
    return model.double().eval()


def pixels(size: int = SIZE) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # float32 constants stand for 1 and for the root of 1.001
    atol = TOLERANCE["align float64, relative"] * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def state() -> published.State:
    return published.lite0()


@pytest.mark.parametrize("head", [None, 24])
@pytest.mark.parametrize("layout", ["efficientnet-lite", "timm"])
def test_lite_is_a_tower_with_or_without_its_head(layout, head, state, tmp_path):
    path = tmp_path / "lite0.pth"
    if layout == "timm":
        path = published.timm_folder(tmp_path / "timm", published.as_timm(state))
    else:
        torch.save(state, path)
    read = read_published(path, image_size=SIZE, head=head)
    tower, images = tower_of(read), pixels()
    with torch.no_grad():
        ours = tower(images).pooler_output
    narrow, wide = published.lite0_features(state, images)
    expected = narrow
    if head is not None:
        (new,) = read.new
        assert new == "encoder.blocks.16.projection.project_conv.weight"
        expected = wide @ tower.state_dict()[new][:, :, 0, 0].T
    close(ours, expected)
    dropped = (
        {"classifier": 2, "conv_head": 1, "bn2": 4} if layout == "timm" else {"_fc": 2, "_conv_head": 1, "_bn1": 4}
    )
    assert read.skipped == (dropped if head is None else dict(list(dropped.items())[:1]))
    used = {name for name in state if not name.endswith("num_batches_tracked")}
    assert len(set(read.names.values())) == len(read.names) == len(used) - sum(read.skipped.values())
    mean, std = (0.5, 0.25) if layout == "timm" else (127 / 255, 128 / 255)
    assert read.preprocessing["image_mean"] == [mean] * 3 and read.preprocessing["image_std"] == [std] * 3


@pytest.mark.parametrize("size, padded", [(64, []), (52, [3, 5]), (260, [3, 5, 11])])
def test_odd_maps_are_padded_evenly(size, padded, state, tmp_path):
    torch.save(state, tmp_path / "lite0.pth")
    read = read_published(tmp_path / "lite0.pth", image_size=size)
    assert read.config.depthwise_padding == padded
    with torch.no_grad():
        close(tower_of(read)(pixels(size)).pooler_output, published.lite0_features(state, pixels(size))[0])


def test_a_head_that_is_no_multiple_of_its_input_is_widened_by_zeros(tmp_path):
    state = published.lite0(head=1000)
    torch.save(state, tmp_path / "lite0.pth")
    read = read_published(tmp_path / "lite0.pth", image_size=SIZE, head=8)
    assert read.config.blocks()[-1].expanded_channels == 1280
    tower = tower_of(read)
    with torch.no_grad():
        ours = tower(pixels()).pooler_output
    weight = tower.encoder.blocks[16].projection.project_conv.weight[:, :1000, 0, 0]
    close(ours, published.lite0_features(state, pixels())[1] @ weight.T)


def test_a_size_with_squeeze_and_excite_loses_its_head(tmp_path):
    config = AlignVisionConfig(width_coefficient=0.25, depth_coefficient=0.3)
    layers = {
        "expansion.expand_conv": "_expand_conv", "expansion.expand_bn": "_bn0", "depthwise_conv.depthwise_conv": "_depthwise_conv",
        "depthwise_conv.depthwise_norm": "_bn1", "squeeze_excite.reduce": "_se_reduce", "squeeze_excite.expand": "_se_expand",
        "projection.project_conv": "_project_conv", "projection.project_bn": "_bn2",
    }  # fmt: skip
    torch.manual_seed(0)
    tower = AlignVisionModel(config)
    state = {"_conv_head.weight": torch.zeros(9, config.output_channels, 1, 1)}
    state |= {f"_bn1.{leaf}": torch.zeros(9) for leaf in ("weight", "bias", "running_mean", "running_var")}
    for key, tensor in tower.state_dict().items():
        if not tensor.is_floating_point():
            continue
        tensor.copy_(torch.rand(tensor.shape))
        if key.startswith("encoder.blocks."):
            _, _, number, module = key.split(".", 3)
            name, _, leaf = module.rpartition(".")
            state[f"_blocks.{number}.{layers[name]}.{leaf}"] = tensor
        else:
            name = "_conv_stem" if "convolution" in key else "_bn0"
            state[f"{name}.{key.rpartition('.')[2]}"] = tensor
    torch.save(state, tmp_path / "tower.pt")
    read = read_published(tmp_path / "tower.pt", image_size=SIZE, head=24)
    assert read.skipped == {"_conv_head": 1, "_bn1": 4} and read.new == () and read.config.hidden_act == "swish"
    assert all(np.array_equal(read.tensors[key], tower.state_dict()[key]) for key in read.tensors)
    assert read.preprocessing["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("size", LITE_SIZES)
def test_every_lite_size_is_recognised(size):
    width, depth = size
    base = AlignVisionConfig(width_coefficient=width, depth_coefficient=depth)
    repeats = [1, *(-(-int(depth * 10) * blocks // 10) for blocks in (2, 2, 3, 3, 4)), 1]
    seen, entry = [(32,)], 32
    for channels, kernel, expand, blocks in zip(base.out_channels, base.kernel_sizes, base.expand_ratios, repeats):
        for _ in range(blocks):
            seen.append((entry, entry * expand, 0, base.round_filters(channels), kernel))
            entry = base.round_filters(channels)
    assert match_efficientnet(seen).image_size == LITE_SIZES[size]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_blocks.3._bn1.bias": None}, r"1 of 247 tensors are missing \(_blocks.3._bn1.bias\)"),
        ({"_blocks.3._bn9.bias": torch.zeros(3)}, r"1 are unknown \(_blocks.3._bn9.bias\)"),
        (
            {"_blocks.3._bn9.bias": torch.zeros(3), "_conv_stem.weight": None},
            "expected _conv_stem.weight or conv_stem.weight",
        ),
        ({"_conv_stem.weight": torch.zeros(16, 3, 3, 3)}, "is not an EfficientNet: its stem has 16 channels"),
        ({"_bn0.weight": torch.zeros(3, 2)}, r"_bn0.weight: got shape \(3, 2\)"),
    ],
)
def test_what_is_no_such_tower_is_refused(change, message, state, tmp_path):
    changed = {key: value for key, value in (state | change).items() if value is not None}
    torch.save(changed, tmp_path / "tower.pth")
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "tower.pth")


def test_what_timm_does_not_say_is_not_guessed(state, tmp_path):
    save_file(published.as_timm(state), tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match="timm's tensors do not show how its convolutions pad. Give the folder"):
        read_published(tmp_path / "alone.safetensors")
    folder = published.timm_folder(tmp_path / "own", published.as_timm(state), "efficientnet_lite0")
    with pytest.raises(ValueError, match="architecture is 'efficientnet_lite0', expected one that begins with 'tf_"):
        read_published(folder)
    (folder / "config.json").write_text(json.dumps({"architecture": "tf_efficientnet_lite0", "pretrained_cfg": {}}))
    with pytest.raises(ValueError, match="expected a pretrained_cfg with input_size"):
        read_published(folder)
    with pytest.raises(ValueError, match="image_size: got 65, expected an even size"):
        read_published(published.timm_folder(tmp_path / "even", published.as_timm(state)), image_size=65)
