"""Writes a model in another runtime's format, once that runtime has given what the source gives."""

import importlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from kakao_models import __version__
from kakao_models.checkpoint.hub import called, fetch, pin
from kakao_models.export.contract import IMAGE_INPUTS, PARTS, SHEET, contract
from kakao_models.export.samples import compare
from kakao_models.files.atomic import sha256_of, unfinished
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.frameworks import engine_class
from kakao_models.inference.progress import Progress
from kakao_models.inference.scores import score_function

# The least cosine between any row of the export and of its source, by how weights are stored.
LEAST_COSINE = {None: 0.9999, "float16": 0.999, "bfloat16": 0.999, "int8": 0.99, "int8-dynamic": 0.99}


class Format(NamedTuple):
    """A format, which the module of the same name writes.

    It has write(embedder, contract, folder), which returns the file (or folder) of each function by its name, and
    load(path, function).
    """

    quantize: tuple[str, ...]
    ids: str  # dtype of token ids
    extra: str  # of pip
    runtimes: tuple[str, ...]  # packages whose versions are noted
    signatures: bool = False  # whether functions have names within their file: those of their outputs
    lifetime: str | None = None  # how long such files can be read, where that is limited


EXPORT_FORMATS = {
    "onnx": Format(("float16", "bfloat16", "int8", "int8-dynamic"), "int64", "export", ("onnx", "onnxruntime")),
    "openvino": Format(("float16", "int8"), "int64", "export", ("openvino", "nncf")),
    "saved_model": Format(("float16", "bfloat16"), "int32", "tensorflow", ("tensorflow", "keras"), True),
    "litert": Format(("float16", "int8"), "int32", "tensorflow", ("tensorflow", "keras"), True),
    "stablehlo": Format(
        ("float16", "bfloat16"),
        "int32",
        "flax",
        ("jax", "flax"),
        # https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
        lifetime="JAX promises to read it with releases up to 3 weeks older and up to 6 months newer than the one that wrote it",
    ),
    "pt2": Format(("float16", "bfloat16"), "int64", "torch", ("torch",)),
}


def export(
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    to: str,
    what: str | None = None,
    input: str = "float",
    normalize: bool = False,
    quantize: str | None = None,
    min_cosine: float | None = None,
    force: bool = False,
    progress: bool | None = None,
    **where: Any,
) -> dict[str, Any]:
    """Writes the folder `output`: a model of the format `to`, export.json and the tokenizer. It appears complete or not.

    Args:
        model: a Hub id, a folder, or the name of a checkpoint inside this package.
        to: one of `EXPORT_FORMATS`.
        what: "image", "text", "both" or "classifier"; by default both towers of an ALIGN, the classifier of a ViT, and
            of a ViT without one its features.
        input: how images come in. "float": `pixel_values` (B, 3, H, W) as the image processor gives them; "uint8":
            `images` (B, H, W, 3) at the model's size, normalised in the graph; "picture": of any size, resized there
            too, where that gives what our own preprocessing gives (`preprocessing="tf"` with bilinear resizing).
        normalize: features of length 1.
        quantize: how weights are stored, out of the format's `Format.quantize`.
        min_cosine: refuse an export any row of whose output has a smaller cosine to the source's; by default
            `LEAST_COSINE`.
        force: write it all the same.
        where: arguments of `checkpoint.hub.fetch`, such as `revision`.

    Returns:
        The content of export.json; `check` of a function is the result of `compare`.

    Raises:
        OSError: no such checkpoint, `output` already exists, or the disk is full.
        ValueError: an option the model or the format does not have, or an export that differs from its source.
        ImportError: what the format needs is not installed; the message says what installs it.
    """
    form = _checked(to, what, input, quantize)
    writer = _module(form, to)
    output = Path(output)
    where = pin(model, **where)
    with unfinished(output) as folder, Progress(f"export to {to}", None, progress) as bar:
        embedder = _plain(os.fspath(model), where)
        metadata = _metadata(embedder, where, to, quantize, input, normalize)
        agreed = contract(embedder, what, input, form.ids, metadata, where)
        bar.advance(1)
        # the files that the caller's preprocessing needs, as the embedder has them
        embedder.image_processor.save_pretrained(folder)
        if "text" in agreed.functions:
            embedder.tokenizer.save_pretrained(folder)
        with _explained(to, "writing", folder):
            files = writer.write(embedder, agreed, folder)
        bar.advance(1)
        sheet = agreed.described()
        least = LEAST_COSINE[quantize] if min_cosine is None else min_cosine
        for name, function in agreed.functions.items():
            with _explained(to, "running", folder):
                check = compare(embedder, agreed, name, writer.load(folder / files[name], function))
            bar.advance(1)
            signature = function.output.name if form.signatures else None
            sheet["functions"][name] |= {"file": files[name], "signature": signature, "check": check}
            if check["cosine"] < least and not force:
                raise ValueError(
                    f"{to}: the cosine of {name} to its source is {check['cosine']:.6f}, expected {least:g} or more. Nothing "
                    "is written. " + (f"Choose another --quantize than {quantize}, " if quantize else "Report this, ")
                    + "lower --min-cosine, or pass --force"
                )  # fmt: skip
        sheet["files"] = _files(folder)
        (folder / SHEET).write_text(json.dumps(sheet, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sheet


@contextmanager
def _explained(to: str, what: str, folder: Path) -> Iterator[None]:
    """Makes what a runtime raises, which may be of any type, an error of the export."""
    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        free = shutil.disk_usage(folder).free / 1e6
        raise ValueError(f"{to}: {what} the model failed ({reason:.300}). The disk has {free:.0f} MB free") from error


def summary(sheet: dict[str, Any], output: str | os.PathLike) -> str:
    """Describes an export for a reader: the files, and how far its outputs are from its source's."""
    lines = []
    for name, function in sheet["functions"].items():
        check = function["check"]
        shapes = ", ".join(f"{tensor['name']} {_shape(tensor)}" for tensor in function["inputs"])
        result = function["outputs"][0]
        same = f", same best label {check['same_best']:.0%}" if "same_best" in check else ""
        place = f"{function['file']} ({function['signature']})" if function["signature"] else function["file"]
        lines += [
            f"{name}: {place}",
            f"  {shapes} -> {result['name']} {_shape(result)}",
            f"  compared with the source: lowest cosine {check['cosine']:.7f}, largest difference {check['difference']:.1e} "
            f"(largest value {check['of']:.3g}){same}",
        ]
    if sheet["lifetime"]:
        runtime = EXPORT_FORMATS[sheet["format"]].runtimes[0]
        lines.append(f"written with {runtime} {sheet['versions'][runtime]}: {sheet['lifetime']}")
    size = sum(file["bytes"] for file in sheet["files"].values()) / 1e6
    return "\n".join([*lines, f"{output}: written, {size:.1f} MB; {SHEET} in it says how to call it"])


def _shape(tensor: dict) -> str:
    return f"{tensor['dtype']} ({', '.join(map(str, tensor['shape']))})"


def _checked(to: str, what: str | None, input: str, quantize: str | None) -> Format:
    for option, value, choices in (
        ("to", to, EXPORT_FORMATS), ("what", what or PARTS[0], PARTS), ("input", input, IMAGE_INPUTS),
    ):  # fmt: skip
        if value not in choices:
            raise ValueError(f"--{option} {value}: expected one of {', '.join(choices)}")
    form = EXPORT_FORMATS[to]
    if quantize is not None and quantize not in form.quantize:
        raise ValueError(f"--quantize {quantize}: {to} supports {', '.join(form.quantize)}")
    return form


def _module(form: Format, to: str):
    try:
        return importlib.import_module(f"kakao_models.export.{to}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kakao_models"):
            raise
        raise ImportError(f"--to {to} needs {error.name}: pip install 'kakao-models[{form.extra}]'") from error


def _plain(name: str, where: dict) -> Embedder:
    """The model as it is, on the CPU: what makes an engine fast is not to be on both sides of the comparison."""
    model = engine_class(None, name).load(name, device="cpu", dtype="float32", **where).model
    embedder = Embedder(model, processor=name, batch_size=4, **where)
    embedder.name = name
    return embedder


def _metadata(
    embedder: Embedder, where: dict, to: str, quantize: str | None, kind: str, normalize: bool
) -> dict[str, Any]:
    config, processor = embedder.config, embedder.image_processor
    metadata = {
        "format": to,
        "model": called(embedder.name),
        "model_type": config.model_type,
        "revision": where.get("revision"),
        "source_sha256": _source_hashes(embedder.name, where),
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"kakao-models": __version__} | {name: _version(name) for name in EXPORT_FORMATS[to].runtimes},
        "lifetime": EXPORT_FORMATS[to].lifetime,
        "input": kind,
        "quantize": quantize,
        "normalized": normalize,
        "caller": _caller(kind, processor),
        "preprocessing": {"file": "preprocessor_config.json", "resize": processor.resizing()},
    }
    if embedder.engine.reads_texts:
        metadata["tokenizer"] = {
            "file": "tokenizer.json",
            "max_tokens": embedder.max_tokens,
            "padding": "right, to the longest of a batch",
            "pad_token_id": embedder.tokenizer.pad_token_id,
        }
        metadata["temperature"] = embedder.engine.temperature
        with suppress(OSError, ValueError):
            if embedder.relevance:
                metadata["relevance"] = {
                    "cosines": embedder.relevance.cosines,
                    "probabilities": embedder.relevance.probabilities,
                    "guarantees": embedder.relevance.guarantees,
                    "about": "probability that a text fits an image: interpolate linearly by the cosine of their features; "
                    "guarantees: least cosines by levels",
                }
        metadata["logits"] = "cosine of image and text features, divided by the temperature; softmax over the texts"
    if embedder.engine.classifies:
        metadata["labels"] = [config.id2label[index] for index in range(config.num_labels)]
        metadata["scores"] = score_function(config)
    return metadata


def _caller(kind: str, processor) -> str:
    upright = "decode to upright RGB of 8 bits"
    if kind == "picture":
        return f"{upright}; pictures of one batch have the same size"
    if kind == "uint8":
        rounded = "; round to whole numbers" if processor.preprocessing == "tf" else ""
        return f"{upright}; {processor.resizing()}{rounded}"
    return f"{upright}; {processor.resizing()}; rescale and normalise as preprocessor_config.json says"


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):  # of TensorFlow there are both
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def _source_hashes(name: str, where: dict) -> dict[str, str]:
    folder = fetch(name, "config.json", **where).parent  # in the Hub's cache the weights lie beside it, too
    return {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths
    }
