import shutil
from pathlib import Path

import goldens
import pytest


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
