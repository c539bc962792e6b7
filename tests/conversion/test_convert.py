"""Conversion of the small checkpoints that the original programs wrote, judged by their recorded outputs."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import goldens
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.numpy import load_file, save_file
from tolerances import TOLERANCE

from kakao_models import AlignModel, Embedder, ViTForImageClassification, ViTModel
from kakao_models.checkpoint.weightmap import permute
from kakao_models.cli import main
from kakao_models.conversion import convert as converting, recorded
from kakao_models.conversion.convert import convert, convert_back
from kakao_models.conversion.info import describe_checkpoint
from kakao_models.conversion.push import push
from kakao_models.conversion.read import read_source
from kakao_models.conversion.report import REPORT, summary, verify_report
from kakao_models.conversion.tensorflow import open_checkpoint, write_checkpoint
from kakao_models.conversion.verification import VerificationError, compare
from kakao_models.files.atomic import sha256_of

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "checkpoints"
HEADS = dict(num_attention_heads=2)  # their heads are narrower than any published model's


def converted(name: str, folder: Path, **options) -> dict:
    return convert(CHECKPOINTS / name, folder / "out", **(HEADS | options))


def vit_outputs(folder: Path, golden) -> tuple[np.ndarray, np.ndarray | None]:
    pixels = torch.from_numpy((golden.images.astype(np.float32) - 127.5) / 127.5).permute(0, 3, 1, 2)
    classifies = "ForImageClassification" in json.loads((folder / "config.json").read_text())["architectures"][0]
    model = (ViTForImageClassification if classifies else ViTModel).from_pretrained(folder)
    with torch.no_grad():
        output = model.base_model(pixels)
        features = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
        return features.numpy(), model(pixels).logits.numpy() if classifies else None


def test_align(tmp_path):
    report = converted("align_nano", tmp_path)
    golden = goldens.load("align_nano")
    model = AlignModel.from_pretrained(tmp_path / "out")
    tokens = {
        key: torch.from_numpy(golden.arrays[key]).long() for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    pixels = torch.from_numpy(golden.images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image.numpy()
    np.testing.assert_allclose(logits, golden.arrays["logits_per_image"], rtol=0, atol=TOLERANCE["logits_per_image"])
    assert report["source"]["skipped"] == {"metric": 6, "object_graph": 1}
    assert (
        report["source"]["weights"] == "raw" and len(report["tensors"]) == 196 + 24
    )  # weights, counters of batch norm
    assert report["parameters"] == describe_checkpoint(tmp_path / "out")["parameters"] == model.num_parameters()
    assert {"stem", "block 0", "image features", "pooler", "text features", "temperature"} <= {
        stage["name"] for stage in report["verification"]
    }


@pytest.mark.parametrize(
    "name", ["vit_nano_ckpt", "vit_nano_model_weights", "vit_nano_backbone_weights", "vit_nano_adamw_ckpt"]
)
def test_vit_in_its_three_key_layouts(name, tmp_path):
    converted(name, tmp_path)
    golden = goldens.load(name)
    features, logits = vit_outputs(tmp_path / "out", golden)
    np.testing.assert_allclose(features, golden.arrays["pre_logits"], rtol=0, atol=TOLERANCE["vit pre_logits"])
    assert (logits is None) == (name == "vit_nano_backbone_weights")
    if logits is not None:
        np.testing.assert_allclose(logits, golden.arrays["logits"], rtol=0, atol=TOLERANCE["vit logits"])


@pytest.mark.parametrize(
    "weights, recorded", [("raw", "logits"), ("average", "logits_average"), (None, "logits_average")]
)
def test_moving_averages(weights, recorded, tmp_path):
    report = converted("vit_nano_ema_ckpt", tmp_path, weights=weights)
    golden = goldens.load("vit_nano_ema_ckpt")
    _, logits = vit_outputs(tmp_path / "out", golden)
    np.testing.assert_allclose(logits, golden.arrays[recorded], rtol=0, atol=TOLERANCE["vit logits"])
    assert np.abs(golden.arrays["logits"] - golden.arrays["logits_average"]).max() > 100 * TOLERANCE["vit logits"]
    assert report["source"]["moving_averages"] and report["source"]["weights"] == (weights or "average")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("vit_nano_ckpt", dict(weights="average"), "has no moving averages"),
        ("vit_nano_ckpt", dict(family="align"), "holds a model of family 'vit', expected 'align'"),
        ("vit_nano_ckpt", dict(image_size=224), "image_size: got 224, but the tensors say 64"),
        ("align_nano", dict(projection_dim=640), "projection_dim: got 640, but the tensors say 48"),
        ("vit_nano_ckpt", dict(labels=["one", "two"]), "got 2 names, expected 10"),
        ("vit_nano_ckpt", dict(labels=[]), "got 0 names, expected 10"),
    ],
)
def test_what_contradicts_the_tensors_is_an_error(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        converted(name, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, swap, stage",
    [
        (
            "align_nano",
            [f"text_model.encoder.layer.0.attention.self.{name}.weight" for name in ("query", "value")],
            "layer 0",
        ),
        ("align_nano", [f"text_model.encoder.layer.{i}.attention.self.key.bias" for i in (0, 1)], "keys 0"),
        ("vit_nano_ckpt", [f"vit.encoder.layer.{i}.attention.attention.key.bias" for i in (0, 1)], "keys 0"),
        ("vit_nano_ckpt", [f"vit.encoder.layer.1.layernorm_{x}.bias" for x in ("before", "after")], "keys 1"),
    ],
)
def test_a_wrong_table_is_caught_by_the_verification(name, swap, stage, tmp_path, monkeypatch):
    """Two tensors of one shape, swapped: nothing but running the model can tell."""
    read = converting.read_source

    def swapped(*args, **kwargs):
        source = read(*args, **kwargs)
        places = {slot.key: i for i, slot in enumerate(source.slots)}
        a, b = (places[key] for key in swap)
        slots = list(source.slots)
        slots[a], slots[b] = (
            replace(slots[a], local_key=slots[b].local_key),
            replace(slots[b], local_key=slots[a].local_key),
        )
        return replace(source, slots=slots)

    monkeypatch.setattr(converting, "read_source", swapped)
    with pytest.raises(VerificationError, match=f"first in ({stage}): .*Nothing was written"):
        converted(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reference_of_somebody_else(tmp_path):
    golden = goldens.load("vit_nano_ckpt")
    np.savez(tmp_path / "good.npz", images=golden.images, logits=golden.arrays["logits"])
    np.savez(tmp_path / "bad.npz", images=golden.images, logits=golden.arrays["logits"][::-1])
    np.savez(tmp_path / "other.npz", images=golden.images)
    report = converted("vit_nano_ckpt", tmp_path, reference=tmp_path / "good.npz")
    assert (
        report["verification"][-1]["name"] == "logits of good.npz" and report["verification"][-1]["difference"] < 1e-4
    )
    digest, card = report["reference"]["sha256"], (tmp_path / "out" / "README.md").read_text()
    assert digest == sha256_of(tmp_path / "good.npz") and f"logits recorded in good.npz (SHA-256 {digest})" in card
    assert "Not verified" not in card
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(VerificationError, match="logits of bad.npz"):
        converted("vit_nano_ckpt", tmp_path, reference=tmp_path / "bad.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-50])
    with pytest.raises(ValueError, match="broken.npz is not an .npz of arrays"):
        converted("vit_nano_ckpt", tmp_path, reference=tmp_path / "broken.npz")
    with pytest.raises(ValueError, match="expected the arrays"):
        converted("vit_nano_ckpt", tmp_path, reference=tmp_path / "other.npz")
    for images in (golden.images / np.float32(255), golden.images[0], golden.images.transpose(0, 3, 1, 2)):
        np.savez(tmp_path / "form.npz", images=images, logits=golden.arrays["logits"])
        with pytest.raises(ValueError, match=r"form.npz: images is .*, expected uint8 \(any, any, any, 3\)"):
            converted("vit_nano_ckpt", tmp_path, reference=tmp_path / "form.npz")
    assert not (tmp_path / "out").exists()

    with pytest.raises(VerificationError, match=r"heads is assumed to be 1 \(--heads\)"):
        converted("vit_nano_ckpt", tmp_path, reference=tmp_path / "good.npz", num_attention_heads=None)
    assert not (tmp_path / "out").exists()


def test_a_reference_of_another_size_is_refused():
    reference = recorded.Reference("r.npz", "logits", np.zeros(1), lambda _: {"pixel_values": torch.zeros(1, 3, 8, 6)})
    for config in (tiny.vit_config(image_size=16), tiny.align_config()):
        with pytest.raises(
            ValueError, match=r"r.npz: its images have 8 x 6 pixels.*image_size is (16 x 16|32 x 32).*--image-size"
        ):
            recorded.verify_against(reference, SimpleNamespace(config=config), Path())


def test_a_model_may_be_saved_under_a_name_beside_steps_and_other_models(tmp_path):
    checkpoint, suffix = open_checkpoint(CHECKPOINTS / "vit_nano_model_weights"), "/.ATTRIBUTES/VARIABLE_VALUE"
    weights = {key: checkpoint.read(key) for key in checkpoint.entries if key.endswith(suffix)}
    named = {f"net/{key}": value for key, value in weights.items()}
    rest = {"step": np.int64(3), "opt/rate": np.float32(1), "keras_api/metrics/0/total": np.float32(1)}
    rest = {key + suffix: value for key, value in rest.items()}
    write_checkpoint(tmp_path / "one", named | rest)
    bare, read = read_source(CHECKPOINTS / "vit_nano_model_weights"), read_source(tmp_path / "one")
    assert read.skipped == {"counter": 1, "metric": 1, "object_graph": 1, "optimizer": 1, "outside of net/": 1}
    assert set(read.tensors) == set(bare.tensors) and read.config.to_dict() == bare.config.to_dict()
    assert read.names["layer_with_weights-0/class_emb"] == "net/layer_with_weights-0/class_emb" and not bare.names
    np.testing.assert_array_equal(*(s.tensors["layer_with_weights-0/pos_emb"] for s in (bare, read)))

    write_checkpoint(tmp_path / "two", named | {f"ema/{key}": 2 * value for key, value in weights.items()})
    with pytest.raises(ValueError, match="several models: expected one of the prefixes 'ema/', 'net/'.*--key-prefix"):
        read_source(tmp_path / "two")
    with pytest.raises(ValueError, match="no model under 'x/'"):
        read_source(tmp_path / "two", key_prefix="x/")
    twice = read_source(tmp_path / "two", key_prefix="ema/").tensors["layer_with_weights-0/pos_emb"]
    np.testing.assert_array_equal(twice, 2 * bare.tensors["layer_with_weights-0/pos_emb"])
    np.savez(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="key_prefix: only TensorFlow checkpoints"):
        read_source(tmp_path / "x.npz", key_prefix="net/")


def test_averages_are_found_whatever_the_optimizer_is_called(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / "vit_nano_ema_ckpt")
    tensors = {key: checkpoint.read(key) for key in checkpoint.entries if not key.startswith(("_", "optimizer"))}
    renamed = {key.replace("SLOT/optimizer", "SLOT/opt"): value for key, value in tensors.items()}
    write_checkpoint(tmp_path / "w", renamed)
    assert read_source(tmp_path / "w").weights == "average"


def test_shards_hold_the_same(tmp_path):
    converted("vit_nano_ckpt", tmp_path)
    convert(CHECKPOINTS / "vit_nano_ckpt", tmp_path / "sharded", max_shard_size=50_000, **HEADS)
    files = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "sharded" / "model.safetensors").exists()
    together = {key: value for file in files for key, value in load_file(file).items()}
    whole = load_file(tmp_path / "out" / "model.safetensors")
    assert together.keys() == whole.keys()
    assert all(np.array_equal(together[key], whole[key]) for key in whole)
    assert verify_report(tmp_path / "sharded") == []
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert {key: file.name for file in files for key in load_file(file)} == index["weight_map"]
    (tmp_path / "sharded" / files[0].name).unlink()
    assert {line for line in verify_report(tmp_path / "sharded")} == {
        f"{name}: missing"
        for name in [files[0].name, *(k for k, v in index["weight_map"].items() if v == files[0].name)]
    }


@pytest.mark.parametrize(
    "name, key_layout", [("align_nano", "model"), ("vit_nano_ckpt", "manager"), ("vit_nano_model_weights", "model")]
)
def test_out_and_in_again_is_bit_exact(name, key_layout, tmp_path):
    converted(name, tmp_path)
    convert_back(tmp_path / "out", tmp_path / "tpu" / "weights", key_layout=key_layout)
    before, after = open_checkpoint(CHECKPOINTS / name), open_checkpoint(tmp_path / "tpu")
    weights = [key for key in after.entries if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    reported = json.loads((tmp_path / "out" / REPORT).read_text())["tensors"]
    assert len(weights) == sum(tensor["dtype"] == "float32" for tensor in reported.values())
    for key in weights:
        assert before.read(key).tobytes() == after.read(key).tobytes(), key
        assert before.entries[key].shape == after.entries[key].shape, key
    again = convert(tmp_path / "tpu", tmp_path / "again", **HEADS)
    first = json.loads((tmp_path / "out" / REPORT).read_text())
    assert {k: t["sha256"] for k, t in again["tensors"].items()} == {
        k: t["sha256"] for k, t in first["tensors"].items()
    }


def test_back_from_what_pytorch_saved_of_a_backbone(tmp_path):
    converted("vit_nano_backbone_weights", tmp_path)
    saved, before = tmp_path / "saved", open_checkpoint(CHECKPOINTS / "vit_nano_backbone_weights")
    ViTModel.from_pretrained(tmp_path / "out").save_pretrained(saved)  # without the prefix of the whole model
    for name in ("safetensors", "pickle"):
        if name == "pickle":
            state = {key: torch.from_numpy(x) for key, x in load_file(saved / "model.safetensors").items()}
            torch.save(state, saved / "pytorch_model.bin")
            (saved / "model.safetensors").unlink()
        convert_back(saved, tmp_path / name / "weights", key_layout="backbone")
        after = open_checkpoint(tmp_path / name)
        weights = [key for key in before.entries if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]
        assert all(before.read(key).tobytes() == after.read(key).tobytes() for key in weights)


def test_back_from_a_lying_config_is_refused(tmp_path):
    converted("vit_nano_ckpt", tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(ValueError, match="intermediate|mlp"):
        convert_back(tmp_path / "out", tmp_path / "tpu" / "weights", key_layout="manager")
    assert not (tmp_path / "tpu").exists()


def test_back_is_for_models_the_original_has(tmp_path):
    with pytest.raises(ValueError, match="hidden_act is 'relu6', but the original"):
        convert_back("align-small", tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def test_verify_sees_every_change(tmp_path):
    converted("vit_nano_ckpt", tmp_path)
    folder = tmp_path / "out"
    assert verify_report(folder) == []
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert any("differs from the tensor" in line for line in verify_report(folder))
    with pytest.raises(ValueError, match="differs from what was verified, so nothing is uploaded: model.safetensors"):
        push(folder, "me/vit", dry_run=True)
    save_file(load_file(folder / "model.safetensors") | {"more": np.zeros(3, np.float32)}, folder / "model.safetensors")
    assert "more: this tensor is not in the report" in verify_report(folder)
    (folder / "model.safetensors").write_bytes(weights[:-100])
    assert any("can't be read" in line for line in verify_report(folder))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors: missing" in verify_report(folder)
    (folder / REPORT).write_text("{}")
    with pytest.raises(ValueError, match="not the report of a conversion"):
        verify_report(folder)
    (folder / REPORT).unlink()
    with pytest.raises(OSError, match=f"has no {REPORT}. Was it made by"):
        verify_report(folder)


def test_a_damaged_source_is_refused_by_name(tmp_path):
    shutil.copytree(CHECKPOINTS / "vit_nano_ckpt", tmp_path / "source")
    data = next((tmp_path / "source").glob("*.data-*"))
    content = bytearray(data.read_bytes())
    content[5000] ^= 64
    data.chmod(0o644)
    data.write_bytes(content)
    with pytest.raises(ValueError, match=f"{data.name}: backbone/embedding/kernel.*the file is damaged"):
        convert(tmp_path / "source", tmp_path / "out", **HEADS)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="already exists"):
        converted("vit_nano_ckpt", tmp_path)
    assert (tmp_path / "out" / "precious").read_text() == "x"


SLOW_VERIFICATION = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what nohup started
from kakao_models.conversion import convert as converting
converting.verification.verify = lambda *args: (print("verifying", flush=True), time.sleep(60))
converting.convert(sys.argv[1], sys.argv[2], num_attention_heads=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_before_the_verification_there_is_no_folder(how, tmp_path):
    arguments = [sys.executable, "-c", SLOW_VERIFICATION, str(CHECKPOINTS / "vit_nano_ckpt"), str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "verifying\n"
        time.sleep(0.2)
        process.send_signal(how)
        assert process.wait(timeout=30) != 0
    assert not (tmp_path / "out").exists()
    converted("vit_nano_ckpt", tmp_path)  # what is left of the killed run is in nobody's way
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_processors_are_the_originals(tmp_path):
    from kakao_models import AlignImageProcessor, ViTImageProcessor

    converted("align_nano", tmp_path)
    align = AlignImageProcessor.from_pretrained(tmp_path / "out")
    assert (align.preprocessing, align.size, align.crop_size) == (
        "tf",
        {"height": 346, "width": 346},
        {"height": 289, "width": 289},
    )
    convert(CHECKPOINTS / "vit_nano_ckpt", tmp_path / "pretrained", **HEADS)
    vit = ViTImageProcessor.from_pretrained(tmp_path / "pretrained")
    assert (vit.preprocessing, vit.resample, vit.crop_size) == ("tf", 4, {"height": 64, "width": 64})
    assert vit.size == {"shortest_edge": 73}  # 256 / 224 of the crop, as the pretraining program evaluates
    convert(CHECKPOINTS / "vit_nano_ema_ckpt", tmp_path / "tuned", **HEADS)
    vit = ViTImageProcessor.from_pretrained(tmp_path / "tuned")
    assert (vit.preprocessing, vit.resample, vit.size) == ("tf", 2, {"height": 96, "width": 96})


def test_where_a_finished_folder_could_not_be_put(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    convert(CHECKPOINTS / "vit_nano_ckpt", tmp_path / "link", **HEADS)
    assert verify_report(tmp_path / "elsewhere") == []
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match="Name a new folder inside it"):
        convert(CHECKPOINTS / "vit_nano_ckpt", ".", **HEADS)


def test_two_conversions_to_one_folder_do_not_meet(tmp_path, monkeypatch):
    verify = converting.verification.verify

    def meanwhile(*args):
        with pytest.raises(FileExistsError, match="being written by another process"):
            converted("vit_nano_adamw_ckpt", tmp_path)
        return verify(*args)

    with monkeypatch.context() as patch:
        patch.setattr(converting.verification, "verify", meanwhile)
        converted("vit_nano_ckpt", tmp_path)
    assert verify_report(tmp_path / "out") == [] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_classes_may_share_a_name(tmp_path):
    labels = ["crane", "crane", *"abcdefgh"]  # ImageNet has the bird and the machine
    converted("vit_nano_ckpt", tmp_path, labels=labels)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == labels
    assert config["label2id"] == {label: index for index, label in enumerate(labels)}


def test_a_tokenizer_that_is_not_there_is_known_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_write_tensors", None)
    with pytest.raises(OSError):
        converted("align_nano", tmp_path, tokenizer=str(tmp_path / "absent"))


def test_an_upload_is_what_was_verified_and_leaves_no_older_weights(tmp_path, monkeypatch, capsys):
    uploads, failures = [], []

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo, **options):
            return SimpleNamespace(repo_id=f"me/{repo}")

        def model_info(self, repo):
            names = ["tf_model.h5", "model.safetensors", "config.json", ".gitattributes"]
            return SimpleNamespace(sha="0a1", siblings=[SimpleNamespace(rfilename=name) for name in names])

        def upload_folder(self, **options):
            if failures:
                raise failures.pop()
            uploads.append(options)
            return SimpleNamespace(pr_url=None, commit_url="https://hub/commit", oid="0a2")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    converted("vit_nano_ckpt", tmp_path, max_shard_size=100_000)
    (tmp_path / "out" / ".env").write_text("KEY=secret")
    said = push(tmp_path / "out", "vit", create_pr=True)
    (options,) = uploads
    assert options["parent_commit"] == "0a1" and "stay in the repository: tf_model.h5. Are" in said
    failures.append(ConnectionError("broken"))
    with pytest.raises(SystemExit, match="0"):
        main(["verify", str(tmp_path / "out"), "--push-to-hub", "vit", "--dry-run"])
    with pytest.raises(OSError, match=r"complete and stays: kakao-models verify .* --push-to-hub vit uploads it"):
        push(tmp_path / "out", "vit")
    with pytest.raises(SystemExit, match="0"):
        main(["verify", str(tmp_path / "out"), "--push-to-hub", "vit"])
    assert len(uploads) == 2 and capsys.readouterr().out.count("would upload to") == 1
    assert (
        said.startswith("uploaded to https://hub/commit:") and options["repo_id"] == "me/vit" and options["create_pr"]
    )
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(options["allow_patterns"]) == there - {".env"} and len(there) > 6
    others = ["tokenizer.json", "model.fp16.safetensors", "model_ema.safetensors"]
    before = ["model.safetensors", "model-00001-of-00009.safetensors", "model.safetensors.index.json", *others]
    gone = [name for name in before if any(fnmatch(name, pattern) for pattern in options["delete_patterns"])]
    assert [name for name in before if name not in gone] == others


def test_verify_sees_what_was_added(tmp_path):
    converted("vit_nano_ckpt", tmp_path)
    (tmp_path / "out" / ".gitattributes").write_text("")
    assert verify_report(tmp_path / "out") == []
    assert ".gitattributes" not in push(tmp_path / "out", "me/vit", dry_run=True)
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    assert verify_report(tmp_path / "out") == ["adapter_config.json: added after the conversion"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_back_as_float32(tmp_path, dtype):
    converted("vit_nano_ckpt", tmp_path)
    ViTForImageClassification.from_pretrained(tmp_path / "out", dtype=dtype).save_pretrained(tmp_path / "half")
    convert_back(tmp_path / "half", tmp_path / "tpu" / "weights")
    before, after = open_checkpoint(CHECKPOINTS / "vit_nano_ckpt"), open_checkpoint(tmp_path / "tpu")
    theirs = before.read("backbone/class_emb/.ATTRIBUTES/VARIABLE_VALUE")
    ours = after.read(next(key for key in after.entries if "class_emb" in key))
    assert ours.dtype == np.float32 and np.array_equal(ours, torch.from_numpy(theirs).to(dtype).float().numpy())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages stay until the file is closed")
@pytest.mark.parametrize("name", ["align_nano", "vit_nano_ckpt"])
def test_the_verification_lets_go_of_every_block_and_of_the_files(name, tmp_path, monkeypatch):
    forgotten, verify, seen = [], converting.verification.verify, []
    monkeypatch.setattr(
        converting.verification, "forget_pages", lambda files: forgotten.append([f.name for f in files])
    )

    def maps() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if ".unfinished" in line]

    def mapped(source, model):
        stages = verify(source, model)
        seen.extend(maps())
        return stages

    monkeypatch.setattr(converting.verification, "verify", mapped)
    report = converted(name, tmp_path, max_shard_size=50_000)
    blocks = sum(stage["name"].startswith(("block", "layer")) for stage in report["verification"])
    assert len(forgotten) > blocks > 1  # the embeddings too
    assert all(len(files) > 1 and files == sorted(files) for files in forgotten)
    assert seen and not maps()  # nothing is copied, and nothing held when the folder is renamed


def test_a_source_of_wider_numbers_is_refused(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / "vit_nano_ckpt")
    tensors = {key: checkpoint.read(key) for key in checkpoint.entries if key != "_CHECKPOINTABLE_OBJECT_GRAPH"}
    key = "backbone/class_emb/.ATTRIBUTES/VARIABLE_VALUE"
    write_checkpoint(tmp_path / "wide", tensors | {key: tensors[key].astype(np.float64)})
    with pytest.raises(ValueError, match="backbone/class_emb is float64, expected float32"):
        convert(tmp_path / "wide", tmp_path / "out", **HEADS)
    assert not (tmp_path / "out").exists()


def test_what_the_disk_changed_is_seen(tmp_path, monkeypatch):
    write = converting.write_shards

    def faulty(folder, *args):
        written = write(folder, *args)
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        return written

    monkeypatch.setattr(converting, "write_shards", faulty)
    with pytest.raises(ValueError, match="vit.pooler.dense.weight: the file read back differs from what was written"):
        converted("vit_nano_ckpt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_loaded_once_on_the_way_back(tmp_path, monkeypatch):
    converted("vit_nano_ckpt", tmp_path)
    load, loaded = converting.verification.load_model, []
    monkeypatch.setattr(converting.verification, "load_model", lambda *args: loaded.append(args) or load(*args))
    convert_back(tmp_path / "out", tmp_path / "tpu" / "weights")
    assert len(loaded) == 1


def test_overflow_is_no_agreement():
    huge = np.full((2, 3), 3e38, np.float32)
    with np.errstate(all="ignore"):
        assert not compare("stage", huge, huge * 10).holds
    assert compare("stage", huge, huge).holds and not compare("stage", huge, huge[:1]).holds


def test_what_is_left_beside_the_folder_is_cleared_and_nothing_else(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    (tmp_path / ".out.unfinished").symlink_to(tmp_path / "precious")
    converted("vit_nano_ckpt", tmp_path)
    assert (tmp_path / "precious" / "x").read_text() == "x" and not (tmp_path / "out").is_symlink()
    shutil.rmtree(tmp_path / "out")
    (tmp_path / ".out.unfinished").write_text("x")
    converted("vit_nano_ckpt", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious"]


@pytest.mark.parametrize("size", [0, 500, 5000])  # of the first two the system names no file
def test_a_full_disk_leaves_nothing_and_is_told_by_name(size, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match="out.* can't be written: File too large"):
            converted("vit_nano_ckpt", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_back_appears_when_it_is_verified(tmp_path, monkeypatch):
    converted("vit_nano_ckpt", tmp_path)
    (tmp_path / "tpu").mkdir()
    (tmp_path / "tpu" / "checkpoint").write_text("of another checkpoint")
    verify, seen = converting.verification.verify, []

    def visible() -> list[str]:
        return sorted(path.name for path in (tmp_path / "tpu").iterdir() if not path.name.startswith("."))

    def failing(source, model):
        seen.append(visible())
        stages = verify(source, model)
        raise VerificationError([replace(stages[0], difference=1.0)])

    with monkeypatch.context() as patch:
        patch.setattr(converting.verification, "verify", failing)
        with pytest.raises(VerificationError):
            convert_back(tmp_path / "out", tmp_path / "tpu" / "weights")
    assert seen == [["checkpoint"]]
    assert (tmp_path / "tpu" / "checkpoint").read_text() == "of another checkpoint"
    assert [path.name for path in (tmp_path / "tpu").iterdir()] == ["checkpoint"]
    convert_back(tmp_path / "out", tmp_path / "tpu" / "weights")
    assert [*map(str, visible())] == ["checkpoint", "weights.data-00000-of-00001", "weights.index"]
    assert "weights" in (tmp_path / "tpu" / "checkpoint").read_text()
    with pytest.raises(FileExistsError, match="weights.index already exists"):
        convert_back(tmp_path / "out", tmp_path / "tpu" / "weights")


def test_a_classifier_on_aligns_tower_has_no_original(tmp_path):
    folder, tower = tiny.align_classifier_folder(tmp_path / "in"), tiny.align_vision_model_folder(tmp_path / "tower")
    with pytest.raises(ValueError, match="a classifier on ALIGN's image tower, which the original code cannot have"):
        convert(folder, tmp_path / "out")
    for source in (folder, tower):
        with pytest.raises(
            ValueError, match="model_type is 'align_vision_model', which has no original implementation"
        ):
            convert_back(source, tmp_path / "tpu" / "weights")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "tower"}


def test_back_from_a_folder_of_two_minds_is_refused(tmp_path):
    converted("vit_nano_ckpt", tmp_path)
    with pytest.raises(ValueError, match="model_type is 'vit', expected 'align'"):
        convert_back(tmp_path / "out", tmp_path / "tpu", family="align")
    stored = (tmp_path / "out" / "config.json").read_text()
    (tmp_path / "out" / "config.json").write_text(stored.replace("architectures", "_architectures"))
    with pytest.raises(ValueError, match="config.json does not name one: its architectures say ViTModel"):
        convert_back(tmp_path / "out", tmp_path / "tpu")
    (tmp_path / "out" / "config.json").write_text(stored)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "other.safetensors").write_bytes(b"not read: from_pretrained would not read it either")
    convert_back(tmp_path / "out", tmp_path / "tpu")
    assert (tmp_path / "tpu.index").is_file()


def test_figures_of_an_evaluation_go_into_the_card(tmp_path):
    measured = {"task": "zero-shot", "model": "here", "dataset": "photographs", "metrics": {"top1": 0.25}}
    (tmp_path / "results.json").write_text(json.dumps(measured))
    converted("vit_nano_ckpt", tmp_path, evaluation=[tmp_path / "results.json"])
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    (entry,) = front["model-index"]
    assert entry["name"] == "out" and entry["results"][0]["metrics"][0]["value"] == 25.0
    assert front["tags"] == ["vit"] and verify_report(tmp_path / "out") == []
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results.json is not a result of kakao-models evaluate"):
        convert(CHECKPOINTS / "vit_nano_ckpt", tmp_path / "other", evaluation=[tmp_path / "results.json"], **HEADS)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dry-run"], "--dry-run need --push-to-hub"),
        (["--key-layout", "manager"], "--key-layout goes with --to tpu"),
        (["--to", "tpu", "--heads", "2"], "--to tpu takes only --key-layout and --family"),
        (["--to", "tpu", "--push-to-hub", "me/vit", "--dry-run"], "--to tpu takes only --key-layout and --family"),
        (["--to", "tpu", "--max-shard-size", "1GB"], "--to tpu takes only --key-layout and --family"),
        (
            ["--tokenizer", "align-small", "--heads", "2"],
            "tokenizer: the model is of family 'vit', which has no text tower",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(CHECKPOINTS / "vit_nano_ckpt"), str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2 and message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_the_command_s_family_holds_on_the_way_back(tmp_path, capsys):
    converted("vit_nano_ckpt", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "out"), str(tmp_path / "tpu"), "--to", "tpu", "--family", "align"])
    assert stopped.value.code == 2 and "model_type is 'vit', expected 'align'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, kind, eps, stage",
    [
        ("vit_nano_ckpt", torch.nn.LayerNorm, 1e-12, r"(features|norm|keys \d|layer \d)"),
        ("align_nano", torch.nn.LayerNorm, 1e-5, r"(embeddings|keys \d|layer \d)"),
        ("align_nano", torch.nn.BatchNorm2d, 1e-5, r"(stem|block \d)"),
    ],
)
def test_a_mild_mistake_is_caught_by_the_verification(name, kind, eps, stage, tmp_path, monkeypatch):
    load = converting.verification.load_model

    def mistaken(*args):
        model = load(*args)
        for module in model.modules():
            if isinstance(module, kind):
                module.eps = eps
        return model

    monkeypatch.setattr(converting.verification, "load_model", mistaken)
    with pytest.raises(VerificationError, match=f"first in {stage}:"):
        converted(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bit_that_moving_changed_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "permute", lambda *args: np.nextafter(permute(*args), np.float32(9)))
    with pytest.raises(ValueError, match="classifier.bias: converting it back does not give model/"):
        converted("vit_nano_ckpt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_the_disk_lost_is_missed(tmp_path, monkeypatch):
    read = converting.read_tensors
    monkeypatch.setattr(converting, "read_tensors", lambda folder: list(read(folder))[:-1])
    with pytest.raises(ValueError, match="1 are unknown|1 of 42 tensors are missing"):
        converted("vit_nano_ckpt", tmp_path)
    assert list(tmp_path.iterdir()) == []


OUT = "backbone/enc_layers/1/att/combine_heads/kernel"


@pytest.mark.parametrize(
    "lost, found, message",
    [
        ("backbone/norm/beta", None, r"1 of 42 tensors are missing \(backbone/norm/beta\)"),
        (None, "backbone/gate/kernel", r"1 are unknown \(backbone/gate/kernel\)"),
        (OUT, OUT, r"combine_heads/kernel \(for vit\.encoder\.layer\.1\..*: got shape \(3,\), .*another model or size"),
    ],
)
def test_every_tensor_is_there_and_no_other(lost, found, message, tmp_path):
    checkpoint, suffix = open_checkpoint(CHECKPOINTS / "vit_nano_ckpt"), "/.ATTRIBUTES/VARIABLE_VALUE"
    tensors = {key: checkpoint.read(key) for key in checkpoint.entries if key.endswith(suffix)}
    tensors = {key: value for key, value in tensors.items() if key != f"{lost}{suffix}"}
    (tmp_path / "source").mkdir()
    write_checkpoint(tmp_path / "source" / "w", tensors | ({found + suffix: np.ones(3, np.float32)} if found else {}))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "source", tmp_path / "out", **HEADS)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"the tokenizer align-small has \d+ tokens, but the model has \d+"):
        converted("align_nano", tmp_path, tokenizer="align-small")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(converting, "_PADDED", 20)  # of one that has fewer, as BERT's cased vocabulary has
    tiny.tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=r"words has \d+ tokens, but the model has 128"):
        converted("align_nano", tmp_path, tokenizer=str(tmp_path / "words"))
    assert [path.name for path in tmp_path.iterdir()] == ["words"]


@pytest.mark.parametrize(
    "name, part, field, value",
    [
        ("vit_nano_ckpt", None, "hidden_act", "gelu"),
        ("vit_nano_ckpt", None, "layer_norm_eps", 1e-12),
        ("align_nano", "text_config", "hidden_act", "gelu_new"),
        ("align_nano", "vision_config", "batch_norm_eps", 1e-5),
        ("align_nano", "vision_config", "pooling_type", "max"),
    ],
)
def test_what_the_original_computes_otherwise_does_not_go_back(name, part, field, value, tmp_path):
    """The checkpoint has no place for it, and on the inputs of a verification one GELU is nearly the other."""
    converted(name, tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (config[part] if part else config)[field] = value
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{field} is '?{value}'?, but the original implementation always uses"):
        convert_back(tmp_path / "out", tmp_path / "tpu" / "weights")
    assert not (tmp_path / "tpu").exists()


def test_the_way_back_as_json(tmp_path, capsys):
    converted("vit_nano_ckpt", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "out"), str(tmp_path / "tpu" / "w"), "--to", "tpu", "--json"])
    assert not stopped.value.code
    stages = json.loads(capsys.readouterr().out)["verification"]
    assert stages[-1]["name"] == "logits" and (tmp_path / "tpu" / "w.index").is_file()


def test_numbers_that_the_verification_does_not_visit_are_finite(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / "align_nano")
    tensors = {key: checkpoint.read(key) for key in checkpoint.entries if key.endswith("VARIABLE_VALUE")}
    key = "text_encoder/layer_with_weights-0/bert/embeddings/weight/.ATTRIBUTES/VARIABLE_VALUE"
    tensors[key] = tensors[key].copy()
    tensors[key][-1, 3] = np.nan
    write_checkpoint(tmp_path / "diverged", tensors)
    with pytest.raises(ValueError, match="bert/embeddings/weight has values that are not finite"):
        convert(tmp_path / "diverged", tmp_path / "out", **HEADS)
    assert not (tmp_path / "out").exists()


def test_a_tensor_of_other_axes_is_told(tmp_path):
    checkpoint = open_checkpoint(CHECKPOINTS / "vit_nano_ckpt")
    tensors = {key: checkpoint.read(key) for key in checkpoint.entries if key.endswith("VARIABLE_VALUE")}
    key = "backbone/enc_layers/0/mlp/layer_with_weights-0/kernel"
    write_checkpoint(tmp_path / "flat", tensors | {f"{key}/.ATTRIBUTES/VARIABLE_VALUE": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=rf"{key} has shape \(3,\), expected 2 axes"):
        convert(tmp_path / "flat", tmp_path / "out", **HEADS)


def test_a_reference_for_a_model_without_a_head(tmp_path):
    golden = goldens.load("vit_nano_backbone_weights")
    expected = golden.arrays["pre_logits"]
    np.savez(tmp_path / "good.npz", images=golden.images, pooler_output=expected)
    np.savez(tmp_path / "bad.npz", images=golden.images, pooler_output=expected + 2e-3)
    report = converted("vit_nano_backbone_weights", tmp_path, reference=tmp_path / "good.npz")
    assert report["verification"][-1]["name"] == "pooler_output of good.npz"
    with pytest.raises(VerificationError, match="pooler_output of bad.npz"):
        convert(CHECKPOINTS / "vit_nano_backbone_weights", tmp_path / "other", reference=tmp_path / "bad.npz", **HEADS)


def test_a_tokenizer_may_be_a_vocabulary_and_keeps_no_capitals_that_it_lacks(tmp_path):
    words = [*tiny.vocabulary(), *(f"word{i}" for i in range(128 - len(tiny.vocabulary())))]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words) + "\n")
    converted("align_nano", tmp_path, tokenizer=str(tmp_path / "words"))
    assert (tmp_path / "out" / "vocab.txt").read_text().split() == words
    fields = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert fields["model_max_length"] == 64 and fields["processor_class"] == "AlignProcessor"
    assert not fields.keys() & {"backend", "is_local", "local_files_only"}
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("A Cat") == ["a", "cat"]
    fields["do_lower_case"] = False
    (tmp_path / "out" / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="keeps capitals .do_lower_case is false., but its vocabulary has none"):
        convert(CHECKPOINTS / "align_nano", tmp_path / "again", tokenizer=str(tmp_path / "out"), **HEADS)
    assert not (tmp_path / "again").exists()


def test_everybody_the_umask_allows_may_read_what_is_written(tmp_path):
    before = os.umask(0o022)
    try:
        converted("align_nano", tmp_path)
        AlignModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    finally:
        os.umask(before)
    files = [path for folder in ("out", "saved") for path in (tmp_path / folder).iterdir()]
    assert len(files) > 8 and {path.stat().st_mode & 0o777 for path in files} == {0o644}


def changed(name: str, folder: Path, change) -> Path:
    """A copy of a checkpoint; `change` gets its tensors by key without suffix and returns new ones."""
    checkpoint, suffix = open_checkpoint(CHECKPOINTS / name), "/.ATTRIBUTES/VARIABLE_VALUE"
    tensors = {key.removesuffix(suffix): checkpoint.read(key) for key in checkpoint.entries if key.endswith(suffix)}
    folder.mkdir()
    tensors |= change(tensors)
    write_checkpoint(folder / "w", {key + suffix: value for key, value in tensors.items()})
    return folder


KERNEL = "image_encoder/layer_with_weights-0/layer_with_weights-0/kernel"
BIAS = "text_encoder/layer_with_weights-1/bias"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {"temperature": np.float32(0)}, "temperature is 0, expected a number above 0"),
        (lambda t: {"temperature": np.float32(-0.1)}, "temperature is -0.1, expected"),
        (lambda t: {"temperature": np.float32("nan")}, "temperature is nan, expected"),
        (lambda t: {KERNEL: np.zeros_like(t[KERNEL])}, f"{KERNEL} is all zero"),
    ],
)
def test_weights_of_no_trained_model_are_refused(change, message, tmp_path):
    source = changed("align_nano", tmp_path / "source", change)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", **HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_recognised_assumed_and_doubtful_is_reported(tmp_path):
    report = converted("align_nano", tmp_path)
    assert report["recognised"] == [
        "EfficientNet (width 0.5, depth 0.3)", "BERT (2 layers, width 64)", "2 heads", "289 px (assumed)",
        "tokenizer: not checked",
    ]  # fmt: skip
    (doubt,) = report["warnings"]
    assert doubt.startswith("the text tower has 2 layers of 64; the published ones have 4 of 256, 12 of 768")
    assert f"warning: {doubt}" in summary(report).splitlines()
    report = convert(CHECKPOINTS / "vit_nano_ckpt", tmp_path / "vit")
    assert report["recognised"][1:] == ["1 heads (assumed)", "64 px", "10 classes"] and report["warnings"] == []
    report = convert(tmp_path / "vit", tmp_path / "again")  # config.json states them
    assert report["recognised"][1] == "1 heads"


def test_features_that_do_not_depend_on_the_image_are_a_warning(tmp_path):
    def deaf(tensors):  # the last norm of the tower lets its shift through and nothing of the image
        last = max(
            int(key.split("-")[2].split("/")[0])
            for key in tensors
            if key.startswith("image_encoder/") and "gamma" in key
        )
        key = f"image_encoder/layer_with_weights-0/layer_with_weights-{last}/gamma"
        return {key: np.full_like(tensors[key], 1e-12), BIAS: np.zeros_like(tensors[BIAS])}

    report = convert(changed("align_nano", tmp_path / "source", deaf), tmp_path / "out", **HEADS)
    assert [message.split(" of ")[0] for message in report["warnings"][1:]] == [
        "the image features",
        "1 vectors are all zero, text_projection.bias among them. Are these trained weights?",
    ]


def test_a_reference_of_texts_and_image_files_goes_through_the_folder(tmp_path):
    folder = Path(tiny.align_folder(tmp_path / "align", preprocessing="tf"))
    tiny.picture_folder(tmp_path / "photos", 2)
    embedder = Embedder(folder)
    texts, images = ["a red cat", "two big dogs", "The sea"], [f"photos/00{i}.png" for i in range(2)]
    vectors = (
        embedder.images([tmp_path / name for name in images], normalize=True),
        embedder.texts(texts, normalize=True),
    )
    logits = vectors[0] @ vectors[1].T / 0.01
    reference = {"images": images, "texts": texts, "logits_per_image": logits.tolist(), "tolerance": 0.01}

    def run(name: str, **changes) -> dict:
        (tmp_path / "reference.json").write_text(json.dumps(reference | changes))
        return convert(folder, tmp_path / name, reference=tmp_path / "reference.json")

    stage = run("good")["verification"][-1]
    assert stage["name"] == "logits_per_image of reference.json" and stage["difference"] < 0.01 == stage["limit"]
    with pytest.raises(VerificationError, match="logits_per_image of reference.json"):
        run("swapped", texts=texts[::-1])
    for changes, message in (
        ({"texts": texts[:2]}, "has shape .2, 3., which does not fit .2, 2. inputs"),
        ({"logits_per_image": "x"}, "expected a JSON object with images, texts"),
        ({"tolerance": 0}, "expected a JSON object"),
        ({"images": []}, "expected a JSON object"),
    ):
        with pytest.raises(ValueError, match=message):
            run("bad", **changes)
    with pytest.raises(ValueError, match="absent.png: no such file"):
        run("bad", images=["absent.png", images[0]])
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(
        ValueError, match="reference.json has texts, but the model has no tokenizer: name one with --tokenizer"
    ):
        run("bad")
    assert not (tmp_path / "bad").exists()
