"""Models run by ONNX Runtime and OpenVINO where no framework is installed."""

import contextlib
import json
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kakao_models import Embedder, pipeline
from kakao_models.inference.frameworks import light_engine
from kakao_models.inference.identity import described
from kakao_models.inference.runners import GRAPH_ENGINES, EngineError

PHOTO = Path(__file__).parents[2] / "src/kakao_models/photos/cat.jpg"
LABELS = ["a cat", "a dog", "a red car"]
WITHOUT = """
    import sys
    from importlib.machinery import PathFinder

    find = PathFinder.find_spec

    def hide(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torch", "tensorflow", "keras", "jax", "flax")
        return None if hidden else find(name, path, target)

    PathFinder.find_spec = classmethod(hide)
"""


def run(script: str, *arguments: str) -> str:
    """stdout of a process in which no framework can be imported."""
    program = textwrap.dedent(WITHOUT) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_everything_runs_without_a_framework(vit, photos):
    pytest.importorskip("onnxruntime")
    script = """
        import json
        from kakao_models import Embedder, pipeline
        photo, vit, *photos = sys.argv[1:]
        scores = pipeline("zero-shot-image-classification", "align-small")(photo, ["a cat", "a dog", "a red car"])
        ours = Embedder("align-small")
        try:
            ours.engine.model
        except ImportError as error:
            model_error = str(error)
        classifier = Embedder(vit, batch_size=3)
        hidden = [batch.values.tolist() for batch in classifier.iter_images(photos, output="hidden")]
        logits = classifier.class_logits(photos).tolist()
        try:
            Embedder("align-small", device="cuda")
        except ValueError as error:
            device_error = str(error)
        lower = Embedder("align-small", engine="auto").engine.description
        print(json.dumps([scores, ours.texts("a cat").tolist(), ours.images([photo]).tolist(), repr(ours), hidden, logits,
                          model_error, device_error, lower]))
    """
    answer = run(script, str(PHOTO), vit, *photos[:4]).splitlines()[-1]
    scores, texts, images, shown, hidden, logits, model_error, device_error, auto = json.loads(answer)
    expected = Embedder("align-small", framework="torch")
    for ours, theirs in zip(scores, pipeline("zero-shot-image-classification", expected)(str(PHOTO), LABELS)):
        assert ours["label"] == theirs["label"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    close(texts, expected.texts("a cat"))
    close(images, expected.images([PHOTO]))
    assert "engine='image: onnx, text: onnx', device='cpu', dtype='float32'" in shown
    classifier = Embedder(vit, framework="torch", batch_size=3)
    for ours, theirs in zip(hidden, classifier.iter_images(photos[:4], output="hidden"), strict=True):
        close(ours, theirs.values)
    close(logits, classifier.class_logits(photos[:4]))
    assert model_error == "the model object needs torch: pip install 'kakao-models[torch]'"
    assert "device='cuda': ONNX Runtime and OpenVINO run models on the CPU here" in device_error
    assert auto.startswith("image: o")


def test_without_any_engine_the_error_names_the_light_install():
    script = """
        for name in ("onnxruntime", "openvino"):
            sys.modules[name] = None
        from kakao_models import Embedder
        try:
            Embedder("align-small")
        except ImportError as error:
            print(error)
    """
    assert run(script).strip() == (
        "framework='torch' needs torch: pip install 'kakao-models[torch]', or without a framework 'kakao-models[onnx]'"
    )


# Their import takes long, and nothing that the commands below do needs them.
HEAVY = ("torch", "tensorflow", "jax", "transformers", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "onnx",
         "datasets", "duckdb", "gradio", "requests")  # fmt: skip


NEEDED = {
    "info": ("torch", "transformers"),  # it reads transformers' configurations, which import PyTorch if it is installed
    "search": ("pandas", "pyarrow", "requests"),  # Milvus' client imports them
}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("classify", "--help"),
        ("info", "align-small"),
        ("classify", str(PHOTO), "--labels", "a cat,a dog", "--model", "align-small"),
        ("classify", str(PHOTO), "--model", "VIT"),
        ("embed", "--text", "a cat", "-o", "-", "--model", "align-small", "--engine", "auto"),
    ],
    ids=" ".join,
)
def test_a_command_imports_only_what_it_uses(arguments, vit):
    if arguments[0] in ("classify", "embed"):
        pytest.importorskip("onnxruntime")
    script = """
        import sys
        from kakao_models.cli import main
        try:
            main(sys.argv[2:])
        except SystemExit as stop:
            assert not stop.code, stop.code
        loaded = {name.partition(".")[0] for name in sys.modules}
        print(sorted(loaded & set(sys.argv[1].split(","))), file=sys.stderr)
    """
    heavy = set(HEAVY) - set(NEEDED.get(arguments[0], ()))
    arguments = [vit if argument == "VIT" else argument for argument in arguments]
    command = [sys.executable, "-c", textwrap.dedent(script), ",".join(heavy), *arguments]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0 and done.stderr.decode().splitlines()[-1] == "[]", done.stderr.decode()[-2000:]


def test_an_identity_depends_neither_on_the_engine_nor_on_what_is_loaded(align, vit):
    pytest.importorskip("onnxruntime")
    for folder in (align, vit, "align-small"):
        embedder = Embedder(folder, framework="torch")
        before = described(embedder)
        assert embedder.image_processor and (folder == vit or embedder.tokenizer)
        assert described(embedder) == before
        light = described(Embedder(folder, engine="onnx"))
        assert light | {"engine": before["engine"]} == before
        model = Embedder(embedder.engine.model)
        assert described(model)["weights"] == before["weights"]


def test_a_search_imports_only_what_it_uses(photos, tmp_path, command):
    """By a model's own processor and tokenizer, whose light forms are the same to the index."""
    pytest.importorskip("pymilvus")
    index = str(tmp_path / "photos.db")
    code, _, error = command("index", "build", str(Path(photos[0]).parent), "--index", index, "--model", "align-small")
    assert code == 0, error
    test_a_command_imports_only_what_it_uses(("search", "a cat", "--index", index), None)


def close(rows, expected: np.ndarray) -> None:
    rows = np.array(rows, np.float32)
    assert rows.shape == expected.shape
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_which_engine_runs_a_checkpoint(monkeypatch):
    there = {"torch", "onnxruntime", "openvino"}
    for module in ("frameworks", "runners"):
        monkeypatch.setattr(f"kakao_models.inference.{module}.is_installed", lambda name: name in there)
    assert light_engine(None, None) is None and light_engine(None, "auto") is None
    assert [light_engine(framework, "onnx") for framework in (None, "pt", "tf")] == ["onnx", "onnx", None]
    there.remove("torch")
    assert light_engine(None, None) == "onnx" and light_engine(None, "auto") == "auto"
    assert light_engine("torch", None) is None and light_engine(None, "compile") is None
    there.remove("onnxruntime")
    assert light_engine(None, None) == "openvino"
    there.add("tensorflow")
    assert light_engine(None, None) is None
    there.remove("openvino")
    assert light_engine(None, "auto") is None


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_shards_half_precision_and_defaults_load_the_same(align, vit, photos, tmp_path, name):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    folder = tmp_path / "half"
    shutil.copytree(align, folder)
    tensors = load_file(folder / "model.safetensors")
    half = {key: array.astype(np.float16) if array.dtype == np.float32 else array for key, array in tensors.items()}
    (folder / "model.safetensors").unlink()
    parts = dict(list(half.items())[::2]), dict(list(half.items())[1::2])
    index = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    close(Embedder(folder, engine=name).images(photos), Embedder(folder).images(photos))
    other = tmp_path / "defaults"
    shutil.copytree(vit, other)
    config = json.loads((other / "config.json").read_text())
    assert config.pop("layer_norm_eps") and config.pop("hidden_act")  # the configuration's class knows them
    (other / "config.json").write_text(json.dumps(config))
    close(Embedder(other, engine=name).images(photos), Embedder(other).images(photos))


def test_what_does_not_fit_is_named(align, vit, tmp_path):
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "missing"
    shutil.copytree(align, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {key: array for key, array in tensors.items() if key != "text_projection.bias"}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"missing text_projection\.bias"):
        Embedder(folder, engine="onnx")
    with pytest.raises(ValueError, match="dtype 'float64': expected 'float32', 'bfloat16' or 'float16'"):
        Embedder(align, engine="onnx", dtype="float64")
    with pytest.raises(EngineError, match="device='cuda:1': ONNX Runtime and OpenVINO run models on the CPU here"):
        Embedder(vit, engine="onnx", device="cuda:1")


def test_few_inputs_start_fast(monkeypatch):
    from kakao_models.verbs import ModelOptions

    monkeypatch.setattr("kakao_models.inference.frameworks.missing_package", lambda name: None)

    def chosen(images: int = 1, texts: int = 3, **options) -> str | None:
        options = ModelOptions(**options)
        options.expect(images, texts)
        return options.engine

    assert chosen() == chosen(engine="auto") == chosen(device="cpu", dtype="float32") == "onnx"
    assert chosen(images=9) is None and chosen(texts=1000) is None and chosen(images=9, engine="auto") == "auto"
    asked = [{"device": "cuda"}, {"framework": "torch"}, {"dtype": "bfloat16"}, {"fast_images": True}]
    assert [chosen(**options) for options in asked] == [None] * 4 and chosen(engine="torch") == "torch"
    monkeypatch.setattr("kakao_models.inference.frameworks.missing_package", lambda name: name)
    assert chosen() is None and chosen(engine="auto") is None


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_threads_share_a_runner(engine, align, monkeypatch):
    """Of two threads that run a tower for the first time, one makes the runner and the other waits for it."""
    from concurrent.futures import ThreadPoolExecutor

    from kakao_models.inference import engine_towers

    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    embedder, made, make = Embedder(align, engine=engine), [], engine_towers.make_runner
    both = threading.Barrier(2)

    def slowly(*arguments):
        made.append(arguments[0])
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for another thread that makes one
        return make(*arguments)

    monkeypatch.setattr(engine_towers, "make_runner", slowly)
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(embedder.texts, ["a cat", "a cat"]))
    assert made == [engine] and np.array_equal(*rows)
