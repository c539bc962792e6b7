"""What is refused, and that nothing is left of it; the command."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from exports import exported

from kakao_models import cli
from kakao_models.export import exporter, pt2, samples


def refused(model, folder, message, error=ValueError, **options):
    with pytest.raises(error, match=message):
        exporter.export(model, folder / "out", **({"to": "pt2"} | options))
    assert not list(folder.glob("**/*"))


def test_options_that_a_format_or_a_model_does_not_have(align, vit, tmp_path):
    refused(align, tmp_path, "--to torchscript: expected one of onnx, openvino", to="torchscript")
    refused(align, tmp_path, "--what all: expected one of image, text, both, classifier", what="all")
    refused(align, tmp_path, "--input jpeg: expected one of float, uint8, picture", input="jpeg")
    refused(align, tmp_path, "--quantize int4: pt2 supports float16, bfloat16", quantize="int4")
    refused(align, tmp_path, "has no classifier to export, only image and text", what="classifier")
    refused(vit, tmp_path, "has no text to export, only image and classifier", what="both")
    refused(vit, tmp_path, "a classifier gives logits", normalize=True)
    refused(
        align,
        tmp_path,
        "a graph cannot reproduce the resizing of .*antialiased.* to the pixel",
        input="picture",
    )
    refused(tmp_path / "nothing", tmp_path, "nothing", OSError)


def test_a_package_that_is_not_there_is_named(align, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("kakao_models.export.stablehlo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax", None)
    refused(align, tmp_path, r"--to stablehlo needs jax.*kakao-models\[flax\]", ImportError, to="stablehlo")


def test_a_folder_that_is_there_is_kept(align, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="out already exists"):
        exporter.export(align, tmp_path / "out", to="pt2")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


@pytest.fixture
def stand_in(monkeypatch):
    """A format whose files are empty and whose runtime is the embedder, changed by a function that the test sets."""
    format = SimpleNamespace(change=lambda rows: rows, sizes=[])

    def write(embedder, contract, folder):
        format.embedder = embedder
        for name in contract.functions:
            (folder / f"{name}.pt2").write_bytes(b"")
        return {name: f"{name}.pt2" for name in contract.functions}

    def load(path, function):
        def run(inputs):
            format.sizes.append(len(inputs["pixel_values"]))
            return format.change(format.embedder.engine.logits(inputs["pixel_values"]))

        return run

    monkeypatch.setattr(pt2, "write", write)
    monkeypatch.setattr(pt2, "load", load)
    return format


def test_an_export_that_differs_is_refused_unless_forced(vit, tmp_path, stand_in):
    stand_in.change = lambda rows: rows[:, ::-1].copy()
    refused(vit, tmp_path, r"the cosine of classifier to its source is -?0\.\d+, expected 0.9999 or more. Nothing")
    refused(vit, tmp_path, "expected 0.5 or more", min_cosine=0.5)
    _, sheet = exported(vit, tmp_path / "out", to="pt2", force=True)
    assert sheet["functions"]["classifier"]["check"]["cosine"] < 0.9


def test_an_export_of_another_shape_or_not_finite_is_refused_even_if_forced(vit, tmp_path, stand_in):
    stand_in.change = lambda rows: rows[:, :3]
    refused(vit, tmp_path, r"gives shape \(1, 3\)", force=True)
    stand_in.change = lambda rows: rows * np.float32("nan")
    refused(vit, tmp_path, "NaN or infinity", force=True)


def test_what_a_runtime_raises_is_explained(vit, tmp_path, stand_in):
    def broken(rows):
        raise RuntimeError("no space left\nat line 3")

    stand_in.change = broken
    refused(vit, tmp_path, r"pt2: running the model failed \(no space left\)\. The disk has \d+ MB free")


def test_one_input_and_several_are_compared(vit, tmp_path, stand_in):
    """So a graph traced for one size of batch alone does not pass."""
    _, sheet = exported(vit, tmp_path / "out", to="pt2")
    assert stand_in.sizes == [1, 3]
    assert sheet["functions"]["classifier"]["check"] == {
        "inputs": 4, "cosine": pytest.approx(1), "difference": pytest.approx(0, abs=1e-6), "of": pytest.approx(1.6, abs=1),
        "same_best": 1.0,
    }  # fmt: skip


def test_zeros_are_like_zeros_and_like_nothing_else(monkeypatch):
    """A classifier that was never trained gives them."""
    zeros = np.zeros((2, 5), np.float32)
    monkeypatch.setattr(samples, "_samples", lambda *_: [({}, zeros)])
    assert samples.compare(None, None, "image", lambda inputs: zeros)["cosine"] == 1
    assert samples.compare(None, None, "image", lambda inputs: zeros + 1)["cosine"] == 0


def test_the_pictures_of_the_comparison_never_change():
    assert samples.picture(0, 5, 6).sum() == samples.picture(0, 5, 6).sum()
    assert samples.picture(0, 5, 6).shape == (5, 6, 3) and (samples.picture(0, 9, 9) != samples.picture(1, 9, 9)).any()


def test_the_command(vit, tmp_path, capsys, monkeypatch, stand_in):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", *map(str, arguments)])
        return ended.value.code or 0, capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    code, output = run(vit, "--to", "pt2", "-o", "out", "--normalize")
    assert code == 2 and "a classifier gives logits" in output.err
    code, output = run(vit, "--to", "pt2", "-o", "out")
    assert code == 0
    assert "classifier: classifier.pt2" in output.out and "out: written" in output.out and "cosine 1.000" in output.out
    code, output = run(vit, "--to", "pt2", "--json")
    assert code == 0 and json.loads(output.out)["format"] == "pt2"
    assert [path.name for path in tmp_path.glob("*-pt2")]  # named after the model
    code, output = run(vit, "--to", "pt2", "-o", "out")
    assert code == 2 and "already exists" in output.err
    code, output = run(vit, "--to", "coreml", "-o", "other")
    assert code == 2 and "expected one of onnx" in output.err


@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
def test_a_classifier_on_aligns_tower(to, tmp_path):
    model = tiny.align_classifier_folder(tmp_path / "model", **tiny.FEW_BLOCKS)
    _, sheet = exported(model, tmp_path / "out", to=to, input="uint8")  # which compares it with its source
    assert sheet["functions"].keys() == {"classifier"} and sheet["functions"]["classifier"]["check"]["cosine"] > 0.99999
    assert sheet["labels"][:2] == ["cat", "dog"] and sheet["scores"] == "softmax"
