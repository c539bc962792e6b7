"""The report of a conversion: its contents, the check of a folder against it, the model card, a table."""

import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kakao_models.align.config import BERT_SIZES
from kakao_models.align.efficientnet import name_of
from kakao_models.checkpoint.config import name_of_size
from kakao_models.checkpoint.shards import digest_of, read_tensors
from kakao_models.conversion.card import Card, in_transformers
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.evaluate.results import Result
from kakao_models.files.atomic import sha256_of
from kakao_models.files.pointers import IS_POINTER, is_pointer
from kakao_models.vit.config import VIT_SIZES

REPORT = "conversion_report.json"
_PACKAGES = ("kakao-models", "torch", "transformers", "safetensors", "numpy")


def verify_report(
    folder: str | Path, advance: Callable[[str, int, int], None] = lambda step, done, total: None
) -> list[str]:
    """Compares a converted folder with its report. Returns the differences, an empty list if there are none.

    Args:
        advance: called with (step, done, total).

    Raises:
        OSError: there is no report, or it can't be read.
        ValueError: the report is broken.
    """
    folder = Path(folder)
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        files, tensors = dict(report["files"]), dict(report["tensors"])
    except FileNotFoundError as error:
        raise OSError(f"{folder} has no {REPORT}. Was it made by `kakao-models convert`?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / REPORT} is not the report of a conversion ({error!r})") from error
    wrong = []
    for place, (name, digest) in enumerate(files.items(), 1):
        if not (folder / name).is_file():
            wrong.append(f"{name}: missing")
        elif is_pointer(folder / name):
            wrong.append(f"{name}: {IS_POINTER}")
        elif sha256_of(folder / name) != digest:
            wrong.append(f"{name}: differs from the file that the conversion wrote")
        advance("files", place, len(files))
    for path in sorted(folder.iterdir()):
        if path.name not in files and path.name != REPORT and not path.name.startswith("."):
            wrong.append(f"{path.name}: added after the conversion")
    known = len(tensors)
    try:
        for place, (key, array) in enumerate(read_tensors(folder), 1):
            if key not in tensors:
                wrong.append(f"{key}: this tensor is not in the report")
            elif digest_of(array) != tensors.pop(key)["sha256"]:
                wrong.append(f"{key}: differs from the tensor that the conversion wrote")
            advance("tensors", place, known)
    except Exception as error:  # safetensors raises its own kind of error, and that of the system
        wrong.append(f"the weights can't be read: {error}")
    return wrong + [f"{key}: missing" for key in tensors]


def summary(report: dict) -> str:
    """The report as text: the source, and the difference between the model and its source after every stage."""
    source = report["source"]
    skipped = ", ".join(f"{count} {kind}" for kind, count in source["skipped"].items())
    lines = [
        f"recognised: {', '.join(report['recognised'])}",
        f"{report['family']} from {source['kind']}: {len(report['tensors'])} tensors, {report['parameters']:,} parameters, "
        f"{source['weights']} weights" + (f"; left out: {skipped}" if skipped else ""),
        f"{'stage':<20}{'difference':>12}{'allowed':>12}",
    ]
    lines += [f"{s['name']:<20}{s['difference']:>12.2e}{s['limit']:>12.2e}" for s in report["verification"]]
    size = sum(file["bytes"] for file in source["files"].values()) / 1e6
    seconds = report["seconds"]
    lines.append(f"{size:,.0f} MB in {seconds:.1f} s: {size / seconds:,.0f} MB/s, verification included")
    lines += [f"warning: {message}" for message in report["warnings"]]
    return "\n".join(lines)


def recognised(source: SourceCheckpoint, tokenizer: str | None) -> list[str]:
    """Describes the model. "(assumed)" marks each value that neither the source nor the caller gives."""
    config = source.config

    def stated(name: str, text: str) -> str:
        return f"{text} (assumed)" if name in source.assumed else text

    if source.family == "efficientnet":
        return [name_of(config), stated("image_size", f"{config.image_size} px")]
    if source.family == "vit":
        size = name_of_size(VIT_SIZES, (config.num_hidden_layers, config.hidden_size, config.num_attention_heads))
        name = f"ViT-{size.upper()}" if size else f"ViT ({config.num_hidden_layers} layers, width {config.hidden_size})"
        heads = stated("num_attention_heads", f"{config.num_attention_heads} heads")
        return [f"{name}/{config.patch_size}", heads, f"{config.image_size} px", f"{config.num_labels or 'no'} classes"]
    text = config.text_config
    size = name_of_size(BERT_SIZES, (text.num_hidden_layers, text.hidden_size))
    return [
        name_of(config.vision_config),
        f"BERT-{size}" if size else f"BERT ({text.num_hidden_layers} layers, width {text.hidden_size})",
        stated("num_attention_heads", f"{text.num_attention_heads} heads"),
        stated("image_size", f"{config.vision_config.image_size} px"),
        f"tokenizer: {'size matches' if tokenizer or source.tokenizer else 'not checked'}",
    ]


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def _reference(report: dict) -> str:
    """A sentence for the card about recorded outputs."""
    if not report["reference"]:
        return "It did not verify that these are the trained weights: no recorded outputs (`--reference`) were given."
    stage, file = report["verification"][-1], report["reference"]
    return (
        f"The {stage['name'].replace(' of ', ' recorded in ')} (SHA-256 {file['sha256']}) were reproduced: the largest difference "
        f"is {stage['difference']:.2g}, and {stage['limit']:.2g} is allowed."
    )


def model_card(source: SourceCheckpoint, report: dict, name: str, results: Sequence[Result] = ()) -> str:
    """The folder's README.md.

    Args:
        name: the model's name in `model-index`.
        results: evaluations of this model; no figure of a model's quality comes from elsewhere.
    """
    use = source.family
    if use == "vit":
        use = "classifier" if source.config.num_labels else "backbone"
    title = {"align": "ALIGN", "efficientnet": "EfficientNet"}.get(use, "ViT")
    resizing = "The preprocessing, and the tokenizer if there is one, are copied from the source."
    if not source.kind.endswith("Hub folder"):
        original = source.image_processor.preprocessing == "tf"
        resizing = (
            '`preprocessor_config.json` selects the resizing of the original implementation (`"preprocessing": "tf"`).'
            if original
            else "`preprocessor_config.json` has the preprocessing that the tower was trained with."
        )
    worst = max(report["verification"], key=lambda stage: stage["difference"] / stage["limit"] if stage["limit"] else 0)
    served = in_transformers(source.config)
    limits = "" if served else "\n\ntransformers has no class for this model: load it with kakao-models."
    taken, other = "raw weights", "moving averages"
    if source.weights == "average":
        taken, other = other, taken
    also = f"; the checkpoint also has the {other}" if source.has_averages else ""
    card = Card(
        title=f"{title}, converted from {source.kind}",
        name="path/or/name/of/this/folder",
        use=use,
        in_transformers=served,
        metadata={**source.license, "tags": [source.family]},
        sections={
            "": f"{', '.join(report['recognised'])}; {report['parameters']:,} parameters. {resizing}{limits}",
            "Conversion": f"""The weights are the {taken}{also}. The conversion verified that every tensor on disk is
bit-identical to the source, and that the model gives the same outputs as an independent forward pass on the source's tensors. On
fixed inputs, the stage closest to its limit is {worst["name"]}, with a difference of {worst["difference"]:.2g} (limit
{worst["limit"]:.2g}). {_reference(report)} `{REPORT}` lists every
stage, the SHA-256 of every tensor and file, and the versions of the packages. `kakao-models verify FOLDER` compares a folder with
it.""",
        },
        results=results,
        multi_label=bool(use == "classifier" and source.config.representation_size),
    )
    return card.render(name)
