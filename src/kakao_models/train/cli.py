"""The command `kakao-models train`: one short function per model."""

import os
from typing import Annotated

import typer

from kakao_models.verbs import JsonOption, group, tell

app = group("Pretrain and fine-tune models from recipes. If interrupted, rerun the same command to resume.")

Config = Annotated[str, typer.Option("--config", "-c", help="Recipe: a .yaml file, or a name that `recipes` lists.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace those of the recipe.")
]
Resume = Annotated[bool, typer.Option(help="Resume from the last checkpoint in the output folder.")]
Show = Annotated[bool, typer.Option("--show", help="Print the recipe with all changes, without training.")]


@app.command(no_args_is_help=True)
def align(
    config: Config, changes: Changes = None, resume: Resume = True, show: Show = False, as_json: JsonOption = False
) -> None:
    """Train an ALIGN on images and captions.

    [b]Examples[/b]

      kakao-models train align --config align_b3_mini_cc3m data="cc3m/{00000..00331}.tar" chunk_size=256

      kakao-models train align --config mine.yaml loss=sigmoid augment.crop="[160, 192, 224]"

      kakao-models train align --config mine.yaml data="[{path: a.tar, weight: 2}, {path: b/, weight: 1}]"

      torchrun --nproc-per-node 8 -m kakao_models.cli train align --config mine.yaml batch_size=4096
    """
    _train("align", config, changes or [], resume, show, as_json)


@app.command(no_args_is_help=True)
def vit(
    config: Config, changes: Changes = None, resume: Resume = True, show: Show = False, as_json: JsonOption = False
) -> None:
    """Train a classifier: a ViT, or the image tower of an ALIGN.

    [b]Example[/b]

      kakao-models train vit --config vit_l16_finetune_384 start=vit-l16-pretrain data=imagenet/train
    """
    _train("vit", config, changes or [], resume, show, as_json)


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the recipes inside this package."""
    from kakao_models.train.recipe import summaries

    rows = summaries()
    shown = [{**row, "batch": f"{row['batch']:,}"} for row in rows]
    headings = ("name", "command", "model", "data", "batch", "length")
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in headings}
    lines = [
        "  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip()
        for row in ({key: key for key in headings}, *shown)
    ]
    tell(
        rows,
        "\n".join(
            [
                *lines,
                "",
                "`train COMMAND --config NAME --show` prints a recipe; `train recipes --json` says what each is for.",
            ]
        ),
        as_json,
    )


def _train(kind: str, config: str, changes: list[str], resume: bool, show: bool, as_json: bool) -> None:
    from kakao_models.train.recipe import as_dict, as_yaml, read_recipe

    recipe = read_recipe(kind, config, changes)
    if show:
        tell(as_dict(recipe), as_yaml(recipe).rstrip("\n"), as_json)
        return
    try:
        from kakao_models.train.run import run
    except ModuleNotFoundError as error:
        raise ImportError(f"training needs {error.name}: pip install 'kakao-models[train]'") from error
    try:
        metrics = run(recipe, resume)
    except FloatingPointError as error:
        raise ValueError(str(error)) from error  # which the command says without a traceback
    except ValueError as error:
        # from a worker, whose traceback comes before its message
        raise ValueError(str(error).rpartition(".DataError: ")[2].strip()) from error
    if os.environ.get("RANK", "0") == "0":  # once, of several processes
        lines = [f"{recipe.output}: trained", *(f"{name:<40} {value:.4g}" for name, value in metrics.items())]
        tell({"output": recipe.output, "metrics": metrics}, "\n".join(lines), as_json)
