"""Keras models and model.safetensors: bit by bit the same file as PyTorch's, and every mismatch named."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import safetensors.torch
import tensorflow as tf
import tiny
import torch
import transformers

from kakao_models import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionModel,
    TFAlignModel,
    TFAlignTextModel,
    TFAlignVisionModel,
    TFViTForImageClassification,
    TFViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

PAIRS = {
    "align": (AlignModel, TFAlignModel),
    "text": (AlignTextModel, TFAlignTextModel),
    "vision": (AlignVisionModel, TFAlignVisionModel),
    "classifier": (ViTForImageClassification, TFViTForImageClassification),
    "backbone": (ViTModel, TFViTModel),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random checkpoint of each class, as PyTorch writes it."""
    root = tmp_path_factory.mktemp("torch")
    tiny.align_folder(root / "align")
    tiny.vit_folder(root / "classifier", representation_size=24)
    AlignTextModel.from_pretrained(root / "align").save_pretrained(root / "text")
    AlignVisionModel.from_pretrained(root / "align").save_pretrained(root / "vision")
    ViTModel.from_pretrained(root / "classifier").save_pretrained(root / "backbone")
    return root


def tensors(folder) -> dict[str, torch.Tensor]:
    """Without batch norm's counters, which PyTorch alone has."""
    files = sorted(folder.glob("*.safetensors"))
    every = {key: value for file in files for key, value in safetensors.torch.load_file(file).items()}
    return {key: value for key, value in every.items() if not key.endswith("num_batches_tracked")}


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys() and a
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_there_and_back_is_bit_exact(name, dtype, folders, tmp_path):
    theirs, ours = PAIRS[name]
    model = ours.from_pretrained(folders / name, dtype=dtype)
    assert {str(variable.dtype) for variable in model.weights} == {dtype or "float32"}
    model.save_pretrained(tmp_path / "ours")
    again = theirs.from_pretrained(tmp_path / "ours")
    again.save_pretrained(tmp_path / "theirs")
    wanted = tensors(folders / name)
    if dtype:
        wanted = {key: value.to(torch.bfloat16) for key, value in wanted.items()}
    assert_same_bits(tensors(tmp_path / "ours"), wanted)
    assert_same_bits(tensors(tmp_path / "theirs"), wanted)
    values = json.loads((tmp_path / "ours/config.json").read_text())
    assert values["architectures"] == [theirs.__name__] and values["dtype"] == (dtype or "float32")
    default = ours.from_pretrained(tmp_path / "ours")
    assert {str(variable.dtype) for variable in default.weights} == {dtype or "float32"}


def test_sharded_files_and_subfolders(folders, tmp_path):
    model = TFAlignModel.from_pretrained(folders / "align")
    model.save_pretrained(tmp_path / "inner", max_shard_size="50KB")
    files = list((tmp_path / "inner").glob("model-*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "inner/model.safetensors").exists()
    assert_same_bits(tensors(tmp_path / "inner"), tensors(folders / "align"))
    TFAlignModel.from_pretrained(tmp_path, subfolder="inner").save_pretrained(tmp_path / "ours")
    AlignModel.from_pretrained(tmp_path, subfolder="inner").save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert_same_bits(tensors(tmp_path / "ours"), tensors(folders / "align"))
    assert_same_bits(tensors(tmp_path / "theirs"), tensors(folders / "align"))
    TFAlignModel.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "inner")
    assert [file.name for file in (tmp_path / "inner").glob("*.safetensors*")] == ["model.safetensors"]
    files[0].write_bytes(b"")
    index = {"weight_map": {"temperature": "../elsewhere.safetensors"}}
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/config.json").write_bytes((tmp_path / "ours/config.json").read_bytes())
    (tmp_path / "evil/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="names '../elsewhere.safetensors', expected the name of a .safetensors file"):
        TFAlignModel.from_pretrained(tmp_path / "evil")


@pytest.mark.parametrize("name", PAIRS)
def test_missing_unknown_and_misshapen_tensors_are_named(name, folders, tmp_path):
    _, ours = PAIRS[name]
    (tmp_path / "config.json").write_bytes((folders / name / "config.json").read_bytes())
    state = tensors(folders / name)
    key = next(key for key in state if key.endswith("norm.bias") or key.endswith("LayerNorm.bias") or "bn.bias" in key)
    changes = {
        f"missing .*{key}": {other: value for other, value in state.items() if other != key},
        "unknown .*extra.weight": state | {"extra.weight": torch.zeros(3)},
        rf"{key}: the file has \(3, 4\), the model expects \({len(state[key])},\)": state | {key: torch.zeros(3, 4)},
    }
    for message, changed in changes.items():
        safetensors.torch.save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            ours.from_pretrained(tmp_path)


def test_files_that_cannot_be_read_are_named(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "align/config.json").read_bytes())
    with pytest.raises(OSError, match="has no weights: expected model.safetensors"):
        TFAlignModel.from_pretrained(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(
        OSError, match=r"has no model.safetensors or pytorch_model.bin but tf_model.h5. .*kakao-models convert"
    ):
        TFAlignModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folders / "align/model.safetensors").read_bytes()[:5000])
    with pytest.raises(OSError, match="model.safetensors can't be read: .* Is the download complete"):
        TFAlignModel.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        TFAlignModel.from_pretrained(tmp_path / "nowhere")


def test_configuration_and_what_is_no_argument(folders, tmp_path):
    folder = folders / "align"
    model = TFAlignModel.from_pretrained(folder, label_smoothing=0.3)
    assert model.config.label_smoothing == 0.3
    config = AlignConfig.from_pretrained(folder)
    given = TFAlignModel.from_pretrained(folder, config=config, label_smoothing=0.2)
    assert given.config.label_smoothing == 0.2 and config.label_smoothing == 0.1
    with pytest.raises(TypeError, match="label_smothing"):
        TFAlignModel.from_pretrained(folder, label_smothing=0.3)
    with pytest.raises(TypeError, match="save_pretrained has no argument 'params'"):  # other values than the model's
        model.save_pretrained(tmp_path, params={})
    assert not any(tmp_path.iterdir())
    with pytest.raises(TypeError, match="'from_pt'.*Leave it out: one model.safetensors is for all frameworks"):
        TFAlignModel.from_pretrained(folder, from_pt=True)
    with pytest.raises(TypeError, match="'framework'.*The class says it: AlignModel is PyTorch's"):
        TFAlignModel.from_pretrained(folder, framework="tf")
    with pytest.raises(TypeError, match="'device_map'.*Embedder and pipeline have device="):
        TFAlignModel.from_pretrained(folder, device_map="auto")


def test_types_of_numbers_by_every_name(folders):
    kind = lambda dtype: TFViTModel.from_pretrained(folders / "backbone", dtype=dtype).layernorm.gamma.dtype  # noqa: E731
    assert [kind(dtype) for dtype in (tf.float16, np.float16, np.dtype("float16"), "float16")] == ["float16"] * 4
    with pytest.warns(FutureWarning, match="torch_dtype is deprecated: use dtype='float16'") as warned:
        old = TFViTModel.from_pretrained(folders / "backbone", torch_dtype="float16")
    assert old.layernorm.gamma.dtype == "float16" and warned[0].filename == __file__
    for wrong in ("int8", tf.int32, int):
        with pytest.raises(ValueError, match="dtype: got .*int.*, expected one of 'float32'"):
            kind(wrong)


def test_a_configuration_of_transformers_will_do(folders):
    given = transformers.ViTConfig.from_pretrained(folders / "classifier")
    assert isinstance(TFViTModel(given).config, ViTConfig)
    text = transformers.AlignTextConfig.from_pretrained(folders / "text")
    assert isinstance(TFAlignTextModel(text).config, AlignTextConfig)
    for place in (folders / "classifier", folders / "classifier" / "config.json"):  # a path too, as in transformers
        model = TFViTForImageClassification.from_pretrained(folders / "classifier", config=str(place))
        assert model.config.representation_size == 24
    assert TFAlignTextModel.from_pretrained(folders / "text", config=folders / "align").config.hidden_size == 32


def test_the_cache_that_is_named_is_read_without_a_network(folders, tmp_path):
    """A checkpoint in several files, as the Hub's cache keeps it: no file of it is called model.safetensors."""
    snapshot = tmp_path / "models--someone--vit/snapshots/0123"
    TFViTModel.from_pretrained(folders / "backbone").save_pretrained(snapshot, max_shard_size="30KB")
    (tmp_path / "models--someone--vit/refs").mkdir()
    (tmp_path / "models--someone--vit/refs/main").write_text("0123")
    assert len(list(snapshot.glob("*.safetensors"))) > 1
    for more in ({}, {"config": ViTConfig.from_pretrained(snapshot)}):
        model = TFViTModel.from_pretrained("someone/vit", cache_dir=tmp_path, local_files_only=True, **more)
        assert model.config.hidden_size == 32
    with pytest.raises(OSError, match="someone/vit"):
        TFViTModel.from_pretrained("someone/vit", cache_dir=tmp_path / "other", local_files_only=True)


def test_parts_of_a_vit(folders, tmp_path):
    fresh = TFViTForImageClassification.from_pretrained(
        folders / "classifier", num_labels=10, ignore_mismatched_sizes=True
    )
    assert fresh.classifier.kernel.shape == (24, 10) and not np.any(fresh.classifier.kernel.numpy())
    wanted = TFViTForImageClassification.from_pretrained(folders / "classifier")._variables()
    for key, variable in fresh._variables().items():
        if not key.startswith("classifier"):
            np.testing.assert_array_equal(variable.numpy(), wanted[key].numpy())
    for kind in (TFViTForImageClassification, ViTForImageClassification):
        wanted = r"classifier\.bias: the file has \(7,\), the model expects \(10,\)[^?]*ignore_mismatched_sizes=True"
        with pytest.raises(ValueError, match=wanted):
            kind.from_pretrained(folders / "classifier", num_labels=10)
    with pytest.raises(ValueError, match=r"missing classifier\.bias"):
        TFViTForImageClassification.from_pretrained(folders / "backbone")
    assert TFViTModel.from_pretrained(folders / "classifier", add_pooling_layer=False).pooler is None
    plain = tiny.vit_folder(tmp_path)
    assert TFViTModel.from_pretrained(plain).pooler is None
    with pytest.raises(ValueError, match=r"missing vit\.pooler\.dense\.bias"):
        TFViTModel.from_pretrained(plain, add_pooling_layer=True)


def test_tensorflow_alone_is_enough(tmp_path):
    """Without PyTorch: the shipped checkpoint loads, runs, embeds, and is saved."""
    script = f"""
        import importlib.machinery as machinery
        import sys

        find = machinery.PathFinder.find_spec

        def hide(cls, name, path=None, target=None):
            return None if name.partition(".")[0] in ("torch", "jax", "flax") else find(name, path, target)

        machinery.PathFinder.find_spec = classmethod(hide)
        from PIL import Image
        from kakao_models import Embedder, TFAlignModel

        embedder = Embedder("align-small")
        assert type(embedder.engine).__name__ == "KerasEngine"
        assert embedder.images([Image.new("RGB", (40, 30))]).shape == (1, embedder.dim)
        assert embedder.texts(["a cat", "a dog"]).shape == (2, embedder.dim)
        TFAlignModel.from_pretrained("align-small").save_pretrained({str(tmp_path)!r})
        assert not {{"torch", "jax", "flax"}} & {{name.partition(".")[0] for name in sys.modules}}
        try:
            from kakao_models import AlignModel
        except ImportError as error:
            assert "AlignModel needs torch: pip install 'kakao-models[torch]'" in str(error), error
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    AlignModel.from_pretrained("align-small").save_pretrained(tmp_path / "theirs")
    assert_same_bits(tensors(tmp_path), tensors(tmp_path / "theirs"))
