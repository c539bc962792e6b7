"""The command `kakao-models data`: one short function per verb, without logic."""

import functools
import math
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from kakao_models.files.lines import lines_of
from kakao_models.lazy import is_installed
from kakao_models.pixels.limits import MAX_PIXELS
from kakao_models.verbs import (
    STANDARD,
    CaptionColumnOption,
    ImageColumnOption,
    JsonOption,
    LabelColumnOption,
    ModelOptions,
    check_file,
    check_picture,
    check_sources,
    finish,
    group,
    listed,
    model_options,
    not_standard,
    tell,
    write_picture,
)


class _Group(TyperGroup):
    """The group of commands; what its engines raise about data or options becomes one message."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            # DuckDB's, in the two ways it comes: Ctrl-C while a query runs
            if type(error).__name__ == "InterruptException" or str(error) == "Query interrupted":
                raise KeyboardInterrupt from error
            if package not in ("duckdb", "_duckdb", "ibis", "pyarrow", "pyspark", "py4j"):
                raise
            # The rest of the message is the query, or options of DuckDB that this command does not have.
            reason = re.split(
                r"\n\nLINE |\n\nJVM stacktrace|\n\s*(?:Possible|Potential) (?:[Ff]ixes|Solution)", str(error)
            )[0].strip()
            file = re.search(r"^  file = (.+)$", str(error), re.MULTILINE)
            if package in ("duckdb", "_duckdb"):  # which begins with "Invalid Input Error: "
                reason = re.sub(r"^(?:[A-Z]\w* )+Error: ", "", reason)
            else:
                reason = f"{type(error).__name__}: {reason}"
            if reason.startswith("Failed to read file"):
                reason += ". Is the file complete? If not, download it again"
            raise ValueError(f"{file[1]}: {reason}" if file else reason) from error


app = group("Inspect, filter and download image-text data such as COYO, and turn it into training shards.", cls=_Group)


@app.callback()
def _check_extra() -> None:
    for name in ("ibis", "duckdb", "pyarrow"):
        if not is_installed(name):
            raise ImportError(f"kakao-models data needs {name}: pip install 'kakao-models[data]'")


_run = functools.partial(typer.Option, rich_help_panel="Run")
_SOURCE = "A .parquet, .csv or .jsonl file, a pattern or folder of such, or hf://owner/name."
SourceArgument = Annotated[str, typer.Argument(help=_SOURCE)]
Backend = Annotated[str, _run(help="Engine that processes tables: duckdb or pyspark.")]
MemoryLimit = Annotated[str | None, _run(help="Memory limit of DuckDB, such as 8GB.")]
Threads = Annotated[int | None, _run(min=1, help="Number of DuckDB threads.")]
Spill = Annotated[Path | None, _run(help="Folder for temporary data that do not fit in memory.", file_okay=False)]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to create.", show_default=False, callback=not_standard)
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Downscale images to at most this shorter side; by default sizes are kept.")
]
PerShard = Annotated[int, typer.Option(min=1, max=999_999, help="Number of rows per shard.")]
Workers = Annotated[int, _run(min=1, help="Number of worker processes.")]
Rank = Annotated[int, _run(min=0, help="Rank of this machine, from 0.")]
WorldSize = Annotated[int, _run(min=1, help="Number of machines, or of --distributor's tasks, that share the work.")]
Distributor = Annotated[str | None, _run(help="Run all ranks: multiprocessing (here), pyspark or ray (a cluster).")]


@app.command(no_args_is_help=True)
def preview(
    source: SourceArgument,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of rows.")] = 10,
    page: Annotated[
        Path | None, typer.Option("--html", dir_okay=False, help="Also write a page with the images.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, separated by commas.")] = None,
    image_column: ImageColumnOption = None,
    split: Annotated[str, typer.Option(help="Split of a data set on the Hub.")] = "train",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an image.")] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show the first rows, and what differs from COYO's published columns.

    For a data set on the Hub, only these rows are downloaded.

    [b]Examples[/b]

      kakao-models data preview hf://kakaobrain/coyo-700m

      kakao-models data preview coyo/part-00000.parquet -n 50 --html sheet.html
    """
    check_file("--html", page)
    from kakao_models.data.preview import contact_sheet, first_rows, print_table
    from kakao_models.files.atomic import write_text
    from kakao_models.samples.columns import Columns
    from kakao_models.samples.coyo import check_columns

    records, types = first_rows(source, rows, split)
    chosen = Columns(image_column)
    chosen.find(types, source=source)
    differences = list(map(str, check_columns(types)))
    if as_json:
        tell({"rows": _finite(records), "findings": differences}, None, as_json)
    else:
        print_table(records, listed(columns))
        for difference in differences:
            print(difference)
    if page:
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        text, lost = contact_sheet(records, source, columns=chosen, folder=folder, timeout=timeout)
        write_text(page, text)
        print(f"{page}: {len(records) - lost} images, {lost} could not be read", file=sys.stderr)


@app.command(no_args_is_help=True)
def stats(
    source: SourceArgument,
    picture: Annotated[Path | None, typer.Option(help="Also draw the distributions, into this .png or .jpg.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write JSON here; - for standard output.")
    ] = None,
    sample: Annotated[float | None, typer.Option(help="Read only this share of the rows, such as 0.01.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the sample.")] = 0,
    unique: Annotated[bool, typer.Option(help="Count distinct URLs, images and texts.")] = True,
    as_json: JsonOption = False,
    backend: Backend = "duckdb",
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    spill: Spill = None,
) -> None:
    """Show the distribution of every column, and count distinct URLs, images and texts; exact without --sample.

    [b]Example[/b]

      kakao-models data stats "coyo/*.parquet" --picture coyo.png -o coyo.json
    """
    check_picture(picture)
    check_file("--output", output, standard=True)
    to_stdout = str(output) == STANDARD
    from kakao_models.data.stats import draw, summarize
    from kakao_models.samples.manifest import write_json
    from kakao_models.samples.tables import connect, open_table

    connection = connect(backend, memory_limit=memory_limit, threads=threads, spill=spill)
    summary = summarize(open_table(connection, source), sample=sample, seed=seed, unique=unique, advance=_say)
    if picture:
        write_picture(draw(summary), picture)
    if output and not to_stdout:
        write_json(output, summary.as_dict())
    tell(summary.as_dict(), summary, as_json or to_stdout)


@app.command("filter", no_args_is_help=True)
def filter_(
    source: Annotated[str | None, typer.Argument(help=_SOURCE)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to create; without it, rows are only counted.",
            show_default=False,
            callback=not_standard,
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe: coyo, align, or a YAML file.")] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", help="Filter, as NAME or NAME:parameter=value,...; may be repeated."),
    ] = None,
    join: Annotated[
        str | None, typer.Option(help="Table whose columns are added by id, such as the align_score of data embed.")
    ] = None,
    approximate: Annotated[
        int | None,
        typer.Option(
            metavar="BITS", help="Count duplicates in one pass, by digests of this many bits: faster, but not exact."
        ),
    ] = None,
    list_filters: Annotated[bool, typer.Option("--list", help="List the filters.")] = False,
    as_json: JsonOption = False,
    backend: Backend = "duckdb",
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    spill: Spill = None,
) -> None:
    """Keep the rows that pass all filters, and report how many rows each filter kept and dropped.

    Filters are applied in the given order, those of --recipe first. --list shows all filters.

    [b]Examples[/b]

      kakao-models data filter coyo/ -o curated/ -f aesthetic:min=5 -f watermark:max=0.3 -f clip-l14:min=0.25

      kakao-models data filter coyo/ -o like-align/ --recipe align

      kakao-models data filter coyo/ -o clean/ -f eval-hashes:file=coco-hashes.txt,bits=3
    """
    from kakao_models.data.filters import FILTERS

    if list_filters:
        kinds = sorted(FILTERS.values(), key=lambda kind: kind.name)
        rows = [{"filter": kind.name, "help": kind.help, "parameters": dict(kind.defaults)} for kind in kinds]
        tell(rows, "\n".join(map(str, kinds)), as_json)
        return
    from kakao_models.data.curate import curate
    from kakao_models.data.recipes import parse_flags, read_recipe
    from kakao_models.samples.tables import connect, is_parquet, join_columns, open_table

    chosen = (read_recipe(recipe) if recipe else []) + parse_flags(filters or [])
    if source is None:
        raise typer.BadParameter("SOURCE is missing: name the table to filter")
    if not chosen:
        raise typer.BadParameter("give --recipe or --filter; --list shows the filters")
    connection = connect(backend, memory_limit=memory_limit, threads=threads, spill=spill)
    table = open_table(connection, source)
    if join:
        table = join_columns(table, open_table(connection, join))
    options = {"digest_bits": approximate, "copy": not is_parquet(source), "spill": spill}
    account = curate(connection, table, chosen, output, **options, advance=_say)
    tell(account.as_dict(), account, as_json)


@app.command("label-stats", no_args_is_help=True)
def label_stats_(
    source: SourceArgument,
    thresholds: Annotated[
        str | None, typer.Option(help="Thresholds, separated by commas; by default 0, 0.05, ... 0.5.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to list.")] = 20,
    labels_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Names of the classes, one per line.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table with the labels above --threshold.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Lowest probability of a label in --output.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Largest number of labels of an image in --output.")] = None,
    keep_empty: Annotated[
        bool, typer.Option("--keep-empty", help="Also write images without labels into --output.")
    ] = False,
    as_json: JsonOption = False,
    backend: Backend = "duckdb",
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    spill: Spill = None,
) -> None:
    """Count labels per image, distinct labels and remaining images for thresholds on COYO-Labeled-300M's probabilities.

    With --output and --threshold, also write lists of labels for training a ViT.

    [b]Examples[/b]

      kakao-models data label-stats coyo-labeled/ --labels-file imagenet21k.txt

      kakao-models data label-stats coyo-labeled/ --thresholds 0.2 --threshold 0.2 -o labels-0.2/
    """
    if (output is None) != (threshold is None):
        raise typer.BadParameter("--output and --threshold need each other: give both or neither")
    if output and output.exists():
        raise FileExistsError(f"{output} already exists. Choose another name, or remove it first.")
    from kakao_models.data.labels import THRESHOLDS, label_stats, to_multilabel
    from kakao_models.samples.tables import connect, new_folder, open_table, write_parquet

    try:
        chosen = [float(part) for part in thresholds.split(",")] if thresholds else THRESHOLDS
    except ValueError as error:
        raise typer.BadParameter(f"--thresholds {thresholds}: expected numbers, separated by commas") from error
    connection = connect(backend, memory_limit=memory_limit, threads=threads, spill=spill)
    table = open_table(connection, source)
    _say("counting labels")
    summary = label_stats(table, chosen, top)
    tell(asdict(summary), summary.named(lines_of(labels_file) if labels_file else None), as_json)
    if output:
        _say("writing")
        with new_folder(output, connection, spill) as folder:
            rows = write_parquet(to_multilabel(table, threshold, most=most, keep_empty=keep_empty), folder / "done")
        print(f"{output}: {rows:,} rows", file=sys.stderr)


@app.command(no_args_is_help=True)
def shard(
    source: Annotated[
        str,
        typer.Argument(help="A folder of images, a table, shards, or .json of COCO's captions or Karpathy's splits."),
    ],
    output: OutputFolder,
    form: Annotated[
        str, typer.Option("--format", "-f", help="Format of the shards: webdataset, tfrecord or parquet.")
    ] = "webdataset",
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the images that a .json names.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of Karpathy's .json: train, val, test, restval.")] = None,
    image_column: ImageColumnOption = None,
    caption_column: CaptionColumnOption = None,
    label_column: LabelColumnOption = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for shuffling; by default the order is kept.")] = None,
    per_shard: PerShard = 10_000,
    image_size: ImageSize = None,
    workers: Workers = 1,
    as_json: JsonOption = False,
) -> None:
    """Turn local images and captions into shards for training. Unreadable images are left out and listed.

    [b]Examples[/b]

      kakao-models data shard photos/ -o shards/ --seed 1

      kakao-models data shard dataset_coco.json --images coco/ --split train,restval -o coco-train/ -f tfrecord
    """
    from kakao_models.data.shard import Options, write_sample_shards
    from kakao_models.inference.progress import Progress
    from kakao_models.samples.columns import Columns
    from kakao_models.samples.sources import open_source

    samples = open_source(source, Columns(image_column, caption_column, label_column), images=images, split=split)
    with Progress("rows", sum(samples.counts), None) as bar:
        manifest = write_sample_shards(
            samples,
            output,
            options=Options(form, image_size),
            per_shard=per_shard,
            seed=seed,
            workers=workers,
            name=source,
            advance=bar.advance,
        )
    _tell_manifest(output, manifest, as_json)


@app.command(no_args_is_help=True)
def download(
    source: Annotated[
        str, typer.Argument(help="Table with a column url, and text if it has captions: .parquet, .csv, .jsonl.")
    ],
    output: OutputFolder,
    image_column: ImageColumnOption = None,
    caption_column: CaptionColumnOption = None,
    label_column: LabelColumnOption = None,
    image_size: ImageSize = None,
    min_size: Annotated[int, typer.Option(min=0, help="Refuse images with a side shorter than this, in pixels.")] = 0,
    max_aspect: Annotated[
        float, typer.Option(min=1, help="Refuse images with a larger aspect ratio (longer side / shorter side).")
    ] = float("inf"),
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse images of more pixels than this, before they are decoded.")
    ] = MAX_PIXELS,
    timeout: Annotated[float, typer.Option(min=0.1, help="Time limit of an attempt in seconds.")] = 10.0,
    retries: Annotated[int, typer.Option(min=0, help="Number of retries per URL in this run.")] = 1,
    attempts: Annotated[int, typer.Option(min=1, help="Largest number of attempts per URL over all runs.")] = 6,
    per_shard: PerShard = 10_000,
    dead: Annotated[Path | None, typer.Option(dir_okay=False, help="Also write failed URLs to this .csv.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw success rates into this .png or .jpg.")] = None,
    threads: Annotated[int, _run(min=1, help="Number of connections per process.")] = 32,
    workers: Workers = 1,
    rank: Rank = 0,
    world_size: WorldSize = 1,
    distributor: Distributor = None,
    allow_private_addresses: Annotated[
        bool, typer.Option("--allow-private-addresses", help="Allow addresses of this machine and its network.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Download the images of a table into tars for training. Rerun the command to resume and to retry failures.

    Failed downloads are not an error; they are listed in the report.

    [b]Example[/b]

      kakao-models data download curated/ -o images/ --image-size 384 --workers 8 --dead dead.csv --picture success.png
    """
    check_picture(picture)
    check_file("--dead", dead)
    from kakao_models.data.deadlinks import dead_links, draw_success
    from kakao_models.data.download import Download, download as run, table_of_addresses
    from kakao_models.inference.progress import Progress
    from kakao_models.samples.columns import Columns

    options = Download(
        per_shard=per_shard,
        threads=threads,
        retries=retries,
        attempts=attempts,
        timeout=timeout,
        max_pixels=max_pixels,
        min_size=min_size,
        max_aspect=max_aspect,
        image_size=image_size,
        allow_private_addresses=allow_private_addresses,
    )
    rows = table_of_addresses(source, Columns(image_column, caption_column, label_column))
    with Progress("rows", rows.total // (1 if distributor else world_size), None) as bar:
        places = {"rank": rank, "world_size": world_size, "distributor": distributor}
        outcome = run(rows, output, options, workers=workers, advance=bar.advance, **places)
    if dead:
        dead_links(output, dead)
    if picture:
        write_picture(draw_success(output), picture)
    tell(asdict(outcome), outcome, as_json)


@app.command(no_args_is_help=True)
@model_options()
def embed(
    source: Annotated[
        str, typer.Argument(help="A table (.parquet, .csv, .jsonl), a folder of images, or a folder of tars.")
    ],
    output: OutputFolder,
    what: Annotated[
        str,
        typer.Option(
            help="Result to write: embeddings of images or of texts, or score (the cosine of each image and its text)."
        ),
    ] = "images",
    image_column: ImageColumnOption = None,
    caption_column: CaptionColumnOption = None,
    output_dtype: Annotated[str, typer.Option(help="dtype of the written embeddings: float32 or float16.")] = "float32",
    normalize: Annotated[bool, typer.Option(help="Scale each embedding to length 1.")] = False,
    per_shard: Annotated[int, typer.Option(min=1, help="Number of rows per shard.")] = 10_000,
    rank: Rank = 0,
    world_size: WorldSize = 1,
    distributor: Distributor = None,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Embed a table of any size into sharded Parquet. If interrupted, rerun the command to resume.

    [b]Examples[/b]

      kakao-models data embed shards/ -o embeddings/ --output-dtype float16

      kakao-models data embed coyo/part-00000.parquet -o scores/ --what score
    """
    check_sources(source)
    options.prepare()
    from kakao_models import Embedder
    from kakao_models.data.embed import NEEDS, Settings, embed_table
    from kakao_models.inference.progress import Progress
    from kakao_models.samples.columns import Columns
    from kakao_models.samples.rows import Rows

    model, revision = options.model, options.revision
    place = os.path.abspath(model) if os.path.exists(model) else model  # a task may run in another folder
    load = functools.partial(Embedder, place, **options.arguments())
    settings = Settings(what, per_shard, output_dtype, normalize, options.dtype)
    name = f"{model}@{revision}" if revision else model
    rows = Rows(source, Columns(image_column, caption_column), NEEDS[what])
    with Progress("rows", rows.total // (1 if distributor else world_size), None) as bar:
        places = {"rank": rank, "world_size": world_size, "distributor": distributor}
        manifest = embed_table(load, rows, output, settings, model=name, advance=bar.advance, **places)
    if manifest is None:
        tell({"finished": False}, f"{output}: this rank is done, others aren't", as_json)
        return
    _tell_manifest(output, manifest, as_json)


@app.command(no_args_is_help=True)
def verify(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder that shard, download or embed wrote.")
    ],
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as a JSON list.")] = False,
) -> None:
    """Check every file against the folder's manifest: rows, bytes, SHA-256. Exit code 1 if anything differs.

    [b]Example[/b]

      kakao-models data verify shards/ --decode
    """
    from kakao_models.inference.progress import Progress
    from kakao_models.samples.manifest import read_manifest, verify_manifest

    with Progress("shards", len(read_manifest(folder)["shards"]), None) as bar:
        wrong = verify_manifest(folder, decode=decode, advance=bar.advance)
    tell(wrong, "\n".join(wrong) or f"{folder}: every file as the manifest says", as_json)
    if wrong:
        raise typer.Exit(1)


def _finite(value):
    """A value with null for the numbers that JSON does not have: NaN and infinity."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(step: str) -> None:
    if sys.stderr.isatty():
        print(f"{step} ...", file=sys.stderr)


def _tell_manifest(output: Path, manifest: dict, as_json: bool) -> None:
    tell(manifest, f"{output}: {manifest['rows']} rows in {len(manifest['shards'])} shards", as_json)
    finish(f"{failure['name']}: {failure['reason']}" for failure in manifest["failures"])
