"""ONNX, OpenVINO and .pt2: each in its own runtime, beside the embedder."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import tiny
import torch
from exports import as_bytes, close, cosines, exported, of_bytes, pixel_values, tokens

from kakao_models import Embedder, pipeline

EXAMPLES = Path(__file__).parents[2] / "examples/serving"
LABELS = ["cat", "dog", "a car"]


@pytest.fixture(scope="module")
def embedder(align):
    return Embedder(align)


@pytest.fixture(scope="module")
def onnx_export(align, tmp_path_factory):
    return exported(align, tmp_path_factory.mktemp("onnx") / "out", to="onnx", input="uint8", normalize=True)


@pytest.fixture(scope="module")
def openvino_export(align, tmp_path_factory):
    return exported(align, tmp_path_factory.mktemp("openvino") / "models", to="openvino", input="uint8")


def session(folder, name):
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def test_onnx(embedder, onnx_export):
    folder, sheet = onnx_export
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


def test_openvino(embedder, openvino_export):
    folder, sheet = openvino_export
    core = openvino.Core()
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    image = core.compile_model(folder / "image/1/model.xml", "CPU", f32)
    close(image({"images": as_bytes()})["image_features"], of_bytes(embedder))
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


@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
def test_a_classifier_on_aligns_tower(to, tmp_path):
    model = tiny.align_classifier_folder(tmp_path / "model", **tiny.FEW_BLOCKS)
    _, sheet = exported(model, tmp_path / "out", to=to, input="uint8")  # which compares it with its source
    assert sheet["functions"].keys() == {"classifier"} and sheet["functions"]["classifier"]["check"]["cosine"] > 0.99999
    assert sheet["labels"][:2] == ["cat", "dog"] and sheet["scores"] == "softmax"


def test_pt2_of_the_features_of_a_vit(vit, tmp_path):
    folder, _ = exported(vit, tmp_path / "out", to="pt2", what="image", input="uint8", normalize=True)
    run = torch.export.load(folder / "image.pt2").module()
    close(run(images=torch.from_numpy(as_bytes()))["image_features"].numpy(), of_bytes(Embedder(vit), normalize=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture
def example(monkeypatch):
    """Loads a script of the examples, which import their neighbour `inputs`."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "inputs", raising=False)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


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


def test_the_example_of_openvino_model_server(embedder, openvino_export, files, example):
    """The repository as the server reads it: config.json, a folder of versions for each model, an IR in it."""
    folder, _ = openvino_export
    module = example("openvino_model_server")
    core, models = openvino.Core(), {}
    for entry in json.loads((folder / "config.json").read_text())["model_config_list"]:
        base = folder.parent / entry["config"]["base_path"].lstrip("/")
        [version] = [path for path in base.iterdir() if path.name.isdigit()]
        [model] = version.glob("*.xml")
        models[entry["config"]["name"]] = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def served(name, values):
        request = json.loads(json.dumps(module.request(values)))
        types = {"UINT8": np.uint8, "INT64": np.int64}
        tensors = {
            put["name"]: np.array(put["data"], types[put["datatype"]]).reshape(put["shape"])
            for put in request["inputs"]
        }
        return models[name](tensors)[0]

    close(served("image", {"images": module.inputs.pictures(folder, files)}), embedder.images(files))
    close(
        served("text", module.inputs.tokens(folder, ["a cat", "the dog in the sea"])),
        embedder.texts(["a cat", "the dog in the sea"]),
    )
