"""The command `kakao-models serve`."""

import os
import signal
import sys
from typing import Annotated

import typer

from kakao_models.inference.options import Dtype, Engine

_KEY = "KAKAO_MODELS_API_KEY"
_LIMITS = "Limits"
_MODEL = "Model"


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, a folder, or align-tiny.")],
    host: Annotated[str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the model; by default MODEL, of a folder its name.", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=_KEY,
            show_envvar=True,
            show_default=False,
            help="Wanted of every request. Rather by the environment: others can read the command line.",
        ),
    ] = None,
    allow_urls: Annotated[bool, typer.Option(help="Fetch images from public http(s) URLs that clients name.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs of many requests that run together.")] = 32,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds an input waits for others, if there are any.")
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Inputs that may wait; more get 429.", rich_help_panel=_LIMITS)
    ] = 1024,
    max_inputs: Annotated[int, typer.Option(min=1, help="Inputs of one request.", rich_help_panel=_LIMITS)] = 256,
    max_labels: Annotated[
        int, typer.Option(min=1, help="Labels times templates of one request.", rich_help_panel=_LIMITS)
    ] = 1000,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of a request's body.", rich_help_panel=_LIMITS)] = 32,
    max_megapixels: Annotated[float, typer.Option(min=0.1, help="Of an image.", rich_help_panel=_LIMITS)] = 50.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for an answer.", rich_help_panel=_LIMITS)] = 120.0,
    drain: Annotated[
        float,
        typer.Option(min=0, help="Seconds from SIGTERM until new connections are refused.", rich_help_panel=_LIMITS),
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_MODEL)] = "auto",
    framework: Annotated[
        str | None, typer.Option(help="torch, tf or flax.", rich_help_panel=_MODEL, show_default=False)
    ] = None,
    engine: Engine = None,
    dtype: Dtype = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a Hub id.", rich_help_panel=_MODEL, show_default=False),
    ] = None,
) -> None:
    """Serve embeddings (as OpenAI's API) and classification over HTTP.

    POST /v1/embeddings, /v1/classify; GET /v1/models, /health, /ready, /metrics. SIGTERM or Ctrl-C end it once every
    accepted request is answered.

    [b]Examples[/b]

      kakao-models serve align-tiny

      curl http://127.0.0.1:8000/v1/embeddings -H "Content-Type: application/json" -d '{"input": ["a cat"]}'
    """
    from kakao_models.checkpoint.hub import fetch
    from kakao_models.inference.progress import quiet

    try:
        from kakao_models.serve.server import serve as run
        from kakao_models.serve.service import Limits
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kakao_models"):
            raise
        raise ImportError(f"serve needs {error.name}: pip install 'kakao-models[serve]'") from error
    if not os.environ.get(_KEY, "unset").strip() or not (api_key or "unset").strip():
        raise typer.BadParameter(f"the key is empty: set {_KEY} to a secret, or unset it for no key")
    fetch(model, "config.json", revision=revision)  # a wrong name is said at once
    quiet()
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        print(f"kakao-models: listening on {host} without a key: set KAKAO_MODELS_API_KEY", file=sys.stderr)
    limits = Limits(
        max_inputs=max_inputs, max_labels=max_labels, max_pixels=int(max_megapixels * 1e6), allow_urls=allow_urls
    )
    ended_by = run(
        model, name=name, host=host, port=port, limits=limits, batch_size=batch_size, max_wait=max_wait / 1000,
        max_queue=max_queue, max_body=max_megabytes * 10**6, timeout=timeout, drain=drain, api_key=api_key,
        device=device, framework=framework, engine=engine, dtype=dtype, revision=revision,
    )  # fmt: skip
    if ended_by == signal.SIGINT:
        raise typer.Exit(130)
