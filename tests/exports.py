"""What the tests of exports share."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pages
import tiny

from kakao_models import Embedder
from kakao_models.export.exporter import export

PICTURES = [tiny.picture(seed, 32, 32) for seed in range(5)]
TEXTS = ["a cat", "the red car in the house by the sea", "dog " * 90]


def exported(model: str, folder: Path, **options) -> tuple[Path, dict]:
    """The folder of an export, whose export.json is what was returned, and true of the files."""
    sheet = export(model, folder, **options)
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(sheet))
    for name, file in sheet["files"].items():
        content = (folder / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *sheet["files"],
        "export.json",
    }
    return folder, sheet


def of_page(part: str, to: str, folder: Path, **names) -> dict:
    """The names after the block of docs/export.md that has `part` in it, on an export in the place of its own."""
    return pages.run(pages.block("export.md", part), "export.md", names, {f"align-small-{to}": str(folder)})


def as_bytes(pictures=PICTURES) -> np.ndarray:
    """(B, H, W, 3) uint8."""
    return np.stack([np.asarray(picture) for picture in pictures])


def pixel_values(embedder: Embedder, pictures=PICTURES) -> np.ndarray:
    return np.asarray(embedder.image_processor(images=pictures, return_tensors="np")["pixel_values"])


def tokens(embedder: Embedder, dtype: str, texts=TEXTS) -> dict[str, np.ndarray]:
    rows = embedder.tokenizer(texts, truncation=True, max_length=64, padding=True)
    return {name: np.array(rows[name], dtype) for name in ("input_ids", "attention_mask")}


def of_bytes(embedder: Embedder, pictures=PICTURES, **options) -> np.ndarray:
    """What the embedder gives for pictures that have the model's size."""
    as_they_are = {"do_resize": False, "do_center_crop": False}
    batches = embedder.iter_images(pictures, processor_options=as_they_are, **options)
    return np.concatenate([batch.values for batch in batches])


def close(got, wanted, tolerance: float = 1e-5) -> None:
    wanted = np.asarray(wanted)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


def cosines(got, wanted) -> np.ndarray:
    return (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
