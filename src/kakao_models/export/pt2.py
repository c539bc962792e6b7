"""torch.export's programs, as .pt2 files: no Python of this package is needed to run one."""

import json
from pathlib import Path

import numpy as np
import torch

from kakao_models.export.contract import Contract
from kakao_models.export.exporter import SHEET, Place
from kakao_models.export.samples import RunFunction
from kakao_models.export.torch_functions import programs
from kakao_models.inference.embedder import Embedder


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, Place]:
    """A file for each function, with what export.json says inside it as the extra file of that name."""
    described = json.dumps(contract.described(), ensure_ascii=False)
    files = {}
    for name, program in programs(embedder, contract, narrow=True).items():
        files[name] = Place(f"{name}.pt2")
        torch.export.save(program, folder / files[name].file, extra_files={SHEET: described})
    return files


def load(folder: Path, contract: Contract, name: str) -> RunFunction:
    """Runs a function out of its file, by `torch.export.load`."""
    module = torch.export.load(folder / f"{name}.pt2").module()
    output = contract.functions[name].output.name

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return module(**{key: torch.from_numpy(value) for key, value in inputs.items()})[output].numpy()

    return run
