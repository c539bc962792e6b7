"""Models to export, the embedder to compare with, and the scripts of the examples that run an export."""

import importlib.util
import sys
from pathlib import Path

import pytest
import tiny

from kakao_models import Embedder

EXAMPLES = Path(__file__).parents[2] / "examples/serving"


@pytest.fixture(scope="session")
def align_tf(tmp_path_factory):
    """Preprocessing as the original program's, which graphs can express."""
    return tiny.align_folder(tmp_path_factory.mktemp("align_tf"), preprocessing="tf")


@pytest.fixture(scope="session")
def embedder(align):
    return Embedder(align)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture
def example(monkeypatch):
    """Loads a script of the examples, which import their neighbour `inputs`."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "inputs", raising=False)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
