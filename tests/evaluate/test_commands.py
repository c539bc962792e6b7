import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny

from kakao_models import Embedder
from kakao_models.evaluate import Result, knn_scores, multilabel_scores, retrieval_scores

WORDS = ["a small cat", "the dog and a tree", "big red house", "sea", "a bird on the car", "the cat in the house"]


@pytest.fixture
def command(command, tmp_path):
    """`kakao-models evaluate`, with a cache of its own."""

    def run(*arguments) -> tuple[int, str, str]:
        cache = [] if arguments[0] == "report" or "--no-cache" in arguments else ["--cache", tmp_path / "cache"]
        return command("evaluate", *arguments, *cache)

    return run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A classifier on the image tower of an ALIGN."""
    return tiny.align_classifier_folder(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    path = tmp_path_factory.mktemp("captioned") / "dev.parquet"
    images = []
    for seed in range(6):
        file = io.BytesIO()
        tiny.picture(seed).save(file, "PNG")
        images.append(file.getvalue())
    captions = [[word, f"{word} photo"] for word in WORDS]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "captions": captions}), path)
    return path


def test_retrieval_is_what_the_embeddings_say_and_is_computed_once(command, align, captioned, tmp_path):
    output = tmp_path / "r.json"
    arguments = ("retrieval", "--data", captioned, "--model", align, "--name", "pictures", "-o", output)
    code, out, err = command(*arguments)
    assert code == 0 and "### retrieval: pictures" in out and "images: 6, captions: 12" in err
    embedder = Embedder(align)
    images = embedder.images([tiny.picture(seed) for seed in range(6)])
    texts = embedder.texts([text for word in WORDS for text in (word, f"{word} photo")])
    wanted = retrieval_scores(images, texts, range(6), np.repeat(np.arange(6), 2)).metrics()
    found = Result.read(output)
    assert found.metrics == wanted and found.counts == {"images": 6, "captions": 12}
    assert set(found.details["intervals"]) == {name for name in wanted if "rank" not in name}
    written = sorted((tmp_path / "cache").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in written]
    assert json.loads(command(*arguments, "--json", "--max-memory", 1)[1])["metrics"] == wanted
    assert [path.stat().st_mtime_ns for path in written] == times and len(written) == 2
    code, out, _ = command("retrieval", "--data", captioned, "--model", align, "--folds", 3, "--json")
    assert code == 0 and json.loads(out)["dataset"].endswith("folds of 3")
    assert json.loads(out)["counts"] == {"images": 6, "captions": 12, "folds": 2, "images_left_out": 0}


def test_zero_shot_calibration_and_robustness(command, align, classes_folder, tmp_path):
    picture, output = tmp_path / "p.png", tmp_path / "z.json"
    base = ("--model", align, "--name", "pets")
    code, *_ = command("zero-shot", "-d", classes_folder, *base, "--picture", picture, "-o", output)
    zero = Result.read(output)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG") and zero.counts == {"images": 12, "classes": 3}
    assert set(zero.details["per_class"]) == {"bird", "cat", "dog"}
    low, high = zero.details["intervals"]["top1"]
    assert low < zero.metrics["top1"] < high
    assert np.mean(list(zero.details["per_class"].values())) == pytest.approx(zero.metrics["mean_per_class"])
    code, out, _ = command("calibration", "-d", classes_folder, *base, "--picture", picture, "--bins", 4, "--json")
    found = json.loads(out)
    assert code == 0 and found["metrics"]["accuracy"] == zero.metrics["top1"] and len(found["details"]["bins"]) == 4
    both = ("-d", f"pets={classes_folder}", "-d", f"again={classes_folder}")
    code, out, _ = command("robustness", *both, "--model", align, "--json")
    assert code == 0 and json.loads(out)["metrics"]["drop"] == 0
    assert json.loads(out)["metrics"]["again_ece"] == pytest.approx(
        json.loads(command("calibration", "-d", classes_folder, *base, "--json")[1])["metrics"]["ece"]
    )


def test_classes_of_equal_names_are_measured_by_every_zero_shot_command(command, align, classes_folder, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"bird": "crane", "cat": "missile", "dog": "crane"}')
    base = ("--model", align, "--classes", names, "--json")
    code, out, _ = command("zero-shot", "-d", classes_folder, *base)
    found = json.loads(out)
    assert code == 0 and found["details"]["per_class"]["crane (2)"] == 0  # the first crane wins
    assert set(found["details"]["per_class"]) == {"crane (0)", "missile", "crane (2)"}
    settings = found["settings"]
    assert settings["class_names_from"] == "names.json" and settings["templates_from"] == "small"
    lines = "\n".join(settings["class_names"]).encode()
    assert settings["class_names_sha256"] == hashlib.sha256(lines).hexdigest() != settings["templates_sha256"]
    assert command("calibration", "-d", classes_folder, *base)[0] == 0
    code, out, _ = command("robustness", "-d", f"a={classes_folder}", "-d", f"b={classes_folder}", *base)
    assert code == 0 and json.loads(out)["settings"]["b_class_names_sha256"] == settings["class_names_sha256"]


def test_names_of_classes_from_a_file(command, align, classes_folder, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"bird": "small bird", "cat": "cat", "dog": "dog", "unused": "car"}')
    code, out, _ = command("zero-shot", "-d", classes_folder, "--model", align, "--classes", names, "--json")
    assert code == 0 and json.loads(out)["settings"]["class_names"] == ["small bird", "cat", "dog"]
    names.write_text('{"bird": "small bird"}')
    code, _, err = command("zero-shot", "-d", classes_folder, "--model", align, "--classes", names)
    assert code == 2 and "has no name for 2 of 3 classes: 'cat', 'dog'" in err


@pytest.mark.parametrize("name", ["align", "classifier"])
def test_knn_and_linear_probe(command, name, request, classes_folder):
    model = request.getfixturevalue(name)
    train = ("--train", classes_folder, "-d", classes_folder, "--model", model, "--json")
    code, out, _ = command("knn", *train, "-k", 3)
    rows = Embedder(model).images(sorted(classes_folder.rglob("*.png")))
    labels = np.repeat(np.arange(3), 4)
    assert code == 0 and json.loads(out)["metrics"]["top1"] == knn_scores(rows, labels, rows, labels, k=3).top1
    code, out, _ = command("linear-probe", *train, "--seeds", 2)
    found = json.loads(out)
    assert code == 0 and found["counts"] == {"train": 12, "test": 12} and len(found["details"]["per_seed"]) == 2
    code, _, err = command("linear-probe", *train, "--vtab")
    assert code == 2 and "got 12 labelled training rows, expected at least 1000" in err


def test_a_vits_own_classes_real_labels_and_a_part_of_its_classes(command, vit, tmp_path):
    for number, name in enumerate(["dog", "cat", "bird"]):  # of the model 1, 0 and 2
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        tiny.picture(number).save(folder / f"ILSVRC2012_val_0000000{number + 1}.png")
    logits = Embedder(vit).class_logits([tiny.picture(number) for number in range(3)])
    best = logits.argmax(1).tolist()
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[best[0], 6], [], [(best[2] + 1) % 7]]))
    picture = tmp_path / "c.png"
    arguments = ("classify", "-d", tmp_path / "val", "--model", vit, "--json")
    code, out, _ = command(*arguments, "--real", real, "--picture", picture)
    found = json.loads(out)
    assert code == 0 and found["metrics"]["real_top1"] == 0.5 and found["counts"]["real_images"] == 2
    assert found["metrics"]["top1"] == pytest.approx(np.mean(np.equal(best, [1, 0, 2]))) and picture.exists()
    index = tmp_path / "index.json"
    index.write_text('{"6": ["bird", "x"], "2": ["cat", "y"], "4": ["dog", "z"]}')
    code, out, _ = command(*arguments, "--class-index", index)
    assert json.loads(out)["metrics"]["top1"] == np.mean(logits[:, [6, 2, 4]].argmax(1) == [2, 1, 0])
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "kitten")
    code, _, err = command(*arguments)
    assert code == 2 and "val has 3 classes ('bird', ...), but the model has 7 ('cat', ...)" in err


def test_images_without_a_label_of_their_own_count_for_real_alone(command, vit, tmp_path):
    images = [path.read_bytes() for path in tiny.picture_folder(tmp_path / "images", 3)]
    best = Embedder(vit).class_logits([tmp_path / "images" / f"{n:03}.png" for n in range(3)]).argmax(1).tolist()
    files = [f"ILSVRC2012_val_0000000{number + 1}.JPEG" for number in range(3)]
    path = tmp_path / "val.parquet"
    columns = {"image": images, "file": files, "label": ["dog", "", "dog"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    real = tmp_path / "real.json"
    real.write_text(json.dumps([[best[0]], [best[1]], [(best[2] + 1) % 7]]))
    code, out, _ = command("classify", "-d", path, "--model", vit, "--json", "--real", real)
    found = json.loads(out)
    assert code == 0 and found["counts"] == {"images": 2, "classes": 7, "real_images": 3}
    assert found["metrics"]["real_top1"] == pytest.approx(2 / 3)
    assert found["metrics"]["top1"] == np.mean([best[0] == 1, best[2] == 1])  # "dog" is the model's class 1


def test_several_labels_per_image(command, vit, tmp_path):
    images = [path.read_bytes() for path in tiny.picture_folder(tmp_path / "images", 3)]
    path = tmp_path / "many.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "labels": [[0, 3], [6], [2]]}), path)
    code, out, _ = command("classify", "-d", path, "--model", vit, "--multi-label", "--json")
    wanted = multilabel_scores(Embedder(vit).class_logits(images), [[0, 3], [6], [2]]).metrics()
    assert code == 0 and json.loads(out)["metrics"] == pytest.approx(wanted, abs=1e-5)


def test_crisscrossed_captions(command, align, tmp_path):
    names = [path.name for path in tiny.picture_folder(tmp_path / "images", 6)]
    entries = [
        {"filename": name, "split": "test", "sentences": [{"raw": word, "sentid": 2 * i}, {"raw": f"{word} photo",
         "sentid": 2 * i + 1}]} for i, (name, word) in enumerate(zip(names, WORDS))
    ]  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps({"images": entries}))
    ratings = tmp_path / "cxc"
    ratings.mkdir()
    pairs = [(i, j, (i * 7 + j * 3) % 6) for i in range(6) for j in range(6) if i != j]
    for kind, head in (("sis", "image1,image2"), ("sts", "caption1,caption2"), ("sits", "caption,image")):
        left, right = [f"COCO_val2014:sentid:{2 * i}" if kind != "sis" else names[i] for i in range(6)], names
        right = left if kind == "sts" else names
        lines = [f"{left[i]},{right[j]},{score},x" for i, j, score in pairs]
        (ratings / f"{kind}_test.csv").write_text("\n".join([f"{head},agg_score,sampling_method", *lines]) + "\n")
    arguments = ("similarity", "-d", tmp_path / "coco.json", "--images", tmp_path / "images", "--ratings", ratings)
    code, out, _ = command(*arguments, "--model", align, "--json")
    found = json.loads(out)
    assert found["settings"] == {"samples": 1000, "positive": 3.0}  # as the paper
    assert code == 0 and found["counts"]["sits_pairs"] == 30 and -1 <= found["metrics"]["sts"] <= 1
    assert {f"{way}_r1" for way in ("image_to_text", "text_to_image", "text_to_text", "image_to_image")} <= set(
        found["metrics"]
    )
    code, out, _ = command(*arguments, "--model", align, "--positive", 9, "--json")
    assert "image_to_image_r1" not in json.loads(out)["metrics"]  # no images are alike but by ratings
    code, _, err = command(*arguments, "--model", align, "--split", "val")
    assert code == 2 and "expected a folder with at least one of sts_val.csv" in err


def test_report(command, tmp_path):
    Result("zero-shot", "m", "imagenet", {"top1": 0.5}).write(tmp_path / "a.json")
    code, out, _ = command("report", tmp_path / "a.json")
    assert code == 0 and "| top-1 | 50.0 | 76.4 |" in out
    assert command("report", tmp_path / "a.json", "--format", "html", "-o", tmp_path / "r.html")[0] == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert command("report", tmp_path / "a.json", "-f", "model-index")[1].startswith("model-index:")
    assert command("report", tmp_path / "a.json", "-f", "pdf")[0] == 2
    assert command("report", tmp_path / "a.json", "-o", "-")[1] == out and not Path("-").exists()
    said = json.loads(command("report", tmp_path / "a.json", "--json")[1])
    assert said == [json.loads((tmp_path / "a.json").read_text())]
    judged = ("report", tmp_path / "a.json", "--checkpoint", "kakaobrain/align-base")
    assert "50.0 other protocol" in command(*judged)[1]
    (said,) = json.loads(command(*judged, "--json")[1])
    assert said["verdicts"]["top1"]["verdict"] == "other protocol"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("zero-shot", "-d", "{folder}", "-m", "{vit}"), "has no text tower"),
        (("zero-shot", "-d", "{folder}", "-m", "{align}", "--templates", "clp"), "expected small, clip"),
        (("zero-shot", "-d", "{tmp}/none", "-m", "{align}"), "no such file or folder"),
        (("zero-shot", "-d", "{folder}", "-m", "{align}", "-o", "{tmp}/no/where.json"), "in a folder that exists"),
        (("classify", "-d", "{folder}", "-m", "{align}"), "has no classifier"),
        (("classify", "-d", "{folder}", "-m", "{vit}", "--real", "{real}"), "expected a name such as ILSVRC2012"),
        (("retrieval", "-d", "{folder}", "-m", "{align}"), "no image has a .txt"),
        (("robustness", "-d", "{folder}", "-m", "{align}"), "NAME=PATH"),
        (("knn", "--train", "{numbers}", "-d", "{folder}", "-m", "{align}"), "has classes that .* does not have"),
        (("zero-shot", "-d", "{numbers}", "-m", "{align}"), "give readable names"),
    ],
)
def test_what_goes_wrong_is_said_with_exit_code_2(command, align, vit, classes_folder, tmp_path, arguments, message):
    for key in ("0", "1"):
        tiny.picture_folder(tmp_path / "numbers" / key, 1)
    (tmp_path / "real.json").write_text("[[1]]")
    places = dict(folder=classes_folder, align=align, vit=vit, tmp=tmp_path, numbers=tmp_path / "numbers")
    code, out, err = command(*(part.format(**places, real=tmp_path / "real.json") for part in arguments))
    assert code == 2 and out == "" and "Traceback" not in err
    text = " ".join(err.replace("│", " ").split())
    assert re.search(message, text), text


def test_importing_the_package_of_evaluation_imports_no_framework():
    code = (
        "import sys, kakao_models; kakao_models.evaluate; import kakao_models.cli; kakao_models.evaluate.knn_scores; "
    )
    code += "print([name for name in ('torch', 'transformers', 'sklearn', 'pyarrow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_as_many_classes_as_the_model_but_in_another_order_are_not_taken_by_place(command, vit, tmp_path):
    for name in ["bird", "cat", "c", "d", "e", "f", "g"]:  # the model's first is cat
        tiny.picture_folder(tmp_path / "val" / name, 1)
    code, _, err = command("classify", "-d", tmp_path / "val", "--model", vit)
    assert code == 2 and "their names differ" in " ".join(err.split())


def test_classes_with_other_names_are_matched_by_order_and_it_says_so(command, vit, tmp_path, caplog):
    for number in range(7):
        tiny.picture_folder(tmp_path / "val" / f"n0144076{number}", 1)
    code, _, _ = command("classify", "-d", tmp_path / "val", "--model", vit)
    assert code == 0 and "'n01440760' counts as 'cat'" in caplog.text and "--class-index" in caplog.text


def test_a_calibration_is_written_and_used(command, align, classes_folder, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="calibrations need scikit-learn")
    monkeypatch.setattr("kakao_models.evaluate.relevance.LEAST_PAIRS", 2)
    save = tmp_path / "calibration.json"
    code, out, _ = command("relevance", "-d", classes_folder, "--labelled", "--model", align, "--save", save, "--json")
    found = json.loads(out)
    assert code == 0 and found["counts"]["words"] == 3 and 0 <= found["metrics"]["ece"] <= 1
    relevance = Embedder(align, calibration=save).relevance
    assert relevance is not None and relevance.fitted["images"] == 12
    assert relevance.fitted["measured"]["ece"] == pytest.approx(found["metrics"]["ece"], abs=1e-4)
    assert relevance.guarantees == found["details"]["guarantees"] and "0.7" in relevance.guarantees["coverage"]
    assert 0 <= found["details"]["held"]["coverage"]["0.5"] <= 1


def test_too_few_photographs_for_a_calibration(command, align, captioned):
    code, out, err = command("relevance", "-d", captioned, "--model", align)
    assert code == 2 and not out and "give more photographs" in err
