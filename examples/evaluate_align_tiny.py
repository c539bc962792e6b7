"""Measures `align-tiny` for its model card: every figure there comes from the files that this writes.

    python examples/evaluate_align_tiny.py --dev flickr8k/dev.parquet --train cifar10/train.parquet \
        --test cifar10/test.parquet --output model_cards/results/align-tiny

Two minutes on one core. The data are those of `train_align_tiny.py`: captioned photographs with a column `concept`, and
labelled ones with `label_name`. Writes a results.json per figure, and of all of them `report.md`, `report.html` and
`model-index.yml`, the part of the card's front matter. With --card the figures within the card's text are filled in too. With
--cache an interrupted run goes on where it stopped.
"""

import argparse
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from kakao_models import Embedder
from kakao_models.evaluate import (
    CachedEmbedder,
    Labelled,
    html_report,
    markdown_report,
    model_index,
    read_captioned,
    read_labelled,
    tasks,
)

TEMPLATES = ("a photo of {}.", "this is a photo of {}.", "{}", "a picture of {}")  # with an article in the name


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", required=True, help="captioned photographs with a column `concept`")
    parser.add_argument(
        "--train", required=True, help="labelled photographs: neighbours and linear probe learn from them"
    )
    parser.add_argument("--test", required=True, help="labelled photographs to measure on")
    parser.add_argument("--model", default="align-tiny")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--card", type=Path, help="model card whose figures are filled in, and a .json of them beside it"
    )
    parser.add_argument("--cache", type=Path, help="keep embeddings here, for the next time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(args, args.cache or Path(folder))


def evaluate(args: argparse.Namespace, cache: Path) -> None:

    def labelled(path: str, name: str, column: str | None = None) -> Labelled:
        return replace(read_labelled(path, label_column=column), name=name)

    def run() -> tasks.TaskRun:  # a new one each: its fingerprint of the data is of that task alone
        return tasks.TaskRun(CachedEmbedder(embedder, cache))

    embedder = Embedder(args.model)
    captioned = replace(read_captioned(args.dev), name="flickr8k-dev")
    concepts = labelled(args.dev, "flickr8k-dev-concepts", "concept")
    train, test = labelled(args.train, "cifar10-train"), labelled(args.test, "cifar10-test")
    classes = [with_article(key) for key in test.keys]
    todo = {
        "retrieval": lambda: tasks.retrieval(run(), captioned),
        "concepts": lambda: tasks.zero_shot(run(), concepts, concepts.keys, TEMPLATES)[0],
        "zero-shot": lambda: tasks.zero_shot(run(), test, classes, TEMPLATES)[0],
        "calibration": lambda: tasks.calibration(run(), test, classes, TEMPLATES)[0],
        "knn-1": lambda: tasks.knn(run(), train, test),
        "knn-20": lambda: tasks.knn(run(), train, test, k=20),
        "linear-probe": lambda: tasks.linear_probe(run(), train, test),
        "linear-probe-vtab": lambda: tasks.linear_probe(run(), train, test, vtab=True),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    for name, task in todo.items():
        results.append(task())
        results[-1].write(args.output / f"{name}.json")
    report = markdown_report(results, published=False)
    (args.output / "report.md").write_text(report)
    (args.output / "report.html").write_text(html_report(results, published=False))
    (args.output / "model-index.yml").write_text(model_index(results))
    print(report)
    if args.card:
        fill_card(args.card, args.output)


def fill_card(card: Path, results: Path) -> None:
    """Writes the figures, in percent, into `<!-- name -->figure<!-- / -->` and into a .json file beside the card."""

    def metrics(name: str) -> dict[str, float]:
        return json.loads((results / f"{name}.json").read_text())["metrics"]

    figures = {name: value for name, value in metrics("retrieval").items() if "rank" not in name}
    figures |= {"concepts": metrics("concepts")["mean_per_class"], "classes": metrics("zero-shot")["mean_per_class"]}
    figures = {name: round(100 * value, 1) for name, value in figures.items()}
    text = card.read_text()
    for name, value in figures.items():
        text = re.sub(rf"(<!-- {name} -->).*?(<!-- / -->)", rf"\g<1>{value}\g<2>", text)
    card.write_text(text)
    card.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
