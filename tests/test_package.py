"""The package as it is imported: light, lazy, and clear about what is missing."""

import ast
import importlib
import subprocess
import sys
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
