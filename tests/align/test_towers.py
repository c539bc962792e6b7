"""An ALIGN from published towers, in three frameworks."""

import json
import logging
import shutil

import flax_arrays
import numpy as np
import published
import pytest
import tiny
import torch
from safetensors.torch import save
from tolerances import TOLERANCE
from transformers import BertModel

from kakao_models import (
    AlignModel,
    AlignProcessor,
    AlignTextConfig,
    AlignVisionModel,
    FlaxAlignModel,
    TFAlignModel,
)

NEW = ["text_projection.weight", "text_projection.bias", "temperature"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A state dict of EfficientNet-Lite0, a BERT, and a tower of our own."""
    root = tmp_path_factory.mktemp("towers")
    torch.save(published.lite0(), root / "lite0.pth")
    tiny.fill(AlignVisionModel(tiny.align_config().vision_config)).save_pretrained(root / "tower")
    published.bert_folder(root / "bert")
    return root


def inputs() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    tokens = dict(tiny.tokenizer()(["a red cat", "the big tree in a small house"], padding=True, return_tensors="pt"))
    return tokens | {"pixel_values": torch.rand(2, 3, 64, 64, generator=random) * 2 - 1}


def test_both_towers_compute_what_they_did(towers, caplog):
    with caplog.at_level(logging.WARNING):
        model = AlignModel.from_towers(
            towers / "lite0.pth", towers / "bert", 24, temperature_init_value=0.07,
            vision_config={"image_size": 64, "virtual_batch_size": None}, text_config={"hidden_dropout_prob": 0.2},
        )  # fmt: skip
    assert not model.training and model.config.projection_dim == 24 and model.visual_projection is None
    (line,) = [record.getMessage() for record in caplog.records if "from_towers" in record.getMessage()]
    new = ["vision_model.encoder.blocks.16.projection.project_conv.weight", *NEW]
    assert line == "from_towers: these parts are randomly initialised and need training: " + ", ".join(new)
    assert model.vision_model.config.virtual_batch_size is None and model.temperature.item() == pytest.approx(0.07)
    assert model.text_model.config.hidden_dropout_prob == 0.2
    batch = inputs()
    tokens, mask = {k: v for k, v in batch.items() if k != "pixel_values"}, batch["attention_mask"].bool()
    with torch.no_grad():
        states = model.text_model(**tokens).last_hidden_state
        theirs = BertModel.from_pretrained(towers / "bert").eval()(**tokens).last_hidden_state
        features = model.vision_model(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(states[mask], theirs[mask], rtol=0, atol=TOLERANCE["transformers"])
    weight = model.vision_model.encoder.blocks[16].projection.project_conv.weight[:, :, 0, 0]
    expected = published.lite0_features(published.lite0(), batch["pixel_values"])[1] @ weight.T
    scale = expected.square().mean().sqrt().item()
    torch.testing.assert_close(features, expected, rtol=0, atol=TOLERANCE["image_features / rms"] * scale)


def test_a_tower_of_our_own_gets_a_projection(towers, caplog):
    with caplog.at_level(logging.WARNING):
        model = AlignModel.from_towers(towers / "tower", towers / "bert", 24)
    assert "training: text_projection.weight, text_projection.bias, visual_projection.weight" in caplog.text
    tower = AlignVisionModel.from_pretrained(towers / "tower").state_dict()
    assert all(torch.equal(x, tower[name]) for name, x in model.vision_model.state_dict().items())


def test_a_configuration_starts_a_tower_at_random(towers, caplog):
    config = tiny.align_config()
    with caplog.at_level(logging.WARNING):
        model = AlignModel.from_towers(config.vision_config, towers / "bert", 16)
    assert (
        model.config.vision_config.to_dict() == config.vision_config.to_dict()
        and "temperature, vision_model" in caplog.text
    )
    text = AlignTextConfig(**{**config.text_config.to_dict(), "vocab_size": 50})
    assert AlignModel.from_towers(towers / "tower", text, 16).text_model.config.vocab_size == 50


@pytest.mark.parametrize("image, options", [("lite0.pth", {"vision_config": {"image_size": 64}}), ("tower", {})])
def test_three_frameworks_join_the_same_towers(image, options, towers):
    batch = inputs()
    ours = AlignModel.from_towers(towers / image, towers / "bert", 24, **options)
    with torch.no_grad():
        states = ours.text_model(batch["input_ids"]).last_hidden_state.numpy()
        features = ours.vision_model(batch["pixel_values"]).pooler_output.numpy()
    for cls in (TFAlignModel, FlaxAlignModel):
        model = cls.from_towers(towers / image, towers / "bert", 24, **options)
        assert model.config.to_dict() == ours.config.to_dict()
        run = flax_arrays.jitted(read_both) if cls is FlaxAlignModel else read_both  # else each operation is compiled
        texts, images = run(model, **{name: batch[name].numpy() for name in ("input_ids", "pixel_values")})
        np.testing.assert_allclose(texts, states, rtol=0, atol=TOLERANCE["transformers"])
        scale = np.sqrt(np.square(features).mean())
        np.testing.assert_allclose(images, features, rtol=0, atol=TOLERANCE["image_features / rms"] * scale)


def read_both(model, input_ids, pixel_values):
    return model.text_model(input_ids).last_hidden_state, model.vision_model(pixel_values).pooler_output


def test_a_bert_of_the_hub_is_read_at_one_commit_under_its_old_names(towers, hub, tmp_path):
    old = {}
    for name, x in BertModel.from_pretrained(towers / "bert").state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = x.contiguous()
    files = {path.name: path.read_bytes() for path in (towers / "bert").iterdir()}
    files["model.safetensors"] = save(old | {"cls.predictions.bias": torch.zeros(7)})
    hub.commit("someone/bert", files)
    model = AlignModel.from_towers(towers / "tower", "someone/bert", 16)
    assert hub.count(r"GET /api/models/someone/bert") == 1 and hub.count("/resolve/main/") == 0
    same = AlignModel.from_towers(towers / "tower", towers / "bert", 16).text_model.state_dict()
    assert all(torch.equal(x, same[name]) for name, x in model.text_model.state_dict().items())


def test_a_tensor_that_a_bert_lacks_is_named(towers, tmp_path):
    model = BertModel.from_pretrained(towers / "bert")
    state = {name: x for name, x in model.state_dict().items() if name != "encoder.layer.1.output.dense.bias"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="missing encoder.layer.1.output.dense.bias"):
        AlignModel.from_towers(towers / "tower", tmp_path, 16)


def test_lengths_of_another_model_are_left_out(towers, tmp_path):
    """sentence-transformers' tokenizers name the length that was right for their model."""
    shutil.copytree(towers / "bert", tmp_path / "bert")
    file = tmp_path / "bert/tokenizer_config.json"
    theirs = {"max_length": 128, "stride": 0, "truncation_strategy": "longest_first", "pad_to_multiple_of": None}
    file.write_text(json.dumps(json.loads(file.read_text()) | theirs))
    processor = AlignProcessor.from_towers(towers / "lite0.pth", tmp_path / "bert")
    assert len(processor(text="red cat " * 99)["input_ids"]) == 64
    processor.save_pretrained(tmp_path / "saved")
    assert not set(theirs) & set(json.loads((tmp_path / "saved/tokenizer_config.json").read_text()))
    assert len(AlignProcessor.from_pretrained(tmp_path / "saved")(text="red cat " * 99)["input_ids"]) == 64


def test_the_processor_prepares_what_the_towers_were_trained_on(towers):
    processor = AlignProcessor.from_towers(towers / "lite0.pth", towers / "bert", image_size=96)
    batch = processor(images=tiny.picture(0), text=["a red cat"], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 96, 96)
    white = processor(images=np.full((8, 8, 3), 255, np.uint8), return_tensors="pt")["pixel_values"]
    assert white.max().item() == pytest.approx(1.0) and white.min().item() == pytest.approx(1.0)
    assert batch["input_ids"].tolist() == tiny.tokenizer()(["a red cat"])["input_ids"]
