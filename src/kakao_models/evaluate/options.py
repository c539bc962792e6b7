"""Options that several tasks of `kakao-models evaluate` share, and what every task does before and after."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from kakao_models.verbs import DATA_PANEL, MODEL_PANEL, ModelOptions, check_file, check_picture

if TYPE_CHECKING:
    from kakao_models.evaluate.datasets import Captioned, Labelled
    from kakao_models.evaluate.results import Result

Data_ = TypeVar("Data_", bound="Labelled | Captioned")
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Where embeddings are kept, by content; default: in the user's cache.", rich_help_panel=MODEL_PANEL
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings.", rich_help_panel=MODEL_PANEL)]
Memory = Annotated[int, typer.Option(min=1, help="MiB for tiles of similarities.", rich_help_panel=MODEL_PANEL)]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="A folder of class folders, a table, shards, or a data set of `datasets`.",
        rich_help_panel=DATA_PANEL,
    ),
]
Split = Annotated[str | None, typer.Option(help="Part of a data set that has several.", rich_help_panel=DATA_PANEL)]
Name = Annotated[
    str | None, typer.Option(help="What results call the data, such as imagenet.", rich_help_panel=DATA_PANEL)
]
Classes = Annotated[
    str | None,
    typer.Option(help="A file of class names, or clip for CLIP's of ImageNet.", rich_help_panel=DATA_PANEL),
]
Templates = Annotated[
    str, typer.Option(help="small, clip (80), clip-simple (7), or a file.", rich_help_panel=DATA_PANEL)
]
ResultOutput = Annotated[Path | None, typer.Option("--output", "-o", help="Write results.json here.")]
PictureOutput = Annotated[Path | None, typer.Option(help="Also draw a picture, into this .png or .jpg.")]
Train = Annotated[str, typer.Option(help="The training data, as --data.", rich_help_panel=DATA_PANEL)]
TrainSplit = Annotated[str | None, typer.Option(help="As --split, of --train.", rich_help_panel=DATA_PANEL)]


def start(options: ModelOptions, cache: Path | None, no_cache: bool, max_memory: int):
    """What every task runs on, with `max_memory` MiB for tiles of similarities."""
    options.prepare()
    from kakao_models.evaluate.cache import CachedEmbedder
    from kakao_models.evaluate.tasks import TaskRun

    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = None if no_cache else cache or Path(home, "kakao-models", "embeddings")
    return TaskRun(CachedEmbedder(options.open(), folder), max_memory=max_memory * 2**20)


def read_classes(
    data: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    name: str | None,
    classes: str | None,
):
    from kakao_models.evaluate import read_class_names, read_labelled

    found = read_labelled(data, split=split, image_column=image_column, label_column=label_column)
    names = read_class_names(classes, found.keys) if classes else [key.replace("_", " ") for key in found.keys]
    if not classes and all(key.isdigit() or (key[:1] == "n" and key[1:].isdigit()) for key in found.keys):
        raise ValueError(
            f"{data}: its classes are called {', '.join(found.keys[:3])}, ...: give their names (--classes)"
        )
    return rename(found, name), names


def rename(data: Data_, name: str | None) -> Data_:
    from dataclasses import replace

    return replace(data, name=name) if name else data


def templates_of(source: str) -> tuple[str, ...]:
    from kakao_models.evaluate import read_templates

    return read_templates(source)


def class_places(index: dict[str, int], keys: list[str]) -> list[int]:
    missing = [key for key in keys if key not in index]
    if missing:
        raise ValueError(
            f"--class-index names none of the model's classes for {len(missing)} folders, such as {missing[0]}"
        )
    return [index[key] for key in keys]


def check_output(output: Path | None, picture: Path | None = None) -> None:
    """What would fail only after the work is done."""
    check_picture(picture)
    check_file("--output", output)


def show(result: "Result", output: Path | None, as_json: bool) -> None:
    if output:
        result.write(output)
    if as_json:
        print(result.to_json())
        return
    from kakao_models.evaluate.report import markdown_report

    print(markdown_report([result], everything=True))
    if result.counts:
        print(json.dumps(result.counts)[1:-1].replace('"', ""), file=sys.stderr)
