"""The documentation site, the texts' links and examples, and the files that packaging and continuous integration read."""

import ast
import importlib
import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, ROOT, blocks
from typer.main import get_command

from kakao_models.cli import app
from kakao_models.demo.photos import BUNDLED

TEXTS = sorted(
    file
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "conversion/**/*.md", "src/**/*.md")
    for file in ROOT.glob(pattern)
)
SCRIPTS = sorted(file for file in (ROOT / "examples").rglob("*.py") if file.name != "inputs.py")  # which is imported


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site():
    return load(DOCS / "generated.py")


def headings(markdown: str) -> set[str]:
    """The anchors of a Markdown file, as code hosts and MkDocs name them."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^#+ +(.*?)\s*$", prose, flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", line.lower())) for line in lines}


def broken_links(file: Path) -> Iterator[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists():
            yield f"{file.relative_to(ROOT)}: {link} does not exist"
        elif anchor and anchor not in headings(target.read_text(encoding="utf-8")):
            yield f"{file.relative_to(ROOT)}: {target.name} has no heading #{anchor}"


def test_links_between_files_lead_somewhere():
    assert not (broken := [link for file in TEXTS for link in broken_links(file)]), "\n".join(broken)


def unknown_options(file: Path, verbs: Any) -> Iterator[str]:
    """Options of commands in a Markdown file that the command does not have."""
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:kakao-models|-m kakao_models\.cli) ((?:\w|-).*)", text):
        words = re.split(r"`|\s\||\s#|&&", line)[0].split()
        command = verbs
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {"--help", *(name for option in command.params for name in (*option.opts, *option.secondary_opts))}
        if not hasattr(command, "commands"):
            options = re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", " ".join(words))
            yield from (f"{file.relative_to(ROOT)}: {line}" for option in options if option not in known)


def test_options_of_commands_in_the_texts_exist():
    verbs = get_command(app)
    assert not [line for file in TEXTS for line in unknown_options(file, verbs)]


def test_the_navigation_has_every_page(site):
    nav = yaml.safe_load(re.sub(r"!ENV.*", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))["nav"]
    listed = re.findall(r"[\w/]+\.md", str(nav))
    assert sorted(listed) == sorted([*(file.name for file in DOCS.glob("*.md")), *site.PAGES])


@pytest.mark.parametrize("package", ["kakao_models", "kakao_models.evaluate", "kakao_models.search"])
def test_the_reference_has_every_public_name(site, package):
    page = site.api_page(package)
    names = re.findall(rf"^::: {re.escape(package)}\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(names) == sorted(importlib.import_module(package).__all__)


def test_the_reference_has_every_command_and_no_markup_of_the_terminal(site):
    import typer

    from kakao_models.cli import app

    page = site.command_page()

    def check(command, name: str) -> None:
        for inner_name, inner in getattr(command, "commands", {}).items():
            assert f" `{name} {inner_name}`\n" in page
            check(inner, f"{name} {inner_name}")

    check(typer.main.get_command(app), "kakao-models")
    assert "[b]" not in page and "**Examples**" in page
    assert '\n    kakao-models classify cat.jpg --labels "a cat,a dog,a red car"\n' in page  # as code


def test_the_reference_has_every_recipe(site):
    from kakao_models.train.recipe import names

    rows = re.findall(r"^\| `(\w+)` \|", site.recipes_page(), flags=re.MULTILINE)
    assert rows == names()
    assert "](../" in site.changelog_page() and "](docs/" not in site.changelog_page()


def test_links_out_of_the_site_become_paths(site):
    text, missing = site.links_as_code("see [it](../setup.py) and [none](../nothing.py), [here](train.md)", DOCS)
    assert text == "see `setup.py` and `nothing.py`, [here](train.md)" and missing == ["../nothing.py"]


def test_the_quickstart_prints_what_it_says(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks((DOCS / "quickstart.md").read_text(encoding="utf-8")))
    exec(compile(code, "quickstart.md", "exec"), {})
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
    assert len(expected) == 3 and capsys.readouterr().out.splitlines() == expected


INTEGRATIONS = {
    section.splitlines()[0]: section
    for section in (DOCS / "integrations.md").read_text(encoding="utf-8").split("\n## ")[1:]
}


@pytest.mark.parametrize("library", [name for name, section in INTEGRATIONS.items() if blocks(section)])
def test_each_integration_runs_where_its_library_is_installed(library, tmp_path, monkeypatch):
    (code,) = blocks(INTEGRATIONS[library])
    for name in {node.module or "" for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for alias in node.names
    }:
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and importlib.util.find_spec(top) is None:
            pytest.skip(f"{top} is not installed")
    monkeypatch.chdir(tmp_path)
    for photo in ("cat.jpg", "sunset.jpg"):
        shutil.copy(BUNDLED / photo, tmp_path)
    exec(compile(code, f"integrations.md, {library}", "exec"), {"__name__": "integration"})


def test_each_script_names_what_it_needs():
    """Headers of PEP 723, from which `uv run` and `pipx run` install."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for file in SCRIPTS:
        text = file.read_text(encoding="utf-8")
        header = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", text, flags=re.MULTILINE)
        assert header, f"{file.relative_to(ROOT)}: expected a header `# /// script`"
        found = tomllib.loads(re.sub(r"^# ?", "", header[1], flags=re.MULTILINE))
        python = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
        assert found["requires-python"] == python
        needed = {re.split(r"[\[<>=]", each)[0]: each for each in found["dependencies"]}
        own = "import kakao_models" in text or "from kakao_models" in text
        assert ("kakao-models" in needed) == own, file
        if own:
            extras = re.search(r"\[(.*)\]", needed["kakao-models"])[1].split(",")
            assert all(f'    "{extra}": ' in setup for extra in extras)
            clone = (file.parent / found["tool"]["uv"]["sources"]["kakao-models"]["path"]).resolve()
            assert clone == ROOT


def test_setup_and_pyproject_know_different_facts():
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"install_requires": "dependencies", "extras_require": "optional-dependencies"}
    given = {names.get(keyword.arg, keyword.arg) for keyword in call.keywords}
    assert given == set(project["dynamic"]) and not given & set(project)
    for text in (project["readme"], *project["license-files"]):
        assert (ROOT / text).is_file()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == project["name"] and citation["authors"] == project["authors"]


def test_workflows_run_the_make_targets_that_exist_with_pinned_actions():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    run = set(re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert run <= targets
    for file in sorted((ROOT / ".github/workflows").glob("*.yml")):
        jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
        used = set(jobs["make"]["strategy"]["matrix"]["target"])
        steps = [step for job in jobs.values() for step in job["steps"]]
        for step in steps:
            assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40)), step
            used |= set(re.findall(r"^make ([a-z-]+)", step.get("run", "")))
        assert run <= used <= targets
