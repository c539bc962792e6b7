"""The command `kakao-models demo`."""

import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from kakao_models.search.cli import DATABASE, DEFAULT_COLLECTION, Collection, Token
from kakao_models.verbs import BUNDLED_MODEL, MODEL_PANEL, ModelOptions, given, model_options, prepare

_model = functools.partial(typer.Option, rich_help_panel=MODEL_PANEL)
_database = functools.partial(typer.Option, rich_help_panel=DATABASE)
_ALIGN = "A Hub id or a folder of an ALIGN; may be repeated. By default align-small."
_VIT = "A Hub id or a folder of a ViT. By default kakaobrain/vit-large-patch16-384, downloaded on first use."
_INDEX = "Index of kakao-models index build, or output of data embed; by default the photographs inside the package."
_ROOT = "Folder whose images the page may show; may be repeated. By default the current folder."


@model_options("model", "revision", "batch_size", "fast_images")
def demo(
    model: Annotated[list[str] | None, _model("--model", "-m", help=_ALIGN)] = None,
    vit: Annotated[str | None, _model(help=_VIT)] = None,
    only: Annotated[bool, _model("--only", help="Do not let visitors load further models.")] = False,
    *,
    options: ModelOptions,
    index: Annotated[str | None, _database(metavar="URI", help=_INDEX)] = None,
    root: Annotated[list[Path] | None, _database(exists=True, file_okay=False, help=_ROOT)] = None,
    token: Token = None,
    collection: Collection = DEFAULT_COLLECTION,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 allows access from other computers.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; by default the first free one from 7860.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON.")] = False,
) -> None:
    """Serve a local web page to try zero-shot, a ViT's classes, search and a map of embeddings. Ctrl-C ends it.

    [b]Examples[/b]

      kakao-models demo

      kakao-models demo --model kakaobrain/align-base --index kakao.db --root holiday/

      kakao-models demo --vit vit-large-patch16-384/ --port 8000 --open
    """
    from kakao_models.demo.serve import serve

    def ready(url: str) -> None:
        print(json.dumps({"url": url}) if as_json else f"{url} - Ctrl-C ends it", flush=True)
        if browser:
            typer.launch(url)

    models = model or [BUNDLED_MODEL]
    for name in filter(None, [*models, vit]):
        prepare(name)
    serve(
        models,
        index=index,
        token=token,
        collection=collection,
        roots=root or [Path()],
        others=not only,
        host=host,
        port=port,
        ready=ready,
        **options.arguments(),
        **given({"vit": vit}),
    )
