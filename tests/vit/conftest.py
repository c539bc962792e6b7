import shutil
from pathlib import Path

import goldens
import numpy as np
import pytest

from kakao_models import ViTConfig
from kakao_models.checkpoint.shards import write_safetensors
from kakao_models.checkpoint.weightmap import to_canonical
from kakao_models.vit.weights import vit_tpu_slots


def write_folder(folder: Path, config: ViTConfig, original: dict[str, np.ndarray], spelling: str) -> Path:
    """A Hub folder with the weights of an original checkpoint, through the weight table."""
    config.save_pretrained(folder)
    write_safetensors(folder / "model.safetensors", to_canonical(vit_tpu_slots(config, spelling), original))
    return folder


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """name of a recorded run → folder with its configuration and weights."""
    folders = {}

    def make(name: str) -> Path:
        if name not in folders:
            golden = goldens.load(name)
            config, spelling = goldens.vit_config(golden.config), goldens.vit_spelling(name)
            folders[name] = write_folder(tmp_path_factory.mktemp(name), config, golden.original, spelling)
        return folders[name]

    yield make
    for folder in folders.values():  # gigabytes, which pytest would keep
        shutil.rmtree(folder)
