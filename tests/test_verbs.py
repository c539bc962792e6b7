"""What commands share."""

import dataclasses

import pytest
import tiny
import typer
from typer.testing import CliRunner

from kakao_models.cli import app
from kakao_models.verbs import ModelOptions, group, model_options

COMMANDS = [
    "classify", "embed", "search", "serve", "demo", "data embed", "index build", "index load", "evaluate zero-shot",
    "evaluate calibration", "evaluate robustness", "evaluate classify", "evaluate retrieval", "evaluate knn",
    "evaluate linear-probe", "evaluate similarity",
]  # fmt: skip


def parameters(command: str) -> dict:
    found = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    return {parameter.name: parameter for parameter in found.params}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_runs_a_model_has_the_same_options(command):
    found, expected = parameters(command), parameters("embed")
    assert "options" not in found
    for name in ("framework", "engine", "dtype", "device"):
        assert (found[name].help, found[name].default) == (expected[name].help, expected[name].default)
        assert found[name].rich_help_panel == "Model"


def test_options_become_one_argument():
    seen, small = [], group("Try it.")

    @small.command()
    @model_options("fast_images", model="align-small")
    def run(word: str, *, options: ModelOptions, loud: bool = False) -> None:
        """Run it."""
        seen.append((word, options, loud))

    @small.command()
    def other() -> None:
        """Do something else."""

    runner = CliRunner()
    assert runner.invoke(small, ["run", "cat", "--loud", "--dtype", "bfloat16", "--batch-size", "4"]).exit_code == 0
    assert runner.invoke(small, ["run", "dog", "-m", "elsewhere", "--revision", "v1"]).exit_code == 0
    assert runner.invoke(small, ["run", "cat", "--fast-images"]).exit_code == 2  # is no option of this command
    options = ModelOptions("align-small", dtype="bfloat16", batch_size=4)
    assert seen == [("cat", options, True), ("dog", ModelOptions("elsewhere", "v1"), False)]
    assert options.arguments() == {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.init and field.name != "model"
    }


ABSENT = {
    "classify": ["absent/", "--labels", "a,b"],
    "embed": ["absent.jpg", "-o", "out.npy"],
    "search": ["--image", "absent.jpg"],
    "index build": ["photos.csv", "absent/"],
    "data embed": ["absent/*.parquet", "-o", "out"],
    "evaluate zero-shot": ["-d", "absent"],
    "evaluate calibration": ["-d", "absent"],
    "evaluate robustness": ["-d", "one=photos.csv", "-d", "other=absent"],
    "evaluate classify": ["-d", "absent"],
    "evaluate retrieval": ["-d", "absent.json"],
    "evaluate knn": ["-d", "photos.csv", "--train", "absent"],
    "evaluate linear-probe": ["-d", "photos.csv", "--train", "absent"],
    "evaluate similarity": ["-d", "absent.json", "--images", ".", "--ratings", "."],
}


@pytest.mark.parametrize("verb", ABSENT)
def test_an_input_that_is_not_there_is_said_before_a_model_is_asked_for(verb, hub, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.csv").write_text("path,label\n")
    code, out, err = command(*verb.split(), *ABSENT[verb], "--model", "someone/absent")
    absent = next(part.partition("=")[2] or part for part in ABSENT[verb] if "absent" in part)
    assert (code, out, err) == (2, "", f"kakao-models: {absent}: no such file or folder\n")
    assert not hub.requests and sorted(tmp_path.iterdir()) == [tmp_path / "photos.csv"]


def test_some_of_the_images_are_not_there(command, tmp_path):
    tiny.picture(0).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", tmp_path / "absent.png", "--labels", "a,b", "--model", "align-small"]
    code, out, err = command("classify", *arguments)
    assert code == 1 and "a.png" in out and f"failed: {tmp_path / 'absent.png'}: no such file or directory" in err
