"""Sources beside TensorFlow checkpoints: Google's .npz, Hub folders of older transformers, Keras' EfficientNet."""

import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import goldens
import h5py
import msgpack
import numpy as np
import published
import pytest
import tiny
import torch
import yaml
from golden import weights as weight_formula
from safetensors.torch import load_file, save_file
from tolerances import TOLERANCE

from kakao_models import (
    AlignImageProcessor,
    AlignModel,
    AlignTextConfig,
    AlignVisionModel,
    ViTForImageClassification,
    ViTImageProcessor,
)
from kakao_models.conversion.convert import convert
from kakao_models.conversion.info import as_text, describe_checkpoint
from kakao_models.conversion.object_graph import SUFFIX
from kakao_models.conversion.read import read_source
from kakao_models.conversion.report import verify_report
from kakao_models.conversion.tensorflow import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
HUB = GOLDEN / "hub"


# Google's .npz


def google_arrays(name: str = "vit_nano_ckpt", heads: int = 2) -> dict[str, np.ndarray]:
    """A recorded ViT of the original program, spelt as Google's program saves it."""
    checkpoint = open_checkpoint(GOLDEN / "checkpoints" / name)

    def get(key: str) -> np.ndarray:
        return checkpoint.read(key + SUFFIX)

    arrays = {
        "cls": get("backbone/class_emb"),
        "Transformer/posembed_input/pos_embedding": get("backbone/pos_emb"),
        "embedding/kernel": get("backbone/embedding/kernel"),
        "embedding/bias": get("backbone/embedding/bias"),
        "Transformer/encoder_norm/scale": get("backbone/norm/gamma"),
        "Transformer/encoder_norm/bias": get("backbone/norm/beta"),
        "pre_logits/kernel": get("backbone/representation/kernel"),
        "pre_logits/bias": get("backbone/representation/bias"),
        "head/kernel": get("model/layer_with_weights-1/kernel"),
        "head/bias": get("model/layer_with_weights-1/bias"),
    }
    layers = sum(key.endswith("layernorm1/gamma" + SUFFIX) and "SLOT" not in key for key in checkpoint.entries)
    for i in range(layers):
        block, layer = f"Transformer/encoderblock_{i}", f"backbone/enc_layers/{i}"
        for theirs, ours in (("LayerNorm_0", "layernorm1"), ("LayerNorm_2", "layernorm2")):
            arrays[f"{block}/{theirs}/scale"] = get(f"{layer}/{ours}/gamma")
            arrays[f"{block}/{theirs}/bias"] = get(f"{layer}/{ours}/beta")
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            kernel = get(f"{layer}/att/{part}_dense/kernel")
            arrays[f"{attention}/{part}/kernel"] = kernel.reshape(len(kernel), heads, -1)
            arrays[f"{attention}/{part}/bias"] = get(f"{layer}/att/{part}_dense/bias").reshape(heads, -1)
        out = get(f"{layer}/att/combine_heads/kernel")
        arrays[f"{attention}/out/kernel"] = out.reshape(heads, -1, out.shape[1])
        arrays[f"{attention}/out/bias"] = get(f"{layer}/att/combine_heads/bias")
        for number in (0, 1):
            for leaf in ("kernel", "bias"):
                value = get(f"{layer}/mlp/layer_with_weights-{number}/{leaf}")
                arrays[f"{block}/MlpBlock_3/Dense_{number}/{leaf}"] = value
    return arrays


def npz(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "vit.npz", **arrays)
    return folder / "vit.npz"


def test_npz(tmp_path):
    report = convert(npz(tmp_path, google_arrays()), tmp_path / "out")  # heads are seen, none are given
    golden = goldens.load("vit_nano_ckpt")
    pixels = torch.from_numpy(golden.images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = ViTForImageClassification.from_pretrained(tmp_path / "out")(pixels).logits.numpy()
    np.testing.assert_allclose(logits, golden.arrays["logits"], rtol=0, atol=TOLERANCE["vit logits"])
    assert report["source"]["kind"] == "Google's published .npz" and verify_report(tmp_path / "out") == []
    query = report["tensors"]["vit.encoder.layer.1.attention.attention.query.weight"]
    assert query["source"] == "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
    processor = ViTImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.preprocessing, processor.size, processor.do_center_crop) == (
        "tf",
        {"height": 64, "width": 64},
        False,
    )


def test_npz_without_pre_logits_or_head(tmp_path):
    arrays = {key: value for key, value in google_arrays().items() if not key.startswith(("pre_logits", "head"))}
    convert(npz(tmp_path, arrays), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["ViTModel"] and config["representation_size"] is None


def without(key):
    return lambda arrays: arrays.pop(key)


@pytest.mark.parametrize(
    "change, message",
    [
        (without("cls"), r"1 of \d+ tensors are missing \(cls\)"),
        (without("Transformer/encoderblock_0/MlpBlock_3/Dense_1/bias"), "encoderblock_0/MlpBlock_3/Dense_1/bias"),
        (without("Transformer/encoderblock_0/LayerNorm_0/scale"), "encoderblock_0/LayerNorm_0/scale"),
        (lambda a: a.update(opt=np.zeros(3, np.float32)), r"1 are unknown \(opt\)"),
        (lambda a: a.update({"conv_root/kernel": np.zeros(3, np.float32)}), "hybrid of a ResNet and a ViT"),
        (lambda a: a.update({"head/kernel": np.zeros((3, 4, 5), np.float32)}), r"head/kernel has shape \(3, 4, 5\)"),
        (lambda a: a.update({"head/bias": np.zeros(3, np.float32)}), r"classifier.bias: the file has \(3,\)"),
        (lambda a: a.update({"head/bias": np.zeros(10)}), "head/bias.* is float64, expected float32"),
    ],
)
def test_npz_of_another_model_is_refused(change, message, tmp_path):
    arrays = google_arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        convert(npz(tmp_path, arrays), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_attention_heads=4), "num_attention_heads: got 4, but the tensors say 2"),
        (dict(image_size=32), "image_size: got 32, but the tensors say 64"),
        (dict(weights="average"), "has no moving averages"),
        (dict(family="align"), "holds a model of family 'vit', expected 'align'"),
    ],
)
def test_what_contradicts_an_npz_is_an_error(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(npz(tmp_path, google_arrays()), tmp_path / "out", **options)


class Trap:
    """A pickle that runs a program when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_npz_with_pickles_is_refused_unread(tmp_path):
    arrays = google_arrays() | {"cls": np.array([Trap(tmp_path / "sprung")], object)}
    with pytest.raises(ValueError, match="cls holds pickled Python objects"):
        convert(npz(tmp_path, arrays), tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_npz_is_refused(tmp_path):
    path = npz(tmp_path, google_arrays())
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("head/kernel.npy").header_offset
    damaged = bytearray(content)
    damaged[start + 400] ^= 64
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="vit.npz.*Bad CRC-32 for file 'head/kernel.npy'"):
        convert(path, tmp_path / "out")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="vit.npz can't be read"):
        convert(path, tmp_path / "out")
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cls.npy", header + len(text).to_bytes(2, "little") + text + b"1234")
    with pytest.raises(ValueError, match="cls should hold float32"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Hub folders


@pytest.mark.parametrize("name", ["tf_vit", "flax_vit"])
def test_folders_of_older_transformers(name, tmp_path):
    report = convert(HUB / name, tmp_path / "out", reference=HUB / name / "outputs.npz")
    assert (
        report["verification"][-1]["name"] == "logits of outputs.npz"
        and report["verification"][-1]["difference"] < 1e-5
    )
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (HUB / name, tmp_path / "out"))
    for field in ("hidden_act", "layer_norm_eps", "id2label", "label2id", "num_attention_heads", "image_size"):
        assert after[field] == before[field], field
    before, after = (
        json.loads((folder / "preprocessor_config.json").read_text()) for folder in (HUB / name, tmp_path / "out")
    )
    assert {field: after[field] for field in before if field in after} == before | {
        "image_processor_type": "ViTImageProcessor"
    }
    assert verify_report(tmp_path / "out") == []


def as_pickle(folder: Path, **changes) -> dict[str, torch.Tensor]:
    """Rewrites model.safetensors as pytorch_model.bin."""
    state = load_file(folder / "model.safetensors") | changes
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return state


@pytest.fixture
def vit(tmp_path) -> Path:
    tiny.vit_folder(tmp_path / "vit")
    return tmp_path / "vit"


def test_align_of_pickles(tmp_path):
    tiny.align_folder(tmp_path / "align")
    state = as_pickle(tmp_path / "align", **{"text_model.embeddings.position_ids": torch.arange(80)[None]})
    report = convert(tmp_path / "align", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    weights = {k for k in state if not k.endswith(("num_batches_tracked", "position_ids"))}
    counted = {k for k in state if k.endswith("num_batches_tracked")}
    assert written.keys() == weights | counted and all(torch.equal(written[key], state[key]) for key in weights)
    assert report["source"]["skipped"] == {"buffer": len(state) - len(weights)}
    names = {file.name for file in (tmp_path / "align").iterdir()} - {"pytorch_model.bin", "model.safetensors"}
    assert "tokenizer.json" in names
    for name in names - {"config.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "align" / name).read_bytes(), name
    assert AlignModel.from_pretrained(tmp_path / "out").config.temperature_init_value == 0.01
    with pytest.raises(ValueError, match="the source has a tokenizer"):
        convert(tmp_path / "align", tmp_path / "again", tokenizer=str(tmp_path / "align"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_are_widened(dtype, vit, tmp_path):
    state = {key: value.to(dtype) for key, value in load_file(vit / "model.safetensors").items()}
    as_pickle(vit, **state)
    convert(vit, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[key], state[key].float()) for key in state)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_a_backbone_with_its_pooler(vit, tmp_path):
    """As ViTModel of older transformers was saved: no prefix, and a pooler that config.json does not speak of."""
    state = {k[4:]: v for k, v in load_file(vit / "model.safetensors").items() if k.startswith("vit.")}
    state |= {"pooler.dense.weight": torch.randn(32, 32), "pooler.dense.bias": torch.randn(32)}
    (vit / "model.safetensors").unlink()
    shards = {"a.bin": list(state)[::2], "b.bin": list(state)[1::2]}
    for name, keys in shards.items():
        torch.save({key: state[key] for key in keys}, vit / name)
    places = {key: name for name, keys in shards.items() for key in keys}
    (vit / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    convert(vit, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == {f"vit.{key}" for key in state}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["representation_size"]) == (["ViTModel"], 32)
    (vit / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "../vit/a.bin"}}))
    with pytest.raises(OSError, match="'../vit/a.bin', expected the name of a .bin file"):
        convert(vit, tmp_path / "again")


@pytest.mark.parametrize("places", [5, [], {}, {"x": 5}, {"x": None}, {"x": ["y"]}, {"x": ".."}, {"x": "config.json"}])
def test_an_index_that_names_no_weights(places, vit, tmp_path):
    (vit / "model.safetensors").unlink()
    (vit / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for read in (lambda: convert(vit, tmp_path / "out"), lambda: ViTForImageClassification.from_pretrained(vit)):
        with pytest.raises(OSError, match="model.safetensors.index.json (is not a valid shard index|names )"):
            read()


def test_a_pooler_that_the_classifier_may_not_read(vit, tmp_path):
    """transformers' classifier passes a pooler by, the original's reads it: which is meant must be said."""
    pooler = {"vit.pooler.dense.weight": torch.randn(32, 32), "vit.pooler.dense.bias": torch.randn(32)}
    save_file(load_file(vit / "model.safetensors") | pooler, vit / "model.safetensors")
    with pytest.raises(ValueError, match="set representation_size in config.json"):
        convert(vit, tmp_path / "out")
    config = json.loads((vit / "config.json").read_text())
    (vit / "config.json").write_text(json.dumps(config | {"representation_size": 32}))
    convert(vit, tmp_path / "out")


@pytest.mark.parametrize(
    "card, license",
    [
        (None, {}),
        ("# no front matter", {}),
        ("---\nlicense: [a\n---\n", {}),
        (
            "---\nlicense: other\nlicense_name: research-only\n---\n",
            {"license": "other", "license_name": "research-only"},
        ),
    ],
)
def test_a_card_has_the_license_of_its_source_and_no_other(card, license, vit, tmp_path):
    if card:
        (vit / "README.md").write_text(card)
    convert(vit, tmp_path / "out")
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert {key: value for key, value in front.items() if key.startswith("license")} == license


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("num_hidden_layers", 3, r"encoder.layer.2"),
        ("num_hidden_layers", 1, r"unknown \(vit.encoder.layer.1"),
        ("hidden_size", 48, r"the model expects"),
        ("image_size", 64, r"position_embeddings: the file has \(1, 17, 32\)"),
        ("id2label", {"0": "one", "1": "two"}, r"classifier.bias: the file has \(7,\)"),
        ("hidden_act", "quick_gelu", "hidden_act is 'quick_gelu'"),
        ("model_type", "bert", "model_type is 'bert'"),
    ],
)
def test_a_config_that_contradicts_the_tensors(field, value, message, vit, tmp_path):
    config = json.loads((vit / "config.json").read_text())
    config |= {field: value} | ({"label2id": None} if field == "id2label" else {})
    (vit / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        convert(vit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_attention_heads=4), r"num_attention_heads: got 4, but .*config.json says 2"),
        (dict(weights="average"), "has no moving averages"),
    ],
)
def test_what_contradicts_a_folder_is_an_error(options, message, vit, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(vit, tmp_path / "out", **options)


def test_pickles_are_not_run(vit, tmp_path):
    (vit / "model.safetensors").unlink()
    torch.save({"classifier.bias": Trap(tmp_path / "sprung")}, vit / "pytorch_model.bin")
    with pytest.raises(ValueError, match="it is not a state dict of tensors"):
        convert(vit, tmp_path / "out")
    (vit / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match="it is not a state dict of tensors"):
        convert(vit, tmp_path / "out")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out").exists()


def test_damaged_weights_are_refused(vit, tmp_path):
    as_pickle(vit)
    file = vit / "pytorch_model.bin"
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    damaged = bytearray(content)
    damaged[largest.header_offset + 400] ^= 1
    for broken, message in (
        (bytes(damaged), "Bad CRC|the file is damaged"),
        (content[:-500], "can't be read: File is not a zip"),
        (b"", "damaged"),
    ):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=f"pytorch_model.bin.*({message})"):
            convert(vit, tmp_path / "out")
    for name, weights in (("tf_vit", "tf_model.h5"), ("flax_vit", "flax_model.msgpack")):
        shutil.copytree(HUB / name, tmp_path / name)
        file = tmp_path / name / weights
        file.chmod(0o644)
        for length in (0, 100, 20_000):
            file.write_bytes((HUB / name / weights).read_bytes()[:length])
            with pytest.raises(ValueError, match=weights):
                convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flax_arrays_that_lie_are_refused(tmp_path):
    shutil.copytree(HUB / "flax_vit", tmp_path / "vit")
    (tmp_path / "vit" / "flax_model.msgpack").unlink()
    array = msgpack.packb([[1 << 40], "float32", b"1234"])
    for leaf, message in (
        (msgpack.ExtType(1, array), "an array of b'float32'"),
        (msgpack.ExtType(2, array), "extension type 2"),
        (3, "cls is not an array, but int"),
    ):
        (tmp_path / "vit" / "flax_model.msgpack").write_bytes(msgpack.packb({"cls": leaf}))
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "vit", tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_links_out_of_a_folder_are_refused(vit, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (vit / "vocab.txt").symlink_to(secret)
    with pytest.raises(
        ValueError, match="vocab.txt is a symbolic link to .*secret.json, outside of the folder. Replace"
    ):
        convert(vit, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (vit / "vocab.txt").unlink()
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"  # of the Hub's cache
    snapshot.mkdir(parents=True)
    blobs = snapshot.parent.parent / "blobs"
    shutil.copytree(vit, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    convert(snapshot, tmp_path / "out")
    (snapshot / "README.md").symlink_to(secret)
    with pytest.raises(ValueError, match="outside of the folder"):
        convert(snapshot, tmp_path / "again")


def test_a_part_of_a_folder_names_the_folder(vit, tmp_path):
    with pytest.raises(ValueError, match="is a part of a Hub folder. Give the folder with its config.json, "):
        convert(vit / "model.safetensors", tmp_path / "out")
    (vit / "model.safetensors").unlink()
    with pytest.raises(OSError, match="has no weights: expected model.safetensors, pytorch_model.bin"):
        convert(vit, tmp_path / "out")


def test_what_is_to_be_installed_is_said(tmp_path, monkeypatch):
    for module, name in (("h5py", "tf_vit"), ("msgpack", "flax_vit")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "kakao_models.checkpoint.hdf5", raising=False)
        with pytest.raises(ImportError, match=f"pip install {module}"):
            convert(HUB / name, tmp_path / "out")


# Keras' EfficientNet


def keras_file(path: Path, keras: int = 2, changes: dict | None = None) -> Path:
    """The recorded tower, as Keras 2 or 3 writes it."""
    tower = np.load(HUB / "keras_tower.npz")
    order: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for name, shape in zip(tower["names"].tolist(), tower["shapes"]):
            layer, leaf = name.split("/")
            value = {
                "mean": np.array([0.485, 0.456, 0.406], np.float32),
                "variance": np.array([0.229, 0.224, 0.225], np.float32),
                "count": np.int64(0),
            }.get(leaf)
            if value is None:
                value = weight_formula.fill(name, shape[shape > 0], seed=4)
            value = (changes or {}).get(name, value)
            if value is None:
                continue
            if keras == 2:
                file[f"{layer}/{layer}/{leaf}:0"] = value
            else:  # numbered by class; the layer's name is an attribute
                number = order[layer] = order.get(layer, -1) + 1
                group = f"layers/some_class_{list(order).index(layer)}/vars"
                file[f"{group}/{number}"] = value
                file[group].attrs["name"] = layer
    return path


@pytest.mark.parametrize("keras", [2, 3])
def test_keras_tower(keras, tmp_path):
    path = keras_file(tmp_path / "tower.h5", keras)
    report = convert(path, tmp_path / "out", image_size=40)
    tower = np.load(HUB / "keras_tower.npz")
    model = AlignVisionModel.from_pretrained(tmp_path / "out")
    pixels = AlignImageProcessor.from_pretrained(tmp_path / "out")(list(tower["images"]), return_tensors="pt")
    with torch.no_grad():
        features = model(**pixels).pooler_output.numpy()
    scale = np.sqrt(np.square(tower["pooler_output"]).mean())
    atol = TOLERANCE["image_features / rms"] * scale
    np.testing.assert_allclose(features, tower["pooler_output"], rtol=0, atol=atol)
    assert model.config.depthwise_padding == [3, 7]  # 40, 20, 10, 5 and 3 pixels: where Keras pads otherwise
    assert report["source"]["skipped"] == {"normalization": 3, "top_conv": 1, "top_bn": 4}
    assert report["family"] == "efficientnet" and verify_report(tmp_path / "out") == []
    facts = describe_checkpoint(tmp_path / "out")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert facts["parameters"] == facts["towers"]["image"]["parameters"] == parameters
    assert facts["dim"] == features.shape[1] and facts["towers"].keys() == {"image"}
    assert f"EfficientNet: image_size 40, blocks {len(model.config.blocks())}, width" in as_text(facts)
    text = AlignTextConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32)
    joined = AlignModel.from_towers(path, text, 16, vision_config={"image_size": 40})
    state = model.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in joined.vision_model.state_dict().items())
    assert joined.vision_model.config.depthwise_padding == [3, 7]


@pytest.mark.parametrize("layout", ["efficientnet_pytorch", "timm"])
def test_pytorch_tower(layout, tmp_path):
    path, state = tmp_path / "lite0.pth", published.lite0()
    if layout == "timm":
        path = published.timm_folder(tmp_path / "timm", published.as_timm(state))
    else:
        torch.save(state, path)
        for suffix, save in ((".bin", torch.save), (".safetensors", save_file)):
            save(state, tmp_path / f"tower{suffix}")
            assert read_source(tmp_path / f"tower{suffix}").config == read_source(path).config
    report = convert(path, tmp_path / "out", image_size=64)
    assert report["source"]["kind"].endswith(f"named as by {layout}") and verify_report(tmp_path / "out") == []
    assert report["recognised"] == ["EfficientNet-Lite0", "64 px"] and report["warnings"] == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license" not in card and "has the preprocessing that the tower was trained with" in card
    again = convert(tmp_path / "out", tmp_path / "again")  # whose squeeze-and-excite is all zero on purpose
    assert again["recognised"] == report["recognised"] and again["parameters"] == report["parameters"]
    sources = {key: entry["source"] for key, entry in report["tensors"].items()}
    first = "conv_stem.weight" if layout == "timm" else "_conv_stem.weight"
    assert sources["embeddings.convolution.weight"] == first
    assert sources["encoder.blocks.0.squeeze_excite.expand.bias"] == "constant"
    model = AlignVisionModel.from_pretrained(tmp_path / "out")
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        features, expected = model(pixels).pooler_output, published.lite0_features(state, pixels)[0]
    atol = TOLERANCE["image_features / rms"] * expected.square().mean().sqrt().item()
    torch.testing.assert_close(features, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"block2a_bn/gamma": None}, {}, r"missing \(block2a_bn/gamma\)"),
        ({"stem_conv/kernel": np.zeros((3, 3, 3, 16), np.float32)}, {}, "is not an EfficientNet"),
        ({"stem_bn/gamma": np.ones(7, np.float32)}, {}, "the file has|stem"),
        ({"normalization/variance": None}, {}, "no layer `normalization`"),
        ({}, dict(image_size=41), "expected an even size"),
        ({}, dict(family="align"), "family 'efficientnet', expected 'align'"),
        ({}, dict(num_attention_heads=3), "num_attention_heads: got 3"),
    ],
)
def test_keras_towers_that_are_refused(changes, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(keras_file(tmp_path / "tower.h5", 2, changes), tmp_path / "out", **({"image_size": 40} | options))
    assert not (tmp_path / "out").exists()


def test_unknown_layers_and_links_out_of_a_file(tmp_path):
    path = keras_file(tmp_path / "tower.h5")
    with h5py.File(path, "a") as file:
        file["more/more/kernel:0"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"unknown \(more/kernel\)"):
        convert(path, tmp_path / "out")
    (tmp_path / "secret").write_bytes(b"s" * 32)
    with h5py.File(path, "a") as file:
        del file["more"], file["stem_bn/stem_bn/gamma:0"]
        secret = [(str(tmp_path / "secret"), 0, 32)]
        file.create_dataset("stem_bn/stem_bn/gamma:0", (8,), "f4", external=secret)
    with pytest.raises(ValueError, match="expected 32 bytes inside this file"):
        convert(path, tmp_path / "out")
    with h5py.File(path, "a") as file:
        del file["stem_bn/stem_bn/gamma:0"]
        file["stem_bn/stem_bn/gamma:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "gamma")
    with pytest.raises(ValueError, match=r"missing \(stem_bn/gamma\)"):
        convert(path, tmp_path / "out")
