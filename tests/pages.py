"""Code of the documentation's pages, for the tests that run it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(markdown: str, language: str = "python") -> list[str]:
    """The code blocks of a language, without the indentation of a list that they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", markdown, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def block(page: str, part: str) -> str:
    """The one Python block of a page that has `part` in it."""
    (code,) = [code for code in blocks(read(page)) if part in code]
    return code


def run(code: str, page: str, names: dict[str, Any], replace: Mapping[str, str] = {}) -> dict[str, Any]:
    """Runs a block in a namespace, with other texts in the place of some of its own, and returns the namespace."""
    for old, new in replace.items():
        code = code.replace(old, new)
    exec(compile(code, page, "exec"), names)
    return names
