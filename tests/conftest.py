import shutil
from pathlib import Path

import goldens
import pytest


@pytest.fixture(scope="session")
def align(tmp_path_factory) -> str:
    """A small ALIGN, whose preprocessing is Hugging Face's: resized to 40, cropped to 32. Not to be changed."""
    import tiny  # which imports PyTorch; some tests run without

    return tiny.align_folder(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> str:
    """A small ViT of seven classes. Not to be changed."""
    import tiny

    return tiny.vit_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def command(capsys):
    """Runs `kakao-models` in this process: exit code, stdout, stderr."""
    from kakao_models.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """name of a recorded run → folder with its configuration and weights."""
    folders = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = goldens.write_folder(name, tmp_path_factory.mktemp(name))
        return folders[name]

    yield make
    for folder in folders.values():  # gigabytes, which pytest would keep
        shutil.rmtree(folder)
