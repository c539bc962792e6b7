"""Engines against the plain model, what a self-check keeps, and what it refuses."""

import ctypes
import gc
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from kakao_models import AlignModel, Embedder, ViTForImageClassification, pipeline
from kakao_models.inference import runners, selfcheck
from kakao_models.inference.engine_towers import TowerEngine
from kakao_models.inference.model_tensors import ModelTensors
from kakao_models.inference.runners import EngineError

TEXTS = ["a cat", "this is a photo of a small red bird in the big green tree", "", "zebra " * 100]
OTHERS = {"openvino": ("openvino",), "onnx": ("onnxruntime",)}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A cache of this module's own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield runners.cache_folder()
    patch.undo()


@pytest.fixture(scope="module")
def plain(align, photos):
    """Rows of the model object itself, in float32."""
    embedder = Embedder(AlignModel.from_pretrained(align))
    assert type(embedder.engine).__name__ == "TorchEngine"
    return embedder.images(photos), embedder.texts(TEXTS)


def engine(folder, name: str, **kwargs) -> Embedder:
    for package in OTHERS.get(name, ()):
        pytest.importorskip(package)
    return Embedder(folder, engine=name, batch_size=3, **kwargs)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


def assert_close(rows: np.ndarray, wanted: np.ndarray) -> None:
    assert rows.dtype == np.float32 and rows.shape == wanted.shape
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["torch", *OTHERS])
def test_align_by_every_engine(align, photos, plain, name):
    embedder = engine(align, name)
    images, texts = plain
    assert_close(embedder.images(photos), images)
    assert_close(embedder.texts(TEXTS), texts)
    backwards = list(reversed(photos))
    for size in (1, 7):  # a batch of another size, another order
        assert_close(embedder.images(backwards, batch_size=size), images[::-1])
    assert embedder.engine.description == f"image: {name}, text: {name}"


def test_auto_measures_every_engine_against_the_plain_model(align):
    embedder = engine(align, "auto")
    checks = embedder.engine.checks
    assert {entry["what"] for entry in checks} == {"image", "text"}
    assert all(entry["cosine"] > selfcheck.MIN_COSINE for entry in checks)
    assert [entry["what"] for entry in checks if entry["chosen"]] == ["image", "text"]
    assert all(entry["engine"] in selfcheck.explain(checks) for entry in checks)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_openvino_leaves_signals_a_stack_when_it_goes_in_another_thread(align, photos):
    held = [engine(align, "openvino")]
    held[0].images(photos)
    thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
    thread.start()
    thread.join()
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    mapped = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    assert stack.address is None or any(int(a, 16) <= stack.address < int(b, 16) for a, b in mapped)


class Stack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_vit_by_engines(vit, photos, name):
    model = ViTForImageClassification.from_pretrained(vit)
    wanted = Embedder(model)
    embedder = engine(vit, name)
    assert_close(embedder.images(photos), wanted.images(photos))
    assert_close(embedder.class_logits(photos), wanted.class_logits(photos))
    hidden = [np.concatenate([b.values for b in e.iter_images(photos, output="hidden")]) for e in (embedder, wanted)]
    assert_close(*hidden)
    assert embedder.engine.classifies and embedder.config.num_labels == model.config.num_labels


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_lower_precision_reports_its_cosine(align, photos, plain, name):
    if name == "openvino":
        openvino = pytest.importorskip("openvino")
        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            with pytest.raises(EngineError, match="does not compute in bfloat16 on this CPU"):
                engine(align, name, dtype="bfloat16")
            return
    embedder = engine(align, name, dtype="bfloat16")
    rows = embedder.images(photos)
    (entry,) = (entry for entry in embedder.engine.checks if entry["what"] == "image")
    assert entry["dtype"] == "bfloat16" and 0.99 < entry["cosine"] < 1
    assert 0 < np.abs(rows - plain[0]).max() and cosine(rows, plain[0]) > 0.99


def test_large_maps_in_float32_and_small_ones_in_bfloat16(photos):
    embedder = engine("align-small", "openvino", dtype="auto")
    kinds = {(entry["what"], entry["dtype"]): entry for entry in embedder.engine.checks}
    assert kinds.keys() == {(w, d) for w in ("image", "text") for d in ("float32", "bfloat16")} | {("image", "mixed")}
    if "error" in kinds["image", "mixed"]:
        assert "does not compute in bfloat16 on this CPU" in kinds["image", "mixed"]["error"]
        return
    assert (
        kinds["image", "bfloat16"]["cosine"] < kinds["image", "mixed"]["cosine"] < kinds["image", "float32"]["cosine"]
    )
    embedder.engine.choices["image"] = embedder.engine.choices["image"]._replace(dtype="mixed")
    rows, plain = embedder.images(photos), Embedder("align-small").images(photos)
    assert 1e-4 < np.abs(rows - plain).max() and cosine(rows, plain) > 0.9999


def test_the_halves_of_an_image_tower_are_the_whole():
    pytest.importorskip("openvino")
    graph = ModelTensors("align-small", {}, light=True).graphs(None)["image"]
    pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)

    def compiled(model):
        return runners.openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    front, back = runners._halves(runners.openvino_core().read_model(graph.message()))
    middle = compiled(front)([pixels])[0]
    assert middle.shape[-1] == 8  # an eighth
    assert_close(
        compiled(back)([middle])[0], compiled(runners.openvino_core().read_model(graph.message()))([pixels])[0]
    )


def test_vits_are_not_mixed(vit):
    embedder = engine(vit, "openvino", dtype="auto")
    assert "mixed" not in {entry["dtype"] for entry in embedder.engine.checks}


def test_what_was_measured_is_kept(align, home, monkeypatch):
    first = engine(align, "torch", dtype="bfloat16")
    kept = sorted((home / "checks").glob("*.json"))
    assert len(kept) >= 2 and not list(home.rglob("*.tmp"))
    monkeypatch.setattr(selfcheck, "_measured", None)  # would be called
    again = engine(align, "torch", dtype="bfloat16")
    assert again.engine.checks == first.engine.checks
    again.texts("a cat")


def test_a_torn_or_foreign_measurement_is_made_again(align, home):
    engine(align, "torch", dtype="bfloat16")
    measured = []
    for content in (
        "",
        '{"cosine": 1',
        "[]",
        '{"cosine": 2, "seconds": 1}',
        '{"cosine": 1.0, "seconds": 0.1, "about": {}}',
    ):
        for path in (home / "checks").glob("*.json"):
            path.write_text(content)
        embedder = engine(align, "torch", dtype="bfloat16")
        measured.append(embedder.engine.checks[0]["cosine"])
    assert len(set(measured)) == 1 and measured[0] < 1
    contents = [json.loads(path.read_text()) for path in (home / "checks").glob("*.json")]
    about = max((said["about"] for said in contents), key=len)  # other tests' measurements stay as they are now
    assert {"model", "machine", "version", "engine", "dtype", "inputs", "device"} <= about.keys()


@pytest.mark.parametrize("changed", ["machine", "model", "version"])
def test_another_machine_model_or_version_is_measured_anew(align, tmp_path, monkeypatch, changed):
    engine(align, "torch", dtype="bfloat16")
    measured, run = [], selfcheck._measured
    monkeypatch.setattr(selfcheck, "_measured", lambda *a: measured.append(a) or run(*a))
    engine(align, "torch", dtype="bfloat16")
    assert not measured
    if changed == "machine":
        monkeypatch.setattr(selfcheck, "machine", lambda: {"processor": "another"})
    elif changed == "version":
        monkeypatch.setattr(selfcheck, "version", lambda package: "9")
    else:
        align = tiny.align_folder(tmp_path, seed=1)
    engine(align, "torch", dtype="bfloat16")
    assert len(measured) == 2


def test_what_does_not_change_a_measurement_is_not_measured_again(align, tmp_path, monkeypatch):
    engine(align, "auto")
    monkeypatch.setattr(selfcheck, "_measured", None)  # would be called
    monkeypatch.setattr("kakao_models.__version__", "9")
    other = engine(tiny.align_folder(tmp_path, seed=1), "auto")  # other weights, in float32
    assert {entry["what"] for entry in other.engine.checks} == {"image", "text"}


def test_auto_stops_measuring_and_goes_on_at_the_next_start(align, home, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    shutil.rmtree(home, ignore_errors=True)
    monkeypatch.setattr(selfcheck, "MAX_SECONDS", 0.0)
    first = engine(align, "auto")
    assert first.engine.description == "image: torch, text: torch"
    assert "onnx: not measured yet, after 0 s of measuring" in selfcheck.explain(first.engine.checks)
    monkeypatch.setattr(selfcheck, "MAX_SECONDS", 1e9)
    measured, run = [], selfcheck._measured
    monkeypatch.setattr(selfcheck, "_measured", lambda *a: measured.append(a[2].engine) or run(*a))
    monkeypatch.setattr("kakao_models.inference.progress.PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    engine(align, "auto")
    assert "onnx" in measured and "torch" not in measured
    assert "engines measured" in capsys.readouterr().err


def test_an_engine_whose_numbers_are_others_is_refused(align, monkeypatch):
    run = TowerEngine.run

    def wrong(self, what, way, *arrays):
        rows = run(self, what, way, *arrays)
        return rows + 0.2 * np.abs(rows).max() * np.arange(rows.shape[1]) if way.engine == "compile" else rows

    monkeypatch.setattr(TowerEngine, "run", wrong)
    monkeypatch.setattr(torch, "compile", lambda tower, **kwargs: tower)
    monkeypatch.setattr(selfcheck, "_remember", lambda *a: None)
    with pytest.raises(
        EngineError, match=r"no engine reproduces this model's outputs here.*compile in float32: cosine 0\."
    ):
        engine(align, "compile")
    monkeypatch.setattr(TowerEngine, "run", lambda *a: np.full_like(run(*a), np.nan))
    with pytest.raises(EngineError, match="gives NaN or infinity"):
        engine(align, "compile")


def test_the_fastest_that_holds_is_chosen():
    entries = [
        {"engine": "torch", "dtype": "float32", "cosine": 1.0, "seconds": 3.0},
        {"engine": "onnx", "dtype": "float32", "cosine": 0.99995, "seconds": 2.0},
        {"engine": "openvino", "dtype": "bfloat16", "cosine": 0.9998, "seconds": 1.0},
        {"engine": "compile", "dtype": "float32", "error": "no compiler"},
    ]
    assert selfcheck._best(entries, "auto", "auto")["engine"] == "onnx"
    assert selfcheck._best(entries[2:], "auto", "bfloat16")["engine"] == "openvino"
    with pytest.raises(EngineError, match=r"cosine 0\.999800; no compiler"):
        selfcheck._best(entries[2:], "auto", "auto")


def test_auto_chooses_among_what_is_installed(align, photos, plain, monkeypatch):
    monkeypatch.setattr(selfcheck, "missing_package", lambda name: None if name == "torch" else name)
    embedder = engine(align, "auto")
    assert embedder.engine.description == "image: torch, text: torch"
    assert_close(embedder.images(photos), plain[0])


@pytest.mark.parametrize("name, package", [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_a_missing_package_is_named(align, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=rf"engine='{name}' needs {package}: pip install 'kakao-models\[{name}\]'"):
        Embedder(align, engine=name)


def test_wrong_names(align, vit):
    with pytest.raises(ValueError, match="engine: got 'tensorrt', expected 'auto' or one of 'torch'"):
        Embedder(align, engine="tensorrt")
    with pytest.raises(ValueError, match="dtype 'int8'"):
        pipeline("image-classification", vit, engine="auto", dtype="int8")
    with pytest.raises(EngineError, match="ONNX Runtime runs in float32 only"):
        pytest.importorskip("onnxruntime")
        Embedder(align, engine="onnx", dtype="bfloat16")


def test_a_model_object_keeps_its_weights_live_unless_an_engine_is_named(align, photos):
    model = AlignModel.from_pretrained(align)
    live, frozen = Embedder(model), Embedder(model, engine="torch")
    before = frozen.images(photos)
    assert_close(live.images(photos), before)
    with torch.no_grad():
        model.vision_model.embeddings.convolution.weight.mul_(0.5)
    assert np.abs(live.images(photos) - before).max() > 1e-2
    assert_close(frozen.images(photos), before)


def test_what_is_compiled_is_kept_in_the_user_s_cache_or_where_the_user_says(home, monkeypatch):
    for chosen, wanted in ((None, str(home / "inductor")), ("/chosen", "/chosen")):
        monkeypatch.setattr(runners, "_INDUCTOR", chosen)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", chosen or "/tmp/torchinductor_user")  # as torch._dynamo sets it
        runners.CompiledRunner(torch.nn.Linear(2, 2), torch.device("cpu"), "float32")
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == wanted


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "compile"])
@pytest.mark.parametrize("dtype, least", [("float32", 0.9999), ("bfloat16", 0.99)])
def test_on_a_gpu(align, photos, plain, name, dtype, least):
    embedder = Embedder(align, engine=name, dtype=dtype, device="cuda", batch_size=3)
    assert cosine(embedder.images(photos), plain[0]) > least and cosine(embedder.texts(TEXTS), plain[1]) > least


@pytest.mark.parametrize("name", OTHERS)
def test_bytes_are_what_the_processor_makes_of_them(vit, photos, tmp_path, name):
    folder = tmp_path / "other"
    shutil.copytree(vit, folder)
    (file,) = [path for path in folder.glob("*processor_config.json")]
    text = file.read_text()
    assert '"rescale_factor": 0.00392156862745098' in text
    file.write_text(text.replace('"rescale_factor": 0.0039', '"rescale_factor": 0.0019'))
    changed = engine(folder, name).images(photos)
    assert_close(changed, Embedder(folder).images(photos))
    assert np.abs(changed - engine(vit, name).images(photos)).max() > 1e-3
