"""Loading and saving, with transformers' own ViT as the other side."""

import json

import pytest
import safetensors.torch
import tiny
import torch
import transformers
from tolerances import TOLERANCE

from kakao_models import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "patch_size": 32}


def pixels(size: int = 384) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' classifier with its own defaults, at 384 pixels, and its folder."""
    config = transformers.ViTConfig(**SHAPE, image_size=384, num_labels=11)
    model = tiny.fill(transformers.ViTForImageClassification(config))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Ours with a representation, and its folder."""
    model = tiny.fill(ViTForImageClassification(tiny.vit_config(representation_size=24)))
    folder = tmp_path_factory.mktemp("pretrained")
    model.save_pretrained(folder)
    return model, folder


def assert_same(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE["transformers"])


def states(folder) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


# --- transformers' folders here, ours there


def test_their_classifier_loads_here(theirs):
    model, folder = theirs
    ours = ViTForImageClassification.from_pretrained(folder)
    assert type(ours) is ViTForImageClassification and not ours.training
    assert (ours.config.hidden_act, ours.config.layer_norm_eps) == ("gelu", 1e-12)
    with torch.no_grad():
        a = ours(pixels(), output_hidden_states=True, output_attentions=True)
        model.set_attn_implementation("eager")
        b = model(pixels(), output_hidden_states=True, output_attentions=True)
        model.set_attn_implementation("sdpa")
    assert_same(a.logits, b.logits)
    assert len(a.hidden_states) == len(b.hidden_states) and len(a.attentions) == len(b.attentions)
    for ours, theirs in zip((*a.hidden_states, *a.attentions), (*b.hidden_states, *b.attentions)):
        assert_same(ours, theirs)


def test_our_classifier_loads_there(tmp_path):
    ours = tiny.fill(ViTForImageClassification(ViTConfig(**SHAPE, image_size=384, num_labels=11)))
    ours.save_pretrained(tmp_path)
    there, info = transformers.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(there).__module__.startswith("transformers.")
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    with torch.no_grad():
        assert_same(ours(pixels()).logits, there(pixels()).logits)


def test_their_way_there_and_back_is_untouched(theirs, tmp_path):
    """What transformers writes is the same before and after ours has been at it, name by name and bit by bit."""
    _, folder = theirs
    ViTForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    before = states(folder)
    assert "vit.encoder.layer.1.attention.output.dense.weight" in before
    for name in ("ours", "theirs"):
        after = states(tmp_path / name)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_representation_is_their_pooler(pretrained):
    model, folder = pretrained
    there = transformers.ViTModel.from_pretrained(folder)
    assert type(there).__module__.startswith("transformers.")
    with torch.no_grad():
        assert_same(model.vit(pixels(32)).pooler_output, there(pixels(32)).pooler_output)


def test_their_backbone_with_its_pooler_loads_completely(tmp_path):
    """As google/vit-base-patch16-224-in21k: no prefix, a pooler in the file, nothing about it in the configuration."""
    theirs = tiny.fill(transformers.ViTModel(transformers.ViTConfig(**SHAPE, image_size=64)))
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("pooler_act", "pooler_output_size"):
        del values[name]  # transformers 4 had no such fields
    (tmp_path / "config.json").write_text(json.dumps(values))
    ours, info = ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    with torch.no_grad():
        assert_same(ours(pixels(64)).pooler_output, theirs(pixels(64)).pooler_output)
    ours.save_pretrained(tmp_path / "again")
    assert states(tmp_path / "again").keys() == states(tmp_path).keys()
    assert ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).pooler is None
    classifier = ViTForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert_same(classifier(pixels(64), output_hidden_states=True).hidden_states[-1], theirs_last(theirs))


def theirs_last(model) -> torch.Tensor:
    return model(pixels(64), output_hidden_states=True).hidden_states[-1]


def test_configurations_and_weights_from_elsewhere(theirs):
    """A configuration of transformers' class, and weights without a file."""
    model, folder = theirs
    ours = ViTForImageClassification.from_pretrained(folder, config=model.config)
    assert type(ours.config) is ViTConfig
    again = ViTForImageClassification.from_pretrained(None, config=ours.config, state_dict=ours.state_dict())
    with torch.no_grad():
        assert torch.equal(again(pixels()).logits, ours(pixels()).logits)
        assert_same(ours(pixels()).logits, model(pixels()).logits)


# --- parts of a file


def test_no_pooler_is_made_up(theirs):
    model, folder = theirs
    ours, info = ViTModel.from_pretrained(folder, output_loading_info=True)
    assert ours.pooler is None and not info["missing_keys"]
    with torch.no_grad():
        output = ours(pixels())
        assert output.pooler_output is None
        assert_same(output.last_hidden_state, model.vit(pixels()).last_hidden_state)
    with pytest.raises(ValueError, match=r"missing pooler\.dense\.bias"):
        ViTModel.from_pretrained(folder, add_pooling_layer=True)
    with pytest.raises(ValueError, match=r"missing pooler\.dense\.weight"):
        ViTModel.from_pretrained(folder, representation_size=24)


def test_half_a_pooler_is_an_error(pretrained, tmp_path):
    model, folder = pretrained
    arrays = states(folder)
    del arrays["vit.pooler.dense.bias"]
    write(tmp_path, tiny.vit_config(), arrays)
    with pytest.raises(ValueError, match=r"missing pooler\.dense\.bias"):
        ViTModel.from_pretrained(tmp_path)


def test_backbone_of_a_classifier_s_folder(pretrained, tmp_path):
    model, folder = pretrained
    backbone = ViTModel.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(backbone(pixels(32)).pooler_output, model.vit(pixels(32)).pooler_output)
    backbone.save_pretrained(tmp_path)
    assert "encoder.layer.0.attention.attention.query.weight" in states(tmp_path)
    with pytest.raises(ValueError, match=r"missing classifier\.bias\n.*missing classifier\.weight"):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_fine_tuning_replaces_the_head_alone(pretrained):
    model, folder = pretrained
    fresh, info = ViTForImageClassification.from_pretrained(
        folder, num_labels=10, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert fresh.classifier.weight.shape == (10, 24) and not fresh.classifier.weight.any()
    for name, value in fresh.vit.state_dict().items():
        assert torch.equal(value, model.vit.state_dict()[name]), name
    without = ViTForImageClassification.from_pretrained(
        folder, num_labels=10, representation_size=None, ignore_mismatched_sizes=True
    )
    assert without.vit.pooler is None and without.classifier.weight.shape == (10, 32)
    with pytest.raises(ValueError, match=r"classifier\.bias: the file has \(7,\), the model expects \(10,\)"):
        ViTForImageClassification.from_pretrained(folder, num_labels=10)
    with pytest.raises(ValueError, match=r"unknown vit\.pooler\.dense\.bias"):
        ViTForImageClassification.from_pretrained(folder, representation_size=None)


def test_only_the_head_may_be_replaced(pretrained):
    with pytest.raises(
        ValueError, match=r"vit\.layers\.0\.mlp\.fc1\.bias: the file has \(64,\), the model expects \(80,\)"
    ):
        ViTForImageClassification.from_pretrained(pretrained[1], intermediate_size=80, ignore_mismatched_sizes=True)


def write(folder, config: ViTConfig, arrays: dict[str, torch.Tensor]) -> None:
    config.save_pretrained(folder)
    safetensors.torch.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_class", [ViTForImageClassification, ViTModel])
def test_missing_unknown_and_misshapen_tensors_are_named(model_class, pretrained, tmp_path):
    _, folder = pretrained
    prefix = "vit." if model_class is ViTForImageClassification else ""
    config, arrays = tiny.vit_config(representation_size=24), states(folder)
    weight = "vit.encoder.layer.1.attention.attention.query.weight"
    write(tmp_path, config, {key: value for key, value in arrays.items() if key != weight})
    with pytest.raises(ValueError, match=rf"missing {prefix}layers\.1\.attention\.q_proj\.weight"):
        model_class.from_pretrained(tmp_path)
    write(tmp_path, config, arrays | {"vit.layernorm.scale": torch.ones(3)})
    with pytest.raises(ValueError, match=r"unknown (vit\.)?layernorm\.scale"):
        model_class.from_pretrained(tmp_path)
    write(tmp_path, config, arrays | {"vit.embeddings.position_embeddings": torch.zeros(1, 10, 32)})
    with pytest.raises(
        ValueError, match=r"position_embeddings: the file has \(1, 10, 32\), the model expects \(1, 17, 32\)"
    ):
        model_class.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"position_embeddings: the file has \(1, 10, 32\)"):
        model_class.from_pretrained(tmp_path, image_size=64)


# --- ways to keep and to ask for a checkpoint


def test_sharded(pretrained, tmp_path):
    model, _ = pretrained
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert "vit.encoder.layer.0.intermediate.dense.weight" in index["weight_map"]
    loaded = ViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(pixels(32)).logits, model(pixels(32)).logits)


def test_subfolder_and_dtype(pretrained, tmp_path):
    model, _ = pretrained
    model.save_pretrained(tmp_path / "inner")
    loaded = ViTForImageClassification.from_pretrained(tmp_path, subfolder="inner", dtype=torch.bfloat16, image_size=48)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded(pixels(48)).logits.dtype == torch.bfloat16
    large = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, subfolder="inner", image_size=48)
    assert large.config.image_size == 48 and large.vit.embeddings.position_embeddings.shape == (1, 37, 32)


def test_config_given_as_an_object(pretrained):
    _, folder = pretrained
    config = ViTConfig.from_pretrained(folder)
    config.image_size = 64
    model = ViTForImageClassification.from_pretrained(folder, config=config)
    assert model.vit.embeddings.position_embeddings.shape == (1, 65, 32)
    assert model.config.image_size == 64 and config.image_size == 64


def test_pickled_weights_only_without_code(pretrained, tmp_path):
    model, folder = pretrained
    tiny.vit_config(representation_size=24).save_pretrained(tmp_path)
    torch.save(states(folder), tmp_path / "pytorch_model.bin")
    loaded = ViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(pixels(32)).logits, model(pixels(32)).logits)

    class Malicious:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    torch.save(states(folder) | {"vit.evil": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="not a state dict of tensors .*it needs io.open"):
        ViTForImageClassification.from_pretrained(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_damaged_file_is_an_oserror(pretrained, tmp_path):
    tiny.vit_config().save_pretrained(tmp_path)
    whole = (pretrained[1] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="Is the download complete"):
        ViTForImageClassification.from_pretrained(tmp_path)


# --- the rest of transformers


def test_auto_classes_give_ours(pretrained):
    _, folder = pretrained
    assert type(transformers.AutoModel.from_pretrained(folder)) is ViTModel
    assert type(transformers.AutoModelForImageClassification.from_pretrained(folder)) is ViTForImageClassification


def test_pipeline_of_transformers(tmp_path):
    folder = tiny.vit_folder(tmp_path, representation_size=24)
    model, processor = ViTForImageClassification.from_pretrained(folder), ViTImageProcessor.from_pretrained(folder)
    pipe = transformers.pipeline("image-classification", model=model, image_processor=processor)
    picture = tiny.picture(3)
    got = pipe(picture, top_k=7)
    with torch.no_grad():
        wanted = model(**processor(picture, return_tensors="pt")).logits.softmax(-1)[0]
    assert [entry["label"] for entry in got] == [
        model.config.id2label[i] for i in wanted.argsort(descending=True).tolist()
    ]
    assert [entry["score"] for entry in got] == pytest.approx(wanted.sort(descending=True).values.tolist(), abs=1e-6)


@pytest.mark.hub
def test_the_released_checkpoint_on_the_cats():
    """The probabilities published with kakaobrain/vit-large-patch16-384 for COCO image 000000039769."""
    from huggingface_hub import hf_hub_download
    from PIL import Image

    name = "kakaobrain/vit-large-patch16-384"
    try:
        model = ViTForImageClassification.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        picture = hf_hub_download("hf-internal-testing/fixtures-coco", "val2017/000000039769.jpg", repo_type="dataset")
    except OSError as error:
        pytest.skip(f"the Hub can't be reached: {error}")
    with torch.no_grad():
        scores = model(**processor(Image.open(picture), return_tensors="pt")).logits.softmax(-1)[0]
    wanted = {"remote control": 0.8224, "tabby": 0.0658, "tiger cat": 0.0656, "Egyptian cat": 0.0389}
    values, classes = scores.topk(4)
    assert [model.config.id2label[index].split(",")[0] for index in classes.tolist()] == list(wanted)
    assert values.tolist() == pytest.approx(list(wanted.values()), abs=TOLERANCE["published probabilities"])


def test_a_configuration_of_transformers_builds_our_model():
    config = transformers.ViTConfig(**SHAPE, image_size=64, num_labels=11)
    assert type(ViTModel(config).config) is ViTConfig
    model = ViTForImageClassification(config)
    assert type(model.config) is ViTConfig and model.classifier.out_features == 11


def test_attentions_of_flex_attention_are_refused():
    model = ViTForImageClassification(tiny.vit_config())
    model.set_attn_implementation("flex_attention")
    eager = torch.compiler.set_stance("force_eager")  # transformers compiles the mask, which takes 20 seconds
    with eager, pytest.raises(ValueError, match="set_attn_implementation"):
        model(pixels(model.config.image_size), output_attentions=True)
