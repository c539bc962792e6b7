"""The weight table of ALIGN: complete at every size, and the same in both directions."""

import json
import re
import shutil

import goldens
import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file

from kakao_models import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    FlaxAlignTextModel,
    TFAlignTextModel,
)
from kakao_models.align.config import BERT_SIZES, EFFICIENTNET_SIZES
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.weightmap import permute

SIZES = [(image, "mini") for image in EFFICIENTNET_SIZES] + [("b0", text) for text in BERT_SIZES]


def sized(image: str, text: str) -> AlignConfig:
    return AlignConfig(
        vision_config=AlignVisionConfig.efficientnet(image).to_dict(), text_config=AlignTextConfig.bert(text).to_dict()
    )


def canonical_shapes(config: AlignConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = AlignModel(config).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("image, text", SIZES)
def test_every_tensor_of_every_size_has_one_slot(image, text):
    config = sized(image, text)
    slots = align_tpu_slots(config)
    shapes = canonical_shapes(config)
    assert sorted(slot.key for slot in slots) == sorted(shapes)
    assert len({slot.local_key for slot in slots}) == len(slots)
    for slot in slots:
        assert not slot.axes or len(slot.axes) == len(shapes[slot.key]), slot


@pytest.mark.parametrize("image", ["b0", "b7"])
def test_both_directions_are_bit_exact(image):
    config = sized(image, "mini")
    slots = align_tpu_slots(config)
    random = np.random.default_rng(0)
    shapes = canonical_shapes(config)
    arrays = {key: random.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}
    original = {slot.local_key: permute(arrays[slot.key], slot.axes, slot.local_axes) for slot in slots}
    assert original["image_encoder/layer_with_weights-0/layer_with_weights-1/moving_mean"].shape == (
        1,
        1,
        1,
        1,
        config.vision_config.stem_channels,
    )
    back = goldens.canonical(slots, original)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_permute_goes_by_letters():
    kernel = np.arange(24).reshape(1, 2, 3, 4)  # H W I O
    assert permute(kernel, "HWIO", "OIHW").shape == (4, 3, 1, 2)
    np.testing.assert_array_equal(permute(kernel, "HWIO", "OIHW"), kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(permute(np.arange(3).reshape(1, 1, 1, 1, 3), "1111D", "D"), np.arange(3))
    with pytest.raises(ValueError, match=r"got shape \(2, 3\), expected axes 1D"):
        permute(np.zeros((2, 3)), "1D", "D")


TEXT_MODELS = (AlignTextModel, TFAlignTextModel, FlaxAlignTextModel)


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    """A BERT as it is published: alone, with heads, and as of 2018; and its pooled output for `IDS`."""
    root = tmp_path_factory.mktemp("bert")
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = tiny.fill(transformers.BertForPreTraining(transformers.BertConfig(max_position_embeddings=40, **sizes)))
    model.bert.save_pretrained(root / "alone")
    model.save_pretrained(root / "heads")
    shutil.copytree(root / "heads", root / "old")
    (root / "old/model.safetensors").unlink()
    old = {"weight": "gamma", "bias": "beta"}
    state = {
        re.sub(r"(?<=LayerNorm\.)\w+$", lambda m: old[m[0]], key): value for key, value in model.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, root / "old/pytorch_model.bin", _use_new_zipfile_serialization=False)
    with torch.no_grad():
        return root, model.bert(torch.from_numpy(IDS)).pooler_output.numpy()


IDS = np.arange(1, 9).reshape(2, 4)


@pytest.mark.parametrize("model_class", TEXT_MODELS)
@pytest.mark.parametrize("kind", ["alone", "heads", "old"])
def test_a_bert_is_a_text_tower(kind, model_class, berts, tmp_path, caplog):
    folder, expected = berts
    model = model_class.from_pretrained(folder / kind)
    output = model(torch.from_numpy(IDS) if model_class is AlignTextModel else IDS)
    pooled = output.pooler_output
    np.testing.assert_allclose(np.asarray(getattr(pooled, "detach", lambda: pooled)()), expected, atol=2e-6)
    assert not caplog.records
    model.save_pretrained(tmp_path)
    assert "encoder.layer.0.output.LayerNorm.weight" in load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "align_text_model"
