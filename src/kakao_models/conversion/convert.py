"""Converts checkpoints of the original implementations to verified folders for the Hub, and back."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np

import kakao_models
from kakao_models.checkpoint.formats import read_safetensors
from kakao_models.checkpoint.hub import described_by, read_config
from kakao_models.checkpoint.kinds import kind_of
from kakao_models.checkpoint.shards import Written, bytes_of, read_tensors, write_shards
from kakao_models.checkpoint.tensors import BUFFERS, COUNTER, LazyTensors, check_keys, float32
from kakao_models.checkpoint.weightmap import permute
from kakao_models.conversion import recorded, verification
from kakao_models.conversion.folder import download
from kakao_models.conversion.read import located, read_source
from kakao_models.conversion.report import REPORT, model_card, versions
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.conversion.tensorflow import SUFFIX, write_checkpoint
from kakao_models.files.atomic import flush, sha256_of, unfinished, workplace

# Rows beyond the words of a tokenizer, by which a table is rounded up. BERT's cased vocabulary has 1,526 words fewer than
# the uncased one: what a tokenizer has too few shows another one's just as well as what it has too many.
_PADDED = 128
_SAME = {"gelu_new": "gelu_pytorch_tanh", "silu": "swish"}  # names of one function


def convert(
    source: str | Path,
    output: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    weights: str | None = None,
    tokenizer: str | None = None,
    max_shard_size: int = 5 * 10**9,
    reference: str | Path | None = None,
    labels: list[str] | None = None,
    evaluation: Sequence[str | Path] = (),
    advance: Callable[[str, int, int], None] = lambda step, done, total: None,
    **overrides,
) -> dict:
    """Converts a checkpoint; `output` appears complete and verified, or not at all.

    Args:
        source: any of the sources that `read_source` knows, or a checkpoint on the Hub.
        revision: branch, tag or commit of a checkpoint on the Hub.
        output: folder to make; must not exist, or be empty.
        family: "align", "vit" or "efficientnet" refuses the others; by default whichever it is.
        weights: "raw" or "average" (default: average where there is one).
        tokenizer: folder or Hub id whose tokenizer goes beside an ALIGN.
        max_shard_size: bytes of tensors a file may hold.
        reference: .npz of inputs and expected logits, see `recorded.verify_against`.
        labels: names of a ViT's classes.
        evaluation: files that `kakao-models evaluate` wrote of this model; their figures go into the model card.
        advance: told (step, done, total) as the work goes on.
        overrides: sizes that tensors do not show, see `recognize`.

    Returns:
        The report, which is also written beside the weights: source, hashes of every tensor and file, versions, and
        the largest difference at every stage of the verification.

    Raises:
        ValueError: a broken or unknown checkpoint; `VerificationError` if the result does not compute what the source does.
        OSError: `output` is there already, or can't be written.
    """
    read = read_source(located(source, revision=revision), weights=weights, wanted=family, **overrides)
    if labels is not None:
        _name_classes(read, labels)
    if tokenizer is not None and read.family != "align":
        raise ValueError(f"tokenizer: the model is of family {read.family!r}, which reads no texts. Leave it out")
    expected = None
    if reference is not None:
        expected = recorded.read_reference(Path(reference), read.family)
    measured = _read_evaluation(evaluation, Path(output).resolve().name)
    start = time.perf_counter()
    with unfinished(Path(output)) as folder:
        _write_config(read, folder)
        _write_processor(read, folder, tokenizer)  # first: a tokenizer that can't be had is known before hours of work
        written = _write_tensors(read, folder, max_shard_size, advance)
        advance("verification", 0, 1)
        with ThreadPoolExecutor(1) as pool:  # hashing takes a processor for itself, and about as long
            files = {file: pool.submit(sha256_of, file) for file in read.files}
            stages = _verify(read, folder, expected, Path(reference or "").name)
        advance("verification", 1, 1)
        tensors = {
            slot.key: {
                "sha256": written.tensors[slot.key],
                "dtype": "float32",
                "shape": list(_shape_of(read, slot)),
                "source": read.names.get(slot.local_key, slot.local_key),
            }
            for slot in read.slots
        }
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
                "skipped": read.skipped,
            },
            "parameters": sum(math.prod(x["shape"]) for key, x in tensors.items() if not key.endswith(BUFFERS)),
            "seconds": round(time.perf_counter() - start, 3),
            "verification": [asdict(stage) for stage in stages],
            "tensors": tensors,
            "versions": versions(),
        }
        (folder / "README.md").write_text(model_card(read, report, measured), encoding="utf-8")
        report["files"] = {
            path.name: written.files.get(path.name) or sha256_of(path) for path in sorted(folder.iterdir())
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _write_tensors(source: SourceCheckpoint, folder: Path, max_shard_size: int, advance) -> Written:
    """model.safetensors, or its shards and their index, read back and found to be the source's to the bit."""
    check_keys([slot.local_key for slot in source.slots], source.tensors, source.files[0])
    sums: dict[str, int] = {}

    def canonical(slot) -> np.ndarray:
        local = float32(source.tensors[slot.local_key], f"{source.files[0]}: {slot.local_key}")
        if not np.isfinite(local).all():  # the verification reads a few rows of a table only
            raise ValueError(f"{slot.local_key} has numbers that are not finite. Did the training diverge?")
        array = np.asarray(permute(local, slot.local_axes, slot.axes), order="C")
        back = permute(array, slot.axes, slot.local_axes)
        if not np.array_equal(back.view(np.uint32), local.view(np.uint32)):  # bits: NaN is equal to nothing
            raise ValueError(f"{slot.key}: turned back, it is not {slot.local_key} of the source")
        sums[slot.key] = google_crc32c.value(bytes_of(array))
        advance("tensors", len(sums), len(source.slots))
        return array

    entries = {slot.key: (_shape_of(source, slot), partial(canonical, slot)) for slot in source.slots}
    written = write_shards(folder, LazyTensors(entries), max_shard_size)
    for done, (key, array) in enumerate(read_tensors(folder), 1):
        if google_crc32c.value(bytes_of(array)) != sums.pop(key):
            raise ValueError(f"{key}: what is on disk is not what was written. Is the disk faulty?")
        advance("reading back", done, len(source.slots))
    check_keys([], sums, folder)
    return written


def _verify(
    source: SourceCheckpoint, folder: Path, expected: Mapping[str, np.ndarray] | None, name: str
) -> list[verification.Stage]:
    """The model is gone when this returns: on Windows nobody can rename a folder whose files are mapped."""
    model = verification.load_model(source.family, folder)
    stages = verification.verify(source, model)
    if expected is not None:
        stages += recorded.verify_against(expected, name, source.family, model)
    return stages


def _shape_of(source: SourceCheckpoint, slot) -> tuple[int, ...]:
    shape = source.tensors.shape(slot.local_key)
    try:
        return permute(np.broadcast_to(np.float32(0), shape), slot.local_axes, slot.axes).shape
    except ValueError as error:
        raise ValueError(f"{slot.local_key} (for {slot.key}): {error}. Is this another model or size?") from None


def _write_config(source: SourceCheckpoint, folder: Path) -> None:
    vit = "ViTForImageClassification" if source.config.num_labels else "ViTModel"
    classes = {"align": "AlignModel", "vit": vit, "efficientnet": "AlignVisionModel"}
    source.config.architectures = [classes[source.family]]
    source.config.save_pretrained(folder)


def _write_processor(source: SourceCheckpoint, folder: Path, tokenizer: str | None) -> None:
    if source.write_processor is not None:
        source.write_processor(folder)
        if tokenizer is not None and (any(folder.glob("tokenizer*.json")) or (folder / "vocab.txt").exists()):
            raise ValueError("the source has a tokenizer of its own, which is taken over: leave --tokenizer out")
    elif source.family == "vit":
        from kakao_models.vit.processing import ViTImageProcessor

        if source.config.representation_size:  # the pretraining program's evaluation
            size = source.config.image_size
            processor = ViTImageProcessor(
                preprocessing="tf",
                size={"shortest_edge": round(size * 256 / 224)},
                resample=4,
                do_center_crop=True,
                crop_size=size,
            )
        else:
            processor = ViTImageProcessor(preprocessing="tf", size=source.config.image_size)
        processor.save_pretrained(folder)
    else:
        from kakao_models.align.processing import AlignImageProcessor

        crop = source.config.vision_config.image_size
        AlignImageProcessor(preprocessing="tf", size=round(crop * 346 / 289), crop_size=crop).save_pretrained(folder)
    if tokenizer is not None:
        from kakao_models.align.processing import read_tokenizer

        words, rows = read_tokenizer(tokenizer), source.config.text_config.vocab_size
        if not 0 <= rows - len(words) < _PADDED:
            raise ValueError(
                f"the tokenizer {tokenizer} has {len(words)} tokens, the model {rows}. Is it another one's?"
            )
        words.save_pretrained(folder)


def _read_evaluation(files: Sequence[str | Path], name: str) -> str:
    """The `model-index` of a model card, or nothing."""
    if not files:
        return ""
    from kakao_models.evaluate import Result, model_index

    return model_index([Result.read(Path(file)) for file in files], name)


def _name_classes(source: SourceCheckpoint, labels: list[str]) -> None:
    if source.family != "vit" or len(labels) != source.config.num_labels:
        wanted = source.config.num_labels if source.family == "vit" else "none: an ALIGN has no classes"
        raise ValueError(f"labels: got {len(labels)} names, wanted {wanted}")
    source.config.id2label = dict(enumerate(labels))
    source.config.label2id = {name: index for index, name in enumerate(labels)}


def _check_functions(config, folder: Path) -> None:
    """Compares what the original implementation has as constants, which its checkpoint can't store. On the random inputs of
    the verification the exact GELU and its approximation give nearly the same.

    Raises:
        ValueError: the model computes with others.
    """
    for part in [getattr(config, name) for name in config.sub_configs] or [config]:
        originals = type(part)()
        for name in ("hidden_act", "layer_norm_eps", "batch_norm_eps"):
            ours, theirs = getattr(part, name, None), getattr(originals, name, None)
            if _SAME.get(ours, ours) != _SAME.get(theirs, theirs):
                raise ValueError(f"{folder}: {name} is {ours!r}, the original program computes with {theirs!r} always")


def convert_back(
    folder: str | Path,
    prefix: str | Path,
    *,
    family: str | None = None,
    revision: str | None = None,
    key_layout: str = "model",
) -> list[verification.Stage]:
    """Writes the weights of a Hub folder as a checkpoint that the original program restores (`model.load_weights`).

    The checkpoint is read and verified against the folder, as `convert` does it, before it appears under its name.

    Args:
        folder: config.json and safetensors files of an ALIGN or a ViT; or the name of one on the Hub.
        revision: branch, tag or commit of that.
        prefix: the checkpoint's path without suffix, such as `out/model-weights`; its folder is made.
        family: "align" or "vit" refuses the other.
        key_layout: of a ViT's keys, see `TPU_KEY_LAYOUTS`: "model" for `model.load_weights`, "manager" for
            `tf.train.Checkpoint(model=, backbone=)`, "backbone" for `model.backbone.load_weights`.

    Returns:
        The stages of the verification.

    Raises:
        ValueError: the tensors are not those that config.json describes, or of a model that the original program does
            not have.
        OSError: a file is missing, or the checkpoint is there already.
    """
    from kakao_models.align.weights import align_tpu_slots
    from kakao_models.vit.weights import vit_tpu_slots

    folder, prefix = download(folder, revision=revision), Path(prefix)
    found = read_config(folder / "config.json").get("model_type")
    config_class = getattr(kakao_models, kind_of(found, folder).config)
    if family not in (None, found):
        raise ValueError(f"{folder}: model_type is {found!r}, wanted {family!r}")
    if found not in ("align", "vit"):
        raise ValueError(
            f"{folder}: model_type is {found!r}, for which there is no original program: only an ALIGN or a ViT goes back"
        )
    with described_by(folder / "config.json"):
        config = config_class.from_pretrained(folder)
    _check_functions(config, folder)
    slots = align_tpu_slots(config) if found == "align" else vit_tpu_slots(config, key_layout)
    entries = {}
    for file in sorted(folder.glob("*.safetensors")):
        of_file = read_safetensors(file)
        if twice := entries.keys() & of_file.keys():
            raise ValueError(f"{file}: {min(twice)} is in another file of {folder} too. Remove the one that is not its")
        entries |= of_file
    tensors = LazyTensors({key: entry for key, entry in entries.items() if not key.endswith(COUNTER)})
    check_keys([slot.key for slot in slots], tensors, folder)

    def original(slot) -> np.ndarray:
        return permute(float32(tensors[slot.key], slot.key), slot.axes, slot.local_axes)

    model = verification.load_model(found, folder)  # compares every shape with config.json
    shown = {"num_attention_heads": (config.text_config if found == "align" else config).num_attention_heads}
    if found == "align":
        shown["image_size"] = config.vision_config.image_size
    with workplace(prefix, prefix) as place:
        if (index := prefix.with_name(f"{prefix.name}.index")).exists():
            raise FileExistsError(f"{index} exists. Remove that checkpoint, or choose another name")
        tensors_of = {slot.local_key + SUFFIX: partial(original, slot) for slot in slots}
        written = write_checkpoint(place / prefix.name, tensors_of)
        stages = verification.verify(read_source(written.files[0], **shown), model)
        files = [*reversed(written.files), place / "checkpoint"]  # without its index a checkpoint is none
        for file in files:
            flush(file)
        for file in files:
            os.replace(file, prefix.with_name(file.name))
    return stages
