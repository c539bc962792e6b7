"""What commands share."""

import dataclasses

import pytest
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
    @model_options("fast_images", model="align-tiny")
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
    options = ModelOptions("align-tiny", dtype="bfloat16", batch_size=4)
    assert seen == [("cat", options, True), ("dog", ModelOptions("elsewhere", "v1"), False)]
    assert options.arguments() == {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.init and field.name != "model"
    }
