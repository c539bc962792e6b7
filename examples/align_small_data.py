# /// script
# requires-python = ">=3.11"
# dependencies = ["kakao-models[torch]", "pyarrow"]
# [tool.uv.sources]
# kakao-models = { path = "..", editable = true }
# ///

"""Writes the inputs of align_small.yaml: labelled photographs with captions, a smaller MiniLM, and the teachers' outputs.

    python examples/align_small_data.py --flickr8k flickr8k/train.parquet --caltech101 caltech101/train.parquet \
        --cifar10 cifar10/train.parquet --lite efficientnet-lite0.pth efficientnet-lite2.pth --minilm all-MiniLM-L6-v2 \
        --classes imagenet.txt --output align-small-data

Sources are Parquet files with a column `image` and either `captions` (a list of strings) or `label_name`. Every seventh photograph of
a Caltech-101 class is held out, to estimate how well unseen photographs are classified. `imagenet.txt` has the 1,000 class names of
the EfficientNets, one per line. The output folder then has:

    captioned.parquet, caltech.parquet, cifar.parquet   photographs and captions to train on
    held_out.parquet    photographs of Caltech-101 that are not trained on
    texts.txt           every text of the training data: their word pieces are the model's vocabulary
    minilm/             MiniLM with 4 of its 6 layers, from which the text tower starts
    teacher/            embeddings of the captions of each source, and of all but CIFAR-10 the photographs' class probabilities
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel

from kakao_models import AlignImageProcessor, AlignModel, AlignTextConfig, Embedder

LAYERS = (0, 1, 3, 5)  # of MiniLM: with all six and the vocabulary, the model would be larger than 30 MB
HELD_OUT = 7
TEMPLATES = (
    "{}", "{a}", "a photo of {a}.", "a photo of the {}.", "a picture of {a}.", "this is {a}.", "there is {a} in the photo.",
    "a close-up photo of {a}.", "a photo of a large {}.", "a photo of a small {}.", "{s}", "a photo of {s}.",
)  # fmt: skip
NAMES = TEMPLATES[:3]  # for the classes of ImageNet
# How people name the classes of CIFAR-10 beside their names
SYNONYMS = {
    "airplane": ["airplane", "plane", "aeroplane", "jet"],
    "automobile": ["automobile", "car"],
    "ship": ["ship", "boat"],
    "cat": ["cat", "kitten"],
    "dog": ["dog", "puppy"],
    "deer": ["deer", "moose"],
}
# Words of captions that are no good as queries
STOP = frozenset(
    "a an and another are around as at back black blue brown by down each for four from front green group her his in into is it its "
    "large near next of off on one orange other out over pink purple red small some the their them there three through to two up "
    "white while with yellow young".split()
)
BATCH = 64


def with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def fill(template: str, noun: str) -> str:
    return template.format(noun, a=with_article(noun), s=noun if noun.endswith("s") else f"{noun}s")


def prompts(name: str) -> list[str]:
    """Captions of a photograph of a class."""
    return [fill(template, noun) for noun in SYNONYMS.get(name, [name]) for template in TEMPLATES]


def with_keyword(captions: list[str]) -> list[str]:
    """Adds the most frequent word of the captions as a caption, if three of them have it, because people search by words."""
    words = Counter(word for text in captions for word in set(re.findall("[a-z]+", text.lower())) - STOP)
    best, count = min(words.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    return [*captions, best] if count >= 3 else captions


def captioned(path: str) -> pa.Table:
    table = pq.read_table(path, columns=["image", "captions"])
    captions = [with_keyword(row) for row in table["captions"].to_pylist()]
    return table.set_column(1, "captions", pa.array(captions, pa.list_(pa.string())))


def labelled(path: str) -> pa.Table:
    table = pq.read_table(path, columns=["image", "label_name"])
    captions = [prompts(name) for name in table["label_name"].to_pylist()]
    return table.append_column("captions", pa.array(captions, pa.list_(pa.string())))


def split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Two tables; the second one has every `HELD_OUT`-th photograph of each class."""
    seen, kept, held_out = defaultdict(int), [], []
    for row, name in enumerate(table["label_name"].to_pylist()):
        seen[name] += 1
        (held_out if seen[name] % HELD_OUT == 0 else kept).append(row)
    return table.take(pa.array(kept, pa.int64())), table.take(pa.array(held_out, pa.int64()))


def bytes_of(row: Any) -> bytes:
    """The bytes of the file in a row of a column `image`."""
    return row["bytes"] if isinstance(row, dict) else row


def texts_of(tables: dict[str, pa.Table]) -> set[str]:
    return {text for table in tables.values() for row in table["captions"].to_pylist() for text in row}


class SentenceTeacher:
    """all-MiniLM-L6-v2: the mean of a text's tokens, (384,) of length 1."""

    def __init__(self, folder: str):
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        texts, vectors = sorted(texts, key=len), {}
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=64, return_tensors="pt")
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            vectors |= zip(batch, F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy())
        return vectors


def pass_features(model: AlignModel) -> None:
    """Makes the last matrix of the image tower the unit matrix, so that image embeddings are its input."""
    last = model.vision_model.encoder.blocks[-1].projection
    torch.nn.init.dirac_(last.project_conv.weight)
    norm = last.project_bn
    for tensor, value in (
        (norm.weight, 1.0), (norm.bias, 0.0), (norm.running_mean, 0.0), (norm.running_var, 1.0 - norm.eps),
    ):  # fmt: skip
        torch.nn.init.constant_(tensor, value)


class Classifier:
    """An EfficientNet-Lite as an `AlignModel` whose image embeddings are its 1,280 features, and its last layer."""

    def __init__(self, path: str, tokenizer: Any, engine: str | None, image_size: int | None = None):
        state = torch.load(path, weights_only=True)
        self.weight, self.bias = state["_fc.weight"].numpy(), state["_fc.bias"].numpy()
        text = AlignTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        model = AlignModel.from_towers(path, text, projection_dim=self.weight.shape[1]).eval()
        pass_features(model)
        processor = AlignImageProcessor.from_tower(path, image_size=image_size)
        self.embedder = Embedder(model, image_processor=processor, tokenizer=tokenizer, engine=engine)

    def features(self, table: pa.Table) -> np.ndarray:
        """(N, 1280)"""
        return self.embedder.images(list(map(bytes_of, table["image"].to_pylist())), normalize=False)

    def logits(self, table: pa.Table) -> np.ndarray:
        """(N, 1000)"""
        return self.features(table) @ self.weight.T + self.bias


def shorten(folder: str, output: Path) -> None:
    """MiniLM with the layers `LAYERS`, and its tokenizer."""
    model = BertModel.from_pretrained(folder)
    model.encoder.layer = torch.nn.ModuleList(model.encoder.layer[index] for index in LAYERS)
    model.config.num_hidden_layers = len(LAYERS)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder).save_pretrained(output)


def write(path: Path, vectors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])
    ids = pa.array([str(row) for row in range(len(vectors))])
    pq.write_table(pa.table({"id": ids, "embedding": values}), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", required=True, help="Parquet of captioned photographs")
    parser.add_argument(
        "--caltech101", required=True, help="Parquet of labelled photographs; a part of them is held out"
    )
    parser.add_argument("--cifar10", required=True, help="Parquet of labelled photographs")
    parser.add_argument(
        "--lite", nargs="+", required=True, help="state dicts of EfficientNet-Lite, the teachers of class labels"
    )
    parser.add_argument(
        "--minilm", required=True, help="folder of all-MiniLM-L6-v2, the teacher of sentence embeddings"
    )
    parser.add_argument("--classes", required=True, help="file with the 1,000 ImageNet class names, one per line")
    parser.add_argument("--engine", help="engine of `Embedder` for the EfficientNets, such as openvino")
    parser.add_argument("--output", type=Path, required=True, help="output folder")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    kept, held_out = split(labelled(args.caltech101))
    tables = {
        "captioned": captioned(args.flickr8k),
        "caltech": kept,
        "cifar": labelled(args.cifar10),
    }
    pq.write_table(held_out, args.output / "held_out.parquet")
    for name, table in tables.items():
        pq.write_table(table, args.output / f"{name}.parquet")
    classes = Path(args.classes).read_text(encoding="utf-8").splitlines()
    texts = texts_of(tables)
    texts |= {fill(template, noun) for noun in classes for template in NAMES}
    (args.output / "texts.txt").write_text("\n".join(sorted(texts)) + "\n", encoding="utf-8")
    shorten(args.minilm, args.output / "minilm")

    vectors = SentenceTeacher(args.minilm).embed(texts_of(tables))
    for name, table in tables.items():
        means = np.stack([np.mean([vectors[text] for text in row], 0) for row in table["captions"].to_pylist()])
        write(args.output / "teacher" / f"sentences-{name}.parquet", means)
    tokenizer = AutoTokenizer.from_pretrained(args.minilm)
    classifiers = [Classifier(path, tokenizer, args.engine) for path in args.lite]
    del tables["cifar"]  # 32 x 32 pixels: its own labels are the better targets
    for name, table in tables.items():
        mean = np.mean([classifier.logits(table) for classifier in classifiers], 0)
        write(args.output / "teacher" / f"classes-{name}.parquet", torch.from_numpy(mean).softmax(1).numpy())
        print(f"{name}: {len(table)} photographs", flush=True)


if __name__ == "__main__":
    main()
