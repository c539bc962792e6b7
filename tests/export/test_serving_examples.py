"""The examples' callers and layouts, with the runtimes that the servers are made of."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import tiny
from exports import close, exported

from kakao_models import Embedder, pipeline

FOLDER = Path(__file__).parents[2] / "examples/serving"
LABELS = ["cat", "dog", "a car"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture
def example(monkeypatch):
    """Loads a script of the examples, which import their neighbour `inputs`."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "inputs", raising=False)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_onnx_runtime(align, files, example, tmp_path, monkeypatch, capsys):
    folder, _ = exported(align, tmp_path / "out", to="onnx", input="uint8")
    monkeypatch.setattr(sys, "argv", ["onnx_runtime.py", str(folder), ",".join(LABELS), *map(str, files)])
    example("onnx_runtime").main()
    lines = capsys.readouterr().out.splitlines()
    wanted = pipeline("zero-shot-image-classification", align)(files, LABELS)
    for line, file, scores in zip(lines, files, wanted, strict=True):
        assert line.split()[0] == file.name
        assert f"{scores[0]['label']} {scores[0]['score']:.1%}" in line


def test_openvino_model_server(align, files, example, tmp_path):
    """The repository as the server reads it: config.json, a folder of versions for each model, an IR in it."""
    folder, _ = exported(align, tmp_path / "models", to="openvino", input="uint8")
    module = example("openvino_model_server")
    embedder, core, models = Embedder(align), openvino.Core(), {}
    for entry in json.loads((folder / "config.json").read_text())["model_config_list"]:
        base = tmp_path / entry["config"]["base_path"].lstrip("/")
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
