"""Where checkpoints are found: inside the package, in folders, on the Hub; and what is said where they are not."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from kakao_models import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    Embedder,
    FlaxAlignModel,
    FlaxViTForImageClassification,
    TFAlignModel,
    TFViTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from kakao_models.checkpoint import hub as places
from kakao_models.conversion.info import describe_checkpoint

REPO = "someone/vit"
VITS = (ViTForImageClassification, TFViTForImageClassification, FlaxViTForImageClassification)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def bias(model) -> np.ndarray:
    variable = model.classifier.bias
    return np.asarray(variable.detach() if isinstance(variable, torch.Tensor) else variable)


def arrays(model) -> list[np.ndarray]:
    variables = model.state_dict() if isinstance(model, torch.nn.Module) else model._variables()
    return [np.asarray(variables[name]) for name in sorted(variables)]


@pytest.fixture(scope="module")
def other_vit(tmp_path_factory) -> str:
    """As `vit`, with other weights."""
    return tiny.vit_folder(tmp_path_factory.mktemp("other"), seed=1)


def test_a_bundled_checkpoint_goes_by_its_name(tmp_path, monkeypatch):
    assert "align-small" in places.bundled_checkpoints()
    assert places.resolve("align-small") == str(places.BUNDLED / "align-small")
    assert places.resolve("kakaobrain/align-base") == "kakaobrain/align-base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "align-small").mkdir()
    assert places.resolve("align-small") == "align-small"  # a folder of that name wins
    assert places.resolve(tmp_path) == str(tmp_path)


# --- one commit


@pytest.mark.parametrize("model_class", VITS)
def test_a_newer_revision_is_seen_and_asked_for_once(model_class, hub, vit, other_vit):
    hub.commit(REPO, vit)
    old = bias(model_class.from_pretrained(REPO))
    assert hub.count("GET /api/models/someone/vit") == 1 and hub.count("GET .*/resolve/main") == 0
    hub.requests.clear()
    assert np.array_equal(bias(model_class.from_pretrained(REPO)), old)
    assert len(hub.requests) == 1  # which commit it is; the rest is in the cache
    newer = hub.commit(REPO, other_vit)
    new = bias(model_class.from_pretrained(REPO))
    assert not np.array_equal(new, old) and np.array_equal(new, bias(model_class.from_pretrained(other_vit)))
    hub.requests.clear()
    assert np.array_equal(bias(model_class.from_pretrained(REPO, revision=newer)), new) and not hub.requests


@pytest.mark.parametrize("framework", ["torch", "tf", "flax"])
def test_model_and_processors_are_of_one_commit_though_another_comes_in_between(
    framework, hub, align, tmp_path, monkeypatch
):
    """The branch moves with every file that is asked for."""
    other = tiny.align_folder(tmp_path / "other", seed=1, size=36)
    first = hub.commit("someone/align", align)
    answer = hub.failure

    def moving(request):
        if "/resolve/" in request:
            hub.commit("someone/align", other)
        return answer(request)

    monkeypatch.setattr(hub, "failure", moving)
    embedder = Embedder("someone/align", framework=framework)
    assert embedder.image_processor.size == {"height": 40, "width": 40} and embedder.tokenizer is not None
    assert embedder.config.projection_dim == 16
    assert np.array_equal(embedder.texts(["a cat"]), Embedder(align, framework=framework).texts(["a cat"]))
    assert hub.count("GET /api/models") == 1
    assert {request.split("/resolve/")[1].split("/")[0] for request in hub.requests if "/resolve/" in request} == {
        first
    }
    assert AlignProcessor.from_pretrained("someone/align", revision=first).image_processor.size["height"] == 40
    assert AlignProcessor.from_pretrained("someone/align").image_processor.size["height"] == 36


@pytest.mark.parametrize("model_class", [AlignModel, TFAlignModel, FlaxAlignModel])
def test_a_model_object_is_prepared_for_as_in_the_commit_it_was_loaded_from(model_class, hub, align, tmp_path):
    hub.commit("someone/align", align)
    model = model_class.from_pretrained("someone/align", cache_dir=tmp_path / "cache", token=False)
    hub.commit("someone/align", tiny.align_folder(tmp_path / "other", seed=1, size=36))
    assert model.name_or_path == "someone/align"
    hub.requests.clear()
    embedder = Embedder(model)
    assert embedder.image_processor.size["height"] == 40 and embedder.texts("a cat").shape == (1, 16)
    assert embedder.name == "someone/align" and not hub.count("/api/models")
    assert Embedder(model, revision="main").image_processor.size["height"] == 36
    model.save_pretrained(tmp_path / "saved")
    assert "someone" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("model_class", VITS)
def test_a_model_object_of_a_subfolder(model_class, vit, tmp_path):
    shutil.copytree(vit, tmp_path / "inner")
    model = model_class.from_pretrained(tmp_path, subfolder="inner")
    assert model.name_or_path == str(tmp_path) and Embedder(model).image_processor.size["height"] == 32
    assert model_class.from_pretrained(vit, config=ViTConfig.from_pretrained(vit)).name_or_path == vit


def test_branches_and_subfolders(hub, vit, other_vit):
    hub.commit(REPO, vit)
    inner = {f"inner/{name}": content for name, content in contents(other_vit).items()}
    hub.commit(REPO, inner, branch="v2")
    expected = bias(ViTForImageClassification.from_pretrained(other_vit))
    for model_class in VITS:
        model = model_class.from_pretrained(REPO, revision="v2", subfolder="inner")
        assert np.array_equal(bias(model), expected)
    assert ViTConfig.from_pretrained(REPO, revision="v2", subfolder="inner").hidden_size == 32
    assert ViTImageProcessor.from_pretrained(REPO, revision="v2", subfolder="inner").size["height"] == 32
    run = pipeline("image-classification", REPO, revision="v2", subfolder="inner")
    assert run(tiny.picture(0)) == pipeline("image-classification", other_vit)(tiny.picture(0))


def test_the_cache_is_used_where_the_hub_does_not_answer(hub, vit, caplog):
    hub.commit(REPO, vit)
    expected = bias(ViTForImageClassification.from_pretrained(REPO))
    hub.fail(".", status=503)
    hub.requests.clear()
    assert np.array_equal(bias(ViTForImageClassification.from_pretrained(REPO)), expected)
    assert len(hub.requests) == 1
    assert "the Hub answered 503, try again later. Using commit" in caplog.text


# --- offline


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_nothing_is_asked(how, hub, vit, align, monkeypatch, tmp_path):
    hub.commit(REPO, vit)
    hub.commit("someone/align", align)
    elsewhere = dict(cache_dir=tmp_path / "elsewhere")
    for name in (REPO, "someone/align"):
        Embedder(name, **elsewhere).image_processor  # noqa: B018
    hub.requests.clear()
    if how == "environment":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = elsewhere | ({"local_files_only": True} if how == "argument" else {})
    for framework in ("torch", "tf", "flax"):
        assert Embedder("someone/align", framework=framework, **offline).tokenizer is not None
    for model_class in VITS:
        assert model_class.from_pretrained(REPO, **offline).config.hidden_size == 32
    assert AlignProcessor.from_pretrained("someone/align", **offline).tokenizer is not None
    assert AlignConfig.from_pretrained("someone/align", **offline).projection_dim == 16
    assert pipeline("image-classification", REPO, **offline)(tiny.picture(0))
    readers = [Embedder, *(model_class.from_pretrained for model_class in VITS), ViTConfig.from_pretrained]
    for read in [*readers, ViTImageProcessor.from_pretrained, AlignProcessor.from_pretrained]:
        with pytest.raises(FileNotFoundError, match="the local cache has no revision main, and the Hub is not asked"):
            read("someone/other", **offline)
    assert not hub.requests


def test_offline_a_file_that_was_not_downloaded_is_named(hub, vit):
    hub.commit(REPO, vit)
    ViTConfig.from_pretrained(REPO)
    for read in (*(model_class.from_pretrained for model_class in VITS), Embedder):
        with pytest.raises(
            FileNotFoundError, match=r"the local cache has no model\.safetensors of commit \w{8}, and the Hub"
        ):
            read(REPO, local_files_only=True)


# --- formats


def as_pickle(folder: str, legacy: bool = False) -> dict[str, bytes]:
    """The files of a folder, with pytorch_model.bin in place of model.safetensors."""
    files = contents(folder)
    state = load_file(Path(folder, "model.safetensors"))
    del files["model.safetensors"]
    place = Path(folder).parent / f"{Path(folder).name}.bin"
    torch.save(state, place, _use_new_zipfile_serialization=not legacy)
    files["pytorch_model.bin"] = place.read_bytes()
    place.unlink()
    return files


@pytest.mark.parametrize("legacy", [False, True])
def test_repositories_with_nothing_but_pickles(legacy, hub, vit, align):
    hub.commit(REPO, as_pickle(vit, legacy))
    hub.commit("someone/align", as_pickle(align, legacy))
    for model_class in VITS:
        assert np.array_equal(bias(model_class.from_pretrained(REPO)), bias(model_class.from_pretrained(vit)))
    for model_class in (AlignModel, TFAlignModel, FlaxAlignModel):
        model, expected = model_class.from_pretrained("someone/align"), model_class.from_pretrained(align)
        for a, b in zip(arrays(model), arrays(expected), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("framework", ["torch", "tf", "flax"])
def test_pickles_in_pipelines_and_commands(framework, hub, vit, command, tmp_path):
    hub.commit(REPO, as_pickle(vit))
    tiny.picture(0).save(tmp_path / "picture.png")
    scores = pipeline("image-classification", REPO, framework=framework)(tmp_path / "picture.png")
    for score, expected in zip(
        scores, pipeline("image-classification", vit, framework=framework)(tmp_path / "picture.png")
    ):
        assert score == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-6)}
    arguments = ["--model", REPO, "--framework", framework, "--json"]
    code, out, _ = command("classify", tmp_path / "picture.png", *arguments)
    assert code == 0 and json.loads(out)[0]["scores"] == scores


@pytest.mark.parametrize("legacy", [False, True])
def test_info_counts_what_is_on_the_hub_without_downloading_it(legacy, hub, align):
    expected = describe_checkpoint(align)
    hub.commit("someone/safe", align)
    hub.commit("someone/pickled", as_pickle(align, legacy))
    for name in ("someone/safe", "someone/pickled"):
        described = describe_checkpoint(name)
        assert described["folder"] is None
        for key in ("parameters", "towers", "preprocessing"):
            assert described[key] == expected[key], (name, key)
        shapes = {key: (tensor["dtype"], list(tensor["shape"])) for key, tensor in described["tensors"].items()}
        assert shapes == {key: (tensor["dtype"], tensor["shape"]) for key, tensor in expected["tensors"].items()}
    assert not list(Path(constants.HF_HUB_CACHE).glob("**/snapshots/*/*.bin"))


@pytest.mark.parametrize("format", ["safe", "pickled", "sharded"])
def test_info_looks_at_the_weights_only(format, hub, align, tmp_path):
    """Beside them others leave the arguments of a Trainer, adapters, a license."""
    files = as_pickle(align) if format == "pickled" else contents(align)
    if format == "sharded":
        AlignModel.from_pretrained(align).save_pretrained(tmp_path, max_shard_size="100KB")
        files = contents(tmp_path)
    weights = {name for name in files if name.endswith((".bin", ".safetensors"))}
    assert (len(weights) > 1) == (format == "sharded")
    more = dict.fromkeys(("training_args.bin", "adapter_model.safetensors", ".gitattributes", "LICENSE"), b"no weights")
    hub.commit("someone/more", files | more)
    described, expected = describe_checkpoint("someone/more"), describe_checkpoint(align)
    assert described["tensors"].keys() == expected["tensors"].keys()
    assert described["parameters"] == expected["parameters"]
    assert {file["name"] for file in described["files"]} == weights
    hub.commit("someone/none", {"config.json": files["config.json"]} | more)
    described = describe_checkpoint("someone/none")
    assert (described["files"], described["tensors"], described["parameters"]) == ([], {}, None)


def test_converting_from_the_hub(hub, align, command, tmp_path):
    hub.commit("someone/align", as_pickle(align))
    old = hub.commit("someone/align", as_pickle(align), branch="old")
    for more, name in (([], "new"), (["--revision", old], "again")):
        code, out, err = command("convert", "someone/align", tmp_path / name, *more)
        assert code == 0, err
        written, source = load_file(tmp_path / name / "model.safetensors"), load_file(Path(align, "model.safetensors"))
        assert all(torch.equal(written[key], source[key]) for key in written)
        assert AlignProcessor.from_pretrained(tmp_path / name).tokenizer is not None


def test_sharded_repositories(hub, vit, tmp_path):
    ViTForImageClassification.from_pretrained(vit).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    hub.commit(REPO, tmp_path / "sharded")
    expected = bias(ViTForImageClassification.from_pretrained(vit))
    for model_class in VITS:
        assert np.array_equal(bias(model_class.from_pretrained(REPO)), expected)
    assert describe_checkpoint(REPO)["parameters"] == describe_checkpoint(vit)["parameters"]


# --- failures: one cause, one sentence, the same everywhere


READERS = {
    "config": ViTConfig.from_pretrained,
    "torch": ViTForImageClassification.from_pretrained,
    "tf": TFViTForImageClassification.from_pretrained,
    "flax": FlaxViTForImageClassification.from_pretrained,
    "processor": ViTImageProcessor.from_pretrained,
    "embedder": Embedder,
    "embedder in tf": lambda name, **options: Embedder(name, framework="tf", **options),
    "pipeline": lambda name, **options: pipeline("image-classification", name, **options),
    "info": describe_checkpoint,
}


def failure_of(read, name: str, **options) -> str:
    with pytest.raises(OSError) as caught:
        read(name, **options)
    message = str(caught.value)
    assert message.count("\n") == 0
    return message


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "case, message",
    [
        (
            "private",
            "there is no such folder here, and the Hub has no such repository, or it is private (401: Invalid username or password.).",
        ),
        (
            "private, token",
            "the Hub has no such repository, or it is private (404: Repository not found). Is the name right? The token that",
        ),
        ("wrong token", "(401: Invalid credentials in Authorization header). "),
        (
            "absent",
            "there is no such folder here, and the Hub has no such repository, or it is private (401: Invalid username or password.).",
        ),
        (
            "gated",
            "this repository is gated, and the Hub refused access (401: Access to model someone/vit is restricted. You must have",
        ),
        (
            "gated, token",
            "this repository is gated, and the Hub refused access (403: Access to model someone/vit is restricted and you are not",
        ),
        ("revision", "someone/vit has no revision 'v9' on the Hub (404: Invalid rev id: v9)"),
        ("down", "someone/vit: the Hub answered 503, try again later"),
        ("too many", "someone/vit: the Hub answered 429, try again later"),
        (
            "no network",
            "there is no such folder here, and the Hugging Face Hub can't be reached ([Errno 111] Connection refused)",
        ),
        (
            "silent",
            "the Hugging Face Hub can't be reached (timed out). Without a network use align-small, which is inside this",
        ),
    ],
)
def test_a_failure_has_one_cause_and_one_sentence(reader, case, message, hub, vit, monkeypatch):
    access = case.partition(",")[0]
    if case != "absent":
        hub.commit(REPO, vit, access=access if access in ("private", "gated") else "public")
    options = {"revision": "v9"} if case == "revision" else {}
    if "token" in case:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong" if case == "wrong token" else "hf_other")
    if case in ("down", "too many"):
        hub.fail(".", status=503 if case == "down" else 429)
    if case == "silent":
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        hub.fail(".", hang=True)
    if case == "no network":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert message in failure_of(READERS[reader], REPO, **options)
    assert len(hub.requests) <= 2  # nothing is tried again


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("config", "processor", "info")])
@pytest.mark.parametrize(
    "failing, message",
    [
        (dict(pattern="/resolve/.*safetensors", status=503), "someone/vit: the Hub answered 503, try again later"),
        (dict(pattern="GET /storage", status=500), "someone/vit: the Hub answered 500, try again later"),
        (dict(pattern="GET /storage", status=403), "someone/vit: the Hub refused to send model.safetensors (403: "),
        (
            dict(pattern="GET /storage", cut=0),
            "model.safetensors can't be downloaded, the connection to the Hugging Face Hub",
        ),
        (
            dict(pattern="HEAD .*safetensors", hang=True),
            "model.safetensors can't be downloaded, the connection to the Hugging",
        ),
    ],
)
def test_weights_that_do_not_come(reader, failing, message, hub, vit, monkeypatch):
    """The configuration came; transformers, asked for the weights, would try for a minute and name another file."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    hub.commit(REPO, vit)
    hub.fail(**failing)
    assert message in failure_of(READERS[reader], REPO)
    assert not hub.count("pytorch_model")


def test_files_that_are_missing_are_named(hub, vit):
    files = contents(vit)
    hub.commit("someone/empty", {"README.md": b""})
    hub.commit("someone/weightless", {"config.json": files["config.json"]})
    for name, read in READERS.items():
        if name != "processor":
            assert "someone/empty has no config.json (commit " in failure_of(read, "someone/empty")
        if name not in ("config", "processor", "info"):
            assert "someone/weightless has no weights: expected model.safetensors, " in failure_of(
                read, "someone/weightless"
            )
    assert "someone/empty has no preprocessor_config.json" in failure_of(READERS["processor"], "someone/empty")


def test_a_token_opens_what_is_private_or_gated(hub, vit):
    hub.tokens.add("hf_mine")
    for access in ("private", "gated"):
        hub.commit(f"someone/{access}", vit, access=access)
        for model_class in VITS:
            assert model_class.from_pretrained(f"someone/{access}", token="hf_mine").config.hidden_size == 32
        assert Embedder(f"someone/{access}", token="hf_mine").dim == 32
        assert ViTImageProcessor.from_pretrained(f"someone/{access}", token="hf_mine").size["height"] == 32


@pytest.mark.parametrize("name", ["absent/folder/here", "absent/", "./absent", "/absent", "~/absent", "a b"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name, hub, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save("a.png")
    for read in (*READERS.values(), AlignProcessor.from_pretrained):
        assert f"{name}: no such folder. Expected one, a name on the Hub (owner/name), or align-small" in failure_of(
            read, name
        )
    for arguments in (
        ["info", name],
        ["convert", name, "out"],
        ["classify", "a.png", "--model", name, "--labels", "a,b"],
    ):
        code, out, err = command(*arguments)
        assert code == 2 and out == "" and f"kakao-models: {name}: no such folder. Expected one" in err
    assert not hub.requests


def test_the_near_name_of_a_bundled_checkpoint_and_a_file(hub, vit):
    for read in (Embedder, AlignModel.from_pretrained, AlignProcessor.from_pretrained, AlignConfig.from_pretrained):
        assert failure_of(read, "align-smal") == "align-smal: no such folder or checkpoint. Did you mean align-small?"
    for read in (
        Embedder,
        AlignModel.from_pretrained,
        AlignProcessor.from_pretrained,
        TFViTForImageClassification.from_pretrained,
    ):
        message = failure_of(read, f"{vit}/model.safetensors")
        assert "model.safetensors is a file, expected the folder of a checkpoint. Give " in message
    assert not hub.requests


@pytest.mark.parametrize("verb", ["info", "convert", "classify", "embed"])
def test_commands_say_the_same_sentence(verb, hub, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save("a.png")
    rest = {
        "info": [REPO],
        "convert": [REPO, tmp_path / "out"],
        "classify": ["a.png", "--labels", "a,b", "--model", REPO],
        "embed": ["a.png", "-o", tmp_path / "out.npy", "--model", REPO],
    }
    code, out, err = command(verb, *rest[verb])
    assert code == 2 and out == ""
    assert err == f"kakao-models: {failure_of(ViTConfig.from_pretrained, REPO)}\n"


# --- downloads


def test_a_download_that_breaks_goes_on_where_it_stopped(hub, vit):
    hub.commit(REPO, vit)
    hub.fail("GET /storage", cut=10_000, times=2)
    expected = bias(ViTForImageClassification.from_pretrained(vit))
    assert np.array_equal(bias(ViTForImageClassification.from_pretrained(REPO)), expected)
    assert hub.count("GET /storage") == 3


def test_two_processes_download_at_once(hub):
    hub.commit(REPO, {"config.json": b"{}", "model.safetensors": os.urandom(1 << 20)})
    script = f"from kakao_models.checkpoint.hub import fetch; print(fetch({REPO!r}, 'model.safetensors'))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": constants.HF_HUB_CACHE}
    run = dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen([sys.executable, "-c", script], **run) for _ in range(3)]
    results = [process.communicate() for process in started]
    content = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]]["model.safetensors"]
    assert all(out and Path(out.strip()).read_bytes() == content for out, _ in results), results
