# /// script
# requires-python = ">=3.11"
# dependencies = ["kakao-models[train]"]
# [tool.uv.sources]
# kakao-models = { path = "..", editable = true }
# ///

"""Joins EfficientNet-Lite0 and four layers of MiniLM into the model that align_small.yaml starts from.

    python examples/align_small_start.py --data align-small-data --lite efficientnet-lite0.pth --minilm all-MiniLM-L6-v2 \
        --classes imagenet.txt --output align-small-start

The image tower stays as it is but for its last matrix. First the text tower learns to give MiniLM's sentence embeddings, which are
means over tokens, at [CLS]. Then the matrix learns, on features that are computed once, which texts belong to a photograph, and how
the EfficientNet's own classes are called: the rows of its last layer stand for photographs of the classes, as there are too few
real ones. `--data` is what align_small_data.py wrote.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from align_small_data import NAMES, Classifier, SentenceTeacher, bytes_of, fill
from torch.nn import functional as F
from transformers import AutoTokenizer

from kakao_models import AlignModel, AlignProcessor
from kakao_models.align.vocabulary import cut_vocabulary
from kakao_models.train.distill import read_embeddings
from kakao_models.train.targets import class_loss, pair_loss

SIZE, DIMENSION, TEMPERATURE, LENGTH = 192, 384, 0.05, 32
SOURCES = {"captioned": 4, "caltech": 2, "cifar": 1}  # and how often each photograph is seen in an epoch


def features_of_texts(model: AlignModel, tokenizer, texts: list[str]) -> torch.Tensor:
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    output = model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    return F.normalize(output.pooler_output, dim=-1)


class Descent:
    """AdamW whose rate rises for a tenth of the steps and then falls (Smith 2018). Prints the loss every 50 steps.

    Args:
        groups: parameters, or groups of them with a rate `lr` each.
        options: further arguments of AdamW.
    """

    def __init__(self, title: str, groups: list, steps: int, **options):
        self.title, self.steps, self.done = title, steps, 0
        self.optimizer = torch.optim.AdamW(groups, **options)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rates, total_steps=steps, pct_start=0.1)

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        if self.done % 50 == 0:
            print(f"{self.title}: step {self.done}/{self.steps}  loss {loss.item():.4f}", flush=True)


def teach_texts(model: AlignModel, tokenizer, teacher: dict[str, np.ndarray], epochs: int, batch: int = 128) -> None:
    """Trains the text tower to give the teacher's embedding of each text, with a cosine loss."""
    texts, random = sorted(teacher), np.random.default_rng(0)
    parameters = [*model.text_model.parameters(), *model.text_projection.parameters()]
    steps = epochs * -(-len(texts) // batch)
    descent = Descent("texts", parameters, steps, lr=5e-4, betas=(0.9, 0.98), weight_decay=0.01)
    for _ in range(epochs):
        order = random.permutation(len(texts))
        parts = [order[start : start + 32 * batch] for start in range(0, len(order), 32 * batch)]
        batches = []
        for part in parts:  # texts of about the same length together
            part = sorted(part, key=lambda row: len(texts[row]))
            batches += [part[start : start + batch] for start in range(0, len(part), batch)]
        random.shuffle(batches)
        for rows in batches:
            some = [texts[row] for row in rows]
            expected = torch.tensor(np.stack([teacher[text] for text in some]))
            descent.step((1 - (features_of_texts(model, tokenizer, some) * expected).sum(1)).mean())  # 1 - cosine


@torch.no_grad()
def embed_texts(model: AlignModel, tokenizer, texts: list[str]) -> torch.Tensor:
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rows = torch.empty(len(texts), DIMENSION)
    for start in range(0, len(order), 128):
        part = order[start : start + 128]
        rows[part] = features_of_texts(model, tokenizer, [texts[row] for row in part])
    return rows


def teach_matrix(
    data: list[dict], names: torch.Tensor, prototypes: torch.Tensor, steps: int, batch: int = 512
) -> torch.Tensor:
    """The projection (D, 1280) of features.

    Args:
        data: of each source `features` (N, 1280); `captions`, N lists of embeddings (D,); `sentences` (N, K); `classes` (N, C) or
            None; and `weight`.
        names: (templates, C, D).
        prototypes: (C, 1280), which stand for photographs of the classes.
    """
    random = np.random.default_rng(0)
    matrix = torch.zeros(DIMENSION, prototypes.shape[1]).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    matrix.requires_grad_()
    descent = Descent("images", [matrix], steps, lr=1e-3, weight_decay=0.1)
    places = np.array(
        [
            (s, row)
            for s, source in enumerate(data)
            for row in range(len(source["features"]))
            for _ in range(source["weight"])
        ]
    )
    classes = torch.arange(len(prototypes))
    for _ in range(steps):
        chosen = [data[s] | {"row": row} for s, row in places[random.integers(0, len(places), batch)]]
        features = torch.stack([one["features"][one["row"]] for one in chosen])
        features = features * torch.empty_like(features).bernoulli_(0.8) / 0.8
        captions = [one["captions"][one["row"]] for one in chosen]
        texts = torch.stack([texts[int(random.integers(len(texts)))] for texts in captions])
        sentences = torch.stack([one["sentences"][one["row"]] for one in chosen])
        images = F.normalize(features @ matrix.t(), dim=-1)
        loss = pair_loss(images, texts, sentences, TEMPERATURE, TEMPERATURE)
        labelled = torch.tensor([one["classes"] is not None for one in chosen])
        probabilities = torch.stack([one["classes"][one["row"]] for one in chosen if one["classes"] is not None])
        name = names[int(random.integers(len(names)))]
        loss = loss + class_loss(images[labelled], name, probabilities, 1.0, TEMPERATURE)
        ideal = F.normalize(prototypes @ matrix.t(), dim=-1)
        descent.step(loss + F.cross_entropy(ideal @ name.t() / TEMPERATURE, classes))
    return matrix.detach()


@torch.no_grad()
def set_matrix(model: AlignModel, matrix: torch.Tensor, pixels: torch.Tensor) -> None:
    """Puts the matrix into the last block. Its batch norm gets the statistics that it will see, and undoes them."""
    last = model.vision_model.encoder.blocks[-1].projection
    last.project_conv.weight.copy_(matrix[:, :, None, None])
    seen: list[torch.Tensor] = []
    hook = last.project_conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for start in range(0, len(pixels), 32):
        model.vision_model(pixels[start : start + 32])
    hook.remove()
    values = torch.cat(seen).transpose(0, 1).flatten(1)  # (D, positions)
    norm, mean, variance = last.project_bn, values.mean(1), values.var(1)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)


def as_rows(path: Path) -> torch.Tensor:
    vectors = read_embeddings(path)
    return torch.from_numpy(np.stack([vectors[str(row)] for row in range(len(vectors))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that align_small_data.py wrote")
    parser.add_argument("--lite", required=True, help="state dict of EfficientNet-Lite0")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--classes", required=True, help="file with the 1,000 ImageNet class names, one per line")
    parser.add_argument("--engine", help="engine of `Embedder` for the EfficientNet, such as openvino")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs over the texts")
    parser.add_argument("--steps", type=int, default=1000, help="number of training steps of the matrix")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    torch.manual_seed(0)

    vision = {"virtual_batch_size": None, "image_size": SIZE}
    short = args.data / "minilm"
    model = AlignModel.from_towers(
        args.lite,
        short,
        projection_dim=DIMENSION,
        temperature_init_value=TEMPERATURE,
        label_smoothing=0.0,
        vision_config=vision,
    )
    processor = AlignProcessor.from_towers(args.lite, short, image_size=SIZE)
    texts = (args.data / "texts.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = cut_vocabulary(model, processor.tokenizer, texts)
    teach_texts(model, tokenizer, SentenceTeacher(args.minilm).embed(texts), args.epochs)

    embeds = dict(zip(texts, embed_texts(model, tokenizer, texts)))
    classifier = Classifier(args.lite, AutoTokenizer.from_pretrained(args.minilm), args.engine, image_size=SIZE)
    data = []
    for name, weight in SOURCES.items():
        table = pq.read_table(args.data / f"{name}.parquet")
        teacher = args.data / "teacher" / f"classes-{name}.parquet"
        data.append({
            "features": torch.from_numpy(classifier.features(table)),
            "captions": [[embeds[text] for text in row] for row in table["captions"].to_pylist()],
            "sentences": as_rows(args.data / "teacher" / f"sentences-{name}.parquet"),
            "classes": as_rows(teacher) if teacher.exists() else None,
            "weight": weight,
        })  # fmt: skip
    classes = Path(args.classes).read_text(encoding="utf-8").splitlines()
    names = torch.stack([torch.stack([embeds[fill(template, noun)] for noun in classes]) for template in NAMES])
    rows = torch.from_numpy(classifier.weight)
    length = torch.cat([source["features"] for source in data]).norm(dim=1).mean()
    prototypes = F.normalize((rows - rows.mean(0)).clamp_min(0), dim=-1) * length  # features are not negative
    matrix = teach_matrix(data, names, prototypes, args.steps)

    table = pq.read_table(args.data / "captioned.parquet").slice(0, 256)
    pixels = processor.image_processor(images=list(map(bytes_of, table["image"].to_pylist())), return_tensors="pt")
    set_matrix(model, matrix, pixels["pixel_values"])
    model.save_pretrained(args.output)
    processor.tokenizer = tokenizer
    processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()
