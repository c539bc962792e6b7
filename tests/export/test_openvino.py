"""OpenVINO in its own runtime, beside the embedder."""

import json

import numpy as np
import openvino
import pytest
from exports import as_bytes, close, cosines, exported, of_bytes, of_page, tokens

from kakao_models import Embedder


@pytest.fixture(scope="module")
def openvino_export(align, tmp_path_factory):
    return exported(align, tmp_path_factory.mktemp("openvino") / "models", to="openvino", input="uint8")


def test_openvino(embedder, openvino_export):
    folder, sheet = openvino_export
    core = openvino.Core()
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    image = core.compile_model(folder / "image/1/model.xml", "CPU", f32)
    close(image({"images": as_bytes()})["image_features"], of_bytes(embedder))
    rows = of_page("openvino.Core", "openvino", folder, images=as_bytes())["rows"]
    assert cosines(rows, of_bytes(embedder)).min() > 0.999  # in the precision that OpenVINO chooses
    text = core.compile_model(folder / "text/1/model.xml", "CPU", f32)
    close(text(tokens(embedder, "int64", ["a cat"]))["text_features"], embedder.texts(["a cat"]))
    inside = core.read_model(folder / "text/1/model.xml").get_rt_info(["kakao_models", "export.json"]).astype(str)
    assert json.loads(inside)["functions"]["text"]["outputs"] == sheet["functions"]["text"]["outputs"]
    served = json.loads((folder / "config.json").read_text())["model_config_list"]
    assert [model["config"] for model in served] == [
        {"name": name, "base_path": f"/models/{name}"} for name in ("image", "text")
    ]


def test_openvino_in_8_bits(vit, tmp_path):
    folder, sheet = exported(vit, tmp_path / "out", to="openvino", quantize="int8", input="uint8")
    compiled = openvino.Core().compile_model(folder / "classifier/1/model.xml", "CPU")
    got = compiled({"images": as_bytes()})["logits"]
    assert cosines(got, of_bytes(Embedder(vit), output="logits")).min() > 0.99
    assert sheet["files"]["classifier/1/model.bin"]["bytes"] < 60_000  # of 25,000 numbers
    labels = openvino.Core().read_model(folder / "classifier/1/model.xml").get_rt_info(["model_info", "labels"])
    assert labels.astype(str) == "cat dog bird car tree house sea"


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
