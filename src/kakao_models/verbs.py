"""Code that the commands of `kakao-models` share: groups, options, and the steps before and after the work.

Exit codes: 0 success, 1 some inputs failed (listed on stderr), 2 the command failed (see stderr), 130 interrupted.
"""

import dataclasses
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = "kakaobrain/align-base"
BUNDLED_MODEL = "align-tiny"
MODEL_PANEL = "Model"


def group(help: str, **options: Any) -> typer.Typer:
    """A command of several verbs."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


_model = functools.partial(typer.Option, rich_help_panel=MODEL_PANEL, show_default=False)
_PLACES = f"A Hub id, a folder, or {BUNDLED_MODEL}."
_ENGINES = (
    "Engine that runs a PyTorch model: torch, compile, openvino or onnx; auto: the fastest that is installed and gives "
    "the same outputs, measured once on this machine. By default torch."
)
_DTYPES = (
    "Type in which the model computes: float32, bfloat16 or float16; auto: the fastest that keeps a cosine of 0.9999. "
    "By default float32."
)
_FAST = "Read JPEGs by simplejpeg and resize by PyTorch, which is faster; some pixels differ by 1 or 2 of 255."
_FRAMEWORKS = "Framework that runs the model: torch, tf or flax; by default the first that is installed."
ModelOption = Annotated[str, _model("--model", "-m", help=_PLACES, show_default=True)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_PLACES)]
RevisionOption = Annotated[str | None, _model(help="Branch, tag or commit of a Hub id.")]
DeviceOption = Annotated[
    str, _model(help="Device that runs the model: auto, cpu, cuda, cuda:1, mps.", show_default=True)
]
FrameworkOption = Annotated[str | None, _model(help=_FRAMEWORKS)]
EngineOption = Annotated[str | None, _model(help=_ENGINES)]
DtypeOption = Annotated[str | None, _model(help=_DTYPES)]
FastImagesOption = Annotated[bool, _model("--fast-images", help=_FAST)]
BatchSizeOption = Annotated[int, _model(min=1, help="Inputs at a time.", show_default=True)]
DATA_PANEL = "Data"
_column = functools.partial(
    typer.Option,
    help="Name of this column in the table; by default, usual names are recognised.",
    show_default=False,
    rich_help_panel=DATA_PANEL,
)
ImageColumnOption = Annotated[str | None, _column("--image-column")]
CaptionColumnOption = Annotated[str | None, _column("--caption-column")]
LabelColumnOption = Annotated[str | None, _column("--label-column")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def prepare(model: str, revision: str | None = None) -> dict[str, Any]:
    """Checks a model's name before a framework is imported, which takes seconds.

    Returns:
        Where it is, with the commit that `revision` is now: arguments of `Embedder` and `from_pretrained`.

    Raises:
        OSError: there is no such model.
    """
    from kakao_models.checkpoint.hub import fetch, pin
    from kakao_models.inference.progress import quiet

    where = pin(model, revision=revision)
    fetch(model, "config.json", **where)
    quiet()
    return where


@dataclass
class ModelOptions:
    """The model that a command runs, and how. The fields are options of the command; see `model_options`."""

    model: ModelOption = DEFAULT_MODEL
    revision: RevisionOption = None
    device: DeviceOption = "auto"
    framework: FrameworkOption = None
    engine: EngineOption = None
    dtype: DtypeOption = None
    batch_size: BatchSizeOption = 32
    fast_images: FastImagesOption = False
    where: dict[str, Any] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Calls `prepare`; `arguments` then name the commit that was found."""
        self.where = prepare(self.model, self.revision)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Embedder` beside the model."""
        names = [option.name for option in dataclasses.fields(ModelOptions) if option.init and option.name != "model"]
        return {name: getattr(self, name) for name in names} | self.where

    def open(self):
        """An `Embedder`; one line on stderr for each part of the model that was measured to choose an engine."""
        from kakao_models import Embedder
        from kakao_models.inference.output import say_engine

        embedder = Embedder(self.model, **self.arguments())
        say_engine(embedder)
        return embedder


def model_options(*omitted: str, **defaults: Any) -> Callable[[Callable], Callable]:
    """Gives a command with a parameter `options`, a `ModelOptions` or a subclass, one option per field, in that place.

    Args:
        omitted: fields that this command has no option for; they keep their defaults.
        defaults: other defaults, by the names of fields.
    """

    def decorate(command: Callable) -> Callable:
        own = inspect.signature(command).parameters
        kind = own["options"].annotation
        chosen = [
            option.replace(default=defaults.get(option.name, option.default))
            for option in inspect.signature(kind).parameters.values()
            if option.name not in omitted
        ]
        parameters: list[inspect.Parameter] = []
        for parameter in own.values():
            parameters += chosen if parameter.name == "options" else [parameter]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

        @functools.wraps(command)
        def run(**arguments: Any) -> Any:
            options = kind(**{option.name: arguments.pop(option.name) for option in chosen})
            return command(**arguments, options=options)

        run.__signature__ = inspect.Signature(parameters)  # which typer reads, with the annotations
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def check_picture(path: Path | None) -> None:
    """Refuses a --picture that could not be written, before the work is done."""
    if path and (path.suffix.lower() not in (".png", ".jpg", ".jpeg") or not path.parent.is_dir()):
        raise typer.BadParameter(
            f"--picture {path}: expected a name that ends in .png or .jpg, in a folder that exists"
        )


def check_file(option: str, path: Path | None) -> None:
    """Refuses a file that could not be written, before the work is done."""
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{option} {path}: expected the name of a file, in a folder that exists")


def check_images(images: list[str], *, all_needed: bool = False) -> None:
    """Looks for images before a model is loaded, which takes seconds.

    Raises:
        FileNotFoundError: none of them is there, or with `all_needed` one is not.
    """
    from kakao_models.pixels.fetch import is_address

    absent = [name for name in images if not is_address(name) and not os.path.exists(name)]
    if absent and (all_needed or len(absent) == len(images)):
        raise FileNotFoundError(f"{', '.join(absent[:3])}: there is no such file or folder")


def check_sources(*sources: str) -> None:
    """Checks that data sources exist, before a model is loaded. They are not opened.

    Raises:
        NoSuchSource: a source is neither a file, a folder nor the name of a data set on the Hub.
    """
    from kakao_models.samples.paths import NoSuchSource, is_hub, matches

    for source in sources:
        if not (is_hub(source) or matches(source)):
            raise NoSuchSource(f"{source}: there is no such file or folder")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options without the empty ones."""
    return {name: value for name, value in options.items() if value}


def tell(result: Any, text: Any, as_json: bool) -> None:
    """Prints a result on stdout: `result` as JSON, or `text`, for people."""
    if as_json:
        text = json.dumps(result, indent=1, ensure_ascii=False, default=str)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # a file name that is not UTF-8, or a screen that shows only ASCII
            text = json.dumps(result, indent=1, default=str)
    else:
        text = on_screen(str(text))
    print(text)


def on_screen(text: str) -> str:
    """Escapes control characters in a text for the terminal, as `printable` does, but keeps line breaks and tabs."""
    from kakao_models.inference.output import printable

    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), text)


def finish(failures: Iterable[Any]) -> None:
    """Lists what failed, on stderr; exit code 1 if anything did."""
    from kakao_models.inference.output import printable

    failures = list(failures)
    for failure in failures:
        print(f"failed: {printable(str(failure))}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)
