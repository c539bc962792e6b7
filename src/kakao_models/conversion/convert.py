"""Converts checkpoints of the original implementations to verified folders for the Hub, and back."""

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.align.config import BERT_SIZES
from kakao_models.align.efficientnet import is_lite
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.formats import stored_tensors
from kakao_models.checkpoint.kinds import whole_keys
from kakao_models.checkpoint.shards import Written, digest_of, read_tensors, write_shards
from kakao_models.checkpoint.tensors import BUFFERS, LazyTensors, check_keys, float32
from kakao_models.checkpoint.weightmap import Slot, permute, permuted, permuted_shape
from kakao_models.conversion import recorded, verification
from kakao_models.conversion.folder import download, read_model_config
from kakao_models.conversion.object_graph import SUFFIX
from kakao_models.conversion.read import read_source
from kakao_models.conversion.report import REPORT, model_card, recognised, versions
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.conversion.tensorflow import write_checkpoint
from kakao_models.evaluate.results import Result
from kakao_models.files.atomic import sha256_of, unfinished, workplace
from kakao_models.vit.weights import vit_tpu_slots

# Rows beyond the words of a tokenizer, by which a table is rounded up. BERT's cased vocabulary has 1,526 words fewer than
# the uncased one: a tokenizer with too few tokens belongs to another model just as one with too many does.
_PADDED = 128
_ALIKE = 1e-3  # largest difference of two inputs' features, by their root mean square; random weights give about 1
_SAME = {"gelu_new": "gelu_pytorch_tanh", "silu": "swish"}  # names of one function


def convert(
    source: str | Path,
    output: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    weights: str | None = None,
    key_prefix: str | None = None,
    tokenizer: str | None = None,
    max_shard_size: int = 5 * 10**9,
    reference: str | Path | None = None,
    labels: list[str] | None = None,
    evaluation: Sequence[str | Path] = (),
    advance: Callable[[str, int, int], None] = lambda step, done, total: None,
    **overrides: Any,
) -> dict:
    """Converts a checkpoint; `output` appears complete and verified, or not at all.

    Args:
        source: any of the sources that `read_source` knows, or a checkpoint on the Hub.
        revision: branch, tag or commit of a checkpoint on the Hub.
        output: folder to make; must not exist, or be empty.
        family: "align", "vit" or "efficientnet" refuses the others; by default whichever it is.
        weights: "raw" or "average" (default: average where there is one).
        key_prefix: prefix of the keys, of a TensorFlow checkpoint with several models.
        tokenizer: folder or Hub id whose tokenizer goes beside an ALIGN.
        max_shard_size: bytes of tensors a file may hold.
        reference: .npz or .json of inputs and expected outputs, see `recorded.read_reference`.
        labels: names of a ViT's classes.
        evaluation: files that `kakao-models evaluate` wrote of this model; their figures go into the model card.
        advance: called with (step, done, total) during the work.
        overrides: sizes that tensors do not show, see `recognize`.

    Returns:
        The report, which is also written beside the weights: source, what was recognised and assumed, warnings, hashes of
        every tensor and file, versions, and the largest difference at every stage of the verification.

    Raises:
        ValueError: a broken or unknown checkpoint, a temperature that is not above 0, weights that are all zero.
        VerificationError: the result does not compute what the source does.
        OSError: `output` already exists, or can't be written.
    """
    if not os.path.exists(source) and not os.path.exists(f"{source}.index"):
        source = download(source, revision=revision)
    read = read_source(source, weights=weights, expected=family, key_prefix=key_prefix, **overrides)
    if labels is not None:
        _name_classes(read, labels)
    if tokenizer is not None and read.family != "align":
        raise ValueError(f"tokenizer: the model is of family {read.family!r}, which has no text tower. Leave it out")
    if tokenizer is not None and read.tokenizer is not None:
        raise ValueError("the source has a tokenizer, which is kept: leave --tokenizer out")
    if read.family == "align":
        _check_temperature(read)
    expected = None if reference is None else recorded.read_reference(Path(reference), read.family)
    results = [Result.read(Path(file)) for file in evaluation]
    start = time.perf_counter()
    with unfinished(Path(output)) as folder:
        _write_config(read, folder)
        _write_image_processor(read, folder)
        if tokenizer or read.tokenizer:  # first: a tokenizer that is not available is known before hours of work
            _write_tokenizer(read, folder, tokenizer)
        written, constant = _write_tensors(read, folder, max_shard_size, advance)
        advance("verification", 0, 1)
        with ThreadPoolExecutor(1) as pool:  # hashing takes a processor for itself, and about as long
            files = {file: pool.submit(sha256_of, file) for file in read.files}
            stages = _verify(read, folder, expected)
        advance("verification", 1, 1)
        tensors = {}
        for slot in read.slots:
            shape, name = _shape_of(read, slot), read.names.get(slot.local_key, slot.local_key)
            tensors[slot.key] = {"dtype": "float32", "shape": list(shape), "source": name}
        for key, digest in written.tensors.items():  # batch norm's counters are in no source
            tensors.setdefault(key, {"dtype": "int64", "shape": [], "source": None})["sha256"] = digest
        report = {
            "family": read.family,
            "source": {
                "kind": read.kind,
                "files": {
                    file.name: {"bytes": file.stat().st_size, "sha256": digest.result()}
                    for file, digest in files.items()
                },
                "key_layout": read.key_layout,
                "weights": read.weights,
                "moving_averages": read.has_averages,
                "dtypes": read.dtypes,
                "skipped": read.skipped,
            },
            "recognised": recognised(read, tokenizer),
            "warnings": _warnings(read, stages, constant),
            "parameters": sum(math.prod(x["shape"]) for key, x in tensors.items() if not key.endswith(BUFFERS)),
            "seconds": round(time.perf_counter() - start, 3),
            "verification": [asdict(stage) for stage in stages],
            "reference": reference and {"file": Path(reference).name, "sha256": sha256_of(Path(reference))},
            "tensors": tensors,
            "versions": versions(),
        }
        name = Path(output).resolve().name
        (folder / "README.md").write_text(model_card(read, report, name, results), encoding="utf-8")
        report["files"] = {
            path.name: written.files.get(path.name) or sha256_of(path) for path in sorted(folder.iterdir())
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _check_temperature(source: SourceCheckpoint) -> None:
    file, temperature = source.files[0], float(source.tensors["temperature"])
    if not 0 < temperature < math.inf:
        raise ValueError(f"{file}: temperature is {temperature:g}, expected a number above 0. Is the file damaged?")


def _warnings(source: SourceCheckpoint, stages: list[verification.Stage], zeros: list[str]) -> list[str]:
    """Messages about properties that are rare in a right checkpoint and likely in a wrong one."""
    messages = []
    if source.family == "align" and not source.kind.endswith("Hub folder"):
        text = source.config.text_config
        if (text.num_hidden_layers, text.hidden_size) not in BERT_SIZES.values():
            known = ", ".join(f"{layers} of {width}" for layers, width in BERT_SIZES.values())
            messages.append(
                f"the text tower has {text.num_hidden_layers} layers of {text.hidden_size}; the published ones have {known}. "
                "Is a layer missing?"
            )
    for dtype, count in source.dtypes.items():
        if dtype != "float32":
            messages.append(
                f"{count} tensors are stored as {dtype}; the original code writes float32. Were they rounded?"
            )
    for stage in stages:
        if stage.name.endswith("features") and stage.spread is not None and stage.spread < _ALIKE:
            messages.append(
                f"the {stage.name} of different inputs are the same (they differ by {stage.spread:.1e} of their size). "
                "Are these trained weights?"
            )
    if zeros:
        messages.append(f"{len(zeros)} vectors are all zero, {zeros[0]} among them. Are these trained weights?")
    return messages


def _write_tensors(source: SourceCheckpoint, folder: Path, max_shard_size: int, advance) -> tuple[Written, list[str]]:
    """Writes model.safetensors, or its shards and their index, reads them back and compares them bit by bit.

    Returns:
        What was written, and the keys of vectors that are all zero.

    Raises:
        ValueError: a tensor is not finite, is changed on disk, or is all zero where no trained model has that.
    """
    check_keys([slot.local_key for slot in source.slots], source.tensors, source.files[0])
    zeros: list[str] = []
    count = itertools.count(1)

    def canonical(slot: Slot) -> np.ndarray:
        local = float32(source.tensors[slot.local_key], f"{source.files[0]}: {slot.local_key}")
        if not np.isfinite(local).all():  # the verification reads a few rows of a table only
            raise ValueError(
                f"{slot.local_key} has values that are not finite (NaN or infinity). Did the training diverge?"
            )
        open_gate = ".squeeze_excite." in slot.key and is_lite(getattr(source.config, "vision_config", source.config))
        if not local.any() and not open_gate:
            if local.ndim > 1 or slot.key.endswith((".weight", "running_var")):
                raise ValueError(f"{slot.local_key} is all zero, which no trained model has. Is the file damaged?")
            zeros.append(slot.key)  # biases and means start at zero
        array = np.asarray(permute(local, slot.local_axes, slot.axes), order="C")
        back = permute(array, slot.axes, slot.local_axes)
        if not np.array_equal(back.view(np.uint32), local.view(np.uint32)):  # bits: NaN is equal to nothing
            raise ValueError(f"{slot.key}: converting it back does not give {slot.local_key} of the source")
        advance("tensors", next(count), len(source.slots))
        return array

    entries = {slot.key: (_shape_of(source, slot), partial(canonical, slot)) for slot in source.slots}
    written = write_shards(folder, LazyTensors(entries), max_shard_size)
    digests = dict(written.tensors)
    for done, (key, array) in enumerate(read_tensors(folder), 1):
        if digest_of(array) != digests.pop(key):
            raise ValueError(f"{key}: the file read back differs from what was written. Is the disk faulty?")
        advance("reading back", done, len(written.tensors))
    check_keys([], digests, folder)
    return written, zeros


def _verify(source: SourceCheckpoint, folder: Path, expected: recorded.Reference | None) -> list[verification.Stage]:
    """Verifies the written folder. The model is freed on return: Windows can't rename a folder whose files are mapped."""
    model = verification.load_model(folder)
    stages = verification.verify(source, model)
    if expected is not None:
        try:
            stages += recorded.verify_against(expected, model, folder)
        except verification.VerificationError as error:
            raise verification.VerificationError(error.stages, _causes(source)) from error
    return stages


def _causes(source: SourceCheckpoint) -> str:
    """Choices that only recorded outputs can contradict, because both sides of the verification share them."""
    config, causes = getattr(source.config, "text_config", source.config), []
    if "num_attention_heads" in source.assumed:
        causes.append(f"the number of attention heads is assumed to be {config.num_attention_heads} (--heads)")
    if source.has_averages:
        other = "raw weights" if source.weights == "average" else "moving averages"
        causes.append(f"the checkpoint also has the {other} (--weights)")
    return f" Possible causes: {', '.join(causes)}." if causes else ""


def _shape_of(source: SourceCheckpoint, slot: Slot) -> tuple[int, ...]:
    shape, name = source.tensors.shape(slot.local_key), f"{slot.local_key} (for {slot.key})"
    return permuted_shape(shape, slot.local_axes, slot.axes, name)


def _write_config(source: SourceCheckpoint, folder: Path) -> None:
    vit = "ViTForImageClassification" if source.config.num_labels else "ViTModel"
    classes = {"align": "AlignModel", "vit": vit, "efficientnet": "AlignVisionModel"}
    source.config.architectures = [classes[source.family]]
    source.config.dtype = "float32"
    source.config.save_pretrained(folder)


def _write_image_processor(source: SourceCheckpoint, folder: Path) -> None:
    if source.image_processor is None:
        return
    if source.family == "align":
        source.image_processor.processor_class = "AlignProcessor"
    source.image_processor.save_pretrained(folder)


def _write_tokenizer(source: SourceCheckpoint, folder: Path, chosen: str | None) -> None:
    """Writes the chosen tokenizer, with ALIGN's length, or that of the source, if it fits the model.

    Raises:
        OSError, ValueError: no such tokenizer, it is another model's, or it keeps capitals that its vocabulary does not have.
    """
    from kakao_models.align.processing import MAX_TOKENS, is_uncased, read_tokenizer, write_tokenizer

    name, rows = chosen or source.tokenizer, source.config.text_config.vocab_size
    words = read_tokenizer(name)
    if not 0 <= rows - len(words) < _PADDED:
        raise ValueError(
            f"the tokenizer {name} has {len(words)} tokens, but the model has {rows}. Does the tokenizer belong to it?"
        )
    keeps_capitals = words.init_kwargs.get("do_lower_case") is False or words.tokenize("A") != words.tokenize("a")
    if keeps_capitals and is_uncased(words.get_vocab()):
        raise ValueError(
            f"the tokenizer {name} keeps capitals (do_lower_case is false), but its vocabulary has none: every capitalised "
            "word would become [UNK]. Set do_lower_case to true in its tokenizer_config.json"
        )
    if chosen:
        words.model_max_length = min(words.model_max_length, MAX_TOKENS)
    write_tokenizer(words, folder)


def _name_classes(source: SourceCheckpoint, labels: list[str]) -> None:
    if source.family != "vit" or len(labels) != source.config.num_labels:
        expected = source.config.num_labels if source.family == "vit" else "no names, because an ALIGN has no classes"
        raise ValueError(f"labels: got {len(labels)} names, expected {expected}")
    source.config.id2label = dict(enumerate(labels))
    source.config.label2id = {name: index for index, name in enumerate(labels)}


def _check_functions(config, folder: Path) -> None:
    """Refuses a model whose activations or epsilons differ from the original implementation's constants, which its checkpoint
    can't store. On the random inputs of the verification the exact GELU and its approximation give nearly the same.

    Raises:
        ValueError: the model computes with others.
    """
    for part in [getattr(config, name) for name in config.sub_configs] or [config]:
        originals = type(part)()
        for name in ("hidden_act", "layer_norm_eps", "batch_norm_eps", "pooling_type"):
            ours, theirs = getattr(part, name, None), getattr(originals, name, None)
            if _SAME.get(ours, ours) != _SAME.get(theirs, theirs):
                raise ValueError(
                    f"{folder}: {name} is {ours!r}, but the original implementation always uses {theirs!r}"
                )


def convert_back(
    folder: str | Path,
    prefix: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    key_layout: str = "model",
) -> list[verification.Stage]:
    """Writes the weights of a Hub folder as a checkpoint that the original code restores (`model.load_weights`).

    The checkpoint is read and verified against the folder, as `convert` does it, before it appears under its name.

    Args:
        folder: config.json and weights (safetensors, or pytorch_model.bin) of an ALIGN or a ViT; or the name of one on the Hub.
        revision: branch, tag or commit on the Hub.
        prefix: the checkpoint's path without suffix, such as `out/model-weights`; its folder is made.
        family: "align" or "vit" refuses the other.
        key_layout: layout of a ViT's keys, see `TPU_KEY_LAYOUTS`: "model" for `model.load_weights`, "manager" for
            `tf.train.Checkpoint(model=, backbone=)`, "backbone" for `model.backbone.load_weights`.

    Returns:
        The stages of the verification.

    Raises:
        ValueError: the tensors are not those that config.json describes, or of a model that the original code does
            not have.
        OSError: a file is missing, or the checkpoint already exists.
    """
    folder, prefix = download(folder, revision=revision), Path(prefix)
    config = read_model_config(folder)
    model_type = config.model_type
    if family not in (None, model_type):
        raise ValueError(f"{folder}: model_type is {model_type!r}, expected {family!r}")
    if model_type not in ("align", "vit"):
        raise ValueError(f"{folder}: model_type is {model_type!r}, which has no original implementation to convert to")
    _check_functions(config, folder)
    slots = align_tpu_slots(config) if model_type == "align" else vit_tpu_slots(config, key_layout)
    entries = whole_keys(stored_tensors(folder, {}), model_type)
    check_keys([slot.key for slot in slots], entries, folder)
    tensors = {
        slot.local_key + SUFFIX: permuted(entries[slot.key], slot.axes, slot.local_axes, slot.key)[1] for slot in slots
    }
    model = verification.load_model(folder)  # compares every shape with config.json
    stated = {"num_attention_heads": (config.text_config if model_type == "align" else config).num_attention_heads}
    if model_type == "align":
        stated["image_size"] = config.vision_config.image_size
    with workplace(prefix, prefix) as place:
        if (index := prefix.with_name(f"{prefix.name}.index")).exists():
            raise FileExistsError(f"{index} already exists. Remove that checkpoint, or choose another name")
        written = write_checkpoint(place / prefix.name, tensors)
        stages = verification.verify(read_source(written.files[0], **stated), model)
        for file in [*reversed(written.files), place / "checkpoint"]:  # without its index it is not a checkpoint
            os.replace(file, prefix.with_name(file.name))
    return stages
