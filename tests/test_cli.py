import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tolerances import TOLERANCE
from typer.main import get_command
from typer.testing import CliRunner

import kakao_models.conversion as conversion
from kakao_models import AlignModel, Embedder, pipeline
from kakao_models.cli import app


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[str]:
    return [str(path) for path in tiny.picture_folder(tmp_path_factory.mktemp("photos"), 3)]


def test_converting_without_pytorch_names_what_installs_it(command, vit, tmp_path, monkeypatch):
    for name in ("convert", "verification"):
        monkeypatch.delitem(sys.modules, f"kakao_models.conversion.{name}", raising=False)
        monkeypatch.delattr(conversion, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = command("convert", vit, tmp_path / "new")
    assert code == 2 and "convert needs torch: pip install 'kakao-models[convert]'" in err


def test_help_teaches():
    for verb, words in {"classify": "--labels", "embed": "photos.npy", "info": "align-small"}.items():
        result = CliRunner().invoke(app, [verb, "--help"])
        assert result.exit_code == 0 and words in result.output and f"kakao-models {verb}" in result.output


def verbs(command, name=()):
    """(words, options by their names) of every verb."""
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from verbs(inner, (*name, word))
    else:
        yield name, [parameter for parameter in command.params if parameter.param_type_name == "option"]


def test_paragraphs_of_help_have_no_line_breaks_of_their_own():
    for verb in ("classify", "serve"):
        help = get_command(app).commands[verb].help
        assert help.count("\n\n") >= 2 and "\n" not in help.replace("\n\n", "")


def test_every_verb_prints_json_and_one_name_is_one_option():
    spelled = {}
    for name, options in verbs(get_command(app)):
        assert "--json" in [word for option in options for word in option.opts], name
        for option in options:
            words = {*option.opts, *option.secondary_opts} - {"--to"}  # of index build, what else is --index
            for word in words:
                if word.startswith("--"):
                    assert spelled.setdefault(word, words) == words, (name, word)


def test_classify_as_json_is_the_pipelines_output(command, align, photos, tmp_path):
    code, out, err = command("classify", *photos, "--labels", "cat, dog,sea", "--model", align, "--json", "-k", 2)
    expected = pipeline("zero-shot-image-classification", align)(photos, ["cat", "dog", "sea"], top_k=2)
    assert code == 0 and err == ""
    entries = json.loads(out)
    assert [entry["image"] for entry in entries] == list(map(str, photos))
    for entry, scores in zip(entries, expected, strict=True):
        check_scores(entry["scores"], scores)

    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n\ndog\nsea\n")
    templates = ["the {}", "a small {}"]
    options = ["--labels-file", labels, *(word for template in templates for word in ("--template", template))]
    code, out, _ = command("classify", photos[0], *options, "--model", align, "--json")
    run = pipeline("zero-shot-image-classification", align)
    check_scores(json.loads(out)[0]["scores"], run(photos[0], ["cat", "dog", "sea"], hypothesis_template=templates))


def check_scores(found: list[dict], expected: list[dict]) -> None:
    """Compares with the results of another engine."""
    assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
    scores = [entry["score"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx(scores, abs=TOLERANCE["scores"])


def test_classify_prints_a_table_and_draws_a_picture(command, align, photos, tmp_path):
    picture = tmp_path / "scores.png"
    folder = Path(photos[0]).parent
    code, out, _ = command("classify", folder, "--labels", "cat,[red] house", "--model", align, "--picture", picture)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 4 and all(path in line for path, line in zip(photos, lines[1:]))
    assert all("[red] house" in line and line.count("%") == 2 for line in lines[1:])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_classify_with_a_models_own_classes(command, vit, photos):
    code, out, _ = command("classify", photos[0], "--model", vit, "--json")
    assert code == 0
    check_scores(json.loads(out)[0]["scores"], pipeline("image-classification", vit)(photos[0]))


def test_inputs_that_fail_are_listed_and_the_others_done(command, align, photos, tmp_path):
    sources = [photos[0], tmp_path / "absent.png", photos[1]]
    code, out, err = command("classify", *sources, "--labels", "cat,dog", "--model", align, "--json")
    entries = json.loads(out)
    assert code == 1 and f"failed: {tmp_path / 'absent.png'}: no such file" in err
    assert len(entries[0]["scores"]) == len(entries[2]["scores"]) == 2
    assert "no such file" in entries[1]["error"]
    code, out, err = command("embed", *sources, "-o", tmp_path / "out.npy", "--model", align)
    assert code == 1 and "absent.png" in err and "2 embeddings" in out
    code, out, _ = command("embed", *sources, "-o", tmp_path / "out.npy", "--model", align, "--json")
    said, files = json.loads(out), [str(tmp_path / name) for name in ("out.npy", "out.names.json")]
    assert code == 1 and (said["files"], said["rows"], said["dim"]) == (files, 2, 16)
    assert [failure["name"] for failure in said["failures"]] == [str(tmp_path / "absent.png")]
    assert json.loads((tmp_path / "out.names.json").read_text()) == [photos[0], photos[1]]
    assert np.load(tmp_path / "out.npy").shape == (2, 16)


def test_embed_writes_what_the_embedder_gives(command, align, photos, tmp_path):
    embedder = Embedder(align)
    code, _, err = command("embed", Path(photos[0]).parent, "-o", tmp_path / "images.npy", "--model", align)
    assert code == 0 and err == ""
    assert np.array_equal(np.load(tmp_path / "images.npy"), embedder.images(photos))
    assert json.loads((tmp_path / "images.names.json").read_text()) == photos

    captions = tmp_path / "captions.txt"
    captions.write_text("a cat\na dog and a bird\n\n", encoding="utf-8")
    expected = embedder.texts(["a cat", "a dog and a bird"], normalize=True)
    for inputs in ([captions], ["--texts-file", captions], ["--text", "a cat", "--text", "a dog and a bird"]):
        command("embed", *inputs, "-o", tmp_path / "texts.npy", "--normalize", "--model", align)
        assert np.array_equal(np.load(tmp_path / "texts.npy"), expected)
    assert not list(tmp_path.glob("*.tmp"))


def test_embed_writes_parquet(command, align, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    command("embed", *photos, "-o", tmp_path / "out.parquet", "--model", align)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["name"].to_pylist() == photos
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), Embedder(align).images(photos))


def test_info_counts_without_loading(command, align, monkeypatch):
    model = AlignModel.from_pretrained(align)
    monkeypatch.setattr(AlignModel, "from_pretrained", None)
    code, out, _ = command("info", align, "--json")
    facts = json.loads(out)
    weights = Path(align, "model.safetensors")
    assert code == 0
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["towers"]["text"]["parameters"] == sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.startswith("text_")
    )
    assert {name: tensor["shape"] for name, tensor in facts["tensors"].items()} == {
        name: list(tensor.shape) for name, tensor in model.state_dict().items()
    }
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert facts["files"] == [{"name": weights.name, "bytes": weights.stat().st_size, "sha256": digest}]
    assert facts["preprocessing"]["crop_size"] == {"height": 32, "width": 32}
    code, out, _ = command("info", align)
    assert f"{facts['parameters']:,} parameters" in out
    assert "resize to 40 x 40 (bilinear, PIL, antialiased), crop the central 32 x 32, times 1/127.5 minus 1\n" in out


def test_info_of_a_vit_and_of_a_broken_file(command, vit, tmp_path):
    _, out, _ = command("info", vit)
    assert "ViT: image_size 32, patch 8, layers 2, width 32" in out and "classes 7" in out
    _, out, _ = command("info", tiny.align_classifier_folder(tmp_path / "classifier"))
    assert "EfficientNet: image_size 32, blocks 5, width 16, classes 7" in out and "embedding      16 dimensions" in out
    (tmp_path / "config.json").write_text(Path(vit, "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    code, _, err = command("info", tmp_path)
    assert code == 2 and "not a safetensors file" in err


def of_jax() -> None:
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory: you tried to allocate 9 TiB")


@pytest.mark.parametrize("allocate", [lambda: np.empty(2**50), lambda: torch.empty(2**50), of_jax])
def test_too_little_memory_is_one_message(command, align, monkeypatch, allocate):
    def describe(*arguments, **options):
        allocate()

    monkeypatch.setattr("kakao_models.conversion.info.describe_checkpoint", describe)
    code, out, err = command("info", align)
    assert code == 2 and out == "" and "smaller one" in err and " allocate " in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "a.jpg"], "--labels"),
        (["classify", "a.jpg", "--labels", "a,b", "--labels-file", "absent.txt"], "absent.txt"),
        (["classify", "a.jpg", "--labels", "a,b", "--picture", "out.xyz"], "out.xyz"),
        (["classify", "a.jpg", "--labels", "a,b", "-m", "{align}", "--template", "no label"], "hypothesis_template"),
        (["classify", "a.jpg", "-m", "{align}"], "needs labels"),
        (["classify", "a.jpg", "--labels", "a,b", "-m", "{vit}"], "has no text tower"),
        (
            ["classify", "a.jpg", "--labels", "a,b", "-m", "{align}", "--min-relevance", "0.5"],
            "evaluate relevance --model",
        ),
        (["classify", "a.jpg", "-m", "no/such/model/here", "--min-relevance", "0.5"], "needs labels of your own"),
        (["classify", "a.jpg", "--labels", "a,b", "-m", "no/such/model/here"], "no such folder"),
        (["embed", "a.jpg", "-o", "out.csv", "-m", "{align}"], ".npy or .parquet"),
        (["embed", "a.jpg", "-o", "absent/out.npy", "-m", "{align}"], "the folder absent does not exist"),
        (["embed", "a.jpg", "--text", "cat", "-o", "out.npy"], "give images or texts, not both"),
        (["embed", "-o", "out.npy"], "give images or texts"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_usage_is_one_clear_message(command, align, vit, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save("a.jpg")
    code, out, err = command(*(argument.format(align=align, vit=vit) for argument in arguments))
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err


def test_without_a_network_the_bundled_model_is_named(tmp_path):
    nowhere = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    tiny.picture(0).save(tmp_path / "a.jpg")
    result = subprocess.run(
        [sys.executable, "-m", "kakao_models.cli", "classify", tmp_path / "a.jpg", "--labels", "a,b"],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2 and result.stdout == ""
    assert "kakaobrain/align-base" in result.stderr and "can't be reached" in result.stderr
    assert "Without a network use align-small" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.hub
def test_info_of_the_released_checkpoint(command):
    code, out, err = command("info", "kakaobrain/align-base", "--json")
    if "can't be reached" in err:
        pytest.skip("no connection to the Hub")
    facts = json.loads(out)
    assert code == 0 and facts["dim"] == 640
    assert facts["towers"]["image"]["size"] == "b7" and facts["towers"]["text"]["size"] == "base"
    assert facts["tensors"]["text_projection.weight"]["shape"] == [640, 768]
    assert all(len(file["sha256"]) == 64 for file in facts["files"])


CHECKPOINTS = Path(__file__).parent / "golden" / "checkpoints"


def test_convert_verify_and_back(command, tmp_path):
    folder = tmp_path / "vit"
    code, out, _ = command("convert", CHECKPOINTS / "vit_nano_ckpt", folder, "--heads", 2, "--max-shard-size", "50KB")
    assert code == 0 and "layer 1" in out and "written and verified" in out
    assert command("verify", folder)[:2] == (0, f"{folder}: every file and tensor as reported\n")
    back = tmp_path / "back" / "weights"
    code, out, _ = command("convert", folder, back, "--to", "tpu", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["output"] == str(back) and back.with_suffix(".index").exists()
    assert (
        all(stage["difference"] <= stage["limit"] for stage in facts["verification"]) and len(facts["verification"]) > 3
    )
    (folder / "config.json").write_text("{}")
    assert command("verify", folder)[:2] == (1, "config.json: differs from the file that the conversion wrote\n")


def test_convert_uploads_only_what_is_verified(command, tmp_path):
    arguments = ["convert", CHECKPOINTS / "vit_nano_ckpt", tmp_path / "vit", "--heads", 2]
    code, out, _ = command(*arguments, "--push-to-hub", "me/vit", "--dry-run")
    assert code == 0 and "would upload to me/vit:" in out and "model.safetensors" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--family", "align"], "expected 'align'"),
        (["--weights", "average"], "has no moving averages"),
        (["--to", "keras"], "expected hub or tpu"),
        (["--to", "tpu", "--weights", "raw"], "--to tpu takes only --key-layout and --family"),
        (["--max-shard-size", "5"], "such as 5GB"),
    ],
)
def test_convert_refuses(arguments, message, command, tmp_path):
    code, _, err = command("convert", CHECKPOINTS / "vit_nano_ckpt", tmp_path / "vit", "--heads", 2, *arguments)
    assert code == 2 and message in " ".join(err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_files_of_lines(command, align, photos, tmp_path):
    """A byte order mark and Windows' line ends are no part of a label, and only line ends separate texts."""
    labels, captions, latin = tmp_path / "labels.txt", tmp_path / "captions.txt", tmp_path / "latin.txt"
    labels.write_bytes(b"\xef\xbb\xbfcat\r\n\r\ndog\r\n")
    _, out, _ = command("classify", photos[0], "--labels-file", labels, "--model", align, "--json")
    assert {entry["label"] for entry in json.loads(out)[0]["scores"]} == {"cat", "dog"}
    captions.write_text("a cat\u2028and a dog\nthe sea\x85\n", encoding="utf-8")
    command("embed", captions, "-o", tmp_path / "out.npy", "--model", align)
    assert json.loads((tmp_path / "out.names.json").read_text(encoding="utf-8")) == ["a cat\u2028and a dog", "the sea"]
    latin.write_bytes(b"caf\xe9\n")
    code, _, err = command("embed", latin, "-o", tmp_path / "out.npy", "--model", align)
    assert code == 2 and f"{latin} is not UTF-8 text" in err


def test_convert_takes_equal_class_names_and_prints_nothing_but_the_report(command, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("crane\ncrane\n" + "\n".join("abcdefgh") + "\n")
    arguments = ["--heads", 2, "--labels-file", labels, "--json", "--push-to-hub", "me/vit", "--dry-run"]
    code, out, err = command("convert", CHECKPOINTS / "vit_nano_ckpt", tmp_path / "vit", *arguments)
    assert code == 0 and json.loads(out)["family"] == "vit" and "would upload to me/vit:" in err
    names = json.loads((tmp_path / "vit" / "config.json").read_text())["id2label"]
    assert list(names.values()) == ["crane", "crane", *"abcdefgh"]


@pytest.mark.parametrize("config", ["[]", "{", '{"model_type": ["vit"]}', '{"model_type": "vit", "hidden_size": "x"}'])
def test_a_broken_config_is_one_message(command, photos, tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    for arguments in (["info", tmp_path], ["classify", photos[0], "--model", tmp_path]):
        code, out, err = command(*arguments)
        assert code == 2 and out == "" and "config.json" in err and "Traceback" not in err


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "model, file, change, message",
    [
        ("vit", "config.json", NESTED, "config.json is not a JSON file"),
        (
            "vit",
            "config.json",
            {"hidden_act": "nope"},
            "hidden_act: got 'nope', expected one of gelu",
        ),
        ("vit", "config.json", {"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ("vit", "config.json", {"num_attention_heads": 0}, "num_attention_heads is 0, expected 1 to"),
        ("vit", "config.json", {"intermediate_size": 10**7}, "intermediate_size is 10000000 in the"),
        ("vit", "config.json", {"intermediate_size": 10**10}, "intermediate_size is 10000000000, expected 1 to"),
        ("vit", "config.json", {"patch_size": 0}, "patch_size is 0, expected 1 to"),
        ("vit", "config.json", {"id2label": ["cat", "dog"]}, "config.json is not a valid model configuration"),
        ("vit", "config.json", {"id2label": {"0": "cat"}}, "classifier.bias: the file has (7,)"),
        (
            "vit",
            "config.json",
            {"id2label": {str(i): [1] for i in range(7)}},
            "id2label has the label [1], expected text",
        ),
        ("vit", "config.json", {"layer_norm_eps": "x"}, "config.json is not a valid model configuration"),
        ("vit", "config.json", {"dtype": "float99"}, "config.json is not a valid model configuration"),
        ("vit", "preprocessor_config.json", "[1]", "expected a JSON object, got a list"),
        ("vit", "preprocessor_config.json", {"size": [1]}, "size must be a positive number of pixels"),
        ("vit", "preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std: got [0, 0, 0], expected"),
        ("vit", "preprocessor_config.json", {"crop_size": 10**7}, "more than 178956970 pixels"),
        ("align", "preprocessor_config.json", NESTED, "is not a JSON file"),
        ("align", "tokenizer.json", {"model": {"type": "?"}}, "its tokenizer's files can't be read"),
        ("align", "tokenizer_config.json", {"pad_token": 5}, "its tokenizer's files can't be read"),
    ],
)
def test_what_a_stranger_wrote_is_one_message(model, file, change, message, command, align, vit, photos, tmp_path):
    folder = Path(shutil.copytree({"align": align, "vit": vit}[model], tmp_path / "model"))
    if file == "preprocessor_config.json":
        (folder / "processor_config.json").unlink(missing_ok=True)
    if model == "align" and file == "preprocessor_config.json":
        (folder / "tokenizer_config.json").write_text("{}")  # the complete classes read it then
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(change if isinstance(change, str) else json.dumps(content | change))
    labels = ["--labels", "cat,dog"] if model == "align" else []
    code, out, err = command("classify", photos[0], "--model", folder, *labels)
    assert code == 2 and out == "" and message in err and "Traceback" not in err
    code, _, err = command("info", folder)
    assert code in (0, 2) and "Traceback" not in err


def test_no_control_sequence_of_a_stranger_reaches_the_terminal(command, vit, photos, tmp_path):
    names = {str(place): f"\x1b[31m\x9d{place}" for place in range(7)}
    folder = tiny.vit_folder(tmp_path / "model", id2label=names)
    shutil.copy(photos[0], tmp_path / "\x1b]0;x\x07.png")
    (tmp_path / "\x1b[2J.png").write_text("no picture")
    code, out, err = command("classify", tmp_path, "--model", folder)
    assert code == 1 and r"\x1b[31m\x9d" in out and r"\x1b]0;x\x07.png" in out and r"\x1b[2J.png" in err
    assert not any(character in out + err for character in "\x1b\x07\x9d")
    file = Path(folder, "preprocessor_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"\x1b[2J": 50}}))
    code, out, err = command("info", folder)
    assert r"\x1b[2J" in out + err and "\x1b" not in out + err


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b"{}", None])
def test_info_of_a_broken_safetensors_file(command, vit, tmp_path, header):
    (tmp_path / "config.json").write_text(Path(vit, "config.json").read_text())
    weights = Path(vit, "model.safetensors").read_bytes()[:-4]  # a download that stopped
    content = weights if header is None else len(header).to_bytes(8, "little") + header + b"more"
    (tmp_path / "model.safetensors").write_bytes(content)
    code, out, err = command("info", tmp_path)
    assert code == 2 and out == "" and "Is the download complete?" in err


def test_info_of_a_size_of_another_kind(command, vit, tmp_path):
    shutil.copytree(vit, tmp_path / "vit")
    preprocessor = tmp_path / "vit" / "preprocessor_config.json"
    preprocessor.write_text(json.dumps(json.loads(preprocessor.read_text()) | {"size": {"longest_edge": 50}}))
    code, out, _ = command("info", tmp_path / "vit")
    assert code == 0 and "unreadable (size must be" in out and "{'longest_edge': 50}" in out


def through_standard_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_and_output(command, align, photos, tmp_path, monkeypatch):
    data = Path(photos[0]).read_bytes()
    expected = Embedder(align).images(photos[0])
    through_standard_input(monkeypatch, data)
    assert command("embed", "-", "--model", align, "-o", tmp_path / "one.npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "one.npy"), expected)
    through_standard_input(monkeypatch, data)
    result = CliRunner().invoke(app, ["embed", "-", "--model", align, "-o", "-"], input=data)
    assert np.array_equal(np.load(io.BytesIO(result.stdout_bytes)), expected)
    through_standard_input(monkeypatch, b"a cat\r\na dog\n")
    assert command("embed", "-", "--model", align, "-o", tmp_path / "two.npy")[0] == 0
    assert json.loads((tmp_path / "two.names.json").read_text()) == ["a cat", "a dog"]
    through_standard_input(monkeypatch, data)
    arguments = ["--model", align, "--labels", "cat,dog", "--picture", tmp_path / "scores.png"]
    code, out, err = command("classify", "-", photos[1], "--json", *arguments)
    first, second = json.loads(out)
    run = pipeline(model=align, hypothesis_template="This is a photo of {}.")
    assert code == 0 and first["image"] == "-"
    check_scores(first["scores"], run(photos[0], ["cat", "dog"]))
    assert second["image"] == photos[1] and f"wrote {tmp_path / 'scores.png'}" in err
    for data, message in ((b"", "is empty"), (b"no picture at all", "unsupported|not an image")):
        through_standard_input(monkeypatch, data)
        code, out, err = command("classify", "-", "--model", align, "--labels", "cat,dog")
        assert code in (1, 2) and re.search(message, err)


def test_patterns_and_labels_are_answered(command, align, photos, tmp_path):
    pattern = str(Path(photos[0]).parent / "*.png")
    code, out, _ = command("classify", pattern, "--model", align, "--labels", "cat,dog", "--json")
    assert code == 0 and [entry["image"] for entry in json.loads(out)] == photos
    code, out, err = command("classify", photos[0], "--model", align, "--labels", "cat,cat,고양이,🐶", "--json")
    assert code == 0 and len(json.loads(out)[0]["scores"]) == 3
    assert "warning: candidate_labels: 'cat' is there more than once, and counts once\n" in err
    assert re.search(
        r"^warning: the tokenizer of .* knows no word of '고양이', '🐶', so their scores mean nothing", err, re.M
    )
    file = tmp_path / "labels.txt"
    file.write_text("cat\ndog\n")
    code, _, err = command("classify", photos[0], "--model", align, "--labels", file)
    assert code == 2 and "for a file write" in err and "--labels-file" in err
    assert command("classify", photos[0], "--model", align, "--labels", ", ,")[0] == 2
    code, _, err = command("embed", photos[0], "--model", align, "-o", "-", "--json")
    assert code == 2 and "both write to standard output" in " ".join(err.replace("│", " ").split())
    (tmp_path / "folder").mkdir()
    shutil.copy(photos[0], tmp_path / "folder")
    (tmp_path / "folder" / "raw.nef").touch()
    code, _, err = command("embed", tmp_path / "folder", "--model", align, "-o", tmp_path / "out.npy")
    assert (
        code == 0 and "1 image of formats that can't be read was skipped (raw.nef). convert .nef to PNG or JPEG" in err
    )
