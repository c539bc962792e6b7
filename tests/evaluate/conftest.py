import json

import numpy as np
import pytest
import tiny
from golden import inputs
from goldens import FOLDER


@pytest.fixture(scope="session")
def classes_folder(tmp_path_factory):
    """Four pictures in each of the class folders bird, cat and dog."""
    folder = tmp_path_factory.mktemp("classes")
    for number, name in enumerate(["bird", "cat", "dog"]):
        (folder / name).mkdir()
        for index in range(4):
            tiny.picture(10 * number + index).save(folder / name / f"{name}_{index}.png")
    return folder


@pytest.fixture(scope="session")
def metrics_align():
    """The original's recorded scores, and the formula of the embeddings they were recorded on."""
    facts = json.loads((FOLDER / "golden_metrics_align.json").read_text())

    def embeddings(name: str, count: int, width: int) -> np.ndarray:
        return np.float32(inputs.integers(name, facts["seed"], (count, width), -1000, 1001) / 1000)

    return facts, embeddings
