"""ONNX in its own runtime, beside the embedder."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import tiny
from exports import as_bytes, close, cosines, exported, of_bytes, of_page, tokens

from kakao_models import Embedder, pipeline

LABELS = ["cat", "dog", "a car"]


@pytest.fixture(scope="module")
def onnx_export(align, tmp_path_factory):
    return exported(align, tmp_path_factory.mktemp("onnx") / "out", to="onnx", input="uint8", normalize=True)


def session(folder, name):
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def test_onnx(embedder, onnx_export):
    folder, sheet = onnx_export
    image, text = session(folder, "image"), session(folder, "text")
    close(image.run(["image_features"], {"images": as_bytes()})[0], of_bytes(embedder, normalize=True))
    rows = of_page("onnxruntime", "onnx", folder, images=as_bytes())["rows"]
    close(rows, of_bytes(embedder, normalize=True))
    given = tokens(embedder, "int64")
    assert given["input_ids"].shape == (3, 64)
    wanted = embedder.texts(["a cat", "the red car in the house by the sea", "dog " * 90], normalize=True)
    close(text.run(["text_features"], given)[0], wanted)
    assert [(put.name, put.type, put.shape) for put in image.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    ]
    assert [put.shape for put in text.get_inputs()] == [["batch", "tokens"]] * 2
    inside = json.loads(image.get_modelmeta().custom_metadata_map["export.json"])
    assert inside["functions"]["image"]["inputs"] == sheet["functions"]["image"]["inputs"]
    assert inside["temperature"] == pytest.approx(embedder.engine.temperature)
    assert sheet["functions"]["text"]["check"]["cosine"] > 0.99999
    assert sheet["tokenizer"]["max_tokens"] == 64 and "central 32 x 32" in sheet["caller"]


def test_onnx_resizes_as_the_original_program(align_tf, tmp_path):
    folder, _ = exported(align_tf, tmp_path / "out", to="onnx", input="picture", what="image")
    pictures = [tiny.picture(seed, 131, 77) for seed in range(2)]
    got = session(folder, "image").run(None, {"images": as_bytes(pictures)})[0]
    close(got, Embedder(align_tf).images(pictures), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "int8-dynamic"])
def test_onnx_with_narrow_weights(vit, tmp_path, quantize):
    folder, sheet = exported(vit, tmp_path / "out", to="onnx", quantize=quantize, input="uint8")
    run = session(folder, "classifier")
    got = run.run(["logits"], {"images": as_bytes()})[0]
    wanted = of_bytes(Embedder(vit), output="logits")
    assert cosines(got, wanted).min() > 0.99 and not np.allclose(got, wanted, atol=1e-6)
    labels = ["cat", "dog", "bird", "car", "tree", "house", "sea"]
    assert sheet["labels"] == json.loads(run.get_modelmeta().custom_metadata_map["labels"]) == labels
    assert sheet["files"]["classifier.onnx"]["bytes"] < 120_000


def test_the_example_of_onnx_runtime(align, onnx_export, files, example, monkeypatch, capsys):
    folder, _ = onnx_export
    monkeypatch.setattr(sys, "argv", ["onnx_runtime.py", str(folder), ",".join(LABELS), *map(str, files)])
    module = example("onnx_runtime")
    module.inputs.zero_shot(module.run)
    lines = capsys.readouterr().out.splitlines()
    wanted = pipeline("zero-shot-image-classification", align)(files, LABELS)
    for line, file, scores in zip(lines, files, wanted, strict=True):
        assert line.split()[0] == file.name
        assert f"{scores[0]['label']} {scores[0]['score']:.1%}" in line
