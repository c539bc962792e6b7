"""Loading and saving, with transformers' own AlignModel as the other side."""

import json
import pickle

import pytest
import safetensors.torch
import torch
import transformers

from kakao_models import AlignConfig, AlignModel, AlignTextModel, AlignVisionModel

TEXT = dict(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
# as wide as its embedding, so that transformers can express it
VISION = dict(width_coefficient=0.5, depth_coefficient=0.4, image_size=289)
SHAPE = dict(text_config=TEXT, vision_config=VISION, projection_dim=160)


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Every tensor its own: on fresh weights, two swapped norms compare equal."""
    generator = torch.Generator().manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            low = 0.5 if tensor.ndim == 1 else -0.1
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + low)
    return model.eval()


def inputs(size: int = 289) -> dict:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(4, 10, dtype=torch.long)
    mask[1, 5:], mask[2, 1:] = 0, 0
    return dict(
        pixel_values=torch.rand(3, 3, size, size, generator=generator) * 2 - 1,
        input_ids=torch.randint(1, 99, (4, 10), generator=generator),
        attention_mask=mask,
        token_type_ids=torch.randint(0, 2, (4, 10), generator=generator),
    )


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    model = randomize(transformers.AlignModel(transformers.AlignConfig(**SHAPE)))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def ours(theirs):
    return AlignModel.from_pretrained(theirs[1])


def flatten(output) -> dict[str, torch.Tensor]:
    flat = {}
    for key, value in output.items():
        if isinstance(value, transformers.utils.ModelOutput):
            flat.update({f"{key}.{name}": tensor for name, tensor in flatten(value).items()})
        elif isinstance(value, tuple):
            flat.update({f"{key}.{i}": tensor for i, tensor in enumerate(value)})
        else:
            flat[key] = value
    return flat


@pytest.mark.parametrize("size", [289, 97])
def test_same_outputs_as_transformers(size, theirs, ours):
    with torch.no_grad():
        a = flatten(theirs[0](**inputs(size), output_hidden_states=True))
        b = flatten(ours(**inputs(size), output_hidden_states=True))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=1e-5, msg=key)


def test_same_features_attentions_and_tuples(theirs, ours):
    their_model = transformers.AlignModel.from_pretrained(theirs[1], attn_implementation="eager")
    x = inputs(97)
    text = {key: value for key, value in x.items() if key != "pixel_values"}
    with torch.no_grad():
        for a, b in (
            (their_model.get_text_features(**text), ours.get_text_features(**text)),
            (their_model.get_image_features(x["pixel_values"]), ours.get_image_features(x["pixel_values"])),
            (their_model.text_model(**text, output_attentions=True), ours.text_model(**text, output_attentions=True)),
        ):
            a, b = flatten(a), flatten(b)
            assert a.keys() == b.keys()
            for key in a:
                torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=1e-5, msg=key)
        for a, b in zip(their_model(**x, return_dict=False), ours(**x, return_dict=False), strict=True):
            assert type(a) is type(b)
        words = ours.text_model.embeddings.word_embeddings(x["input_ids"])
        by_embeds = ours.get_text_features(inputs_embeds=words, attention_mask=x["attention_mask"])
        by_ids = ours.get_text_features(x["input_ids"], x["attention_mask"])
        torch.testing.assert_close(by_embeds.pooler_output, by_ids.pooler_output)


def test_the_loss_is_the_sum_of_both_directions(theirs, ours):
    x = inputs(97)
    x["pixel_values"] = torch.cat([x["pixel_values"], x["pixel_values"][:1] * 0.5])
    with torch.no_grad():
        a, b = (model(**x, return_loss=True).loss for model in (theirs[0], ours))
    # transformers takes the mean; two float32 programs agree on logits of 100 to a few units in the last place
    torch.testing.assert_close(b, 2 * a, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="got 3 images and 4 texts"):
        ours(**inputs(97), return_loss=True)


def test_ours_loads_in_transformers(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    again, info = transformers.AlignModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs(97)).logits_per_image, ours(**inputs(97)).logits_per_image)


def test_towers_load_from_a_whole_checkpoint(theirs, ours):
    x = inputs(97)
    text, vision = AlignTextModel.from_pretrained(theirs[1]), AlignVisionModel.from_pretrained(theirs[1])
    with torch.no_grad():
        whole = ours(**x)
        pixels = x.pop("pixel_values")
        torch.testing.assert_close(text(**x).last_hidden_state, whole.text_model_output.last_hidden_state)
        torch.testing.assert_close(vision(pixels).pooler_output, whole.vision_model_output.pooler_output)
    assert AlignTextModel.from_pretrained(theirs[1], add_pooling_layer=False).pooler is None


def test_a_tower_saved_alone_loads_again(theirs, tmp_path):
    tower = AlignVisionModel.from_pretrained(theirs[1])
    tower.save_pretrained(tmp_path)
    again = AlignVisionModel.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in tower.state_dict().items())


def test_shards_subfolder_and_dtype(ours, tmp_path):
    ours.save_pretrained(tmp_path / "nested" / "deep", max_shard_size="200KB")
    assert len(list((tmp_path / "nested/deep").glob("*.safetensors"))) > 2
    again = AlignModel.from_pretrained(tmp_path / "nested", subfolder="deep", dtype=torch.bfloat16)
    for key, value in ours.state_dict().items():
        expected = value.to(torch.bfloat16) if value.is_floating_point() else value
        torch.testing.assert_close(again.state_dict()[key], expected, msg=key)


def test_pickled_weights_load_and_code_in_them_does_not(ours, tmp_path):
    ours.config.save_pretrained(tmp_path)
    torch.save(ours.state_dict(), tmp_path / "pytorch_model.bin")
    again = AlignModel.from_pretrained(tmp_path)
    assert torch.equal(again.text_projection.weight, ours.text_projection.weight)

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        pickle.dump({"temperature": Attack()}, file)
    with pytest.raises((pickle.UnpicklingError, OSError, RuntimeError)):
        AlignModel.from_pretrained(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("vision_model.embeddings.convolution.weight"), "missing vision_model.embeddings.conv"),
        (lambda state: state.update({"extra.weight": torch.zeros(3)}), "unknown extra.weight"),
        (
            lambda state: state.update({"text_projection.weight": torch.zeros(3, 4)}),
            r"text_projection.weight: the file has \(3, 4\), the model expects \(160, 64\)",
        ),
    ],
)
def test_loading_is_a_bijection(change, message, theirs, tmp_path):
    state = safetensors.torch.load_file(theirs[1] / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((theirs[1] / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        AlignModel.from_pretrained(tmp_path)


def test_broken_files_are_named(theirs, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((theirs[1] / name).read_bytes())
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(50_000)
    with pytest.raises(OSError, match=f"{tmp_path}.*Is the download complete"):
        AlignModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        AlignModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "align"})[:-3])
    with pytest.raises(OSError, match="config.json"):
        AlignModel.from_pretrained(tmp_path)


def test_weights_without_a_file(ours):
    """`from_pretrained(None, config=, state_dict=)`: a bijection too."""
    again = AlignModel.from_pretrained(None, config=ours.config, state_dict=ours.state_dict())
    assert all(torch.equal(again.state_dict()[key], value) for key, value in ours.state_dict().items())
    with pytest.raises(ValueError, match=r"state_dict does not hold(.|\n)*missing temperature"):
        state = {key: value for key, value in ours.state_dict().items() if key != "temperature"}
        AlignModel.from_pretrained(None, config=ours.config, state_dict=state)


def test_a_configuration_of_transformers_is_taken(theirs, ours):
    config = type(theirs[0].config).from_pretrained(theirs[1])
    model = AlignModel.from_pretrained(theirs[1], config=config)
    assert type(model.config) is AlignConfig
    with torch.no_grad():
        assert torch.equal(model(**inputs(97)).logits_per_image, ours(**inputs(97)).logits_per_image)


def test_auto_classes_find_ours(theirs):
    config = AlignConfig.from_pretrained(theirs[1])
    for auto in (transformers.AutoModel, transformers.AutoModelForZeroShotImageClassification):
        assert type(auto.from_pretrained(theirs[1])) is AlignModel
        assert type(auto.from_config(config)) is AlignModel
    assert type(transformers.AutoConfig.from_pretrained(theirs[1])) is AlignConfig


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention, theirs, ours):
    model = AlignModel.from_pretrained(theirs[1], attn_implementation=attention)
    assert model.text_model.config._attn_implementation == attention
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs(97)).text_embeds, ours(**inputs(97)).text_embeds)


def test_eager_attention_keeps_float64(theirs):
    x = {key: value for key, value in inputs().items() if key != "pixel_values"}
    models = [
        AlignTextModel.from_pretrained(theirs[1], attn_implementation=name).double() for name in ("sdpa", "eager")
    ]
    with torch.no_grad():
        a, b = (model(**x).last_hidden_state for model in models)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.99), (torch.float16, 0.9999)])  # 8 and 11 bits of mantissa
def test_half_precision(dtype, limit, theirs, ours):
    model = AlignModel.from_pretrained(theirs[1], dtype=dtype)
    x = inputs(97)
    with torch.no_grad():
        wanted = ours(**x)
        got = model(**x | {"pixel_values": x["pixel_values"].to(dtype)})
    assert got.image_embeds.dtype == dtype
    for name in ("image_embeds", "text_embeds"):
        cosine = (getattr(got, name).float() * getattr(wanted, name)).sum(-1)
        assert cosine.min() > limit, name


def test_compile_export_and_channels_last(ours):
    x = inputs(97)
    with torch.no_grad():
        wanted = ours(**x).logits_per_image
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(**x).logits_per_image, wanted, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(ours, (), kwargs=x).module()
        torch.testing.assert_close(exported(**x).logits_per_image, wanted, rtol=1e-4, atol=1e-4)
        nhwc = ours.to(memory_format=torch.channels_last)
        x["pixel_values"] = x["pixel_values"].to(memory_format=torch.channels_last)
        torch.testing.assert_close(nhwc(**x).logits_per_image, wanted, rtol=1e-4, atol=1e-4)


def test_clear_errors_for_wrong_inputs(ours):
    ids = torch.ones(1, 600, dtype=torch.long)
    with pytest.raises(ValueError, match="600 tokens, but there are 512 positions"):
        ours.get_text_features(ids)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours.get_text_features()
    with pytest.raises(ValueError, match=r"got \(1, 64, 64, 3\). Channels come first: permute\(0, 3, 1, 2\)"):
        ours.get_image_features(torch.zeros(1, 64, 64, 3))


@pytest.mark.hub
def test_the_released_checkpoint_on_the_cats():
    """The logits published with kakaobrain/align-base for COCO image 000000039769."""
    from kakao_models import AlignProcessor

    try:
        model = AlignModel.from_pretrained("kakaobrain/align-base")
        processor = AlignProcessor.from_pretrained("kakaobrain/align-base")
        texts = ["a photo of a cat", "a photo of a dog"]
        batch = processor(
            text=texts, images="http://images.cocodataset.org/val2017/000000039769.jpg", return_tensors="pt"
        )
    except OSError as error:
        pytest.skip(f"the Hub can't be reached: {error}")
    with torch.no_grad():
        logits = model(**batch).logits_per_image
    torch.testing.assert_close(logits, torch.tensor([[9.7093, 3.4679]]), rtol=0, atol=1e-3)


def test_a_configuration_of_transformers_builds_our_model():
    model = AlignModel(transformers.AlignConfig(**SHAPE))
    assert type(model.config) is AlignConfig
    assert model.config.text_config.hidden_size == TEXT["hidden_size"]
    assert len(AlignTextModel(transformers.AlignTextConfig(**TEXT)).encoder.layer) == TEXT["num_hidden_layers"]
    assert AlignVisionModel(transformers.AlignVisionConfig(**VISION)).embeddings.convolution.out_channels == 16
