"""Code that the commands of `kakao-models` share: groups, options, and the steps before and after the work.

Exit codes: 0 success, 1 some inputs failed (listed on stderr), 2 the command failed (see stderr), 130 interrupted.
"""

import contextlib
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
BUNDLED_MODEL = "align-small"
STANDARD = "-"  # the standard input or output, in the place of a file's name
_MOST_INPUT = 64 * 2**20  # bytes of the standard input
MODEL_PANEL = "Model"
# An engine that starts seconds faster than PyTorch can be slower with each input, or a GPU be faster than both.
_FEW_IMAGES, _FEW_TEXTS = 8, 256


class _Group(typer.Typer):
    """Verbs whose help fills the terminal's width: Typer would keep the line breaks of a docstring."""

    def command(self, name: str | None = None, **options: Any) -> Callable:
        def register(function: Callable) -> Callable:
            paragraphs = inspect.cleandoc(options.pop("help", None) or function.__doc__ or "").split("\n\n")
            help = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
            return super(_Group, self).command(name, help=help, **options)(function)

        return register


def group(help: str, **options: Any) -> typer.Typer:
    """A command of several verbs."""
    return _Group(
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
    "Engine that runs the model: torch, compile, openvino or onnx; auto: the fastest that is installed and gives "
    "the same outputs, measured once on this machine. By default torch, and for a few inputs onnx or openvino if "
    "installed, which start faster."
)
_DTYPES = (
    "Type in which the model computes: float32, bfloat16 or float16; auto: the fastest that keeps a cosine of 0.9999. "
    "By default float32."
)
_FAST = "Decode images faster but less exactly; see docs/speed.md."
_SRGB = "Convert images to sRGB by the colour profile in their files, such as Display P3 of a phone or Adobe RGB."
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
SrgbOption = Annotated[bool, _model("--srgb/--no-srgb", help=_SRGB, show_default=True)]
BatchSizeOption = Annotated[int, _model(min=1, help="Number of inputs per batch.", show_default=True)]
DATA_PANEL = "Data"
_column = functools.partial(
    typer.Option,
    show_default=False,
    rich_help_panel=DATA_PANEL,
)
ImageColumnOption = Annotated[
    str | None, _column("--image-column", help="Column of images; by default, usual names are recognised.")
]
CaptionColumnOption = Annotated[
    str | None, _column("--caption-column", help="Column of captions; by default, usual names are recognised.")
]
LabelColumnOption = Annotated[
    str | None, _column("--label-column", help="Column of labels; by default, usual names are recognised.")
]


def _least(text: str | float) -> float | str:
    """The value of --min-relevance: a number or a guarantee."""
    from kakao_models.inference.relevance import read_least

    value: float | str = text
    with contextlib.suppress(ValueError):
        value = float(text)
    try:
        read_least("--min-relevance", value)
    except ValueError as error:
        raise typer.BadParameter(str(error).partition(": ")[2]) from error
    return value


RelevanceOption = Annotated[
    Any,  # a number or a string, which typer has no type for
    typer.Option(
        "--min-relevance",
        parser=_least,
        metavar="NUMBER|coverage=C|precision=P",
        help="Show the probability that a text fits an image, and leave out results below this; 0 keeps all. coverage=0.9 "
        "keeps 90 % of what fits; with precision=0.4, 40 % of the results fit.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    _model(
        "--calibration",
        exists=True,
        dir_okay=False,
        help="Calibration file for --min-relevance; by default the model's own.",
    ),
]
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
    srgb: SrgbOption = False
    where: dict[str, Any] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Calls `prepare`; `arguments` then name the commit that was found."""
        self.where = prepare(self.model, self.revision)

    def expect(self, images: int, texts: int) -> None:
        """Chooses an engine that starts faster than PyTorch and gives the same outputs, if there are few inputs, the engine is
        installed, and no option asks for something else. For few inputs `--engine auto` measures nothing."""
        from kakao_models.inference.frameworks import starting_fast

        asked = self.engine not in (None, "auto") or self.framework or self.dtype not in (None, "float32")
        if (
            not (asked or self.fast_images)
            and self.device in ("auto", "cpu")
            and images <= _FEW_IMAGES
            and texts <= _FEW_TEXTS
        ):
            self.engine = starting_fast()

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Embedder` beside the model."""
        names = [option.name for option in dataclasses.fields(ModelOptions) if option.init and option.name != "model"]
        return {name: getattr(self, name) for name in names} | self.where

    def open(self, **further: Any):
        """An `Embedder`, with `further` arguments. A line on stderr says which engine was chosen for each part of the model."""
        from kakao_models import Embedder
        from kakao_models.inference.output import say_engine

        embedder = Embedder(self.model, **self.arguments(), **further)
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
    """Refuses a --picture path that cannot be written, before the work starts."""
    if path and (path.suffix.lower() not in (".png", ".jpg", ".jpeg") or not path.parent.is_dir()):
        raise typer.BadParameter(
            f"--picture {path}: expected a name that ends in .png or .jpg, in a folder that exists"
        )


def check_file(option: str, path: Path | None, *, standard: bool = False) -> None:
    """Refuses a file that cannot be written, before the work starts. `standard`: - is the standard output."""
    if path and str(path) == STANDARD:
        if not standard:
            raise typer.BadParameter(
                f"{option} - : this option can't write to standard output; give the name of a file"
            )
        return
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{option} {path}: expected the name of a file, in a folder that exists")


def check_images(images: list[str], *, all_needed: bool = False) -> None:
    """Looks for images before a model is loaded, which takes seconds.

    Raises:
        FileNotFoundError: all of them are missing, or with `all_needed` one of them.
    """
    from kakao_models.inference.stream import is_single
    from kakao_models.pixels.fetch import is_address
    from kakao_models.pixels.images import is_image_text

    absent = [
        name
        for name in images
        if name != STANDARD
        and is_single(name)  # a folder or a pattern is looked into later
        and not (is_address(name) or os.path.exists(name) or is_image_text(name))
    ]
    if absent and (all_needed or len(absent) == len(images)):
        raise FileNotFoundError(f"{', '.join(name[:200] for name in absent[:3])}: no such file or folder")


def standard_input() -> bytes:
    """The content of the standard input, for an input called "-".

    Raises:
        BadParameter: it is a terminal, is empty or has more than 64 MB.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise typer.BadParameter("- reads standard input: pipe a file into it, as in: cat photo.jpg | kakao-models ...")
    data = sys.stdin.buffer.read(_MOST_INPUT + 1)
    if not data:
        raise typer.BadParameter("- reads standard input, which is empty")
    if len(data) > _MOST_INPUT:
        raise typer.BadParameter(f"standard input has more than {_MOST_INPUT >> 20} MB: give the name of a file")
    return data


def read_sources(names: Iterable[str]) -> list[Any]:
    """Images by their names, for an `Embedder`; "-" is the content of the standard input."""
    names = list(names)
    if names.count(STANDARD) > 1:
        raise typer.BadParameter("- is given twice, but standard input can be read only once")
    return [standard_input() if name == STANDARD else name for name in names]


def say_written(path: Path) -> None:
    """Says on stderr where a file is."""
    from kakao_models.inference.output import printable

    print(f"wrote {printable(str(path))}", file=sys.stderr)


def write_picture(figure: Any, path: Path) -> None:
    """Saves a figure of matplotlib, and says on stderr where it is."""
    from kakao_models.inference.picture import save_picture

    save_picture(figure, path)
    say_written(path)


def check_sources(*sources: str) -> None:
    """Checks that data sources exist, before a model is loaded. They are not opened.

    Raises:
        NoSuchSource: a source is neither a file, a folder nor the name of a data set on the Hub.
    """
    from kakao_models.samples.paths import NoSuchSource, is_hub, matches

    for source in sources:
        if not (is_hub(source) or matches(source)):
            raise NoSuchSource(f"{source}: no such file or folder")


def not_standard(path: Path | None) -> Path | None:
    """Refuses - for an option that names a folder."""
    if path and str(path) == STANDARD:
        raise typer.BadParameter("- means standard output, but this command writes a folder: give its name")
    return path


def listed(names: str | None) -> list[str] | None:
    """The names in the value of an option, which commas separate; None without a value."""
    return [name.strip() for name in names.split(",")] if names else None


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Drops empty options."""
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
