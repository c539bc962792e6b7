"""The configuration: defaults of the original, files of the Hub unchanged, mistakes named."""

import json

import goldens
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers.activations import ACT2FN

from kakao_models import ViTConfig

# As transformers 4 wrote them beside the released checkpoints of that time.
TRANSFORMERS_4 = {
    "architectures": ["ViTForImageClassification"],
    "_name_or_path": "somewhere/else",
    "attention_probs_dropout_prob": 0.0,
    "encoder_stride": 16,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
    "image_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "label2id": {"goldfish, Carassius auratus": 1, "tench, Tinca tinca": 0},
    "layer_norm_eps": 1e-12,
    "model_type": "vit",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "problem_type": "single_label_classification",
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.28.0",
}


def write(folder, values: dict):
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_defaults_are_those_of_the_original():
    config = ViTConfig()
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    assert (config.representation_size, config.grid) == (None, (14, 14))


def test_the_activation_is_the_tanh_approximation():
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    wanted = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACT2FN[ViTConfig().hidden_act](x), wanted, rtol=0, atol=1e-14)


def test_a_file_of_transformers_4_loads_unchanged(tmp_path):
    config = ViTConfig.from_pretrained(write(tmp_path, TRANSFORMERS_4))
    for name in TRANSFORMERS_4.keys() - {"id2label", "_name_or_path", "torch_dtype", "transformers_version"}:
        assert getattr(config, name) == TRANSFORMERS_4[name], name
    assert config.id2label == {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus"}
    assert config.num_labels == 2 and config.dtype == torch.float32 and config.representation_size is None


def test_a_file_of_transformers_5_loads_unchanged_and_ours_does_there(tmp_path):
    theirs = transformers.ViTConfig(hidden_size=48, num_attention_heads=4, image_size=[32, 64], num_labels=3)
    theirs.save_pretrained(tmp_path)
    ours = ViTConfig.from_pretrained(tmp_path)
    assert ours.to_dict() == theirs.to_dict() | {"representation_size": None}
    ours.save_pretrained(tmp_path)
    assert transformers.ViTConfig.from_pretrained(tmp_path).to_dict() == ours.to_dict()


def test_what_ours_leaves_at_its_defaults_is_written(tmp_path):
    """transformers' own defaults are others, so a reader must not have to guess."""
    ViTConfig().save_pretrained(tmp_path)
    there = transformers.ViTConfig.from_pretrained(tmp_path)
    assert (there.hidden_act, there.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)


def test_auto_config_gives_ours(tmp_path):
    assert type(transformers.AutoConfig.from_pretrained(write(tmp_path, TRANSFORMERS_4))) is ViTConfig


def test_representation_is_the_pooler_of_transformers(tmp_path):
    config = ViTConfig(representation_size=1024, pooler_act="relu")
    assert (config.pooler_output_size, config.pooler_act) == (1024, "tanh")
    config.save_pretrained(tmp_path)
    assert transformers.ViTConfig.from_pretrained(tmp_path).pooler_output_size == 1024
    changed = ViTConfig.from_pretrained(tmp_path, representation_size=512)
    assert (changed.representation_size, changed.pooler_output_size) == (512, 512)
    assert ViTConfig.from_pretrained(tmp_path, representation_size=None).representation_size is None
    assert ViTConfig(representation_size=0).representation_size is None  # as the original says it


@pytest.mark.parametrize("name", ["vit_a", "vit_b", "vit_c", "vit_d", "vit_e"])
def test_published_sizes(name):
    recorded = goldens.load(name).config
    size = recorded["backbone_name"].removeprefix("vit-").removesuffix("/16")
    config = ViTConfig.vit(size, image_size=recorded["image_size"], representation_size=recorded["representation_size"])
    assert config.num_hidden_layers == recorded["num_layers"]
    assert config.hidden_size == recorded["hidden_size"]
    assert config.num_attention_heads == recorded["num_heads"]
    assert config.intermediate_size == recorded["mlp_dim"]
    assert config.patch_size == recorded["patch_size"]
    assert (config.representation_size or 0) == recorded["representation_size"]


def test_base_is_the_default_of_transformers():
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    theirs = transformers.ViTConfig()
    assert [getattr(ViTConfig.vit("b"), name) for name in names] == [getattr(theirs, name) for name in names]


def test_grid():
    assert ViTConfig(image_size=[96, 64], patch_size=16).grid == (6, 4)
    assert ViTConfig(image_size=64, patch_size=(8, 16)).grid == (8, 4)


def test_mistakes_are_named(tmp_path, caplog):
    with pytest.raises(ValueError, match="no field 'hiden_size'.*did you mean 'hidden_size'"):
        ViTConfig(hiden_size=3)
    ViTConfig.from_pretrained(write(tmp_path, TRANSFORMERS_4 | {"representation_sise": 1024}))
    assert "'representation_sise' of this configuration; did you mean 'representation_size'?" in caplog.text
    with pytest.raises(ValueError, match="no size 'xl', expected one of ti, s, b, l"):
        ViTConfig.vit("xl")
    with pytest.raises(StrictDataclassFieldValidationError, match="'hidden_size' expected int, got str"):
        ViTConfig(hidden_size="768")
