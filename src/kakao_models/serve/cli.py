"""The command `kakao-models serve`."""

import functools
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Annotated

import typer

from kakao_models.pixels.limits import MAX_SHOWN_PIXELS
from kakao_models.verbs import CalibrationOption, ModelArgument, ModelOptions, model_options

_KEY = "KAKAO_MODELS_API_KEY"
_MEGAPIXELS = MAX_SHOWN_PIXELS / 1e6
_limit = functools.partial(typer.Option, min=1, rich_help_panel="Limits")


@model_options("model", "batch_size", "fast_images")
def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all networks.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model in requests; by default MODEL, or the name of a folder.", show_default=False
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=_KEY,
            show_envvar=True,
            show_default=False,
            help="API key required on every request. Prefer the environment variable: others can see the command line.",
        ),
    ] = None,
    allow_urls: Annotated[bool, typer.Option(help="Fetch images from public http(s) URLs in requests.")] = False,
    strings: Annotated[
        str,
        typer.Option(
            help="Treatment of strings that look like images (http(s) URLs, base64): refuse, images or texts."
        ),
    ] = "refuse",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Largest number of inputs per batch, from one or more requests.")
    ] = 32,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Longest time that an input waits for its batch to fill, in milliseconds.")
    ] = 5.0,
    max_queue: Annotated[int, _limit(help="Number of inputs that may wait; further requests get status 429.")] = 1024,
    max_inputs: Annotated[int, _limit(help="Largest number of inputs per request.")] = 256,
    max_labels: Annotated[int, _limit(help="Largest number of labels times templates per request.")] = 1000,
    max_megabytes: Annotated[int, _limit(help="Largest size of a request's body in megabytes.")] = 32,
    max_megapixels: Annotated[float, _limit(min=0.1, help="Largest size of an image in megapixels.")] = _MEGAPIXELS,
    timeout: Annotated[float, _limit(help="Time limit of a request in seconds.")] = 120.0,
    drain: Annotated[float, _limit(min=0, help="Seconds from SIGTERM until new connections are refused.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON, on stdout.")] = False,
    calibration: CalibrationOption = None,
    *,
    options: ModelOptions,
) -> None:
    """Serve embeddings (as OpenAI's API) and classification over HTTP.

    Endpoints: POST /v1/embeddings, /v1/classify, and those that clients of vLLM, Infinity, Jina, Cohere and TEI use; GET /
    (documentation), /v1/models, /health, /ready, /metrics. On SIGTERM or Ctrl-C the service answers all accepted requests,
    then ends.

    [b]Examples[/b]

      kakao-models serve align-small

      curl http://127.0.0.1:8000/v1/embeddings -H "Content-Type: application/json" -d '{"input": ["a cat"]}'
    """
    try:
        from kakao_models.serve.schemas import STRINGS
        from kakao_models.serve.server import serve as run
        from kakao_models.serve.service import Limits
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kakao_models"):
            raise
        raise ImportError(f"serve needs {error.name}: pip install 'kakao-models[serve]'") from error
    if not os.environ.get(_KEY, "unset").strip() or not (api_key or "unset").strip():
        raise typer.BadParameter(f"the key is empty: set {_KEY} to a secret, or unset it for no key")
    options = replace(options, model=model, batch_size=batch_size)
    options.prepare()

    def ready(url: str) -> None:
        print(f"kakao-models: {url}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"url": url}), flush=True)

    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"kakao-models: listening on {host} without an API key, so everyone there can use the service: set {_KEY}",
            file=sys.stderr,
        )
    if strings not in STRINGS:
        raise typer.BadParameter(f"--strings {strings}: expected one of {', '.join(STRINGS)}")
    limits = Limits(
        max_inputs=max_inputs, max_labels=max_labels, max_pixels=int(max_megapixels * 1e6), allow_urls=allow_urls,
        strings=strings,
    )  # fmt: skip
    ended_by = run(
        options, name=name, host=host, port=port, limits=limits, max_wait=max_wait / 1000,
        max_queue=max_queue, max_body=max_megabytes * 10**6, timeout=timeout, drain=drain, api_key=api_key, ready=ready,
        calibration=calibration,
    )  # fmt: skip
    if ended_by == signal.SIGINT:
        raise typer.Exit(130)
