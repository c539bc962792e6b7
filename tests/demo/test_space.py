"""examples/space, as Hugging Face's Spaces read it."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SPACE = REPOSITORY / "examples/space"


def test_the_folder_says_what_a_space_needs():
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", header["sdk_version"])
    assert set(header["preload_from_hub"]) <= set(header["models"])
    *options, requirement = (SPACE / "requirements.txt").read_text().split("\n")[:-1]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", requirement).groups()
    setup, project = ((REPOSITORY / file).read_text() for file in ("setup.py", "pyproject.toml"))
    assert f'name = "{name}"' in project and all(f'    "{extra}": ' in setup for extra in extras.split(","))


def test_its_page_is_built_from_named_models_alone():
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'kakao-models[demo]'")
    found = runpy.run_path(str(SPACE / "app.py"))  # nothing is loaded before a visitor asks for it
    assert isinstance(found["page"], gradio.Blocks)
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    models = found["models"]
    assert not models.others and {*models.offered, models.vit} == {*header["models"], "align-small"}
