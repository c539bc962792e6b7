"""Where checkpoints are found: the Hub, a folder, or inside this package."""

import os
from pathlib import Path

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints"


def bundled_checkpoints() -> list[str]:
    """Names of the checkpoints that ship inside the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "config.json").is_file())


def resolve(name_or_path: str | os.PathLike) -> str:
    """What transformers and huggingface_hub should be given for `name_or_path`.

    A folder of that name wins, then a checkpoint inside the package; anything else is left to the Hub.
    """
    name = os.fspath(name_or_path)
    if not os.path.isdir(name) and name in bundled_checkpoints():
        return str(BUNDLED / name)
    return name
