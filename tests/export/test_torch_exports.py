"""ONNX, OpenVINO and .pt2: each in its own runtime, beside the embedder."""

import json

import numpy as np
import onnxruntime
import openvino
import pytest
import tiny
import torch
from exports import as_bytes, close, cosines, exported, of_bytes, pixel_values, tokens

from kakao_models import Embedder


@pytest.fixture(scope="module")
def embedder(align):
    return Embedder(align)


def session(folder, name):
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def test_onnx(align, embedder, tmp_path):
    folder, sheet = exported(align, tmp_path / "out", to="onnx", input="uint8", normalize=True)
    image, text = session(folder, "image"), session(folder, "text")
    close(image.run(["image_features"], {"images": as_bytes()})[0], of_bytes(embedder, normalize=True))
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


@pytest.mark.parametrize("quantize", ["int8", "int8-dynamic", "bfloat16"])
def test_onnx_with_narrow_weights(vit, tmp_path, quantize):
    folder, sheet = exported(vit, tmp_path / "out", to="onnx", quantize=quantize, input="uint8")
    run = session(folder, "classifier")
    got = run.run(["logits"], {"images": as_bytes()})[0]
    wanted = of_bytes(Embedder(vit), output="logits")
    assert cosines(got, wanted).min() > 0.99 and not np.allclose(got, wanted, atol=1e-6)
    labels = ["cat", "dog", "bird", "car", "tree", "house", "sea"]
    assert sheet["labels"] == json.loads(run.get_modelmeta().custom_metadata_map["labels"]) == labels
    assert sheet["files"]["classifier.onnx"]["bytes"] < (140_000 if quantize == "bfloat16" else 120_000)


def test_openvino(align, embedder, tmp_path):
    folder, sheet = exported(align, tmp_path / "out", to="openvino")
    core = openvino.Core()
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    image = core.compile_model(folder / "image/1/model.xml", "CPU", f32)
    close(image({"pixel_values": pixel_values(embedder)})["image_features"], embedder.images(_pictures()))
    text = core.compile_model(folder / "text/1/model.xml", "CPU", f32)
    close(text(tokens(embedder, "int64", ["a cat"]))["text_features"], embedder.texts(["a cat"]))
    inside = core.read_model(folder / "text/1/model.xml").get_rt_info(["kakao_models", "export.json"]).astype(str)
    assert json.loads(inside)["functions"]["text"]["outputs"] == sheet["functions"]["text"]["outputs"]
    served = json.loads((folder / "config.json").read_text())["model_config_list"]
    assert [model["config"] for model in served] == [
        {"name": name, "base_path": f"/models/{name}"} for name in ("image", "text")
    ]


def _pictures():
    return [tiny.picture(seed, 32, 32) for seed in range(5)]


def test_openvino_in_8_bits(vit, tmp_path):
    folder, sheet = exported(vit, tmp_path / "out", to="openvino", quantize="int8", input="uint8")
    compiled = openvino.Core().compile_model(folder / "classifier/1/model.xml", "CPU")
    got = compiled({"images": as_bytes()})["logits"]
    assert cosines(got, of_bytes(Embedder(vit), output="logits")).min() > 0.99
    assert sheet["files"]["classifier/1/model.bin"]["bytes"] < 60_000  # of 25,000 numbers
    labels = openvino.Core().read_model(folder / "classifier/1/model.xml").get_rt_info(["model_info", "labels"])
    assert labels.astype(str) == "cat dog bird car tree house sea"


def test_pt2(align, embedder, tmp_path):
    folder, sheet = exported(align, tmp_path / "out", to="pt2", quantize="float16")
    extra = {"export.json": ""}
    image = torch.export.load(folder / "image.pt2", extra_files=extra).module()
    got = image(pixel_values=torch.from_numpy(pixel_values(embedder)))["image_features"].numpy()
    assert cosines(got, embedder.images(_pictures())).min() > 0.9999
    assert json.loads(extra["export.json"])["quantize"] == "float16"
    text = torch.export.load(folder / "text.pt2").module()
    given = {name: torch.from_numpy(value) for name, value in tokens(embedder, "int64", ["a cat"]).items()}
    assert cosines(text(**given)["text_features"].numpy(), embedder.texts(["a cat"])).min() > 0.9999


def test_pt2_of_the_features_of_a_vit(vit, tmp_path):
    folder, _ = exported(vit, tmp_path / "out", to="pt2", what="image", input="uint8", normalize=True)
    run = torch.export.load(folder / "image.pt2").module()
    close(run(images=torch.from_numpy(as_bytes()))["image_features"].numpy(), of_bytes(Embedder(vit), normalize=True))
