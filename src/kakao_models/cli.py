"""The command `kakao-models`: one short function per verb, without logic. What verbs share is in verbs.py."""

import csv
import functools
import os
import sys
import warnings
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from kakao_models import __version__
from kakao_models.data.cli import app as data_app
from kakao_models.demo.cli import demo
from kakao_models.evaluate.cli import app as evaluate_app
from kakao_models.export.cli import export
from kakao_models.files.lines import lines_in, lines_of
from kakao_models.files.sizes import parse_bytes
from kakao_models.search.cli import app as index_app, search
from kakao_models.serve.cli import serve
from kakao_models.train.cli import app as train_app
from kakao_models.verbs import (
    BUNDLED_MODEL,
    DEFAULT_MODEL,
    STANDARD,
    CalibrationOption,
    JsonOption,
    ModelArgument,
    ModelOptions,
    RelevanceOption,
    RevisionOption,
    check_images,
    check_picture,
    finish,
    given,
    group,
    model_options,
    on_screen,
    prepare,
    read_sources,
    say_written,
    tell,
)
from kakao_models.warn import KakaoWarning

_file = functools.partial(typer.Option, exists=True, dir_okay=False)
_upload = functools.partial(typer.Option, rich_help_panel="Upload")
PushOption = Annotated[str | None, _upload(metavar="REPO", help="Upload the folder once it is verified.")]
PrivateOption = Annotated[bool, _upload(help="Make a private repository.")]
CreatePrOption = Annotated[bool, _upload(help="Upload as a pull request.")]
DryRunOption = Annotated[bool, _upload(help="Only list what would be uploaded.")]

app = group(
    "Classify and embed images and texts with Kakao Brain's ALIGN and ViT models; convert their checkpoints.",
    epilog=f"[b]{BUNDLED_MODEL}[/b] is a small model inside this package: with --model {BUNDLED_MODEL} everything works "
    "without a network.",
)

app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(index_app, name="index")
app.add_typer(train_app, name="train")


@app.command(no_args_is_help=True)
@model_options()
def classify(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Images: files, folders, patterns or URLs; - for standard input."),
    ],
    labels: Annotated[str | None, typer.Option("--labels", "-l", help="Labels, separated by commas.")] = None,
    labels_file: Annotated[Path | None, _file(help="File with one label per line.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Sentence with {} for the label, such as 'a photo of a {}'; repeat it to average over several."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Number of labels to show.")] = 5,
    min_relevance: RelevanceOption = None,
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw the images beside bars of their scores, into this .png or .jpg.")
    ] = None,
    *,
    options: ModelOptions,
) -> None:
    """Classify images, with labels of your own (zero-shot) or a model's own classes.

    Scores add up to 1 over the labels, whether or not any label fits. With --min-relevance, an image that no label fits gets
    "none of these".

    ALIGN models need labels. A classifier (a ViT, or an ALIGN image tower with a head) has its own classes: leave labels out.

    [b]Examples[/b]

      kakao-models classify cat.jpg --labels "a cat,a dog,a red car"

      kakao-models classify holiday/ --labels-file places.txt --template "a photo of {}" --picture scores.png

      kakao-models classify holiday/ --labels dog,beach --min-relevance 0.5 --model align-small

      kakao-models classify cat.jpg --model kakaobrain/vit-large-patch16-384 --engine auto
    """
    names = _labels(labels, labels_file)
    if not names and labels:
        raise typer.BadParameter(f"--labels {labels!r} has no label: expected labels separated by commas")
    if not names and options.model == DEFAULT_MODEL:
        raise typer.BadParameter("ALIGN models need labels: --labels a,b,c or --labels-file FILE")
    if min_relevance is not None and not names:
        raise typer.BadParameter("--min-relevance needs labels of your own: add --labels or --labels-file")
    check_picture(picture)
    check_images(images)
    sources = _expanded(images)
    inputs = read_sources(sources)
    options.prepare()
    options.expect(len(sources), len(names) * len(template or [""]))
    from kakao_models import pipeline
    from kakao_models.inference.output import print_scores, say_engine, scores_as_json

    task = "zero-shot-image-classification" if names else "image-classification"
    defaults = {"candidate_labels": names, "hypothesis_template": template} if names else {}
    run = pipeline(task, options.model, calibration=calibration, **options.arguments(), **given(defaults))
    say_engine(run.embedder)
    least = {} if min_relevance is None else {"min_relevance": min_relevance}
    results = run(inputs, top_k=top_k, on_error="ignore", progress=None, **least)
    if as_json:
        print(scores_as_json(sources, results, run.embedder.failures))
    else:
        print_scores(sources, results)
    if picture:
        from kakao_models.inference.picture import draw_files

        drawn = draw_files(picture, sources, inputs, results)
        if drawn:
            say_written(picture)
        if drawn < len(sources):
            print(f"{picture} shows {drawn} of {len(sources)} images", file=sys.stderr)
    finish(run.embedder.failures)


@app.command(no_args_is_help=True)
@model_options()
def embed(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Images (files, folders, patterns, URLs), or .txt files with one text per line; - for an image or texts from "
            "standard input.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output file, .npy or .parquet; - writes .npy to standard output.")
    ] = ...,
    text: Annotated[list[str] | None, typer.Option(help="Text to embed; may be repeated.")] = None,
    texts_file: Annotated[Path | None, _file(help="File of any name with one text per line.")] = None,
    normalize: Annotated[bool, typer.Option(help="Scale each embedding to length 1.")] = False,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Write embeddings of images or texts, one row each.

    For NAME.npy, the names of the rows are in NAME.names.json; a .parquet has the columns name and embedding.
    Images that can't be read are left out and listed.

    [b]Examples[/b]

      kakao-models embed photos/ -o photos.npy

      kakao-models embed captions.txt -o captions.parquet --normalize

      kakao-models embed --text "a cat" --text "a dog" -o two.npy

      curl -s https://example.org/cat.jpg | kakao-models embed - -o - > cat.npy
    """
    to_stdout = str(output) == STANDARD
    if to_stdout and as_json:
        raise typer.BadParameter("--json and -o - both write to standard output: leave one out")
    sentences, sources, images = _texts_and_images(inputs or [], text or [], texts_file)
    if bool(sentences) == bool(sources):
        raise typer.BadParameter("give images or texts, not both: they need separate files")
    import numpy as np

    from kakao_models.inference.output import check_format, write_embeddings

    if not to_stdout:
        check_format(output)
    if sources:
        check_images(inputs or [])
    options.prepare()
    if options.engine == "auto":  # otherwise the same input has the same bits alone and among many
        options.expect(len(sources), len(sentences))
    embedder = options.open()
    if sentences:
        names, rows = sentences, embedder.texts(sentences, normalize=normalize)
    else:
        rows = embedder.images(images, normalize=normalize, on_error="ignore")
        failed = {failure.index for failure in embedder.failures}
        kept = [index for index in range(len(sources)) if index not in failed]
        names, rows = [sources[index] for index in kept], rows[kept]
    if to_stdout:
        np.save(sys.stdout.buffer, rows)
        sys.stdout.buffer.flush()
        finish(embedder.failures)
        return
    written = list(map(str, write_embeddings(output, names, rows))) if len(rows) else []
    failures = [{"name": failure.source, "reason": failure.reason} for failure in embedder.failures]
    report = {"files": written, "rows": len(rows), "dim": embedder.dim, "failures": failures}
    if written or as_json:
        tell(report, f"{len(rows)} embeddings of dimension {embedder.dim} in {' and '.join(written)}", as_json)
    finish(embedder.failures)


@app.command(no_args_is_help=True)
def info(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every tensor.")] = False,
    revision: RevisionOption = None,
) -> None:
    """Show a checkpoint's towers, sizes, preprocessing and files. Its weights are not loaded.

    [b]Example[/b]

      kakao-models info align-small
    """
    from kakao_models.conversion.info import as_text, describe_checkpoint

    description = describe_checkpoint(model, **prepare(model, revision))
    tell(description, as_text(description), as_json)


@app.command(no_args_is_help=True)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A TensorFlow checkpoint (prefix, .index file or folder), a Hub id or folder in any format of "
            "transformers, Google's ViT .npz, or an EfficientNet: Keras' .h5, PyTorch's state dict or timm's folder."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to create (with --to tpu: prefix of the checkpoint).")],
    to: Annotated[
        str, typer.Option(help="Format to write: hub, or tpu for the reverse (SOURCE is then a Hub folder).")
    ] = "hub",
    family: Annotated[
        str | None, typer.Option(help="Expected family: align, vit or efficientnet; anything else is refused.")
    ] = None,
    revision: RevisionOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to convert: raw, or average (moving averages); by default average, if the source has it."
        ),
    ] = None,
    key_prefix: Annotated[
        str | None,
        typer.Option(help="Prefix of the model's keys, such as net/, if a TensorFlow checkpoint holds several models."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id of an ALIGN's tokenizer.")] = None,
    labels_file: Annotated[Path | None, _file(help="Names of a ViT's classes, one per line.")] = None,
    reference: Annotated[
        Path | None, _file(help="File of inputs and expected logits (.npz or .json); see docs/convert.md.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None, _file(help="Result of kakao-models evaluate, to include in the model card; may be repeated.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Input resolution of an image tower, which the weights do not show.")
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of attention heads, for a hidden size that no published model has."),
    ] = None,
    key_layout: Annotated[
        str, typer.Option(help="Layout of a ViT's keys with --to tpu: model, manager or backbone.")
    ] = "model",
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weights file, such as 5GB.")] = "5GB",
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
    create_pr: CreatePrOption = False,
    dry_run: DryRunOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report.")] = False,
) -> None:
    """Turn a checkpoint of the original code into a folder for the Hub, and verify it.

    The model's family and sizes are recognised. The outputs of the result are compared with those of an independent forward
    pass on the source's tensors, and nothing is written unless they agree. conversion_report.json records the conversion.

    [b]Examples[/b]

      kakao-models convert coyo-align-b7-base/ align-base/ --tokenizer bert-base-uncased

      kakao-models convert kakaobrain/align-base align-base/

      kakao-models convert vit/ckpt-20000 vit-large-patch16-512/ --weights average --labels-file imagenet.txt

      kakao-models convert align-base/ original/model-weights --to tpu
    """
    from kakao_models.inference.progress import quiet, steps

    if not os.path.exists(source) and not os.path.exists(f"{source}.index"):
        revision = prepare(source, revision).get("revision")
    from kakao_models.checkpoint.upload import check_name, check_token
    from kakao_models.conversion.push import push
    from kakao_models.conversion.report import summary

    try:
        from kakao_models.conversion import convert as conversion
    except ModuleNotFoundError as error:
        raise ImportError(f"convert needs {error.name}: pip install 'kakao-models[convert]'") from error
    quiet()
    if to not in ("hub", "tpu"):
        raise typer.BadParameter(
            f"--to {to}: expected hub or tpu. PyTorch, Keras and Flax all read the format of the Hub"
        )
    if to == "tpu":
        of_hub = (weights, key_prefix, tokenizer, labels_file, reference, evaluation, image_size, heads, push_to_hub)
        if any(of_hub) or private or create_pr or dry_run or max_shard_size != "5GB":
            raise typer.BadParameter("--to tpu takes only --key-layout and --family; the other options need --to hub")
        stages = conversion.convert_back(source, output, family=family, revision=revision, key_layout=key_layout)
        verified = {"output": str(output), "verification": [vars(stage) for stage in stages]}
        tell(verified, f"{output}: a checkpoint for the original implementation, verified", as_json)
        return
    if key_layout != "model":
        raise typer.BadParameter("--key-layout goes with --to tpu; the layout of a SOURCE is recognised")
    _check_upload(push_to_hub, private or create_pr or dry_run)
    if push_to_hub and not dry_run:
        check_name(push_to_hub)  # before hours of work
        check_token()
    with steps() as advance:
        report = conversion.convert(
            source,
            output,
            family=family,
            revision=revision,
            weights=weights,
            key_prefix=key_prefix,
            tokenizer=tokenizer,
            max_shard_size=parse_bytes(max_shard_size, "--max-shard-size"),
            reference=reference,
            labels=lines_of(labels_file) if labels_file else None,  # two classes may share a name
            evaluation=evaluation or (),
            advance=advance,
            image_size=image_size,
            num_attention_heads=heads,
        )
    tell(report, f"{summary(report)}\n{output}: written and verified", as_json)
    if push_to_hub:
        pushed = push(output, push_to_hub, private=private, create_pr=create_pr, dry_run=dry_run)
        print(pushed, file=sys.stderr if as_json else sys.stdout)


@app.command("verify", no_args_is_help=True)
def verify_report(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder that convert wrote.")],
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
    create_pr: CreatePrOption = False,
    dry_run: DryRunOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as a JSON list.")] = False,
) -> None:
    """Check a converted folder against its report: every file and every tensor, by SHA-256. Upload it if nothing differs.

    Exit code 1 if anything differs.

    [b]Examples[/b]

      kakao-models verify align-base/

      kakao-models verify align-base/ --push-to-hub kakaobrain/align-base --create-pr
    """
    from kakao_models.conversion.push import push
    from kakao_models.conversion.report import verify_report as check
    from kakao_models.inference.progress import steps

    _check_upload(push_to_hub, private or create_pr or dry_run)
    with steps() as advance:
        wrong = check(folder, advance=advance)
    tell(wrong, "\n".join(wrong) or f"{folder}: every file and tensor as reported", as_json)
    if wrong:
        raise typer.Exit(1)
    if push_to_hub:
        pushed = push(folder, push_to_hub, private=private, create_pr=create_pr, dry_run=dry_run, checked=True)
        print(pushed, file=sys.stderr if as_json else sys.stdout)


def _check_upload(repo: str | None, options: bool) -> None:
    if options and not repo:
        raise typer.BadParameter("--private, --create-pr and --dry-run need --push-to-hub REPO")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


# After classify and embed, which come first in the help as they do in use.
app.command(no_args_is_help=True)(search)
app.command(no_args_is_help=True)(export)
app.command(no_args_is_help=True)(serve)
app.command()(demo)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits. Errors that a user can do something about come as one message, without a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", KakaoWarning)
            warnings.showwarning = functools.partial(_show_warning, deque(maxlen=64), warnings.showwarning)
            app(arguments, prog_name="kakao-models")
    except (OSError, ValueError, ImportError, csv.Error) as error:
        _give_up(str(error))
    except RecursionError as error:
        _give_up(f"a JSON or YAML file is nested too deeply ({error})")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in repr(error) for words in _OUT_OF_MEMORY):
            raise
        _give_up(f"there is not enough memory; where there is a --batch-size, take a smaller one. {error}")


# In errors of PyTorch on a GPU, of PyTorch on a CPU, and of JAX, which are RuntimeErrors
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "RESOURCE_EXHAUSTED")


def _give_up(message: str) -> None:
    print(f"kakao-models: {on_screen(message)}", file=sys.stderr)
    sys.exit(2)


def _labels(labels: str | None, file: Path | None) -> list[str]:
    """The labels of both options; the pipeline merges duplicates with a warning."""
    if labels and Path(labels).suffix and os.path.isfile(labels):
        raise typer.BadParameter(f"--labels takes the labels themselves; for a file write --labels-file {labels}")
    names = [name.strip() for name in (labels or "").split(",")] + (lines_of(file) if file else [])
    return list(filter(None, names))


def _texts_and_images(inputs: list[str], texts: list[str], file: Path | None) -> tuple[list[str], list[str], list]:
    """Texts; names of images; and the images, which are the names but for the standard input."""
    files = [Path(name) for name in inputs if name.lower().endswith(".txt")] + ([file] if file else [])
    lines = [line for path in files for line in lines_of(path)]
    names = _expanded(name for name in inputs if Path(name) not in files)
    images = read_sources(names)
    for place in [place for place, image in enumerate(images) if image is not names[place]]:
        from kakao_models.pixels.formats import is_image_file

        if not is_image_file(images[place]):  # texts, a line each
            lines += lines_in(images[place], "standard input")
            del names[place], images[place]
    return texts + lines, names, images


def _expanded(inputs) -> list[str]:
    from kakao_models.inference.stream import each_source

    return [str(source) for name in inputs for source in each_source(name)]


def _show_warning(shown: deque[str], show, message, category, *place) -> None:
    """Prints a warning of this package as one line. `shown` holds the latest ones, which are not repeated."""
    if issubclass(category, KakaoWarning):
        if (line := f"warning: {on_screen(str(message))}") not in shown:
            shown.append(line)
            print(line, file=sys.stderr)
    else:
        show(message, category, *place)


if __name__ == "__main__":
    main()
