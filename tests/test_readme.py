"""README's Python runs as it stands, with the model inside the package in the place of the released one."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kakao_models import cli
from kakao_models.demo.photos import BUNDLED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder like the one in which a reader tries it: a clone's photographs, and some of the reader's own."""
    shutil.copytree(BUNDLED, tmp_path / "src/kakao_models/photos", ignore=shutil.ignore_patterns("*.md"))
    for folder in ("photos", "holiday"):
        shutil.copytree(BUNDLED, tmp_path / folder, ignore=shutil.ignore_patterns("*.md", "*.txt"))
    shutil.copy(BUNDLED / "cat.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python(block, here, capsys):
    exec(compile(block.replace("kakaobrain/align-base", "align-small"), "README.md", "exec"), {})
    said = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize(
    "command", re.findall(r"^    kakao-models ((?:classify|embed|info) [^#\n]*)", README, re.MULTILINE)
)
def test_commands(command, here):
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code
    if words[0] == "embed":
        assert np.load("photos.npy").shape == (8, 384)
