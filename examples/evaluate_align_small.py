# /// script
# requires-python = ">=3.11"
# dependencies = ["kakao-models[torch,evaluate]"]
# [tool.uv.sources]
# kakao-models = { path = "..", editable = true }
# ///

"""Evaluates `align-small` for its model card: every figure in the card comes from the files that this script writes.

    python examples/evaluate_align_small.py --dev flickr8k/dev.parquet --train cifar10/train.parquet \
        --test cifar10/test.parquet --held-out align-small-data/held_out.parquet --imagenet imagenet.txt \
        --output model_cards/results/align-small

The data are those of `align_small_data.py`: captioned photographs with a column `concept`, and labelled ones with `label_name`. Writes a
results.json per figure, and of all of them `report.md`, `report.html` and `model-index.yml`, the part of the card's front matter;
`photographs.json` has the photographs inside the package, by the nouns and queries of align_small_goals.yaml. With --card the
figures within the card's text are filled in too. With --cache an interrupted run goes on where it stopped.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from align_small_data import fill
from PIL import Image

from kakao_models import Embedder
from kakao_models.demo.photos import BUNDLED, bundled_labels
from kakao_models.evaluate import (
    CachedEmbedder,
    Labelled,
    Result,
    html_report,
    markdown_report,
    model_index,
    read_captioned,
    read_labelled,
    tasks,
)
from kakao_models.evaluate.templates import SMALL_TEMPLATES

GOALS = yaml.safe_load(Path(__file__).with_name("align_small_goals.yaml").read_text(encoding="utf-8"))
STYLES = {"plain": "{}", "with an article": "{a}", "a photo of": "a photo of {a}", "plural": "{s}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", required=True, help="captioned photographs with a column `concept`")
    parser.add_argument("--train", required=True, help="labelled photographs to train kNN and linear probe")
    parser.add_argument("--test", required=True, help="labelled photographs to test on")
    parser.add_argument("--held-out", required=True, help="photographs of Caltech-101 that were held out of training")
    parser.add_argument("--imagenet", required=True, help="file with the 1,000 ImageNet class names, one per line")
    parser.add_argument("--model", default="align-small")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--card", type=Path, help="model card to fill with the figures")
    parser.add_argument("--cache", type=Path, help="folder that caches embeddings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(args, args.cache or Path(folder))


def labelled(path: str, name: str, column: str | None = None) -> Labelled:
    return replace(read_labelled(path, label_column=column), name=name)


def evaluate(args: argparse.Namespace, cache: Path) -> None:

    def run() -> tasks.TaskRun:  # a new one each: its fingerprint of the data is of that task alone
        return tasks.TaskRun(CachedEmbedder(embedder, cache))

    embedder = Embedder(args.model)
    captioned = replace(read_captioned(args.dev), name="flickr8k-dev")
    concepts = labelled(args.dev, "flickr8k-dev-concepts", "concept")
    train, test = labelled(args.train, "cifar10-train"), labelled(args.test, "cifar10-test")
    held_out = labelled(args.held_out, "caltech101-held-out")
    imagenet = Path(args.imagenet).read_text(encoding="utf-8").splitlines()
    todo = {
        "retrieval": lambda: tasks.retrieval(run(), captioned),
        "concepts": lambda: tasks.zero_shot(run(), concepts, concepts.keys, SMALL_TEMPLATES)[0],
        "concepts-calibration": lambda: tasks.calibration(run(), concepts, concepts.keys, SMALL_TEMPLATES)[0],
        "cifar10": lambda: tasks.zero_shot(run(), test, test.keys, SMALL_TEMPLATES)[0],
        "cifar10-calibration": lambda: tasks.calibration(run(), test, test.keys, SMALL_TEMPLATES)[0],
        "caltech101": lambda: tasks.zero_shot(run(), held_out, held_out.keys, SMALL_TEMPLATES)[0],
        "imagenet-names": lambda: tasks.zero_shot(run(), *among(held_out, imagenet), SMALL_TEMPLATES)[0],
        "knn-20": lambda: tasks.knn(run(), train, test, k=20),
        "linear-probe": lambda: tasks.linear_probe(run(), train, test),
    }
    write_results(todo, args.output)
    photographs = of_photographs(embedder)
    (args.output / "photographs.json").write_text(json.dumps(photographs, indent=2) + "\n")
    print(json.dumps(photographs, indent=2))
    if args.card:
        fill_card(args.card, figures(args.output) | {"queries": str(photographs["right first hits"])})


def write_results(todo: Mapping[str, Callable[[], Result]], output: Path) -> None:
    """Runs each task, and writes its NAME.json and the reports of all."""
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for name, task in todo.items():
        results.append(task())
        results[-1].write(output / f"{name}.json")
    report = markdown_report(results, published=False)
    (output / "report.md").write_text(report)
    (output / "report.html").write_text(html_report(results, published=False))
    (output / "model-index.yml").write_text(model_index(results))
    print(report)


def metrics(output: Path, name: str) -> dict[str, float]:
    return json.loads((output / f"{name}.json").read_text())["metrics"]


def among(data: Labelled, names: Sequence[str]) -> tuple[Labelled, list[str]]:
    """The photographs whose class is one of `names`, labelled by its number there."""
    names = list(dict.fromkeys(names))  # two classes are called "missile"
    numbers = {name.lower(): number for number, name in enumerate(names)}
    labels = np.array([numbers.get(data.keys[label].lower(), -1) if label >= 0 else -1 for label in data.labels])
    return replace(data, name=f"{data.name}-by-imagenet-names", labels=labels, keys=names), names


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def wide(image: Image.Image) -> Image.Image:
    """Crops the centre of an image, twice as wide as high."""
    height = min(image.height, image.width // 2)
    top = (image.height - height) // 2
    return image.crop((0, top, image.width, top + height))


def of_photographs(embedder: Embedder) -> dict:
    """Predicted labels of the photographs inside the package, and the first results of each query."""
    names = list(GOALS["nouns"])
    photographs = [Image.open(BUNDLED / name) for name in names]
    images = embedder.images(photographs, normalize=True)
    right, wrong = {}, {}

    def name_them(title: str, images: np.ndarray, texts: Sequence[str], expected: Sequence[str]) -> None:
        best = (images @ embedder.texts(texts, normalize=True).T).argmax(1)
        called = {name: texts[column] for name, column in zip(names, best)}
        wrong[title] = {name: called[name] for name, text in zip(names, expected) if called[name] != text}
        right[title] = len(names) - len(wrong[title])

    name_them("the demo's labels", images, bundled_labels(), [GOALS["labels"][name] for name in names])
    nouns = list(GOALS["nouns"].values())
    for style, template in STYLES.items():
        texts = [fill(template, noun) for noun in nouns]
        name_them(style, images, texts, texts)
    for change in (grey, wide):
        changed = embedder.images([change(photograph.convert("RGB")) for photograph in photographs], normalize=True)
        name_them(f"plain, {change.__name__}", changed, nouns, nouns)
    queries = list(GOALS["queries"])
    first = (embedder.texts(queries, normalize=True) @ images.T).argmax(1)
    misses = {query: names[row] for query, row in zip(queries, first) if names[row] not in GOALS["queries"][query]}
    return {
        "photographs": len(names), "named right": right, "wrong names": wrong,
        "queries": len(queries), "right first hits": len(queries) - len(misses), "wrong first hits": misses,
    }  # fmt: skip


def figures(output: Path) -> dict[str, str]:
    """The card's figures, in percent."""
    values = {name: value for name, value in metrics(output, "retrieval").items() if "rank" not in name}
    values |= {
        "concepts": metrics(output, "concepts")["mean_per_class"],
        "concepts_ece": metrics(output, "concepts-calibration")["ece"],
        "cifar10": metrics(output, "cifar10")["top1"],
        "cifar10_ece": metrics(output, "cifar10-calibration")["ece"],
        "caltech101": metrics(output, "caltech101")["top1"],
        "imagenet_names": metrics(output, "imagenet-names")["top1"],
    }
    return {name: f"{100 * value:.1f}" for name, value in values.items()}


def fill_card(card: Path, figures: Mapping[str, str]) -> None:
    """Writes figures into `<!-- name -->figure<!-- / -->`."""
    text = card.read_text()
    for name, value in figures.items():
        text = re.sub(rf"(<!-- {name} -->).*?(<!-- / -->)", rf"\g<1>{value}\g<2>", text)
    card.write_text(text)


if __name__ == "__main__":
    main()
