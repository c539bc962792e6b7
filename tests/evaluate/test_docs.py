"""The commands of docs/evaluate.md and docs/audit.md run to their end, with small models and a picture or two as data."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("evaluate.md", "audit.md")]
CLASSES = ("n01440764", "n01443537", "n01484850")
NAMES = ("crane", "cat", "crane")  # as in the real lists, two classes have the same name


def commands() -> list[str]:
    """Commands of the pages, without those that no small data can stand for."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    found = [" ".join(line.split()) for line in re.findall(r"^    (kakao-models evaluate .*)$", text, re.M)]
    return [line for line in found if not re.search(r"TASK|--vtab|evaluate report|evaluate relevance|mieb", line)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data as the page calls them, one photograph a class."""
    root = tmp_path_factory.mktemp("docs")
    number = 0
    for folder, classes in {
        "imagenet/val": CLASSES, "imagenet/train": CLASSES, "imagenet-r": CLASSES[:2], "imagenet-a": CLASSES[1:],
        "v2": ("0", "1", "2"),
    }.items():  # fmt: skip
        for name in classes:
            number += 1
            (root / folder / name).mkdir(parents=True)
            tiny.picture(number).save(root / folder / name / f"ILSVRC2012_val_{number:08}.JPEG")
    index = {str(place): entry for place, entry in enumerate(zip(CLASSES, NAMES))}
    (root / "imagenet_class_index.json").write_text(json.dumps(index))
    (root / "real.json").write_text(json.dumps([[0], [1, 2], []]))
    words = ["a small cat", "the dog and a tree", "big red house"]
    sentences = [[{"raw": f"{word} {end}", "sentid": 2 * i + j} for j, end in enumerate(("", "photo"))]
                 for i, word in enumerate(words)]  # fmt: skip
    for data, folder in (("dataset_coco.json", "val2014"), ("dataset_flickr30k.json", "flickr30k-images")):
        names = [path.name for path in tiny.picture_folder(root / folder, 3)]
        rows = [{"filename": n, "split": "test", "sentences": s} for n, s in zip(names, sentences)]
        (root / data).write_text(json.dumps({"images": rows}))
    (root / "Crisscrossed-Captions/data").mkdir(parents=True)
    for kind, head in (("sis", "image1,image2"), ("sts", "caption1,caption2"), ("sits", "caption,image")):
        texts = [f"COCO_val2014:sentid:{2 * i}" for i in range(3)]
        left, right = texts if kind != "sis" else names, texts if kind == "sts" else names
        pairs = [f"{a},{b},{(i + 2 * j) % 5},x" for i, a in enumerate(left) for j, b in enumerate(right) if i != j]
        path = root / f"Crisscrossed-Captions/data/{kind}_test.csv"
        path.write_text("\n".join([f"{head},agg_score,sampling_method", *pairs]))
    pictures = [path.read_bytes() for path in (root / "val2014").iterdir()]
    pq.write_table(pa.table({"image": pictures, "labels": [[0, 1], [2], [1]]}), root / "images.parquet")
    pq.write_table(
        pa.table({"image": pictures, "age": ["old", "young", "old"], "label_name": words}), root / "people.parquet"
    )
    (root / "jobs.txt").write_text("a photo of a dog\n")
    (root / "words.txt").write_text("tree\n")
    (root / "README.md").write_text("# Model\n")
    package = root / "packages" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "zero_shot_metadata.py").write_text(
        f"OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a photo of a {{c}}.',)\nIMAGENET_CLASSNAMES = {list(NAMES)}\n"
    )
    one, two = pictures[:2], pictures[1:]
    columns = {"image_0": one, "image_1": two, "caption_0": words[:2], "caption_1": words[1:]}
    pq.write_table(pa.table(columns | {"collapsed_tag": ["Object", "Both"]}), root / "winoground.parquet")
    shutil.copytree(root / "val2014", root / "val2017")
    crepe = [{"filename": name, "caption": words[0], "negative_caption": words[1]} for name in names]
    (root / "sugarcrepe.json").write_text(json.dumps(crepe))
    rows = [f"val2014/{name},left,{word}" for name, word in zip([*names, names[0]], [*words, words[0]])]
    (root / "mmvp.csv").write_text("\n".join(["image,Type,Statement", *rows]))
    (root / "results").mkdir()
    tiny.vit_folder(root / "three-classes", num_labels=3)
    return root


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_page_run_to_their_end(line, place, command, align, vit, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place / "packages")
    arguments = shlex.split(line)[1:]
    small = align
    if arguments[1] == "classify":
        small = vit if "--multi-label" in arguments else "three-classes"
    if "--model" in arguments:
        arguments[arguments.index("--model") + 1] = small
    else:
        arguments += ["--model", small]
    if "--folds" in arguments:
        arguments[arguments.index("--folds") + 1] = "2"
    output = f"results/{arguments[1]}.json"
    arguments = arguments if "-o" in arguments else [*arguments, "-o", output]
    output = arguments[arguments.index("-o") + 1]
    code, out, err = command(*arguments, "--cache", "cache")
    assert code == 0, err
    assert json.loads(Path(output).read_text())["metrics"]
    assert command("evaluate", "report", output)[0] == 0
