"""Pages of the documentation site that are made from the code: a hook of MkDocs, which mkdocs.yml names.

API reference from docstrings, the command's reference from its options, the table of recipes, the changelog, and the
notebooks with their outputs.
"""

import base64
import importlib
import logging
import mimetypes
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.generated")  # a warning ends `mkdocs build --strict`


def api_page(package: str) -> str:
    """The public names of a package, each with its docstring."""
    module = importlib.import_module(package)
    names = [name for names in module._MODULES.values() for name in names]
    entries = "\n\n".join(f"::: {package}.{name}" for name in names)
    return f"# {package}\n\n{module.__doc__}\n\n{entries}\n"


def command_page() -> str:
    """Every command with its help text, arguments and options."""
    import typer
    from typer.cli import get_docs_for_click

    from kakao_models.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="kakao-models"), name="kakao-models")
    text = re.sub(r"\[b\](.*?)\[/b\]", r"**\1**", text)  # the markup of Rich
    text = re.sub(r"^  (?=\S)", "    ", text, flags=re.MULTILINE)  # examples
    return re.sub(r"^# .*", "# Command line", text, count=1)


def recipes_page() -> str:
    """A table of the recipes inside the package."""
    from kakao_models.train.recipe import summaries

    rows = [
        f"| `{row['name']}` | {row['model']} | `{row['data']}` | {row['batch']:,} | {row['length']} | {row['about']} |"
        for row in summaries()
    ]
    note = (
        "Run one with `kakao-models train align --config NAME`, or `train vit` for classifiers: see [Training](../train.md). "
        "A run's hours depend on your hardware; [Scaling](../scaling.md) says how to estimate them."
    )
    head = "| recipe | model | data | batch | length | about |\n|---|---|---|---|---|---|"
    return "\n".join(["# Recipes", "", note, "", head, *rows, ""])


def changelog_page() -> str:
    """CHANGELOG.md, with links as they are on the site."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](../")


def notebook_page(file: Path) -> str:
    """A notebook as Markdown, with its outputs and their pictures inside."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(file))
    for name, picture in resources["outputs"].items():
        data = f"data:{mimetypes.guess_type(name)[0]};base64,{base64.b64encode(picture).decode()}"
        text = text.replace(f"({name})", f"({data})")
    return text.replace(".ipynb)", ".md)")


PAGES: dict[str, Callable[[], str]] = {
    "reference/kakao_models.md": lambda: api_page("kakao_models"),
    "reference/evaluate.md": lambda: api_page("kakao_models.evaluate"),
    "reference/search.md": lambda: api_page("kakao_models.search"),
    "reference/command.md": command_page,
    "reference/recipes.md": recipes_page,
    "reference/changelog.md": changelog_page,
    **{f"notebooks/{file.stem}.md": partial(notebook_page, file) for file in (ROOT / "notebooks").glob("*.ipynb")},
}


def links_as_code(markdown: str, folder: Path) -> tuple[str, list[str]]:
    """Replaces links to files outside docs/, which the site has not, by their paths; also returns the missing ones."""
    missing = []

    def as_code(match: re.Match) -> str:
        target = (folder / match["path"].split("#")[0]).resolve()
        if not target.exists():
            missing.append(match["path"])
        return f"`{target.relative_to(ROOT)}`" if target.is_relative_to(ROOT) else match["path"]

    return re.sub(r"\[[^\]]*\]\((?P<path>\.\./[^)\s]+)\)", as_code, markdown), missing


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages (MkDocs calls this)."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites links that leave docs/ (MkDocs calls this)."""
    if page.file.src_uri in PAGES:
        return markdown
    text, missing = links_as_code(markdown, ROOT / "docs")
    for path in missing:
        LOG.warning("%s links to %s, which does not exist", page.file.src_uri, path)
    return text
