"""The commands `kakao-models index` and `kakao-models search`: one short function per verb, no logic of its own."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kakao_models.search.duplicates import MIN_SCORE
from kakao_models.verbs import (
    MODEL_PANEL,
    CalibrationOption,
    CaptionColumnOption,
    ImageColumnOption,
    JsonOption,
    ModelOptions,
    RelevanceOption,
    check_file,
    check_images,
    check_sources,
    finish,
    group,
    listed,
    model_options,
    read_sources,
    tell,
)

app = group("Build, inspect and change an index of images or texts for kakao-models search.")

DATABASE, OUTPUT = "Database", "Output"
_database = functools.partial(typer.Option, rich_help_panel=DATABASE)
_output = functools.partial(typer.Option, rich_help_panel=OUTPUT)
_uri = functools.partial(
    _database, metavar="URI", help="Database: a folder NAME.db, or a Milvus server such as http://host:19530."
)
_SEARCHED = "Index to search: NAME.db, a Milvus server such as http://host:19530, or the output of data embed."
Uri = Annotated[str, _uri("--index")]
NewUri = Annotated[str, _uri("--index", "--to")]
_TOKEN = "Credentials of a Milvus server: user:password, or an API key."
Token = Annotated[str | None, _database(envvar="MILVUS_TOKEN", show_envvar=True, help=_TOKEN)]
Collection = Annotated[str, _database(help="Name of the collection in the database.")]
Filter = Annotated[
    str | None, typer.Option("--filter", "-f", help="Use only rows for which this is true, such as 'width > 500'.")
]
Roots = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", exists=True, file_okay=False, help="Further folder that tables may read images from; may be repeated."
    ),
]
_TYPES = "FLAT, HNSW, IVF_FLAT, AUTOINDEX, ...; by default FLAT (exact) in a .db, AUTOINDEX on a server."
IndexType = Annotated[str | None, _database(help=_TYPES)]
IndexParams = Annotated[str | None, _database(metavar="JSON", help='Parameters of the index type, such as {"M": 32}.')]
Metric = Annotated[
    str, _database(help="Metric: IP, COSINE or L2. All give the same order, because vectors have length 1.")
]
Consistency = Annotated[str, _database(help="Consistency level of a server: Strong, Bounded, Session or Eventually.")]
Shards = Annotated[int, _database(min=1, help="Number of shards of a new collection on a server.")]
IndexKind = Annotated[str, typer.Option("--what", help="Kind of rows to index: images or texts.")]
DEFAULT_URI, DEFAULT_COLLECTION = "./kakao.db", "images"
_SEARCH_MODEL = "Model; by default the one the index was built with."
_SOURCES = (
    "Folders of images, WebDataset tars, TFRecords, tables (.parquet, .csv, .jsonl); for texts, tables and .txt files."
)


@app.command(no_args_is_help=True)
@model_options()
def build(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help=_SOURCES)],
    uri: NewUri = DEFAULT_URI,
    sync: Annotated[bool, typer.Option("--sync", help="Remove rows that are no longer in the sources.")] = False,
    what: IndexKind = "images",
    columns: Annotated[
        str | None, typer.Option(help="Columns of tables to keep, separated by commas; by default all.")
    ] = None,
    image_column: ImageColumnOption = None,
    caption_column: CaptionColumnOption = None,
    root: Roots = None,
    index_type: IndexType = None,
    index_params: IndexParams = None,
    metric: Metric = "IP",
    consistency: Consistency = "Strong",
    shards: Shards = 1,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Embed images or texts into an index. Rerun the command to add new ones, or to resume.

    A row is identified by the SHA-256 of its content, so a file that is in the index is not embedded again, even after a move.
    Results and filters can use columns of tables, and captions in .txt files beside images.

    [b]Examples[/b]

      kakao-models index build photos/

      kakao-models index build photos/ --sync --index photos.db --model align-small

      kakao-models index build shards/ coyo.parquet --index http://localhost:19530 --index-type HNSW
    """
    making = _making(what, index_type, index_params, metric, consistency, shards)
    check_sources(*sources)
    options.prepare()
    from kakao_models.inference.progress import Progress
    from kakao_models.samples.columns import Columns
    from kakao_models.search import SearchIndex
    from kakao_models.search.items import count

    fields = Columns(image=image_column, caption=caption_column)
    total = count(sources, what, fields)  # before an index of nothing is made
    with SearchIndex.open(uri, options.open(), token=token, collection=collection, **making) as index:
        try:
            with Progress(what, total, None) as bar:
                done = index.build(
                    sources,
                    sync=sync,
                    columns=listed(columns),
                    fields=fields,
                    roots=root or (),
                    advance=bar.advance,
                )
        except KeyboardInterrupt:
            print(f"interrupted: {uri} has {index.count:,} rows; rerun the command to resume", file=sys.stderr)
            raise
        rows = index.count
    tell({"index": uri, "rows": rows} | done.as_dict(), f"{uri}: {rows:,} rows; {done}", as_json)
    finish(map(": ".join, done.failures))


@app.command(no_args_is_help=True)
@model_options("fast_images")
def load(
    source: Annotated[
        Path, typer.Argument(exists=True, help="Output of data embed or of embed, or a database of Milvus Lite 2.")
    ],
    uri: NewUri = DEFAULT_URI,
    what: IndexKind = "images",
    index_type: IndexType = None,
    index_params: IndexParams = None,
    metric: Metric = "IP",
    consistency: Consistency = "Strong",
    shards: Shards = 1,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Load embeddings from disk into an index. The model is only used to identify them.

    Rows keep their ids, and columns beside the embedding become metadata. Rerun the command to resume.

    [b]Examples[/b]

      kakao-models index load embeddings/ --index photos.db

      kakao-models index load old-milvus-lite-2.db --index new.db
    """
    making = _making(what, index_type, index_params, metric, consistency, shards)
    options.prepare()
    from kakao_models.inference.progress import Progress
    from kakao_models.search import SearchIndex
    from kakao_models.search.stored import StoredEmbeddings

    stored, embedder = StoredEmbeddings(source), options.open()
    stored.check(embedder)  # before an index is made that its rows don't go into
    with SearchIndex.open(uri, embedder, token=token, collection=collection, **making) as index:
        with Progress("rows", stored.count, None) as bar:
            loaded = stored.load(index, advance=bar.advance)
        rows = index.count
    tell({"index": uri, "rows": rows, "loaded": loaded}, f"{uri}: {rows:,} rows, {loaded:,} loaded", as_json)


@app.command()
def info(
    uri: Uri = DEFAULT_URI,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Show what an index holds: rows, model, preprocessing and index type.

    [b]Example[/b]

      kakao-models index info --index photos.db
    """
    from kakao_models.search import SearchIndex

    with SearchIndex.open(uri, token=token, collection=collection) as index:
        metadata = {"index": uri, "collection": collection, "rows": index.count} | index.metadata
        metadata["calibrated"] = index.relevance is not None
    shown = {name: value if isinstance(value, (str, int)) else json.dumps(value) for name, value in metadata.items()}
    tell(metadata, "\n".join(f"{name:<14} {value}" for name, value in shown.items()), as_json)


@app.command()
def duplicates(
    uri: Uri = DEFAULT_URI,
    min_score: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least cosine similarity of a row to another one of its group.")
    ] = MIN_SCORE,
    filter: Filter = None,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """List groups of rows that are nearly the same, such as copies of a photograph that were scaled down. Nothing is removed.

    In a group the image with the most pixels comes first. Files with the same bytes are a single row of an index.

    [b]Example[/b]

      kakao-models index duplicates --index photos.db
    """
    from kakao_models.search import SearchIndex, near_duplicates
    from kakao_models.search.results import print_hits

    with SearchIndex.open(uri, token=token, collection=collection) as index:
        groups = near_duplicates(index, min_score, filter=filter)
    if as_json:
        tell([[hit.as_dict() for hit in hits] for hits in groups], None, as_json)
        return
    for hits in groups:
        print_hits(hits)
        print()
    tell(None, f"{len(groups):,} groups of {sum(map(len, groups)):,} rows", False)


@app.command(no_args_is_help=True)
def delete(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Id of a row to remove; may be repeated.")
    ] = None,
    filter: Filter = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete the whole collection.")] = False,
    uri: Uri = DEFAULT_URI,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    as_json: JsonOption = False,
) -> None:
    """Remove rows by id or by a filter, or the whole collection with --all.

    [b]Example[/b]

      kakao-models index delete --filter 'path like "%/private/%"' --index photos.db
    """
    if sum(map(bool, (ids, filter, everything))) != 1:
        raise typer.BadParameter("give ids, a --filter, or --all")
    from kakao_models.search import SearchIndex

    with SearchIndex.open(uri, token=token, collection=collection) as index:
        if everything:
            removed, left = index.count, 0
            index.drop()
        else:
            removed = index.delete(ids) if ids else index.delete(filter=filter)
            left = index.count
    tell({"index": uri, "removed": removed, "rows": left}, f"{uri}: {removed:,} removed, {left:,} left", as_json)


@model_options("model", "batch_size", "fast_images")
def search(
    text: Annotated[str | None, typer.Argument(help="Text to search for.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Image to search for; - for standard input; may be repeated.")
    ] = None,
    plus: Annotated[list[str] | None, typer.Option(help="Text to add to the query; may be repeated.")] = None,
    minus: Annotated[list[str] | None, typer.Option(help="Text to subtract from the query; may be repeated.")] = None,
    minus_image: Annotated[
        list[Path] | None, typer.Option(help="Image to subtract from the query; may be repeated.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NUMBER", help="Weight of a kind of query; by default text=2 and image=1."),
    ] = None,
    filter: Filter = None,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, max=16_384, help="Number of results.")] = 10,
    min_relevance: RelevanceOption = None,
    page: Annotated[Path | None, _output("--html", dir_okay=False, help="Also write a page with the images.")] = None,
    root: Annotated[
        list[Path] | None,
        _output(exists=True, file_okay=False, help="Folders whose images --html may show; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
    uri: Annotated[str, _database("--index", metavar="URI", help=_SEARCHED)] = DEFAULT_URI,
    search_params: Annotated[
        str | None,
        _database(metavar="JSON", help='Search parameters of the index type, such as {"ef": 128}.'),
    ] = None,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=_SEARCH_MODEL, rich_help_panel=MODEL_PANEL),
    ] = None,
    calibration: CalibrationOption = None,
    *,
    options: ModelOptions,
) -> None:
    """Find images (or texts) by a text, by an image, or by a combination of both.

    The nearest images are shown whether or not they fit. --min-relevance 0.5 leaves out those that do not fit.

    Texts and images are embedded, weighted (texts twice as much as images), and added or subtracted, as in ALIGN's paper.

    [b]Examples[/b]

      kakao-models search "red shoes"

      kakao-models search "red" --image shoe.jpg --minus laces --filter 'width > 500' -k 20 --html shoes.html

      kakao-models search --image shoe.jpg --index photos.db --json

      kakao-models search "red shoes" --index embeddings/

      kakao-models search "red shoes" --index photos.db --min-relevance 0.5
    """
    image, plus, minus, minus_image = image or [], plus or [], minus or [], minus_image or []
    if not (text or image or plus):
        raise typer.BadParameter(
            "nothing to search for: expected a text, --image or --plus (--minus only subtracts from these)"
        )
    check_file("--html", page)
    weights, params = _weights(weight or []), _params("--search-params", search_params)
    check_images([*image, *map(str, minus_image)], all_needed=True)
    from kakao_models.files.atomic import write_text
    from kakao_models.search import SearchIndex, compose_query
    from kakao_models.search.query import tokens_read
    from kakao_models.search.results import hits_page, print_hits

    with SearchIndex.open(uri, token=token, collection=collection, search_params=params) as index:
        of_index = {} if model else {"revision": options.revision or index.metadata.get("revision")}
        if not (model := model or index.metadata["model"]):
            raise typer.BadParameter(f"{uri} doesn't name the model of its embeddings: add --model")
        srgb = options.srgb or bool(index.metadata.get("srgb"))  # as the index was built
        options = replace(options, model=model, srgb=srgb, **of_index)
        asked_by_image = bool(image or minus_image)
        if min_relevance is not None and (asked_by_image, bool(text or plus or minus)) != (
            index.metadata["kind"] == "texts",
            index.metadata["kind"] == "images",
        ):
            raise typer.BadParameter(
                f"--min-relevance is the probability that a text fits an image: an index of {index.metadata['kind']} needs a query "
                f"of only {'texts' if index.metadata['kind'] == 'images' else 'images'}"
            )
        options.prepare()
        options.expect(len(image) + len(minus_image), len(plus) + len(minus) + 1)
        embedder = index.use(options.open(calibration=calibration))
        subtracted = [*minus, *minus_image]
        query = compose_query(embedder, text, read_sources(image), plus=plus, minus=subtracted, weights=weights)
        hits = index.search(query, k, filter=filter, min_relevance=min_relevance)
        best = index.search(query, 1, filter=filter, min_relevance=0) if min_relevance and not hits else []
    for term in (text, *plus, *minus):
        if term and (tokens := tokens_read(embedder, term)):
            print(f"{term[:40]}... is longer than {tokens} tokens: only its beginning is used", file=sys.stderr)
    if best:
        least = min_relevance if isinstance(min_relevance, str) else f"{min_relevance:.1%}"
        print(
            f"nothing fits: the best match has a relevance of {best[0].relevance:.1%}, and --min-relevance is {least}",
            file=sys.stderr,
        )
    elif not hits and filter:  # a name that no row has is not an error to Milvus
        print("no rows found: does the filter name columns of the index (kakao-models index info)?", file=sys.stderr)
    elif not hits:
        print("no rows found: the index is empty", file=sys.stderr)
    if as_json:
        tell([hit.as_dict() for hit in hits], None, as_json)
    else:
        print_hits(hits)
    if page:
        terms = [*([text] if text else []), *plus, *(f"[{name}]" for name in image)]
        title = " + ".join(terms) + "".join(f" - {term}" for term in subtracted)
        document, lost = hits_page(hits, title[:200], roots=root)
        write_text(page, document)
        print(f"{page}: {len(hits) - lost} of {len(hits)} images", file=sys.stderr)


def _making(what: str, index_type: str | None, index_params: str | None, metric: str, consistency: str, shards: int):
    """Arguments of `SearchIndex.open` for an index that may have to be made."""
    params = _params("--index-params", index_params)
    new = {"kind": what, "index_type": index_type, "index_params": params, "metric": metric}
    return new | {"consistency": consistency, "shards": shards, "create": True}


def _params(option: str, text: str | None) -> dict:
    try:
        params = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{option} {text}: not valid JSON ({error})") from error
    if not isinstance(params, dict):
        raise typer.BadParameter(f'{option} {text}: expected a JSON object, such as {{"ef": 128}}')
    return params


def _weights(pairs: list[str]) -> dict[str, float]:
    from kakao_models.search.query import check_weights

    try:
        return check_weights({name: float(value) for name, _, value in (pair.partition("=") for pair in pairs)})
    except ValueError as error:
        raise typer.BadParameter(
            f"--weight {' '.join(pairs)}: expected text=NUMBER or image=NUMBER ({error})"
        ) from error
