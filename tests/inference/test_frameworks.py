"""`Embedder(framework=...)`: the same rows from every framework, and clear words where one can't be had."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny

from kakao_models import AlignModel, Embedder, TFAlignModel, TFViTModel, pipeline
from kakao_models.inference.frameworks import engine_class

PICTURES = [tiny.picture(seed, 40 + 5 * seed, 48) for seed in range(3)]
TEXTS = ["a photo of a cat", "dog", "the big red house on a tree with a bird"]
OTHERS = ["tf", "flax"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"align": tiny.align_folder(root / "align"), "vit": tiny.vit_folder(root / "vit", representation_size=24)}


def embedder(folder, framework: str, **kwargs) -> Embedder:
    if framework == "flax":
        pytest.importorskip("flax")
    return Embedder(folder, framework=framework, batch_size=2, **kwargs)


def assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype == np.float32 and got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())  # float32, other kernels


@pytest.mark.parametrize("framework", OTHERS)
def test_align_gives_the_same_rows(framework, folders):
    theirs, ours = Embedder(folders["align"], framework="torch"), embedder(folders["align"], framework)
    assert ours.dim == theirs.dim and ours.engine.temperature == pytest.approx(theirs.engine.temperature)
    assert_close(ours.images(PICTURES), theirs.images(PICTURES))
    assert_close(ours.texts(TEXTS), theirs.texts(TEXTS))
    for (_, got, _), (_, wanted, _) in zip(
        ours.iter_images(PICTURES, output="hidden"), theirs.iter_images(PICTURES, output="hidden", batch_size=2)
    ):
        assert_close(got, wanted)
    labels = ["cat", "dog"]
    a, b = (pipeline("zero-shot-image-classification", model)(PICTURES[0], labels) for model in (ours, theirs))
    assert [entry["label"] for entry in a] == [entry["label"] for entry in b]
    assert a[0]["score"] == pytest.approx(b[0]["score"], abs=1e-4)


@pytest.mark.parametrize("framework", OTHERS)
def test_vit_gives_the_same_rows(framework, folders):
    theirs, ours = Embedder(folders["vit"], framework="torch"), embedder(folders["vit"], framework)
    assert ours.dim == theirs.dim == 24 and ours.engine.classifies
    assert_close(ours.images(PICTURES), theirs.images(PICTURES))
    assert_close(ours.class_logits(PICTURES), theirs.class_logits(PICTURES))


def test_a_model_object_says_what_it_is(folders):
    assert engine_class(None, AlignModel.from_pretrained(folders["align"])).__name__ == "TorchEngine"
    assert engine_class(None, folders["align"]).__name__ == "TorchEngine"
    model = TFViTModel.from_pretrained(folders["vit"])
    ours = Embedder(model, image_processor=Embedder(folders["vit"]).image_processor)
    assert type(ours.engine).__name__ == "KerasEngine" and ours.engine.model is model and not ours.engine.classifies
    assert_close(ours.images(PICTURES), Embedder(folders["vit"]).images(PICTURES))
    with pytest.raises(ValueError, match="framework='torch', but the model is a TFViTModel \\('tf'\\)"):
        Embedder(model, framework="torch")
    with pytest.raises(ValueError, match="framework: got 'mxnet', expected one of torch, tf, flax"):
        Embedder(folders["align"], framework="mxnet")
    with pytest.raises(ValueError, match="'onnx', .* is an engine: write engine='onnx'"):
        Embedder(folders["align"], framework="onnx")
    with pytest.raises(ValueError, match="'tensorflw', .* did you mean 'tf'"):
        Embedder(folders["align"], framework="tensorflw")


def test_settings_of_keras(folders):
    half = Embedder(folders["align"], framework="tf", dtype="bfloat16", device="cpu")
    full = Embedder(folders["align"], framework="tf")
    assert half.engine.model.variable_dtype == "bfloat16"
    a, b = half.images(PICTURES, normalize=True), full.images(PICTURES, normalize=True)
    assert a.dtype == np.float32 and (a * b).sum(1).min() > 0.99
    with pytest.raises(ValueError, match=r"device 'cuda:7' can't be used: TensorFlow sees .*cpu:0.*\. Use one"):
        Embedder(folders["align"], framework="tf", device="cuda:7")
    with pytest.raises(ValueError, match="dtype 'int8': expected 'float32', 'bfloat16', 'float16'"):
        Embedder(folders["align"], framework="tf", dtype="int8")
    with pytest.raises(ValueError, match="load it with from_pretrained"):
        Embedder(TFAlignModel.from_pretrained(folders["align"]), tokenizer=1, image_processor=1, dtype="float16")


def test_a_missing_framework_is_named():
    script = """
        import importlib.machinery as machinery

        find = machinery.PathFinder.find_spec

        def hide(cls, name, path=None, target=None):
            return None if name.partition(".")[0] in ("tensorflow", "keras") else find(name, path, target)

        machinery.PathFinder.find_spec = classmethod(hide)
        from kakao_models import Embedder

        try:
            Embedder("align-small", framework="tf")
        except ImportError as error:
            assert str(error).startswith("framework='tf' needs "), error
            assert "pip install 'kakao-models[tensorflow]'" in str(error), error
        else:
            raise AssertionError
        try:
            from kakao_models import TFAlignModel
        except ImportError as error:
            assert str(error) == "TFAlignModel needs tensorflow: pip install 'kakao-models[tensorflow]'", error
        else:
            raise AssertionError
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
