"""torch.export's programs, as .pt2 files: no Python of this package is needed to run one."""

from pathlib import Path

import numpy as np
import torch

from kakao_models.export.contract import SHEET, Contract, Function
from kakao_models.export.samples import RunFunction
from kakao_models.export.torch_functions import programs
from kakao_models.inference.embedder import Embedder


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """A file for each function, with what export.json says inside it as the extra file of that name."""
    files = {}
    for name, program in programs(embedder, contract, narrow=True).items():
        files[name] = f"{name}.pt2"
        torch.export.save(program, folder / files[name], extra_files={SHEET: contract.described_json()})
    return files


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function out of its file, by `torch.export.load`."""
    module = torch.export.load(path).module()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return module(**{key: torch.from_numpy(value) for key, value in inputs.items()})[
                function.output.name
            ].numpy()

    return run
