"""The mechanical part of how texts read: first lines of docstrings and help texts stand alone; some phrases have plainer words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FRAGMENT = re.compile(r"(Of|As|What|Which|Those|By|Than|None:) ")  # such as "Of the sample."
# phrase -> what to write
BANNED = {
    "is none of": "is not",
    "could not be had": "is not available",
    "as are": "and so are",
    "on a processor": "on a CPU",
    "one processor": "one CPU",
    "for whom": "the use case",
    "what it takes": "performance",
    "nothing could be done": "the command failed",
    "of a kind that is read": "unsupported image format",
    "are no error": "are not an error",
    "be had": "is not available",
    "different urls": "distinct URLs",
    "doubles": "duplicates",
    "goes on where": "resumes where",
    "nested deeper": "nested too deeply",
    "processor time": "CPU time",
    "on processors": "on CPUs",
    "seeing it run": "logging and evaluation",
    "is said to have": "has ... according to its header",
    "the model wants": "the model expects",
    "what is not there": "not supported",
    "reads no texts": "has no text tower",
    "is at work (on|with)": "already works on",
    "another one's": "belongs to another model",
    "(text|label|class|word|template) a line": "one per line",
    "as many of each": "the same number of each",
    "original program": "original code",
}
# The same in messages, help texts and other strings that are not docstrings
BANNED_IN_MESSAGES = {
    r"(?<!there )\b(is|are) no (?!longer\b|more\b)": "is not a",
    r"\bthere are \{\}, ": "expected one of",
    r"\bof widths? \{\}": "of dimension",
    r"\balone\b": "only",
    r"\bany more\b": "no longer",
    r"\bgoes on\b": "resumes",
    r"\bone a line\b": "one per line",
    r"\bthe standard (input|output)\b": "standard input",
    r"\bwhatever\b": "any",
}


def first_lines(file: Path) -> Iterator[tuple[str, str]]:
    """The first line of each docstring, and each help text, with its place."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node):
                yield f"{file.relative_to(ROOT)}: {getattr(node, 'name', 'module')}", text.splitlines()[0]
        elif isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield f"{file.relative_to(ROOT)}: line {node.value.lineno}", str(node.value.value)


def strings(file: Path) -> Iterator[tuple[str, str]]:
    """Every string but docstrings, with {} for each value in it, and its place."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            text = node.value
        else:
            continue
        yield f"{file.relative_to(ROOT)}:{node.lineno}", text


def test_summaries_and_help_texts_stand_alone():
    fragments = [f"{place}: {line}" for file in SOURCES for place, line in first_lines(file) if FRAGMENT.match(line)]
    assert not fragments, "\n".join(fragments)


@pytest.mark.parametrize("phrase", BANNED)
def test_plainer_words(phrase):
    pattern = re.compile(rf"\b{phrase}\b", re.IGNORECASE)
    hits = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in (*SOURCES, *TEXTS)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not hits, f"write {BANNED[phrase]!r}:\n" + "\n".join(hits)


def test_plainer_words_in_messages():
    texts = [each for file in SOURCES for each in strings(file)]
    hits = [
        f"{place}: write {plain!r}: {text}"
        for phrase, plain in BANNED_IN_MESSAGES.items()
        for place, text in texts
        if re.search(phrase, text)
    ]
    assert not hits, "\n".join(hits)
