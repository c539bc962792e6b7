"""Pretrains a small ALIGN from scratch on captioned and labelled photographs: how `align-tiny` was made.

    python examples/train_align_tiny.py --captioned flickr8k/train.parquet --labelled cifar10/train.parquet \
        --dev flickr8k/dev.parquet --test cifar10/test.parquet --output align-tiny

An estimated 50 minutes on two cores of a server CPU with AVX-512 and nothing else to do: the shipped checkpoint came of
several interrupted runs of these stages, so this gives its recipe and not its bits. Expected on the data of align-tiny's
model card: R@10 of 16 to 17 % both ways, 44 % of the concepts, 57 % of the classes.

Sources are parquet files, as `datasets` writes them: a column `image` (encoded bytes, or a struct with `bytes`) and
either `captions` (a list of strings) or `label_name`. Interrupted, the same command goes on where it stopped.
"""

import argparse
import io
import json
import math
import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional as F
from transformers import BertTokenizerFast

from kakao_models import (
    AlignConfig,
    AlignImageProcessor,
    AlignModel,
    AlignProcessor,
    AlignTextConfig,
    AlignVisionConfig,
)

STORED = 112  # pixels at which training photographs are kept in memory
MAX_TOKENS = 24  # of training captions; 95 % are shorter
VOCABULARY = 3500
TEMPLATES = [
    "a photo of {}.", "this is a photo of {}.", "{}", "{} .", "a picture of {}", "a close up of {} .",
    "a blurry photo of {}.", "a photo of {} outside .", "there is {} .", "a small photo of {}.", "one of {} .",
]  # fmt: skip
EVALUATION_TEMPLATES = ["a photo of {}.", "this is a photo of {}.", "{}", "a picture of {}"]
# How captions name a class. The first two are also what its prompts say.
SYNONYMS = {
    "airplane": ["airplane", "plane", "jet", "aeroplane", "aircraft"],
    "automobile": ["automobile", "car"],
    "cat": ["cat", "kitten"],
    "dog": ["dog", "puppy"],
    "ship": ["ship", "boat", "sailboat"],
}


@dataclass(frozen=True)
class Augmentation:
    area: float  # smallest share of a photograph that a crop keeps
    stretch: float  # largest |log| of the change of its aspect ratio
    blur: float  # share of photographs made thumbnails, twice
    sharpen: float  # share of photographs sharpened
    grey: float  # share of photographs without colour
    saturation: float  # largest change of each
    contrast: float
    brightness: float
    mixup: float = 0.0  # share of batches in which each photograph is mixed with another


@dataclass(frozen=True)
class Stage:
    """A warm-up and (the beginning of) a cosine. It goes on from the averaged weights of the stage before."""

    steps: int
    horizon: int  # steps after which the cosine would reach zero
    size: int  # pixels
    lr: float
    weight_decay: float
    augmentation: Augmentation


STAGES = [
    Stage(1700, 2000, 56, 1.5e-3, 0.05, Augmentation(0.45, 0.25, 0.15, 0.25, 0.1, 0.5, 0.4, 0.3)),
    Stage(600, 2000, 64, 1.2e-3, 0.05, Augmentation(0.55, 0.2, 0.1, 0.2, 0.05, 0.3, 0.25, 0.15)),
    Stage(1100, 1100, 64, 1.2e-3, 0.3, Augmentation(0.35, 0.25, 0.1, 0.2, 0.1, 0.5, 0.3, 0.2, mixup=0.5)),
]


@dataclass
class Photos:
    images: torch.Tensor  # (N, STORED, STORED, 3) uint8
    captions: list[list[str]]  # empty for a photograph that has only a label
    mentions: torch.Tensor  # (N, classes) bool: its label or one of its captions names the class
    labels: torch.Tensor  # (N,) the class that its label, or most of its captions and they alone, name; else -1
    classes: list[str]

    @property
    def has_captions(self) -> torch.Tensor:
        return torch.tensor([bool(captions) for captions in self.captions])


def read_images(table) -> list[Image.Image]:
    values = (value["bytes"] if isinstance(value, dict) else value for value in table["image"].to_pylist())
    return [Image.open(io.BytesIO(value)).convert("RGB") for value in values]


def read_photos(captioned: list[str], labelled: list[str]) -> Photos:
    tables = [pq.read_table(path) for path in captioned + labelled]
    classes = sorted({name for table in tables[len(captioned) :] for name in table["label_name"].to_pylist()})
    patterns = [re.compile(rf"\b({'|'.join(SYNONYMS.get(c, [c]))})s?\b", re.IGNORECASE) for c in classes]
    images, captions, mentions, labels = [], [], [], []
    for table in tables:
        small = [im.resize((STORED, STORED), Image.Resampling.BILINEAR) for im in read_images(table)]
        images.append(torch.from_numpy(np.stack([np.asarray(image) for image in small])))
        if "captions" in table.column_names:
            rows = table["captions"].to_pylist()
            counts = torch.tensor([[sum(bool(p.search(text)) for text in row) for p in patterns] for row in rows])
            named = counts > 0
            sure = (counts.amax(1) >= 3) & (named.sum(1) == 1)
            labels.append(torch.where(sure, counts.argmax(1), -1))
        else:
            names = table["label_name"].to_pylist()
            rows = [[] for _ in names]
            labels.append(torch.tensor([classes.index(name) for name in names]))
            named = F.one_hot(labels[-1], len(classes)).bool()
        captions += rows
        mentions.append(named)
    return Photos(torch.cat(images), captions, torch.cat(mentions), torch.cat(labels), classes)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def class_prompt(name: str) -> str:
    return random.choice(TEMPLATES).format(with_article(random.choice(SYNONYMS.get(name, [name])[:2])))


def random_caption(captions: list[str]) -> str:
    """One of the captions; now and then a few words of it, as the labels of zero-shot classification are short."""
    text = random.choice(captions)
    words = text.split()
    if random.random() < 0.25 and len(words) > 4:
        length = random.randint(2, 6)
        start = random.randint(0, len(words) - length) if len(words) > length else 0
        text = " ".join(words[start : start + length])
        if random.random() < 0.5:
            text = random.choice(TEMPLATES).format(text)
    return text


def train_tokenizer(photos: Photos) -> BertTokenizerFast:
    """Lower-case WordPiece of the training texts in BERT's files; [PAD] is 0."""
    texts = [text for captions in photos.captions for text in captions]
    nouns = [with_article(noun) for name in photos.classes for noun in SYNONYMS.get(name, [name])]
    texts += [template.format(noun) for noun in nouns for template in TEMPLATES]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=special)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=True, model_max_length=64)


def tokenize(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    return tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")


def build_model(vocab_size: int, image_size: int) -> AlignModel:
    # EfficientNet's blocks in four stages of seven and at most 256 channels. B0 itself, at any width, learns far more
    # slowly: after 100 steps on CIFAR-10 alone its loss is 2.1, that of this tower 1.3.
    vision = AlignVisionConfig(
        image_size=image_size, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=256, drop_connect_rate=0.05,
        in_channels=[32, 32, 64, 128], out_channels=[32, 64, 128, 256], kernel_sizes=[3, 3, 5, 5],
        strides=[2, 2, 2, 1], expand_ratios=[1, 4, 4, 4], num_block_repeats=[1, 1, 2, 2], depthwise_padding=[],
        batch_norm_momentum=0.98, virtual_batch_size=None,
    )  # fmt: skip
    # BERT's usual range of 0.02 suits 768 units. At 256 it leaves [CLS] blind to the words, and training stands still.
    text = AlignTextConfig(
        vocab_size=vocab_size, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=64, initializer_range=0.06,
    )  # fmt: skip
    return AlignModel(
        AlignConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=256, temperature_init_value=0.07
        )
    )


def augment(images: torch.Tensor, size: int, how: Augmentation) -> torch.Tensor:
    """(B, STORED, STORED, 3) uint8 -> (B, 3, size, size) in [-1, 1]: crop, flip, colour and sharpness.

    Sharpness because the labelled photographs are enlarged thumbnails and those of a user are not: a model must not
    tell classes from captions by that.
    """
    n = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high)

    def around(middle: float, change: float) -> torch.Tensor:
        return uniform(middle - change, middle + change).view(-1, 1, 1, 1)

    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    area, stretch = uniform(how.area, 1.0), uniform(-how.stretch, how.stretch).exp()
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    crop = torch.zeros(n, 2, 3)
    crop[:, 0, 0] = width * torch.where(torch.rand(n) < 0.5, 1.0, -1.0)  # flipped or not
    crop[:, 1, 1] = height
    crop[:, 0, 2], crop[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    for thumbnail in (random.randint(22, 44), random.randint(22, 44)):
        chosen = torch.rand(n) < how.blur
        small = F.interpolate(x[chosen], size=thumbnail, mode="bilinear", antialias=True)
        x[chosen] = F.interpolate(small, size=STORED, mode="bilinear")
    x = F.grid_sample(x, F.affine_grid(crop, (n, 3, size, size), align_corners=False), align_corners=False)
    chosen = torch.rand(n) < how.sharpen
    detail = x[chosen] - F.avg_pool2d(x[chosen], 3, 1, 1, count_include_pad=False)
    x[chosen] += detail * around(1, 1)[chosen]
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    coloured = (torch.rand(n) >= how.grey).float().view(-1, 1, 1, 1)
    x = grey + (x - grey) * coloured * around(1, how.saturation)
    x = mean + (x - mean) * around(1, how.contrast) + around(0, how.brightness)
    return x.clamp(-1, 1)


def soft_cross_entropy(logits, positive, ignored, smoothing: float) -> torch.Tensor:
    """Cross entropy, mean over rows; `positive` columns share the target, `ignored` ones are left out."""
    considered = (~ignored).float()
    target = (1 - smoothing) * positive / positive.sum(1, keepdim=True)
    target = target + smoothing * considered / considered.sum(1, keepdim=True)
    return -(target * logits.masked_fill(ignored, -1e9).log_softmax(1)).sum(1).mean()


def batch_loss(logits, captioned, labelled, photos: Photos, smoothing: float, share, partner) -> torch.Tensor:
    """ALIGN's loss over captions and class prompts at once, of photographs of which `share` is their own and the rest
    that of photograph `partner` of the batch.

    Rows are captioned photographs, then labelled ones; columns the captions, then one prompt per class. A text that
    names the class of a photograph is its positive or is ignored, but never its negative.
    """
    n, labels = len(captioned), photos.labels[labelled]
    positive = torch.block_diag(torch.eye(n), F.one_hot(labels, len(photos.classes)).float())
    ignored = torch.zeros_like(positive, dtype=torch.bool)
    ignored[:n, n:] = photos.mentions[captioned]
    ignored[n:, :n] = photos.mentions[captioned][:, labels].T
    positive, ignored = share * positive + (1 - share) * positive[partner], ignored | ignored[partner]
    ignored &= positive == 0
    present = positive.sum(0) > 0
    image_to_text = soft_cross_entropy(logits, positive, ignored, smoothing)
    return image_to_text + soft_cross_entropy(logits.T[present], positive.T[present], ignored.T[present], smoothing)


def pretrain_text(model: AlignModel, tokenizer, captions: list[list[str]], steps: int, batch: int = 256) -> None:
    """Teaches the text tower alone that captions of one photograph belong together. Texts are cheap, and the image
    tower then learns from meaningful targets from its first step on."""
    parameters = [*model.text_model.parameters(), *model.text_projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    target = torch.arange(batch)
    model.train()
    for step in range(steps):
        pairs = [random.sample(row, 2) for row in random.sample(captions, batch)]
        tokens = tokenize(tokenizer, [random_caption([pair[side]]) for side in (0, 1) for pair in pairs])
        one, other = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1).chunk(2)
        logits = one @ other.T / 0.05
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"texts, step {step}: loss {loss.item():.2f}", flush=True)


class Batches:
    """Endless indices into `photos`: captioned ones in shuffled rounds, labelled ones of all classes in turn."""

    def __init__(self, photos: Photos, captioned: int, labelled: int):
        self.sizes, self.queue = (captioned, labelled), torch.empty(0, dtype=torch.long)
        has_captions = photos.has_captions
        self.captioned = has_captions.nonzero()[:, 0]
        of_class = [photos.labels == k for k in range(len(photos.classes))]
        self.pools = [((c & ~has_captions).nonzero()[:, 0], (c & has_captions).nonzero()[:, 0]) for c in of_class]

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        captioned, labelled = self.sizes
        if len(self.queue) < captioned:
            self.queue = self.captioned[torch.randperm(len(self.captioned))]
        rows, self.queue = self.queue[:captioned], self.queue[captioned:]
        chosen = []
        for i in range(labelled):
            thumbnails, photographs = self.pools[i % len(self.pools)]
            pool = photographs if len(photographs) >= 20 and random.random() < 0.25 else thumbnails
            chosen.append(pool[random.randrange(len(pool))])
        return rows, torch.stack(chosen)


@torch.no_grad()
def update_average(average: AlignModel, model: AlignModel, step: int, decay: float = 0.995) -> None:
    """Exponential moving average of weights and batch-norm statistics: this is the model that is kept."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    new = model.state_dict()
    for key, value in average.state_dict().items():
        value.lerp_(new[key], weight) if value.is_floating_point() else value.copy_(new[key])


def train_stage(number: int, model: AlignModel, average: AlignModel, tokenizer, photos: Photos, args) -> None:
    """Trains `model`, keeping its moving average in `average`; goes on where an interrupted run saved its state."""
    stage = STAGES[number]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": stage.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / stage.horizon))
    )
    batches = Batches(photos, args.captioned_batch, args.labelled_batch)
    parts = dict(model=model, average=average, optimizer=optimizer, schedule=schedule)
    first, state_file = 0, args.work / f"stage{number}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first, batches.queue = state["step"], state["queue"]
        torch.set_rng_state(state["torch"])
        random.setstate(state["random"])
    elif number == 0:
        pretrain_text(model, tokenizer, [row for row in photos.captions if len(row) > 1], args.text_steps)
        average.load_state_dict(model.state_dict())
    else:
        model.load_state_dict(average.state_dict())
    start = time.time()
    model.train().to(memory_format=torch.channels_last)
    for step in range(first, stage.steps):
        captioned, labelled = batches.next()
        images = augment(photos.images[torch.cat([captioned, labelled])], stage.size, stage.augmentation)
        share, partner = 1.0, torch.arange(len(images))
        if random.random() < stage.augmentation.mixup:
            share, partner = random.uniform(0.5, 1), torch.randperm(len(images))
            images = share * images + (1 - share) * images[partner]
        texts = [random_caption(photos.captions[i]) for i in captioned.tolist()]
        texts += [class_prompt(name) for name in photos.classes]
        images = images.contiguous(memory_format=torch.channels_last)
        logits = model(pixel_values=images, **tokenize(tokenizer, texts)).logits_per_image
        loss = batch_loss(logits, captioned, labelled, photos, model.config.label_smoothing, share, partner)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        model.temperature.data.clamp_(0.03, 0.07)
        update_average(average, model, step)
        if (step + 1) % 50 == 0 or step + 1 == stage.steps:
            minutes = (time.time() - start) / 60
            print(
                f"stage {number}, step {step + 1}/{stage.steps}: loss {loss.item():.2f}, {minutes:.1f} min", flush=True
            )
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= dict(step=step + 1, queue=batches.queue, torch=torch.get_rng_state(), random=random.getstate())
            torch.save(state, state_file.with_suffix(".unfinished"))
            os.replace(state_file.with_suffix(".unfinished"), state_file)


@torch.no_grad()
def embed(model: AlignModel, processor, images: list | None = None, texts: list[str] | None = None) -> torch.Tensor:
    inputs, rows = images or texts, []
    for i in range(0, len(inputs), 250):
        part = processor(**{"images" if images else "text": inputs[i : i + 250]}, return_tensors="pt")
        output = model.get_image_features(**part) if images else model.get_text_features(**part)
        rows.append(F.normalize(output.pooler_output, dim=-1))
    return torch.cat(rows)


def retrieval(images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10. image_to_text: an image ranks all texts, and the best of its own counts; text_to_image: a
    text ranks all images. `owner` (texts,) is the image of each text."""
    scores = images @ texts.T  # (images, texts)
    own = owner == torch.arange(len(images))[:, None]
    best = scores.masked_fill(~own, -2).amax(1, keepdim=True)
    ranks = {
        "image_to_text": (scores > best).sum(1),
        "text_to_image": (scores.T > scores.T.gather(1, owner[:, None])).sum(1),
    }
    return {f"{way}_r{k}": float((rank < k).float().mean()) for way, rank in ranks.items() for k in (1, 5, 10)}


def classification(
    model: AlignModel, processor, images: list[Image.Image], names: list[str], truth: list[str]
) -> float:
    """Zero-shot accuracy, mean over classes; a class is the mean of its prompts' embeddings."""
    prompts = [template.format(name) for name in names for template in EVALUATION_TEMPLATES]
    texts = embed(model, processor, texts=prompts).view(len(names), len(EVALUATION_TEMPLATES), -1).mean(1)
    guess = (embed(model, processor, images) @ F.normalize(texts, dim=-1).T).argmax(1)
    target = torch.tensor([names.index(name) for name in truth])
    return float(torch.stack([(guess[target == k] == k).float().mean() for k in target.unique()]).mean())


def evaluate(model: AlignModel, processor, dev: str, test: str) -> dict[str, float]:
    """In percent: retrieval and concepts of captioned photographs, classes of labelled ones, none of them trained on."""
    model.eval()
    table = pq.read_table(dev)
    images, captions, concepts = read_images(table), table["captions"].to_pylist(), table["concept"].to_pylist()
    texts = embed(model, processor, texts=[text for row in captions for text in row])
    owner = torch.tensor([i for i, row in enumerate(captions) for _ in row])
    metrics = retrieval(embed(model, processor, images), texts, owner)
    shown = [i for i, concept in enumerate(concepts) if concept]
    names = sorted({concepts[i] for i in shown})
    images, truth = [images[i] for i in shown], [concepts[i] for i in shown]
    metrics["concepts"] = classification(model, processor, images, names, truth)
    table = pq.read_table(test)
    labels = [with_article(name) for name in table["label_name"].to_pylist()]
    metrics["classes"] = classification(model, processor, read_images(table), sorted(set(labels)), labels)
    return {key: round(100 * value, 1) for key, value in metrics.items()}


def save(model: AlignModel, processor, folder: Path) -> None:
    """A checkpoint folder with matrices in float16: half the size, and float32 again when loaded."""
    model.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {key: value.half() if value.ndim > 1 else value for key, value in load_file(file).items()}
    save_file(tensors, file.with_suffix(".unfinished"), metadata={"format": "pt"})
    os.replace(file.with_suffix(".unfinished"), file)
    file.chmod(0o644)


def fill_card(card: Path, metrics: dict[str, float]) -> None:
    """Writes the numbers into `<!-- name -->number<!-- / -->`, and all of them to a .json file beside the card."""
    text = card.read_text()
    for name, value in metrics.items():
        text = re.sub(rf"(<!-- {name} -->).*?(<!-- / -->)", rf"\g<1>{value}\g<2>", text)
    card.write_text(text)
    card.with_suffix(".json").write_text(json.dumps(metrics, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioned", nargs="+", required=True, help="parquet files with captions")
    parser.add_argument("--labelled", nargs="+", required=True, help="parquet files with label_name")
    parser.add_argument("--dev", required=True, help="captioned photographs to evaluate on, with a column `concept`")
    parser.add_argument("--test", required=True, help="labelled photographs to evaluate on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--card", type=Path, help="model card whose numbers are filled in; becomes README.md")
    parser.add_argument("--work", type=Path, default=Path("align-tiny-run"), help="folder of the resumable state")
    parser.add_argument("--text-steps", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=64, help="pixels of the finished model")
    parser.add_argument("--captioned-batch", type=int, default=160)
    parser.add_argument("--labelled-batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    random.seed(args.seed)
    torch.manual_seed(args.seed)

    photos = read_photos(args.captioned, args.labelled)
    tokenizer = train_tokenizer(photos)
    image_processor = AlignImageProcessor(size=args.image_size, do_center_crop=False, crop_size=args.image_size)
    processor = AlignProcessor(image_processor, tokenizer)
    model, average = (build_model(len(tokenizer), args.image_size) for _ in range(2))
    average.eval()
    for number in range(len(STAGES)):
        train_stage(number, model, average, tokenizer, photos, args)
    save(average, processor, args.output)
    # what is measured is what is shipped
    model, processor = AlignModel.from_pretrained(args.output), AlignProcessor.from_pretrained(args.output)
    metrics = evaluate(model, processor, args.dev, args.test)
    print(json.dumps(metrics, indent=2))
    if args.card:
        fill_card(args.card, metrics)
        (args.output / "README.md").write_text(args.card.read_text())


if __name__ == "__main__":
    main()
