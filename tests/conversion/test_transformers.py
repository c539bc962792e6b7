"""Folders that we write, in plain transformers: the installed version 5, and 4.57 in an environment of its own.

What is printed counts too: a folder that is whole gives no warning.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tolerances import TOLERANCE

from kakao_models import (
    AlignModel,
    AlignProcessor,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)
from kakao_models.conversion.convert import convert

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
LABELS = ["red cat", "big dog"]

# Runs without this package; results go to FOLDER/plain.json.
PLAIN = """
import json, sys, warnings
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline

root, labels = Path(sys.argv[1]), sys.argv[2:]
image = Image.open(root / "image.png")
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    config = json.loads((folder / "config.json").read_text())
    print(f"== {folder.name}", file=sys.stderr)
    processor = AutoProcessor.from_pretrained(folder)
    found = {"processor": type(processor).__name__}
    with torch.no_grad():
        if config["model_type"] == "align":
            model = AutoModel.from_pretrained(folder)
            inputs = processor(images=image, text=labels, return_tensors="pt")
            found["logits"] = model(**inputs).logits_per_image.tolist()
            run = pipeline("zero-shot-image-classification", model=str(folder))
            found["scores"] = {entry["label"]: entry["score"] for entry in run(image, candidate_labels=labels)}
            found["ids"] = inputs["input_ids"].tolist()
        elif "ViTModel" in config["architectures"]:
            inputs = processor(images=image, return_tensors="pt")
            found["features"] = AutoModel.from_pretrained(folder)(**inputs).pooler_output.tolist()
        else:
            inputs = processor(images=image, return_tensors="pt")
            found["logits"] = AutoModelForImageClassification.from_pretrained(folder)(**inputs).logits.tolist()
            run = pipeline("image-classification", model=str(folder))
            found["scores"] = {entry["label"]: entry["score"] for entry in run(image, top_k=7)}
    found["pixels"] = inputs["pixel_values"].tolist()
    (folder / "plain.json").write_text(json.dumps(found))
assert "kakao_models" not in sys.modules
"""


@pytest.fixture
def folders(tmp_path) -> Path:
    """Converted and saved folders that transformers has classes for, and an image."""
    tiny.align_folder(tmp_path / "source" / "align", preprocessing="tf")
    config = tiny.align_config()
    # transformers adds no input to the output of a stage's first block: such a block must not keep size and width.
    config.vision_config.in_channels, config.vision_config.out_channels = [32, 64, 24], [64, 24, 40]
    tiny.fill(AlignModel(config)).save_pretrained(tmp_path / "source" / "align")
    tiny.vit_folder(tmp_path / "source" / "vit")
    root = tmp_path / "folders"
    root.mkdir()
    convert(tmp_path / "source" / "align", root / "align")
    convert(tmp_path / "source" / "vit", root / "vit")
    convert(CHECKPOINTS / "vit_nano_ema_ckpt", root / "vit tuned", num_attention_heads=2)
    convert(CHECKPOINTS / "vit_nano_backbone_weights", root / "vit pretrained", num_attention_heads=2)
    AlignModel.from_pretrained(root / "align").save_pretrained(root / "align saved")
    AlignProcessor.from_pretrained(root / "align").save_pretrained(root / "align saved")
    tiny.picture(3).save(root / "image.png")
    return root


def run_plain(root: Path, environment: dict[str, str], *options: str) -> list[str]:
    """Runs `PLAIN` on all folders; what it printed, without progress."""
    command = [sys.executable, *options, "-W", "always", "-c", PLAIN, str(root), *LABELS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = re.split(r"[\r\n]+", done.stderr)
    return [line for line in lines if line and not re.match(r"==|Loading weights:|Device set to use", line)]


def compare(root: Path) -> None:
    """What `PLAIN` found, beside this package's models on the same pixels."""
    for folder in (path for path in root.iterdir() if path.is_dir()):
        found = json.loads((folder / "plain.json").read_text())
        pixels = torch.tensor(found["pixels"])
        with torch.no_grad():
            if "ids" in found:
                ours = AlignProcessor.from_pretrained(folder)
                tokens = ours(text=LABELS, padding="max_length", return_tensors="pt")
                assert tokens["input_ids"].tolist() == found["ids"] and found["processor"] == "AlignProcessor"
                output = AlignModel.from_pretrained(folder)(pixel_values=pixels, **tokens).logits_per_image
            elif "features" in found:
                output = ViTModel.from_pretrained(folder)(pixels).pooler_output
            else:
                output = ViTForImageClassification.from_pretrained(folder)(pixels).logits
        expected = found.get("logits", found.get("features"))
        np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=TOLERANCE["vit logits"])
    image, vit = Image.open(root / "image.png"), root / "vit"
    expected = json.loads((vit / "plain.json").read_text())["scores"]
    scores = {entry["label"]: entry["score"] for entry in pipeline("image-classification", str(vit))(image, top_k=7)}
    assert scores == pytest.approx(expected, abs=TOLERANCE["scores"])  # "hf" preprocessing: the same from the image on


def test_transformers_5_loads_what_we_write_without_a_warning(folders):
    assert run_plain(folders, {}) == []
    compare(folders)


@pytest.mark.slow
def test_transformers_4_loads_what_we_write_without_a_warning(folders, tmp_path):
    target, links = tmp_path / "site", tmp_path / "links"
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), "transformers==4.57.*"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"transformers 4.57 can't be installed: {done.stderr.strip().splitlines()[-1]}")
    links.mkdir()
    for name in ("torch", "pillow"):
        link(name, links)
    printed = run_plain(folders, {"PYTHONPATH": f"{target}{os.pathsep}{links}"}, "-S")
    # Version 4.57 says so of every image processor that was not saved as a fast one, which needs torchvision.
    assert [
        line for line in printed if not line.startswith("Using a slow image processor as `use_fast` is unset")
    ] == []
    compare(folders)


def link(name: str, folder: Path) -> None:
    """An installed package and what it needs, and nothing else of this environment, such as TensorFlow."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return  # needed on other systems only
    for part in {Path(file).parts[0] for file in package.files} - {"..", "__pycache__"}:
        if not (folder / part).exists():
            (folder / part).symlink_to(package.locate_file(part))
    for needed in package.requires or ():
        if "extra ==" not in needed and not (folder / f".{needed}").exists():
            (folder / f".{needed}").touch()
            link(re.match(r"[\w.-]+", needed)[0], folder)
