"""What a conversion says of itself: its report, the check of a folder against it, the model card, a table."""

import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from kakao_models.checkpoint.shards import bytes_of, read_tensors
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.files.atomic import sha256_of

REPORT = "conversion_report.json"
_PACKAGES = ("kakao-models", "torch", "transformers", "safetensors", "numpy")


def verify_report(
    folder: str | Path, advance: Callable[[str, int, int], None] = lambda step, done, total: None
) -> list[str]:
    """What is wrong with a converted folder, compared with its report; an empty list if nothing is.

    Args:
        advance: is told (step, done, total).

    Raises:
        OSError: there is no report, or it can't be read.
        ValueError: the report is broken.
    """
    folder = Path(folder)
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        files, tensors = dict(report["files"]), dict(report["tensors"])
    except FileNotFoundError as error:
        raise OSError(f"{folder} has no {REPORT}, which `kakao-models convert` leaves beside what it writes") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / REPORT} is no report of a conversion ({error!r})") from error
    wrong = []
    for place, (name, digest) in enumerate(files.items(), 1):
        if not (folder / name).is_file():
            wrong.append(f"{name}: missing")
        elif sha256_of(folder / name) != digest:
            wrong.append(f"{name}: not the file that was written")
        advance("files", place, len(files))
    for path in sorted(folder.iterdir()):
        if path.name not in files and path.name != REPORT and not path.name.startswith("."):
            wrong.append(f"{path.name}: not there when the report was written")
    known = len(tensors)
    try:
        for place, (key, array) in enumerate(read_tensors(folder), 1):
            if key not in tensors:
                wrong.append(f"{key}: a tensor the report does not know")
            elif digest_of(array) != tensors.pop(key)["sha256"]:
                wrong.append(f"{key}: not the tensor that was written")
            advance("tensors", place, known)
    except Exception as error:  # safetensors raises its own kind of error, and that of the system
        wrong.append(f"the weights can't be read: {error}")
    return wrong + [f"{key}: missing" for key in tensors]


def summary(report: dict) -> str:
    """The report for people: what was read, and how far the result is from it at every stage."""
    source = report["source"]
    skipped = ", ".join(f"{count} {kind}" for kind, count in source["skipped"].items())
    lines = [
        f"{report['family']} from {source['kind']}: {len(report['tensors'])} tensors, {report['parameters']:,} parameters, "
        f"{source['weights']} weights" + (f"; left out: {skipped}" if skipped else ""),
        f"{'stage':<20}{'difference':>12}{'allowed':>12}",
    ]
    lines += [f"{s['name']:<20}{s['difference']:>12.2e}{s['limit']:>12.2e}" for s in report["verification"]]
    size = sum(file["bytes"] for file in source["files"].values()) / 1e6
    lines.append(
        f"{size:,.0f} MB in {report['seconds']:.1f} s: {size / report['seconds']:,.0f} MB/s, verification included"
    )
    return "\n".join(lines)


def digest_of(array: np.ndarray) -> str:
    return hashlib.sha256(bytes_of(array)).hexdigest()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def model_card(source: SourceCheckpoint, report: dict, measured: str = "") -> str:
    """The folder's README.md.

    Args:
        measured: the `model-index` of an evaluation, YAML; no figure of a model's quality comes from elsewhere.
    """
    tags = {
        "align": ("zero-shot-image-classification", "AlignModel", "ALIGN"),
        "vit": ("image-classification", "ViTForImageClassification", "ViT"),
        "efficientnet": ("image-feature-extraction", "AlignVisionModel", "EfficientNet"),
    }
    task, loader, name = tags[source.family]
    if source.family == "vit" and not source.config.num_labels:
        task, loader = "image-feature-extraction", "ViTModel"
    resizing = "Preprocessing and tokenizer files are those of the source, where it has them."
    if not source.kind.endswith("Hub folder"):
        resizing = '`preprocessor_config.json` asks for the original\'s own resizing (`"preprocessing": "tf"`).'
    worst = max(report["verification"], key=lambda stage: stage["difference"] / stage["limit"] if stage["limit"] else 0)
    return f"""---
library_name: kakao-models
pipeline_tag: {task}
{source.license}tags:
- {source.family}
{measured}---

# {name}, converted from {source.kind}

{report["parameters"]:,} parameters. {resizing}

```python
from kakao_models import {loader}

model = {loader}.from_pretrained("path/or/name/of/this/folder")
```

## Conversion

Taken: the {"moving averages of the weights" if source.weights == "average" else "raw weights"}\
{"; the checkpoint also holds the other" if source.has_averages else ""}. Every tensor on disk, turned back, equals the
source's to the bit. Run on fixed inputs against an independent forward pass on the source's tensors, the largest difference
relative to what is allowed is {worst["difference"]:.2g} of {worst["limit"]:.2g}, in {worst["name"]}. `{REPORT}` has every
stage, the SHA-256 of every tensor and file, and the versions used; `kakao-models verify FOLDER` checks a folder against it.
"""
