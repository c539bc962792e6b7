"""The command `kakao-models evaluate`: one short function per task, without logic."""

import functools
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from kakao_models.lazy import is_installed
from kakao_models.verbs import (
    DATA_PANEL,
    MODEL_PANEL,
    STANDARD,
    CaptionColumnOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    ModelOptions,
    check_file,
    check_picture,
    check_sources,
    group,
    listed,
    model_options,
    say_written,
    tell,
    write_picture,
)

if TYPE_CHECKING:
    from kakao_models.evaluate.datasets import Captioned, Labelled
    from kakao_models.evaluate.pairs import Pairs
    from kakao_models.evaluate.results import Result

app = group("Evaluate a model: one command for each kind of result in papers and model cards.")

Dataset = TypeVar("Dataset", bound="Labelled | Captioned | Pairs")
_model = functools.partial(typer.Option, rich_help_panel=MODEL_PANEL)
_data = functools.partial(typer.Option, rich_help_panel=DATA_PANEL)
_SOURCES = "Evaluation data: a folder of class folders, a table, shards, or a data set of `datasets`."
Cache = Annotated[Path | None, _model(help="Folder that caches embeddings; by default one in the user's cache.")]
NoCache = Annotated[bool, _model("--no-cache", help="Do not cache embeddings.")]
Memory = Annotated[int, _model(min=1, help="Memory for tiles of similarities, in MiB.")]
Data = Annotated[str, _data("--data", "-d", help=_SOURCES)]
Split = Annotated[str | None, _data(help="Split of the data set, if it has several.")]
Name = Annotated[str | None, _data(help="Name of the data in the results, such as imagenet.")]
Classes = Annotated[str | None, _data(help="File of class names, or clip for CLIP's names of the ImageNet classes.")]
Templates = Annotated[
    str,
    _data(
        help="Prompt templates: small, clip (80), clip-simple (7), a file, or one template such as 'a photo of a {}.'"
    ),
]
ResultOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write results.json here; - for standard output.")
]
PictureOutput = Annotated[Path | None, typer.Option(help="Also draw a figure into this .png or .jpg.")]
Train = Annotated[str, _data(help="Training data, in any form that --data accepts.")]
TrainSplit = Annotated[str | None, _data(help="Split of --train; by default the value of --split.")]


@dataclass
class TaskOptions(ModelOptions):
    """Options of a task: the model, the data, and where results and embeddings go."""

    name: Name = None
    split: Split = None
    image_column: ImageColumnOption = None
    label_column: LabelColumnOption = None
    output: ResultOutput = None
    as_json: JsonOption = False
    cache: Cache = None
    no_cache: NoCache = False
    max_memory: Memory = 512

    def start(self, *data: str, picture: Path | None = None):
        """The `TaskRun` of these options. Missing data and outputs that could not be written are refused first."""
        check_picture(picture)
        if picture and not is_installed("matplotlib"):
            raise ImportError("--picture needs matplotlib: pip install 'kakao-models[evaluate]'")
        check_file("--output", self.output, standard=True)
        check_sources(*data)
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
        from kakao_models.evaluate.class_names import class_names_of

        labelled = self.labelled(data)
        return labelled, class_names_of(labelled.keys, classes, data)

    def rename(self, data: Dataset) -> Dataset:
        return replace(data, name=self.name) if self.name else data

    def show(self, result: "Result") -> None:
        """Writes the result to --output, and prints it as a table or as JSON."""
        to_stdout = str(self.output) == STANDARD
        if self.output and not to_stdout:
            result.write(self.output)
        if self.as_json or to_stdout:
            print(result.to_json())
            return
        from kakao_models.evaluate.report import markdown_report

        print(markdown_report([result], everything=True))
        if result.counts:
            print(json.dumps(result.counts)[1:-1].replace('"', ""), file=sys.stderr)


@app.command("zero-shot", no_args_is_help=True)
@model_options("fast_images", "srgb")
def zero_shot(
    data: Data,
    options: TaskOptions,
    classes: Classes = None,
    templates: Templates = "small",
    picture: PictureOutput = None,
) -> None:
    """Classify by class names: top-1, top-5, per class. --picture draws the confusion matrix.

    [b]Example[/b]

      kakao-models evaluate zero-shot --data imagenet/val --classes clip --templates clip --name imagenet
    """
    run = options.start(data, picture=picture)
    from kakao_models.evaluate import read_templates, tasks

    labelled, names = options.labelled_and_class_names(data, classes)
    result, scores = tasks.zero_shot(
        run, labelled, names, read_templates(templates), {"class_names": classes, "templates": templates}
    )
    if picture:
        from kakao_models.evaluate.pictures import draw_confusion

        write_picture(draw_confusion(scores.confusion(), names), picture)
    options.show(result)


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb")
def calibration(
    data: Data,
    options: TaskOptions,
    classes: Classes = None,
    templates: Templates = "small",
    bins: Annotated[int, typer.Option(min=1, help="Number of bins of confidence.")] = 15,
    picture: PictureOutput = None,
) -> None:
    """Compare zero-shot probabilities with how often they are right. --picture draws the reliability diagram.

    [b]Example[/b]

      kakao-models evaluate calibration --data cifar10/test.parquet --model align-small --picture reliability.png
    """
    run = options.start(data, picture=picture)
    from kakao_models.evaluate import read_templates, tasks

    labelled, names = options.labelled_and_class_names(data, classes)
    result, scores = tasks.calibration(
        run, labelled, names, read_templates(templates), {"class_names": classes, "templates": templates}, bins=bins
    )
    if picture:
        from kakao_models.evaluate.pictures import draw_reliability

        write_picture(draw_reliability(scores), picture)
    options.show(result)


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb", "max_memory")
def relevance(
    data: Data,
    options: TaskOptions,
    labelled: Annotated[
        bool, _data("--labelled", help="Read one label per image, as for zero-shot; by default captions are read.")
    ] = False,
    caption_column: CaptionColumnOption = None,
    words: Annotated[
        Path | None,
        _data(
            "--words",
            exists=True,
            help="File of words to look for in captions, one per line; by default English nouns.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the calibration to this file. To use it, put it into the model's folder as calibration.json."
        ),
    ] = None,
) -> None:
    """Calibrate the probability that a text fits an image, and measure its error on held-out words and images.

    A word fits an image if a caption of the image has it. The calibration is fitted to all words and images. Its error is the
    mean over ten random halves: fitted to one half, measured on the other. With a calibrated model, search and classify accept
    --min-relevance, and requests to serve min_relevance. Use images that the model was not trained on, such as a thousand with
    five captions each.

    [b]Example[/b]

      kakao-models evaluate relevance --data captioned.parquet --model ./my-align --save my-align/calibration.json
    """
    check_file("--save", save)
    run = options.start(data)
    from kakao_models.evaluate import read_captioned, tasks
    from kakao_models.evaluate.relevance import captioned_pairs, labelled_pairs
    from kakao_models.files.lines import lines_of

    if labelled:
        read = options.labelled(data).labelled()
        pairs = labelled_pairs(read.labels, read.keys)
    else:
        read = read_captioned(
            data, split=options.split, image_column=options.image_column, caption_column=caption_column
        )
        read, captions = options.rename(read), dict[object, list[str]]()
        for caption, image in zip(read.captions, read.caption_images):
            captions.setdefault(image, []).append(caption)
        listed = lines_of(words) if words else None
        pairs = captioned_pairs([captions[image] for image in read.image_ids], listed)
    result, fitted = tasks.relevance(run, read.name, read.images, pairs)
    if save:
        fitted.write(save)
        say_written(save)
    options.show(result)


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb", "name", "split")
def robustness(
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="Data set as NAME=PATH; may be repeated, the original data first.")
    ],
    options: TaskOptions,
    classes: Classes = None,
    templates: Templates = "small",
) -> None:
    """Compare zero-shot accuracy and calibration on original and shifted data, such as ImageNet, -V2, -R and -A.

    The classes of a data set are its own folders; --classes has to name all of them.

    [b]Example[/b]

      kakao-models evaluate robustness -d imagenet=val -d imagenet-r=imagenet-r --classes imagenet_class_index.json
    """
    pairs = [entry.partition("=") for entry in data]
    if any(not path for _, _, path in pairs):
        raise typer.BadParameter("--data: expected NAME=PATH")
    run = options.start(*(path for _, _, path in pairs))
    from kakao_models.evaluate import read_templates, tasks

    sets = [replace(options, name=name).labelled_and_class_names(path, classes) for name, _, path in pairs]
    lists = {"class_names": classes, "templates": templates}
    options.show(tasks.robustness(run, sets, read_templates(templates), lists))


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb", "max_memory", model="kakaobrain/vit-large-patch16-384")
def classify(
    data: Data,
    options: TaskOptions,
    class_index: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="File that maps class folders to the model's classes, such as imagenet_class_index.json."
        ),
    ] = None,
    real: Annotated[
        Path | None, typer.Option(exists=True, help="real.json of ImageNet-ReaL: also score against its labels.")
    ] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Read a list of labels per image, and measure mean average precision.")
    ] = False,
    picture: PictureOutput = None,
) -> None:
    """Measure a model's own classifier: top-1, top-5, ImageNet-ReaL, or mean average precision of many labels.

    [b]Example[/b]

      kakao-models evaluate classify --data imagenet/val --real real.json --name imagenet
    """
    run = options.start(data, picture=picture)
    from kakao_models.evaluate import read_many_labels, tasks
    from kakao_models.evaluate.class_names import class_places

    if multi_label:
        name, images, labels = read_many_labels(data, **options.columns())
        options.show(tasks.multi_label(run, options.name or name, images, labels))
        return
    labelled = options.labelled(data)
    columns = class_places(class_index, labelled.keys) if class_index else None
    result, scores = tasks.classify(run, labelled, columns=columns, real=real)
    if picture:
        names = labelled.keys if columns else None  # else classes are the model's, in its order
        from kakao_models.evaluate.pictures import draw_confusion

        write_picture(draw_confusion(scores.confusion(), names), picture)
    options.show(result)


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb", "label_column")
def retrieval(
    data: Data,
    options: TaskOptions,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of the images that Karpathy's .json names."),
    ] = None,
    folds: Annotated[int | None, typer.Option(min=1, help="Images per fold, such as 1000 for COCO 1K.")] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="Number of captions per image; by default all.")] = None,
    caption_column: CaptionColumnOption = None,
) -> None:
    """Retrieve captions by image and images by caption: recall at 1, 5, 10, mean and median rank.

    [b]Example[/b]

      kakao-models evaluate retrieval --data dataset_coco.json --images coco/val2014 --name coco
    """
    run = options.start(data)
    from kakao_models.evaluate import read_captioned, tasks

    captioned = read_captioned(
        data,
        split=options.split,
        images=images,
        image_column=options.image_column,
        caption_column=caption_column,
        per_image=captions,
    )
    options.show(tasks.retrieval(run, options.rename(captioned), fold_size=folds))


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb", "image_column", "label_column", "max_memory")
def pairs(
    data: Data,
    options: TaskOptions,
    image_columns: Annotated[
        str | None, _data(help="Columns of a set's images, with commas: image_0,image_1. Usual names are recognised.")
    ] = None,
    caption_columns: Annotated[str | None, _data(help="Columns of its captions, in the same order.")] = None,
    group_column: Annotated[
        str | None, _data(help="Column with the category of each set, for scores per category.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the images that a .json names.")
    ] = None,
) -> None:
    """Match images and captions that differ in few words: text, image and group score (Winoground, SugarCrepe, ARO, MMVP).

    [b]Example[/b]

      kakao-models evaluate pairs --data winoground/test.parquet --group-column collapsed_tag --name winoground
    """
    run = options.start(data)
    from kakao_models.evaluate import read_pairs, tasks

    read = read_pairs(
        data,
        split=options.split,
        image_columns=listed(image_columns),
        caption_columns=listed(caption_columns),
        group_column=group_column,
        images=images,
    )
    options.show(tasks.pairs(run, options.rename(read)))


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb")
def knn(
    data: Data,
    train: Train,
    options: TaskOptions,
    k: Annotated[
        int, typer.Option("-k", min=1, help="Number of neighbours; with more than 1, votes are weighted by similarity.")
    ] = 1,
    train_split: TrainSplit = None,
) -> None:
    """Classify by the labels of the nearest training images.

    [b]Example[/b]

      kakao-models evaluate knn --train imagenet/train --data imagenet/val --name imagenet
    """
    run = options.start(data, train)
    from kakao_models.evaluate import tasks

    options.show(tasks.knn(run, *options.training_and_test(train, train_split, data), k=k))


@app.command("linear-probe", no_args_is_help=True)
@model_options("fast_images", "srgb", "max_memory")
def linear_probe(
    data: Data,
    train: Train,
    options: TaskOptions,
    vtab: Annotated[
        bool, typer.Option("--vtab", help="Follow VTAB-1k: train on 800 images, choose the strength on 200.")
    ] = False,
    solver: Annotated[str, typer.Option(help="Solver: lbfgs, or sgd for large data.")] = "lbfgs",
    scale: Annotated[str, typer.Option(help="Scaling of features: standard, l2 or none.")] = "standard",
    seeds: Annotated[int, typer.Option(min=1, help="Number of repetitions with other splits.")] = 3,
    train_split: TrainSplit = None,
) -> None:
    """Train a logistic regression on frozen features, and report its accuracy with a confidence interval.

    [b]Example[/b]

      kakao-models evaluate linear-probe --train cifar10/train.parquet --data cifar10/test.parquet --model align-small
    """
    run = options.start(data, train)
    from kakao_models.evaluate import tasks

    sets = options.training_and_test(train, train_split, data)
    options.show(tasks.linear_probe(run, *sets, vtab=vtab, solver=solver, scale=scale, seeds=tuple(range(seeds))))


@app.command(no_args_is_help=True)
@model_options("fast_images", "srgb", "split", "image_column", "label_column", name="cxc")
def similarity(
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", help="File of captions: Karpathy's dataset_coco.json.", rich_help_panel=DATA_PANEL
        ),
    ],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of COCO's val2014 images.")],
    ratings: Annotated[
        Path,
        typer.Option(exists=True, file_okay=False, help="Folder with sts_test.csv, sis_test.csv and sits_test.csv."),
    ],
    options: TaskOptions,
    split: Annotated[str, typer.Option(help="Split: val or test.", rich_help_panel=DATA_PANEL)] = "test",
    positive: Annotated[
        float, typer.Option(help="Lowest rating of a pair that counts as a right answer in retrieval.")
    ] = 3.0,
) -> None:
    """Evaluate on Crisscrossed Captions: correlation with human ratings (STS, SIS, SITS), four retrieval tasks.

    [b]Example[/b]

      kakao-models evaluate similarity --data dataset_coco.json --images coco/val2014 --ratings cxc/data
    """
    run = options.start(data)
    from kakao_models.evaluate import read_captioned, read_ratings, tasks

    files = {kind: ratings / f"{kind}_{split}.csv" for kind in ("sts", "sis", "sits")}
    rated = {kind: read_ratings(path) for kind, path in files.items() if path.is_file()}
    if not rated:
        raise ValueError(
            f"{ratings}: expected a folder with at least one of {', '.join(path.name for path in files.values())}"
        )
    captioned = options.rename(read_captioned(data, split=split, images=images))
    options.show(tasks.similarity(run, captioned, rated, positive=positive))


@app.command(no_args_is_help=True)
@model_options("fast_images")
def audit(
    data: Data,
    attribute_column: Annotated[str, _data(help="Column with the group of each image.")],
    options: TaskOptions,
    classes: Classes = None,
    templates: Templates = "small",
    queries: Annotated[
        Path | None,
        typer.Option(exists=True, help="File of texts that name no group, one per line; adds MaxSkew@k and NDKL."),
    ] = None,
    harmful: Annotated[
        Path | None,
        typer.Option(exists=True, help="File of harmful labels, one per line; adds the rate at which they are given."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of top results that count for MaxSkew@k.")] = 100,
    expected: Annotated[
        str, typer.Option(help="Expected share of a group: data (its share of all images) or uniform.")
    ] = "data",
    samples: Annotated[int, typer.Option(min=1, help="Number of bootstrap samples for intervals.")] = 1000,
    card: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Model card whose bias section gets the table.")
    ] = None,
) -> None:
    """Compare groups of images: recall, harmful labels, share of the first results (MaxSkew@k, NDKL), with intervals.

    [b]Example[/b]

      kakao-models evaluate audit --data people.parquet --attribute-column age --queries jobs.txt --harmful words.txt
    """
    run = options.start(data)
    from kakao_models.evaluate import audit_table, read_grouped, read_templates, tasks
    from kakao_models.evaluate.audit import fill_card
    from kakao_models.evaluate.class_names import class_names_of
    from kakao_models.files.lines import lines_of

    grouped = read_grouped(data, attribute_column, **options.columns())
    grouped = replace(grouped, labelled=options.rename(grouped.labelled))
    keys = grouped.labelled.keys
    names = class_names_of(keys, classes, data) if keys else lines_of(classes) if classes else []
    lists = {"class_names": classes, "templates": templates, "queries": queries, "harmful": harmful}
    result = tasks.audit(
        *(run, grouped, read_templates(templates), names),
        queries=lines_of(queries) if queries else (),
        harmful=lines_of(harmful) if harmful else (),
        k=k,
        expected=expected,
        samples=samples,
        lists={name: str(path) for name, path in lists.items() if path},
    )
    table = audit_table(result)
    if card:
        fill_card(card, table.replace("### ", "#### "))
    to_stdout = str(options.output) == STANDARD
    if options.output and not to_stdout:
        result.write(options.output)
    tell(result.as_dict(), table.rstrip("\n"), options.as_json or to_stdout)


@app.command(no_args_is_help=True)
@model_options("fast_images", "name", "split", "image_column", "label_column", "cache", "no_cache", "max_memory")
def mieb(
    tasks: Annotated[
        str,
        typer.Option(
            help="Names of mteb tasks, separated by commas; published: all with a published result of kakaobrain/align-base."
        ),
    ],
    options: TaskOptions,
) -> None:
    """Run tasks of mteb's image benchmark (MIEB), and compare with the published results of kakaobrain/align-base.

    This needs mteb, and downloads the data sets from the Hugging Face Hub.

    [b]Example[/b]

      kakao-models evaluate mieb --tasks CIFAR10ZeroShot,Winoground -o results/mieb.json
    """
    options.prepare()
    from kakao_models.evaluate.mteb import run_tasks, task_names

    options.show(run_tasks(options.open(), task_names(tasks), batch_size=options.batch_size))


@app.command(no_args_is_help=True)
def report(
    files: Annotated[list[Path], typer.Argument(metavar="RESULTS", exists=True, help="Result files, written by -o.")],
    form: Annotated[str, typer.Option("--format", "-f", help="Format: markdown, html or model-index.")] = "markdown",
    published: Annotated[bool, typer.Option(help="Add published figures for the same data.")] = True,
    everything: Annotated[bool, typer.Option("--all", help="Show all metrics.")] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Released checkpoint whose figures the results are compared with, such as kakaobrain/align-base. By "
            "default it follows from the model's name."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table here; - for standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Show several results in one table, beside published figures and their sources.

    Figures of a released checkpoint are marked: reproduced, not reproduced, or other protocol.

    [b]Example[/b]

      kakao-models evaluate report results/*.json --format html -o report.html
    """
    from kakao_models.evaluate import Result, html_report, markdown_report, model_index
    from kakao_models.evaluate.published import verdicts
    from kakao_models.files.atomic import write_text

    shown = dict(published=published, everything=everything, checkpoint=checkpoint)
    makers = {
        "markdown": functools.partial(markdown_report, **shown),
        "html": functools.partial(html_report, **shown),
        "model-index": model_index,
    }
    if form not in makers:
        raise typer.BadParameter(f"--format {form}: expected {', '.join(makers)}")
    check_file("--output", output, standard=True)
    results = [Result.read(path) for path in files]
    text = makers[form](results)
    to_stdout = str(output) == STANDARD
    if output and not to_stdout:
        write_text(output, text)
    if as_json or to_stdout or not output:
        judged = [verdicts(result, checkpoint) if published else {} for result in results]
        shown_results = [
            result.as_dict() | ({"verdicts": {name: asdict(v) for name, v in found.items()}} if found else {})
            for result, found in zip(results, judged)
        ]
        tell(shown_results, text.rstrip("\n"), as_json)
