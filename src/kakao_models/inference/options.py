"""Options of every command that runs a model: what runs it, and in which type of numbers."""

from typing import Annotated

import typer

_PANEL = "Model"
Engine = Annotated[
    str | None,
    typer.Option(
        help="torch, compile, openvino or onnx: what runs a PyTorch model; auto: the fastest that is installed and gives "
        "the same numbers, measured once on this machine. By default torch.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16: what the model computes in; auto: the fastest that keeps a cosine of 0.9999. "
        "By default float32.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
FastImages = Annotated[
    bool,
    typer.Option(
        "--fast-images",
        help="Read JPEGs by simplejpeg and resize by PyTorch, which is faster; some pixels differ by 1 or 2 of 255.",
        rich_help_panel=_PANEL,
    ),
]


def say_engine(embedder) -> None:
    """One line on stderr for each part of the model that something was measured for."""
    checks = getattr(embedder.engine, "checks", None)
    if checks:
        import sys

        from kakao_models.inference.selfcheck import explain

        print(explain(checks), file=sys.stderr)
