"""The fused towers against the models they are made of, in float32 and float64."""

import numpy as np
import pytest
import tiny
import torch

from kakao_models import AlignForImageClassification, AlignModel, AlignVisionModel, ViTForImageClassification, ViTModel
from kakao_models.fused.graph_towers import graphs
from kakao_models.fused.packed import PackedConvolution, packed
from kakao_models.fused.towers import tensors_of, towers

PIXELS = tuple(torch.full((3,), value, dtype=torch.float64) for value in (1 / 127.5, 127.5))
# Sums in another order: rounding, which shrinks with precision
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
BOTH = pytest.mark.parametrize("dtype", TOLERANCE)


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module")
def align_model(align) -> AlignModel:
    return AlignModel.from_pretrained(align).eval()


def bytes_of(size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes (2, 3, size, size) with extremes at the borders, and what a processor makes of them."""
    raw = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    raw[:, :, -1], raw[:, :, :, -1], raw[:, :, 0], raw[:, :, :, 0] = 255, 0, 255, 0
    return raw, raw.to(dtype) / 127.5 - 1


@BOTH
@pytest.mark.parametrize("size", [32, 33, 35])  # odd and even sizes are padded differently
@torch.inference_mode()
def test_align_images(align_model, dtype, size):
    model = align_model.to(dtype)
    image = towers(model.config, tensors_of(model), PIXELS)["image"]
    raw, pixels = bytes_of(size, dtype)
    wanted = model.get_image_features(pixels).pooler_output
    assert differ(image(pixels), wanted) < TOLERANCE[dtype]
    assert differ(image(raw), wanted) < TOLERANCE[dtype]
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert differ(image(channels_last), wanted) < TOLERANCE[dtype]
    assert differ(image.hidden(pixels), model.vision_model(pixels).last_hidden_state) < TOLERANCE[dtype]
    assert torch.equal(pixels, raw.to(dtype) / 127.5 - 1)  # what works in place leaves the input alone


@BOTH
@torch.inference_mode()
def test_align_texts(align_model, dtype):
    model = align_model.to(dtype)
    text = towers(model.config, tensors_of(model))["text"]
    ids = torch.randint(5, 20, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([3, 9, 1, 6])[:, None]).long()
    wanted = model.get_text_features(ids, attention_mask=mask).pooler_output
    assert differ(text(ids, mask), wanted) < TOLERANCE[dtype]
    assert differ(text(ids), model.get_text_features(ids).pooler_output) < TOLERANCE[dtype]
    assert differ(text(ids, mask), text(ids)) > 1e-3  # the mask is not ignored
    with pytest.raises(ValueError, match="got texts of 1000 tokens, expected at most"):
        text(torch.zeros(1, 1000, dtype=torch.int64))


@BOTH
@pytest.mark.parametrize("representation_size", [None, 24])
@torch.inference_mode()
def test_vit(tmp_path, dtype, representation_size):
    folder = tiny.vit_folder(tmp_path, representation_size=representation_size)
    model = ViTForImageClassification.from_pretrained(folder, dtype=dtype).eval()
    found = towers(model.config, tensors_of(model), PIXELS)
    raw, pixels = bytes_of(tiny.IMAGE_SIZE, dtype)
    body, logits = model.vit(pixels), model(pixels).logits
    features = body.pooler_output if representation_size else body.last_hidden_state[:, 0]
    assert differ(found["image"](pixels), features) < TOLERANCE[dtype]
    assert differ(found["image"].hidden(pixels), body.last_hidden_state) < TOLERANCE[dtype]
    assert differ(found["classifier"](pixels), logits) < TOLERANCE[dtype]
    assert differ(found["classifier"](raw), logits) < TOLERANCE[dtype]
    alone = ViTModel.from_pretrained(folder, dtype=dtype).eval()
    assert differ(towers(alone.config, tensors_of(alone))["image"](pixels), features) < TOLERANCE[dtype]
    with pytest.raises(ValueError, match=r"must be \(batch, 3, 32, 32\), got \(2, 3, 40, 40\)"):
        found["image"](torch.zeros(2, 3, 40, 40))


@BOTH
@torch.inference_mode()
def test_align_classifier(tmp_path, dtype):
    folder = tiny.align_classifier_folder(tmp_path)
    model = AlignForImageClassification.from_pretrained(folder, dtype=dtype).eval()
    found = towers(model.config, tensors_of(model), PIXELS)
    assert found.keys() == {"image", "classifier"}
    raw, pixels = bytes_of(tiny.IMAGE_SIZE, dtype)
    body, logits = model.vision_model(pixels), model(pixels).logits
    assert differ(found["image"](pixels), body.pooler_output) < TOLERANCE[dtype]
    assert differ(found["image"].hidden(pixels), body.last_hidden_state) < TOLERANCE[dtype]
    assert differ(found["classifier"](raw), logits) < TOLERANCE[dtype]
    alone = AlignVisionModel.from_pretrained(folder, dtype=dtype).eval()
    assert differ(towers(alone.config, tensors_of(alone))["image"](pixels), body.pooler_output) < TOLERANCE[dtype]


@torch.inference_mode()
def test_projection_pooling_and_padding_of_other_configurations(tmp_path):
    vision = {"pooling_type": "max", "depthwise_padding": [1], "hidden_act": "relu"}
    config = tiny.align_config()
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    model = tiny.fill(AlignModel(config))
    _, pixels = bytes_of(35, torch.float32)
    image = towers(model.config, tensors_of(model))["image"]
    assert differ(image(pixels), model.get_image_features(pixels).pooler_output) < 1e-5
    config.vision_config.hidden_act = "selu"
    with pytest.raises(ValueError, match="activation 'selu' has no fused form"):
        towers(config, tensors_of(model))


def test_a_pooling_that_is_neither_mean_nor_max_is_refused():
    config = tiny.align_config()
    tensors = tensors_of(AlignModel(config))
    config.vision_config.pooling_type = "avg"
    for build in (towers, graphs):
        with pytest.raises(ValueError, match="pooling_type must be 'mean' or 'max', got 'avg'"):
            build(config, tensors)


@torch.inference_mode()
def test_images_of_one_channel():
    config = tiny.align_vision_config(num_channels=1)
    model = tiny.fill(AlignVisionModel(config))
    pixels = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    assert differ(towers(config, tensors_of(model))["image"](pixels), model(pixels).pooler_output) < 1e-5


@torch.inference_mode()
def test_packed_for_a_processor(align_model):
    model = align_model.to(torch.float32)
    image = towers(model.config, tensors_of(model), PIXELS)["image"]
    twin = packed(image)
    if not torch.backends.mkldnn.is_available():
        assert twin is image
        return
    assert any(isinstance(module, PackedConvolution) for module in twin.modules())
    assert not any(isinstance(module, PackedConvolution) for module in image.modules())
    for size in (32, 33):
        raw, pixels = bytes_of(size, torch.float32)
        wanted = model.get_image_features(pixels).pooler_output
        assert differ(twin(pixels.contiguous(memory_format=torch.channels_last)), wanted) < 1e-5
        assert differ(twin(raw.contiguous(memory_format=torch.channels_last)), wanted) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["relu6", "relu"])
def test_packed_towers_of_other_activations(activation):
    config = tiny.align_config()
    config.vision_config.hidden_act = activation
    model = tiny.fill(AlignModel(config))
    image = towers(model.config, tensors_of(model))["image"]
    pixels = 20 * bytes_of(33, torch.float32)[1]  # beyond ReLU6's 6
    wanted = model.get_image_features(pixels).pooler_output
    assert differ(image(pixels), wanted) < 1e-5
    twin = packed(image)
    assert differ(twin(pixels.contiguous(memory_format=torch.channels_last)), wanted) < 1e-5


@pytest.mark.parametrize("build", [towers, graphs])
def test_every_tensor_is_used_once_and_fits(build, align_model):
    model = align_model.to(torch.float32)
    tensors, key = tensors_of(model), "vision_model.encoder.blocks.1.projection.project_bn.weight"
    with pytest.raises(ValueError, match=f"missing {key}"):
        build(model.config, {name: tensor for name, tensor in tensors.items() if name != key})
    with pytest.raises(ValueError, match="unknown extra.weight"):
        build(model.config, tensors | {"extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{key}: the file has \(1,\), the model expects"):
        build(model.config, tensors | {key: torch.zeros(1)})


def test_bytes_stand_for_what_the_processor_says(align):
    from kakao_models import AlignImageProcessor, ViTImageProcessor

    picture = tiny.picture(3, 50, 70)
    processors = [
        AlignImageProcessor(size=40, crop_size=32),
        AlignImageProcessor(size=40, crop_size=32, do_normalize=True, include_top=True, image_std=[0.2, 0.3, 0.4]),
        ViTImageProcessor(size=32, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.5]),
        ViTImageProcessor(size=32, do_rescale=False, do_normalize=False),
    ]
    for processor in processors:
        scale, zero = processor.byte_values
        pixels = processor.pixels(picture)
        wanted = processor(picture, return_tensors="np")["pixel_values"][0]
        assert pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3)
        np.testing.assert_allclose(
            ((pixels - zero) * scale).transpose(2, 0, 1), wanted, rtol=0, atol=3e-6 * 255 * scale.max()
        )
