"""The package as it is imported: light, lazy, and clear about what is missing."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kakao_models

FRAMEWORKS = "torch", "tensorflow", "keras", "jax", "flax", "transformers", "numpy"


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_the_package_imports_no_framework():
    done = python(f"import sys, kakao_models; print([name for name in {FRAMEWORKS} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_can_be_had():
    for name in kakao_models.__all__:
        assert getattr(kakao_models, name).__name__ == name
    assert set(kakao_models.__all__) <= set(dir(kakao_models))


@pytest.mark.parametrize("name", ["kakao_models", "kakao_models.evaluate", "kakao_models.search"])
def test_type_checkers_see_every_public_name(name):
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)  # else it is not re-exported
    homes = {
        (name + m if m.startswith(".") else m, public) for m, names in package._MODULES.items() for public in names
    }
    assert seen - {("kakao_models", "evaluate")} == homes
    assert (Path(kakao_models.__file__).parent / "py.typed").is_file()


def unannotated_arguments(scope: ast.AST, path: str = "") -> Iterator[str]:
    """The arguments without a type of the public functions and methods in a module or class."""
    for node in scope.body:
        public = not node.name.startswith("_") if hasattr(node, "name") else False
        if public and isinstance(node, ast.ClassDef):
            yield from unannotated_arguments(node, f"{path}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not public and node.name not in ("__init__", "__call__"):
                continue
            every = node.args
            arguments = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
            is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
            if isinstance(scope, ast.ClassDef) and not is_static:
                arguments = arguments[1:]  # self, cls
            for argument in filter(None, arguments):
                if argument.annotation is None:
                    yield f"{path}{node.name}: {argument.arg}"


def test_every_argument_of_a_public_function_has_a_type():
    package = Path(kakao_models.__file__).parent
    missing = [
        f"{file.relative_to(package)}: {argument}"
        for file in sorted(package.rglob("*.py"))
        for argument in unannotated_arguments(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not missing, "\n".join(missing)
    probe = "def _own(a): ...\nclass C:\n  def __init__(self, b, *c, d: int): ...\n  @staticmethod\n  def e(f): ..."
    assert list(unannotated_arguments(ast.parse(probe))) == ["C.__init__: b", "C.__init__: c", "C.e: f"]


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "kakao_models", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "zero-shot" in done.stdout


def test_a_missing_framework_is_named_with_the_command_that_installs_it():
    hide = "import sys; sys.modules['torch'] = None\nimport kakao_models\n"
    done = python(hide + "kakao_models.AlignConfig, kakao_models.ViTConfig; print('configs'); kakao_models.AlignModel")
    assert done.stdout.strip() == "configs"
    assert done.stderr.splitlines()[-1] == "ImportError: AlignModel needs torch: pip install 'kakao-models[torch]'"


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match="has no attribute 'AlignModell'. It has: Align"):
        kakao_models.AlignModell  # noqa: B018
