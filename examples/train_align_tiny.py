"""Pretrains a small ALIGN from scratch on captioned and labelled photographs: how `align-tiny` was made.

    python examples/train_align_tiny.py --captioned flickr8k/train.parquet --labelled cifar10/train.parquet \
        --dev flickr8k/dev.parquet --test cifar10/test.parquet --output align-tiny

77 minutes on one core of a server CPU with AVX-512 (`OMP_NUM_THREADS=1`), 3 GB of memory. Expected on the data of
align-tiny's model card: R@10 of 21 % both ways, 48 % of the concepts, 57 % of the classes.

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
from collections import Counter
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
MIN_PHOTOS = 30  # with a word, before the word alone is a training text
WORDS = 128  # of them in a step
LIKENESS = 0.3  # share of the target that captions of similarly described photographs get
WORD_LOSS = 0.5
TEXT_LOSS = 0.3
MIXUP = 0.3  # share of steps in which each photograph is mixed with another
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


@dataclass
class Photos:
    images: torch.Tensor  # (N, STORED, STORED, 3) uint8
    captions: list[list[str]]  # empty for a photograph that has only a label
    words: list[str]  # the W words that at least MIN_PHOTOS photographs' captions have
    word_weights: torch.Tensor  # (N, W) the rarer a word of a photograph's captions, the larger; 0 of other words
    likeness: torch.Tensor  # (N, V) the words of a photograph's captions, so that products are cosine similarities
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
    counts, vocabulary = count_words(captions)  # (N, V)
    photographs = (counts > 0).sum(0)
    rarity = (sum(map(bool, captions)) / photographs).log()
    likeness = F.normalize((1 + counts).log() * rarity, dim=1)
    common = (photographs >= MIN_PHOTOS).nonzero()[:, 0].tolist()
    word_weights = (counts[:, common] > 0) * rarity[common]
    words = [vocabulary[i] for i in common]
    return Photos(
        torch.cat(images), captions, words, word_weights, likeness, torch.cat(mentions), torch.cat(labels), classes
    )


def count_words(captions: list[list[str]]) -> tuple[torch.Tensor, list[str]]:
    """How often each word of at least three letters stands in a photograph's captions: (N, V), and the V words."""
    found = [Counter(word for text in row for word in re.findall("[a-z]{3,}", text.lower())) for row in captions]
    spread = Counter(word for row in found for word in row)
    vocabulary = sorted(word for word, photographs in spread.items() if photographs >= 3)
    column = {word: i for i, word in enumerate(vocabulary)}
    counts = torch.zeros(len(captions), len(vocabulary))
    for i, row in enumerate(found):
        for word in row.keys() & column.keys():
            counts[i, column[word]] = row[word]
    return counts, vocabulary


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def class_prompt(name: str) -> str:
    return random.choice(TEMPLATES).format(with_article(random.choice(SYNONYMS.get(name, [name])[:2])))


def word_prompt(word: str) -> str:
    return word if random.random() < 0.4 else random.choice(TEMPLATES).format(with_article(word))


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
        vocab_size=vocab_size, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=768,
        max_position_embeddings=64, initializer_range=0.02,
    )  # fmt: skip
    model = AlignModel(
        AlignConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=256, temperature_init_value=0.07
        )
    )
    start_as_bag_of_words(model)
    return model


@torch.no_grad()
def start_as_bag_of_words(model: AlignModel) -> None:
    """Makes [CLS] begin as the mean of the words: each head attends to all of them alike and copies what it sees.

    A text tower that starts at random remembers 30,000 captions before it understands them.
    """
    embeddings = model.text_model.embeddings
    embeddings.position_embeddings.weight.mul_(0.1)
    for layer in model.text_model.encoder.layer:
        value, output = layer.attention.self.value, layer.attention.output.dense
        torch.nn.init.orthogonal_(value.weight, gain=1.5)
        output.weight.copy_(value.weight.T)  # together 2.25 times the identity


def augment(images: torch.Tensor, size: int) -> torch.Tensor:
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
    area, stretch = uniform(0.4, 1.0), uniform(-0.25, 0.25).exp()
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    crop = torch.zeros(n, 2, 3)
    crop[:, 0, 0] = width * torch.where(torch.rand(n) < 0.5, 1.0, -1.0)  # flipped or not
    crop[:, 1, 1] = height
    crop[:, 0, 2], crop[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    for thumbnail in (random.randint(22, 44), random.randint(22, 44)):
        chosen = torch.rand(n) < 0.12
        small = F.interpolate(x[chosen], size=thumbnail, mode="bilinear", antialias=True)
        x[chosen] = F.interpolate(small, size=STORED, mode="bilinear")
    x = F.grid_sample(x, F.affine_grid(crop, (n, 3, size, size), align_corners=False), align_corners=False)
    chosen = torch.rand(n) < 0.2
    detail = x[chosen] - F.avg_pool2d(x[chosen], 3, 1, 1, count_include_pad=False)
    x[chosen] += detail * around(1, 1)[chosen]
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    coloured = (torch.rand(n) >= 0.1).float().view(-1, 1, 1, 1)
    x = grey + (x - grey) * coloured * around(1, 0.45)
    x = mean + (x - mean) * around(1, 0.35) + around(0, 0.25)
    return x.clamp(-1, 1)


def cross_entropy(logits, target, ignored=None) -> torch.Tensor:
    """Cross entropy with a distribution per row, mean over the rows that have one; `ignored` columns are left out."""
    if ignored is not None:
        logits = logits.masked_fill(ignored, -1e4)
    rows = target.sum(1)
    return -(target * logits.log_softmax(1)).sum() / rows.sum().clamp_min(1)


def smooth(target, ignored, smoothing: float) -> torch.Tensor:
    considered = (~ignored).float()
    rows = target.sum(1, keepdim=True)
    return (1 - smoothing) * target + smoothing * rows * considered / considered.sum(1, keepdim=True)


def batch_loss(image_embeds, text_embeds, temperature, captioned, labelled, photos: Photos, words, share, partner):
    """ALIGN's loss over two captions per photograph, prompts of all classes, and some words.

    Photographs (rows): n captioned ones, then labelled ones, each `share` itself and the rest photograph `partner`.
    Texts (columns): the n first captions, the n second ones, one prompt per class, one per word of `words`. A text
    that names the class of a photograph is its positive or is ignored, but never its negative. Captions of
    photographs that are described alike share some of the target (LIKENESS).
    """
    n, labels = len(captioned), photos.labels[labelled]
    captions, prompts = text_embeds[: -len(words)], text_embeds[-len(words) :]
    of_class = F.one_hot(labels, len(photos.classes)).float()
    alike = photos.likeness[captioned] @ photos.likeness[captioned].T
    alike = (1 - LIKENESS) * torch.eye(n) + LIKENESS * (alike / 0.15).softmax(1)
    positive = torch.block_diag(torch.cat([alike, alike], 1) / 2, of_class)
    ignored = torch.zeros_like(positive, dtype=torch.bool)
    ignored[:n, 2 * n :] = photos.mentions[captioned]
    ignored[n:, :n] = ignored[n:, n : 2 * n] = photos.mentions[captioned][:, labels].T
    to_image = torch.block_diag(torch.cat([alike, alike], 1), of_class / of_class.sum(0).clamp_min(1)).T
    positive = share * positive + (1 - share) * positive[partner]
    to_image = share * to_image + (1 - share) * to_image[:, partner]
    ignored = (ignored | ignored[partner]) & (positive == 0)
    logits = image_embeds @ captions.T / temperature
    loss = cross_entropy(logits, smooth(positive, ignored, 0.05), ignored)
    loss = loss + cross_entropy(logits.T, smooth(to_image, ignored.T, 0.05), ignored.T)
    weights = photos.word_weights[torch.cat([captioned, labelled])][:, words]
    weights = share * weights + (1 - share) * weights[partner]
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-6)
    loss = loss + WORD_LOSS * cross_entropy(image_embeds @ prompts.T / temperature, weights)
    between = captions[:n] @ captions[n : 2 * n].T / temperature
    return loss + TEXT_LOSS * (cross_entropy(between, alike) + cross_entropy(between.T, alike))


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


def text_embeddings(model: AlignModel, tokenizer, texts: list[str]) -> torch.Tensor:
    return F.normalize(model.get_text_features(**tokenize(tokenizer, texts)).pooler_output, dim=-1)


def step_loss(model: AlignModel, tokenizer, photos: Photos, batches: Batches, size: int) -> torch.Tensor:
    captioned, labelled = batches.next()
    images = augment(photos.images[torch.cat([captioned, labelled])], size)
    share, partner = 1.0, torch.arange(len(images))
    if random.random() < MIXUP:
        share, partner = random.uniform(0.5, 1), torch.randperm(len(images))
        images = share * images + (1 - share) * images[partner]
    pairs = [random.sample(photos.captions[i], 2) for i in captioned.tolist()]
    texts = [random_caption([pair[side]]) for side in (0, 1) for pair in pairs]
    words = torch.randperm(len(photos.words))[:WORDS]
    prompts = [class_prompt(name) for name in photos.classes]
    prompts += [word_prompt(photos.words[i]) for i in words.tolist()]
    images = images.contiguous(memory_format=torch.channels_last)
    image_embeds = F.normalize(model.get_image_features(images).pooler_output, dim=-1)
    # in two calls, since prompts are much shorter than captions
    text_embeds = torch.cat([text_embeddings(model, tokenizer, part) for part in (texts, prompts)])
    return batch_loss(image_embeds, text_embeds, model.temperature, captioned, labelled, photos, words, share, partner)


def rate(step: int, steps: int) -> float:
    """Warm-up, the beginning of a cosine, and its descent to zero over the last third: from there on captions of the
    training photographs are learned by heart.
    """
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / (steps * 40 / 27))
    return min((step + 1) / 100, cosine, 0.58 * (steps - step) / (steps / 3))


def train(model: AlignModel, average: AlignModel, tokenizer, photos: Photos, args) -> None:
    """Trains `model`, keeping its moving average in `average`; goes on where an interrupted run saved its state."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, args.steps))
    batches = Batches(photos, args.captioned_batch, args.labelled_batch)
    parts = dict(model=model, average=average, optimizer=optimizer, schedule=schedule)
    first, state_file = 0, args.work / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first, batches.queue = state["step"], state["queue"]
        torch.set_rng_state(state["torch"])
        random.setstate(state["random"])
    else:
        pretrain_text(model, tokenizer, [row for row in photos.captions if len(row) > 1], args.text_steps)
        average.load_state_dict(model.state_dict())
    start = time.time()
    model.train().to(memory_format=torch.channels_last)
    for step in range(first, args.steps):
        size = args.image_size if step >= args.small_steps else args.image_size * 3 // 4
        loss = step_loss(model, tokenizer, photos, batches, size)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        model.temperature.data.clamp_(0.03, 0.07)
        update_average(average, model, step)
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            minutes = (time.time() - start) / 60
            print(f"step {step + 1}/{args.steps}: loss {loss.item():.2f}, {minutes:.1f} min", flush=True)
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
    processor.tokenizer.backend_tokenizer.no_truncation()  # what training asked for is no property of the tokenizer
    processor.tokenizer.backend_tokenizer.no_padding()
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
    parser.add_argument("--text-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--small-steps", type=int, default=1800, help="of them at 3/4 of the image size")
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
    train(model, average, tokenizer, photos, args)
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
