"""The notebooks: valid, small, executed without an error, without paths of a machine; and their code still runs."""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny

from kakao_models.demo.photos import BUNDLED

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDS = {"search": ["torch", "pymilvus"], "tensorflow_and_jax": ["tensorflow", "flax"]}  # beside matplotlib
LIMIT = 200_000  # bytes


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def notebook(request) -> tuple[Path, dict]:
    return request.param, json.loads(request.param.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(content: dict) -> list[dict]:
    """The code cells but the one that installs."""
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in code if "install" not in cell["metadata"].get("tags", [])]


def test_there_are_five():
    assert {file.stem for file in NOTEBOOKS} == {"quickstart", "search", "finetune", "convert", "tensorflow_and_jax"}


def test_a_notebook_opens_with_what_it_does_and_how_to_install(notebook):
    file, content = notebook
    first, install = content["cells"][:2]
    assert re.match(r"# .+\n\nThis notebook .+\.\n\n", source(first))
    assert install["metadata"]["tags"] == ["install"] and 'find_spec("kakao_models") is None' in source(install)
    (extras,) = re.findall(r'kakao-models-clone\[([a-z,]+)\]"', source(install))
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert all(f'    "{extra}": ' in setup for extra in extras.split(","))


def test_a_notebook_was_executed_and_is_small(notebook):
    file, content = notebook
    assert content["nbformat"] == 4 and file.stat().st_size < LIMIT
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(content):
        assert cell["execution_count"], f"{file.name}: run make notebooks; this cell was not executed:\n{source(cell)}"
    outputs = [output for cell in code_cells(content) for output in cell["outputs"]]
    kinds = [output["output_type"] for output in outputs]
    assert kinds and "error" not in kinds
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)  # something to look at
    texts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not (paths := re.findall(r"(?<![\w.])(?:/[\w.-]+){2,}", "\n".join("".join(text) for text in texts))), paths


def as_python(code: str) -> str:
    """The code of a cell, with calls of kakao-models in this process, and without IPython's settings."""
    code = re.sub(r"^%config .*\n", "", code, flags=re.MULTILINE)
    return re.sub(r"^!kakao-models (.*)$", lambda call: f"kakao_models_({shlex.split(call[1])})", code, flags=re.M)


def run(content: dict, names: dict[str, Any], replace: dict[str, str]) -> list[Any]:
    """Runs the code cells in one namespace; returns what they show: the value of a last expression, or None."""
    shown = []
    for cell in code_cells(content):
        code = as_python(source(cell))
        for old, new in replace.items():
            code = code.replace(old, new)
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        shown.append(last and eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return shown


@pytest.mark.filterwarnings("ignore:.*non-interactive", "ignore:More than 20 figures")
def test_the_cells_run(notebook, tmp_path, monkeypatch, hub, command):
    file, content = notebook
    matplotlib = pytest.importorskip("matplotlib")
    for library in NEEDS.get(file.stem, ["torch"]):
        pytest.importorskip(library)
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.tokens.add("hf_mine")

    def call(words: list[str]) -> None:
        code, _, error = command(*words)
        assert code == 0, error

    names: dict[str, Any] = {"kakao_models_": call}
    replace = {'repository_on_the_hub = ""': 'repository_on_the_hub = "me/align-mine"', "max_steps=32": "max_steps=12"}
    if file.stem == "convert":
        hub.commit("me/align-mine", {".gitattributes": b""})
    if file.stem == "tensorflow_and_jax":  # XLA would compile align-small for long
        replace["align-small"] = tiny.align_folder(tmp_path / "model", config=tiny.one_block_config())
    shown = run(content, names, replace)
    if file.stem == "finetune":
        assert names["losses"][-1] < names["losses"][0] and names["after"] > names["before"]
    if file.stem == "convert":
        repository = hub.repositories["me/align-mine"]
        uploaded = repository.commits[repository.branches["main"]]
        assert uploaded["model.safetensors"] == Path("align-mine/model.safetensors").read_bytes() and True in shown
    if file.stem == "tensorflow_and_jax":
        assert shown[-1] is True and abs(names["tf_logits"] - names["flax_logits"]).max() < 1e-2
    if file.stem == "search":
        assert [] in shown  # nothing fits a tax report
    if file.stem == "quickstart":
        assert names["results"][0][0]["label"] == "a cat" and names["photos"][0] == BUNDLED / "cat.jpg"
