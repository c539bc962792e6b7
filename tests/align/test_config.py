"""One configuration class: strict about names, at home with every config.json of the Hub."""

import json
import logging

import pytest
import transformers

import kakao_models
from kakao_models import AlignConfig, AlignTextConfig, AlignVisionConfig, ViTConfig
from kakao_models.align.config import EFFICIENTNET_SIZES

# (width of the last block, blocks): Tan & Le 2019, and 4.3 * 320 for L2
WIDTHS = dict(
    b0=(320, 16), b1=(320, 23), b2=(352, 23), b3=(384, 26), b4=(448, 32), b5=(512, 39), b6=(576, 45), b7=(640, 55)
)


@pytest.mark.parametrize("size", WIDTHS)
def test_published_sizes(size):
    config = AlignVisionConfig.efficientnet(size)
    assert (config.output_channels, len(config.blocks())) == WIDTHS[size]
    assert config.hidden_dim == config.output_channels


def test_l2_is_the_paper_s():
    config = AlignVisionConfig.efficientnet("l2")
    assert (config.width_coefficient, config.depth_coefficient) == (4.3, 5.3)
    assert (config.stem_channels, config.output_channels) == (136, 1376)


def test_named_constructors():
    assert AlignConfig.base().text_config.num_hidden_layers == 12
    assert AlignConfig.large().text_config.hidden_size == 1024
    assert not AlignConfig.base().use_visual_projection  # B7 is as wide as its embedding
    assert AlignConfig.mini().use_visual_projection
    assert AlignConfig.mini(projection_dim=256).projection_dim == 256
    changed = AlignConfig.mini(vision_config={"virtual_batch_size": None}, text_config={"vocab_size": 99})
    assert (changed.vision_config.virtual_batch_size, changed.vision_config.depth_coefficient) == (None, 1.4)
    assert (changed.text_config.vocab_size, changed.text_config.hidden_size) == (99, 256)
    assert AlignConfig.base(vision_config=AlignVisionConfig.efficientnet("b0")).vision_config.depth_coefficient == 1.0
    with pytest.raises(ValueError, match="no size 'b8', expected one of b0"):
        AlignVisionConfig.efficientnet("b8")


def test_lists_of_stages_have_one_length():
    with pytest.raises(ValueError, match="same length, got the lengths in_channels 7, out_channels 7, .*, strides 2, "):
        AlignVisionConfig(strides=[1, 2]).blocks()


def test_drop_connect_rates_count_all_blocks():
    """From the recorded run of B0: block2b 0.025, block6d 0.175."""
    rates = [spec.drop_rate for spec in AlignVisionConfig.efficientnet("b0").blocks()]
    assert rates[0] == 0 and rates[2] == pytest.approx(0.025) and rates[14] == pytest.approx(0.175)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: AlignConfig(projection_dimm=3), "did you mean 'projection_dim'"),
        (lambda: AlignConfig(vision_config={"width_coeficient": 1.0}), "did you mean 'width_coefficient'"),
        (lambda: AlignTextConfig(flavour=1), "AlignTextConfig has no field 'flavour'"),
        (lambda: AlignConfig(temperature=0.01), "AlignConfig has no field 'temperature'"),  # known to text generation
        (lambda: AlignTextConfig(position_embedding_type="relative_key"), "is 'relative_key', expected 'absolute'"),
        (lambda: AlignConfig(projection_dim=64, use_visual_projection=False), "to equal the dimension"),
    ],
)
def test_a_misspelt_field_is_an_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_unknown_fields_of_a_file_are_kept_aloud(caplog, tmp_path):
    """A user's own, and those that are nearly a field: a constructor refuses these, a file is read again."""
    values = {"projection_dim": 640, "somebody_else": 1, "vision_config": {"image_sise": 3}, "label_smothing": 0.3}
    with caplog.at_level(logging.WARNING):
        config = AlignConfig.from_dict(values)
    assert (config.projection_dim, config.somebody_else, config.vision_config.image_sise) == (640, 1, 3)
    assert config.label_smoothing == 0.1 and config.vision_config.image_size == 289
    assert "AlignConfig ignores the unknown field 'somebody_else' of this configuration" in caplog.text
    assert "'image_sise' of this configuration; did you mean 'image_size'?" in caplog.text
    assert "did you mean 'label_smoothing'?" in caplog.text
    caplog.clear()
    config.save_pretrained(tmp_path)
    again = AlignConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() and again.somebody_else == 1
    assert not caplog.records  # said once


def test_fields_of_old_releases_and_of_bert_are_no_news(caplog, tmp_path):
    """`dropout_rate` of transformers 4.27, and what config.json of a BERT holds beside the fields of the text tower."""
    heads = (
        "directionality gradient_checkpointing pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers".split()
    )
    bert = transformers.BertConfig(hidden_size=384).to_dict() | dict.fromkeys([*heads, "pooler_type"], 1)
    (tmp_path / "config.json").write_text(json.dumps(bert | {"position_embedding_type": "absolute"}))
    with caplog.at_level(logging.WARNING):
        assert not hasattr(AlignVisionConfig.from_dict({"dropout_rate": 0.5}), "dropout_rate")
        assert AlignTextConfig.from_pretrained(tmp_path).hidden_size == 384
    assert not caplog.records


def test_a_config_of_transformers_4_loads(tmp_path):
    """Sub-configurations used to carry every text-generation setting, and counts that follow from other fields."""
    text = dict(hidden_size=768, is_decoder=False, max_length=20, num_beams=1, temperature=1.0, torch_dtype="float32",
                position_embedding_type="absolute", use_cache=True, transformers_version="4.27.0.dev0")  # fmt: skip
    vision = dict(
        width_coefficient=2.0, depth_coefficient=3.1, image_size=289, num_hidden_layers=64, top_k=50, hidden_dim=640
    )
    stored = dict(model_type="align", projection_dim=640, text_config=text, vision_config=vision, _commit_hash="1f2")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = AlignConfig.from_pretrained(tmp_path)
    assert len(config.vision_config.blocks()) == 55 and not config.use_visual_projection
    assert not hasattr(config.text_config, "num_beams")


@pytest.mark.parametrize("size", EFFICIENTNET_SIZES)
def test_save_and_load(size, tmp_path):
    vision = AlignVisionConfig.efficientnet(size, virtual_batch_size=None)
    config = AlignConfig(vision_config=vision.to_dict(), label_smoothing=0.2)
    config.save_pretrained(tmp_path)
    again = AlignConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.vision_config.virtual_batch_size is None
    assert again.vision_config.blocks() == config.vision_config.blocks()


def test_transformers_reads_ours(tmp_path):
    AlignConfig.base().save_pretrained(tmp_path)
    theirs = transformers.models.align.configuration_align.AlignConfig.from_pretrained(tmp_path)
    assert theirs.vision_config.depth_coefficient == 3.1 and theirs.projection_dim == 640


def test_towers_may_be_configured_by_transformers_classes():
    theirs = transformers.models.align.configuration_align
    text, vision = theirs.AlignTextConfig(hidden_size=48), theirs.AlignVisionConfig(width_coefficient=1.0)
    config = AlignConfig(text_config=text, vision_config=vision)
    assert type(config.text_config) is AlignTextConfig and config.text_config.hidden_size == 48
    assert type(config.vision_config) is AlignVisionConfig and config.vision_config.output_channels == 320
    assert config.use_visual_projection


def test_bundled_checkpoints_go_by_their_name():
    assert AlignConfig.from_pretrained("align-small").model_type == "align"


@pytest.mark.parametrize("name", ["AlignModel", "AlignTextModel", "AlignVisionConfig", "FlaxAlignModel"])
def test_the_configuration_of_another_model_is_refused(name, tmp_path):
    if name in ("AlignModel", "AlignTextModel"):
        pytest.importorskip("torch")
    ViTConfig().save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        if source.is_dir() or name.endswith("Config"):
            with pytest.raises(ValueError, match="model_type is 'vit', Align.*ViTForImageClassification can load it"):
                getattr(kakao_models, name).from_pretrained(source)


@pytest.mark.parametrize(
    ("part", "classes"), [("text_config", "AlignTextModel"), ("vision_config", "AlignVisionModel or")]
)
def test_the_configuration_of_a_tower_is_not_that_of_the_whole(part, classes, tmp_path):
    getattr(AlignConfig.from_pretrained("align-small"), part).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"AlignConfig expected 'align'. {classes}"):
        AlignConfig.from_pretrained(tmp_path)
