"""The command `kakao-models evaluate`: one short function per task, no logic of its own."""

from pathlib import Path
from typing import Annotated

import typer

from kakao_models.verbs import (
    DATA_PANEL,
    CaptionColumnOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    ModelOptions,
    group,
    model_options,
    tell,
)

from .options import (
    Cache,
    Classes,
    Data,
    Memory,
    Name,
    NoCache,
    PictureOutput,
    ResultOutput,
    Split,
    Templates,
    Train,
    TrainSplit,
    check_output,
    class_places,
    read_classes,
    rename,
    show,
    start,
    templates_of,
)

app = group("Measure a model: one command per number that papers and cards report.")


@app.command("zero-shot", no_args_is_help=True)
@model_options("fast_images")
def zero_shot(
    data: Data,
    options: ModelOptions,
    classes: Classes = None,
    templates: Templates = "small",
    name: Name = None,
    split: Split = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    picture: PictureOutput = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    max_memory: Memory = 512,
) -> None:
    """Classify by class names: top-1, top-5, per class. --picture draws the confusion matrix.

    [b]Example[/b]

      kakao-models evaluate zero-shot --data imagenet/val --classes clip --templates clip --name imagenet
    """
    check_output(output, picture)
    run = start(options, cache, no_cache, max_memory)
    from kakao_models.evaluate import tasks
    from kakao_models.evaluate.pictures import draw_confusion
    from kakao_models.inference.picture import save_picture

    labelled, names = read_classes(data, split, image_column, label_column, name, classes)
    result, scores = tasks.zero_shot(run, labelled, names, templates_of(templates))
    if picture:
        save_picture(draw_confusion(scores.confusion(), names), picture)
    show(result, output, as_json)


@app.command(no_args_is_help=True)
@model_options("fast_images")
def calibration(
    data: Data,
    options: ModelOptions,
    classes: Classes = None,
    templates: Templates = "small",
    bins: Annotated[int, typer.Option(min=1, help="Of confidence.")] = 15,
    name: Name = None,
    split: Split = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    picture: PictureOutput = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    max_memory: Memory = 512,
) -> None:
    """Compare zero-shot probabilities with how often they are right. --picture draws the reliability diagram.

    [b]Example[/b]

      kakao-models evaluate calibration --data cifar10/test.parquet --model align-tiny --picture reliability.png
    """
    check_output(output, picture)
    run = start(options, cache, no_cache, max_memory)
    from kakao_models.evaluate import tasks
    from kakao_models.evaluate.pictures import draw_reliability
    from kakao_models.inference.picture import save_picture

    labelled, names = read_classes(data, split, image_column, label_column, name, classes)
    result, scores = tasks.calibration(run, labelled, names, templates_of(templates), bins=bins)
    if picture:
        save_picture(draw_reliability(scores), picture)
    show(result, output, as_json)


@app.command(no_args_is_help=True)
@model_options("fast_images")
def robustness(
    data: Annotated[list[str], typer.Option("--data", "-d", help="NAME=PATH, the usual data first; give several.")],
    options: ModelOptions,
    classes: Classes = None,
    templates: Templates = "small",
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    max_memory: Memory = 512,
) -> None:
    """Zero-shot accuracy and calibration on usual and on shifted data, such as ImageNet, -V2, -R and -A.

    Each data set has the classes of its own folders; --classes has to name all of them.

    [b]Example[/b]

      kakao-models evaluate robustness -d imagenet=val -d imagenet-r=imagenet-r --classes imagenet_class_index.json
    """
    check_output(output)
    pairs = [entry.partition("=") for entry in data]
    if any(not path for _, _, path in pairs):
        raise typer.BadParameter("--data: expected NAME=PATH")
    run = start(options, cache, no_cache, max_memory)
    from kakao_models.evaluate import tasks

    sets = [read_classes(path, None, image_column, label_column, name, classes) for name, _, path in pairs]
    show(tasks.robustness(run, sets, templates_of(templates)), output, as_json)


@app.command(no_args_is_help=True)
@model_options("fast_images", model="kakaobrain/vit-large-patch16-384")
def classify(
    data: Data,
    options: ModelOptions,
    class_index: Annotated[
        Path | None,
        typer.Option(exists=True, help="imagenet_class_index.json: which of the model's classes a folder is."),
    ] = None,
    real: Annotated[Path | None, typer.Option(exists=True, help="real.json: ImageNet-ReaL's labels too.")] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Several labels per image, as lists.")] = False,
    name: Name = None,
    split: Split = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    picture: PictureOutput = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """Measure a model's own classifier: top-1, top-5, ImageNet-ReaL, or mean average precision of many labels.

    [b]Example[/b]

      kakao-models evaluate classify --data imagenet/val --real real.json --name imagenet
    """
    check_output(output, picture)
    run = start(options, cache, no_cache, 512)
    from kakao_models.evaluate import read_class_index, read_labelled, read_many_labels, tasks
    from kakao_models.evaluate.pictures import draw_confusion
    from kakao_models.inference.picture import save_picture

    columns = dict(split=split, image_column=image_column, label_column=label_column)
    if multi_label:
        found, images, labels = read_many_labels(data, **columns)
        show(tasks.multi_label(run, name or found, images, labels), output, as_json)
        return
    labelled = rename(read_labelled(data, **columns), name)
    places = class_places(read_class_index(class_index), labelled.keys) if class_index else None
    result, scores = tasks.classify(run, labelled, columns=places, real=real)
    if picture:
        names = labelled.keys if places else None  # else classes are the model's, in its order
        save_picture(draw_confusion(scores.confusion(), names), picture)
    show(result, output, as_json)


@app.command(no_args_is_help=True)
@model_options("fast_images")
def retrieval(
    data: Data,
    options: ModelOptions,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The folder of the images of Karpathy's .json.")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=1, help="Images of a fold, such as 1000 for COCO 1K.")] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="Captions of each image; by default all.")] = None,
    caption_column: CaptionColumnOption = None,
    name: Name = None,
    split: Split = None,
    image_column: ImageColumnOption = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    max_memory: Memory = 512,
) -> None:
    """Captions of images and images of captions: recall at 1, 5, 10, mean and median rank.

    [b]Example[/b]

      kakao-models evaluate retrieval --data dataset_coco.json --images coco/val2014 --name coco
    """
    check_output(output)
    run = start(options, cache, no_cache, max_memory)
    from kakao_models.evaluate import read_captioned, tasks

    columns = dict(image_column=image_column, caption_column=caption_column)
    captioned = rename(read_captioned(data, split=split, images=images, per_image=captions, **columns), name)
    show(tasks.retrieval(run, captioned, fold_size=folds), output, as_json)


@app.command(no_args_is_help=True)
@model_options("fast_images")
def knn(
    data: Data,
    train: Train,
    options: ModelOptions,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours; more than 1 are weighted.")] = 1,
    name: Name = None,
    split: Split = None,
    train_split: TrainSplit = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    max_memory: Memory = 512,
) -> None:
    """Labels of the nearest training images.

    [b]Example[/b]

      kakao-models evaluate knn --train imagenet/train --data imagenet/val --name imagenet
    """
    check_output(output)
    run = start(options, cache, no_cache, max_memory)
    from kakao_models.evaluate import read_labelled, tasks

    columns = dict(image_column=image_column, label_column=label_column)
    training = read_labelled(train, split=train_split or split, **columns)
    test = rename(read_labelled(data, split=split, **columns), name)
    show(tasks.knn(run, training, test, k=k), output, as_json)


@app.command("linear-probe", no_args_is_help=True)
@model_options("fast_images")
def linear_probe(
    data: Data,
    train: Train,
    options: ModelOptions,
    vtab: Annotated[bool, typer.Option("--vtab", help="VTAB-1k's protocol: 800 + 200 training images.")] = False,
    solver: Annotated[str, typer.Option(help="lbfgs, or sgd for large data.")] = "lbfgs",
    scale: Annotated[str, typer.Option(help="Features: standard, l2 or none.")] = "standard",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions with other splits.")] = 3,
    name: Name = None,
    split: Split = None,
    train_split: TrainSplit = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
) -> None:
    """A logistic regression on frozen features, with its confidence interval.

    [b]Example[/b]

      kakao-models evaluate linear-probe --train cifar10/train.parquet --data cifar10/test.parquet --model align-tiny
    """
    check_output(output)
    run = start(options, cache, no_cache, 512)
    from kakao_models.evaluate import read_labelled, tasks

    columns = dict(image_column=image_column, label_column=label_column)
    training = read_labelled(train, split=train_split or split, **columns)
    test = rename(read_labelled(data, split=split, **columns), name)
    result = tasks.linear_probe(run, training, test, vtab=vtab, solver=solver, scale=scale, seeds=tuple(range(seeds)))
    show(result, output, as_json)


@app.command(no_args_is_help=True)
@model_options("fast_images")
def similarity(
    data: Annotated[
        str, typer.Option("--data", "-d", help="Karpathy's dataset_coco.json.", rich_help_panel=DATA_PANEL)
    ],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of COCO's val2014 images.")],
    ratings: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder of sts_test.csv and so on.")],
    options: ModelOptions,
    split: Annotated[str, typer.Option(help="val or test.", rich_help_panel=DATA_PANEL)] = "test",
    positive: Annotated[float, typer.Option(help="Pairs rated so count as right answers in retrieval.")] = 3.0,
    name: Name = "cxc",
    output: ResultOutput = None,
    as_json: JsonOption = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    max_memory: Memory = 512,
) -> None:
    """Crisscrossed Captions: correlation with people's ratings (STS, SIS, SITS) and four retrieval tasks.

    [b]Example[/b]

      kakao-models evaluate similarity --data dataset_coco.json --images coco/val2014 --ratings cxc/data
    """
    check_output(output)
    run = start(options, cache, no_cache, max_memory)
    from kakao_models.evaluate import read_captioned, read_ratings, tasks

    files = {kind: ratings / f"{kind}_{split}.csv" for kind in ("sts", "sis", "sits")}
    rated = {kind: read_ratings(path) for kind, path in files.items() if path.is_file()}
    if not rated:
        raise ValueError(f"{ratings}: found none of {', '.join(path.name for path in files.values())}")
    captioned = rename(read_captioned(data, split=split, images=images), name)
    show(tasks.similarity(run, captioned, rated, positive=positive), output, as_json)


@app.command(no_args_is_help=True)
def report(
    files: Annotated[list[Path], typer.Argument(metavar="RESULTS", exists=True, help="Files that -o wrote.")],
    form: Annotated[str, typer.Option("--format", "-f", help="markdown, html or model-index.")] = "markdown",
    published: Annotated[bool, typer.Option(help="Add published figures for the same data.")] = True,
    everything: Annotated[bool, typer.Option("--all", help="All metrics.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the table here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results themselves as JSON.")] = False,
) -> None:
    """Several results as one table, beside published figures and their sources.

    [b]Example[/b]

      kakao-models evaluate report results/*.json --format html -o report.html
    """
    from kakao_models.evaluate import Result, html_report, markdown_report, model_index
    from kakao_models.files.atomic import write_text

    makers = {
        "markdown": lambda results: markdown_report(results, published=published, everything=everything),
        "html": lambda results: html_report(results, published=published, everything=everything),
        "model-index": model_index,
    }
    if form not in makers:
        raise typer.BadParameter(f"--format {form}: expected {', '.join(makers)}")
    check_output(output)
    results = [Result.read(path) for path in files]
    text = makers[form](results)
    if output:
        write_text(output, text)
    if as_json or not output:
        tell([result.as_dict() for result in results], text.rstrip("\n"), as_json)
