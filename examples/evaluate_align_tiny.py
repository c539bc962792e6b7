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
import tempfile
from dataclasses import replace
from pathlib import Path

from align_small_data import with_article
from evaluate_align_small import fill_card, labelled, metrics, write_results

from kakao_models import Embedder
from kakao_models.evaluate import CachedEmbedder, read_captioned, tasks

TEMPLATES = ("a photo of {}.", "this is a photo of {}.", "{}", "a picture of {}")  # with an article in the name


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
    write_results(todo, args.output)
    if args.card:
        values = {name: value for name, value in metrics(args.output, "retrieval").items() if "rank" not in name}
        values["concepts"] = metrics(args.output, "concepts")["mean_per_class"]
        values["classes"] = metrics(args.output, "zero-shot")["mean_per_class"]
        figures = {name: round(100 * value, 1) for name, value in values.items()}
        fill_card(args.card, {name: str(value) for name, value in figures.items()})
        args.card.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
