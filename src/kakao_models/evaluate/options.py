"""Options that several tasks of `kakao-models evaluate` share, and what every task does before and after."""

import functools
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from kakao_models.verbs import (
    DATA_PANEL,
    MODEL_PANEL,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    ModelOptions,
    check_file,
    check_picture,
)

if TYPE_CHECKING:
    from kakao_models.evaluate.datasets import Captioned, Labelled
    from kakao_models.evaluate.results import Result

Dataset = TypeVar("Dataset", bound="Labelled | Captioned")
_model = functools.partial(typer.Option, rich_help_panel=MODEL_PANEL)
_data = functools.partial(typer.Option, rich_help_panel=DATA_PANEL)
_SOURCES = "A folder of class folders, a table, shards, or a data set of `datasets`."
Cache = Annotated[Path | None, _model(help="Folder of kept embeddings, by content; default: in the user's cache.")]
NoCache = Annotated[bool, _model("--no-cache", help="Keep no embeddings.")]
Memory = Annotated[int, _model(min=1, help="MiB for tiles of similarities.")]
Data = Annotated[str, _data("--data", "-d", help=_SOURCES)]
Split = Annotated[str | None, _data(help="Part of a data set that has several.")]
Name = Annotated[str | None, _data(help="Name of the data in the results, such as imagenet.")]
Classes = Annotated[str | None, _data(help="A file of class names, or clip for CLIP's of ImageNet.")]
Templates = Annotated[str, _data(help="small, clip (80), clip-simple (7), or a file.")]
ResultOutput = Annotated[Path | None, typer.Option("--output", "-o", help="Write results.json here.")]
PictureOutput = Annotated[Path | None, typer.Option(help="Also draw a picture, into this .png or .jpg.")]
Train = Annotated[str, _data(help="The training data, in any form that --data takes.")]
TrainSplit = Annotated[str | None, _data(help="Part of --train; by default that of --split.")]


@dataclass
class TaskOptions(ModelOptions):
    """Which model a task measures, on which data, and where results and embeddings go."""

    name: Name = None
    split: Split = None
    image_column: ImageColumnOption = None
    label_column: LabelColumnOption = None
    output: ResultOutput = None
    as_json: JsonOption = False
    cache: Cache = None
    no_cache: NoCache = False
    max_memory: Memory = 512

    def start(self, picture: Path | None = None):
        """The `TaskRun` of these options. Outputs that could not be written are refused first."""
        check_picture(picture)
        check_file("--output", self.output)
        self.prepare()
        from kakao_models.evaluate.cache import CachedEmbedder
        from kakao_models.evaluate.tasks import TaskRun

        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = None if self.no_cache else self.cache or Path(home, "kakao-models", "embeddings")
        return TaskRun(CachedEmbedder(self.open(), folder), max_memory=self.max_memory * 2**20)

    def columns(self) -> dict[str, str | None]:
        """Arguments of `read_labelled` and `read_many_labels` beside the source."""
        return {"split": self.split, "image_column": self.image_column, "label_column": self.label_column}

    def labelled(self, data: str) -> "Labelled":
        """A data set for classification."""
        from kakao_models.evaluate import read_labelled

        return self.rename(read_labelled(data, **self.columns()))

    def training_and_test(self, train: str, train_split: str | None, data: str) -> tuple["Labelled", "Labelled"]:
        """The data sets of --train and --data."""
        return replace(self, split=train_split or self.split, name=None).labelled(train), self.labelled(data)

    def labelled_and_class_names(self, data: str, classes: str | None) -> tuple["Labelled", list[str]]:
        """A data set for classification, and the names of its classes: from a file, or those that the data have."""
        from kakao_models.evaluate import read_class_names

        labelled = self.labelled(data)
        keys = labelled.keys
        if classes:
            return labelled, read_class_names(classes, keys)
        if all(key.isdigit() or (key[:1] == "n" and key[1:].isdigit()) for key in keys):
            raise ValueError(f"{data}: its classes are called {', '.join(keys[:3])}, ...: give their names (--classes)")
        return labelled, [key.replace("_", " ") for key in keys]

    def rename(self, data: Dataset) -> Dataset:
        return replace(data, name=self.name) if self.name else data

    def show(self, result: "Result") -> None:
        """Writes the result to --output, and prints it as a table or as JSON."""
        if self.output:
            result.write(self.output)
        if self.as_json:
            print(result.to_json())
            return
        from kakao_models.evaluate.report import markdown_report

        print(markdown_report([result], everything=True))
        if result.counts:
            print(json.dumps(result.counts)[1:-1].replace('"', ""), file=sys.stderr)
