"""Pretrains a small ALIGN from scratch on captioned and labelled photographs.

    OMP_NUM_THREADS=1 python examples/train_align_tiny.py --captioned flickr8k/train.parquet \
        --labelled cifar10/train.parquet --output align-tiny

Settings are in align_tiny.yaml, a recipe of `kakao-models train align`; here is what it has beside: texts that belong to
several photographs (`Targets`), and a text tower that starts as a bag of words. Interrupted, the same command goes on where
it stopped. `evaluate_align_tiny.py` measures the result.

70 minutes of one core of a server CPU with AVX-512 BF16 (2.7 for the texts, 39 at 48 pixels, 28 at 64) and 4 GB of memory. Expected
on the data of align-tiny's model card: R@10 of 22 and 23 %, 44 % of the concepts, 60 % of the classes.

Sources are parquet files with a column `image` and either `captions` (a list of strings) or `label` and `label_name`.
"""

import argparse
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
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
    AlignTrainer,
    AlignVisionConfig,
)
from kakao_models.train.recipe import read_recipe
from kakao_models.train.run import build_trainer, run
from kakao_models.train.targets import soft_cross_entropy, targeted_contrastive_loss
from kakao_models.train.transform import SampleTransform

SIZE = 64  # pixels of the finished model
VOCABULARY = 3500
MIN_PHOTOS = 30  # with a word, before the word alone is a training text
WORDS = 128  # of them in a step
LIKENESS = 0.3  # share of the target that captions of similarly described photographs get
WORD_LOSS = 0.5
TEXT_LOSS = 0.3
TEXT_TEMPERATURE = 0.05  # where texts alone are learned
MIXUP = 0.3  # share of steps in which each photograph is mixed with another
TEMPLATES = [
    "a photo of {}.", "this is a photo of {}.", "{}", "{} .", "a picture of {}", "a close up of {} .",
    "a blurry photo of {}.", "a photo of {} outside .", "there is {} .", "a small photo of {}.", "one of {} .",
]  # fmt: skip
# How captions name a class. The first two are also what its prompts say.
SYNONYMS = {
    "airplane": ["airplane", "plane", "jet", "aeroplane", "aircraft"],
    "automobile": ["automobile", "car"],
    "cat": ["cat", "kitten"],
    "dog": ["dog", "puppy"],
    "ship": ["ship", "boat", "sailboat"],
}
# What differs from align_tiny.yaml in the stages, each of which starts from the one before. Texts alone first: they are
# cheap, and the image tower then learns from meaningful targets from its first step on.
STAGES = {
    "texts": [
        "steps=150", "lr=1e-3", "weight_decay=0.05", "warmup=15", "schedule=cosine", "ema=null",
        "freeze=[vision_model]", "augment.size=16", "seed=0",
    ],
    "small": ["steps=1800", "schedule={0: 0, 100: 1, 900: 0.88, 1800: 0.58}", "augment.size=48", "seed=1"],
    "full": ["seed=2"],
}  # fmt: skip
# How often the captioned photographs are read while the labelled ones are read once: about 165 and 140 of a batch of 256.
CAPTIONED = {"small": 3, "full": 2}


@dataclass
class Texts:
    """Statistics of the captions of all training photographs."""

    row: dict[tuple[str, ...], int]  # of a photograph, by its captions
    classes: list[str]  # by label
    words: list[str]  # the W words that at least MIN_PHOTOS photographs' captions have
    word_weights: torch.Tensor  # (N, W) the rarer a word of a photograph's captions, the larger; 0 of other words
    likeness: torch.Tensor  # (N, V) the words of a photograph's captions, so that products are cosine similarities
    mentions: torch.Tensor  # (N, classes) bool: one of its captions names the class
    sure: torch.Tensor  # (N, classes) bool: most of its captions name the class, and none another


def read_texts(captioned: list[str], labelled: list[str]) -> Texts:
    captions = [tuple(row) for path in captioned for row in pq.read_table(path, columns=["captions"])[0].to_pylist()]
    tables = [pq.read_table(path, columns=["label", "label_name"]).to_pylist() for path in labelled]
    names = {row["label"]: row["label_name"] for table in tables for row in table}
    classes = [names[label] for label in range(len(names))]
    patterns = [re.compile(rf"\b({'|'.join(SYNONYMS.get(c, [c]))})s?\b", re.IGNORECASE) for c in classes]
    named = torch.tensor([[sum(bool(p.search(text)) for text in row) for p in patterns] for row in captions])
    mentions = named > 0
    sure = (named >= 3) & (mentions.sum(1, keepdim=True) == 1)
    counts, vocabulary = count_words(captions)  # (N, V)
    photographs = (counts > 0).sum(0)
    rarity = (len(captions) / photographs).log()
    common = (photographs >= MIN_PHOTOS).nonzero()[:, 0].tolist()
    return Texts(
        row={row: number for number, row in enumerate(captions)},
        classes=classes,
        words=[vocabulary[i] for i in common],
        word_weights=(counts[:, common] > 0) * rarity[common],
        likeness=F.normalize((1 + counts).log() * rarity, dim=1),
        mentions=mentions,
        sure=sure,
    )


def count_words(captions: list[tuple[str, ...]]) -> tuple[torch.Tensor, list[str]]:
    """Counts each word of at least three letters in a photograph's captions: (N, V), and the V words."""
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


def class_prompt(name: str, random: np.random.Generator) -> str:
    return random.choice(TEMPLATES).format(with_article(random.choice(SYNONYMS.get(name, [name])[:2])))


def word_prompt(word: str, random: np.random.Generator) -> str:
    return word if random.random() < 0.4 else random.choice(TEMPLATES).format(with_article(word))


def part_of(text: str, random: np.random.Generator) -> str:
    """Now and then a few words of a caption, as the labels of zero-shot classification are short."""
    words = text.split()
    if random.random() < 0.25 and len(words) > 4:
        length = min(int(random.integers(2, 7)), len(words))
        start = int(random.integers(len(words) - length + 1))
        text = " ".join(words[start : start + length])
        if random.random() < 0.5:
            text = random.choice(TEMPLATES).format(text)
    return text


@dataclass
class Targets(SampleTransform):
    """Batches in which a photograph has two captions or a class, and texts belong to several photographs.

    Photographs (rows): n captioned ones, then labelled ones, mixed with each other in some steps. Texts (columns): the n
    first captions, the n second ones, one prompt per class; then, apart, words. A text that names the class of a photograph
    is its target or is ignored, but never its negative. Captions of photographs that are described alike share some of the
    target.
    """

    texts: Texts = field(kw_only=True)

    def target(self, sample, random):
        seed = int(random.integers(2**62))
        if not sample.captions:
            return None, sample.labels[0], seed
        pair = [part_of(str(text), random) for text in random.permutation(sample.captions)[:2]]
        return self.texts.row[sample.captions], pair, seed

    def collate(self, items: list[dict]) -> dict:
        texts, random = self.texts, np.random.default_rng([item["target"][2] for item in items])
        captioned = [item for item in items if item["target"][0] is not None]
        items = captioned + [item for item in items if item["target"][0] is None]
        n, rows = len(captioned), torch.tensor([item["target"][0] for item in captioned])
        labels = torch.tensor([item["target"][1] for item in items[n:]], dtype=torch.long)
        of_class = F.one_hot(labels, len(texts.classes)).float()

        same = (rows == rows[:, None]).float()  # the same photograph may be there twice
        alike = (texts.likeness[rows] @ texts.likeness[rows].T / 0.15).softmax(1)
        alike = (1 - LIKENESS) * same / same.sum(1, keepdim=True) + LIKENESS * alike  # (n, n)
        targets = torch.block_diag(torch.cat([alike, alike], 1) / 2, of_class)
        targets[:n, 2 * n :] = 0.25 * texts.sure[rows]
        ignored = torch.zeros_like(targets, dtype=torch.bool)
        ignored[:n, 2 * n :] = texts.mentions[rows]
        ignored[n:, :n] = ignored[n:, n : 2 * n] = texts.mentions[rows][:, labels].T
        chosen = torch.from_numpy(random.choice(len(texts.words), WORDS, replace=False))
        weights = torch.cat([texts.word_weights[rows], torch.zeros(len(labels), len(texts.words))])[:, chosen]
        pixels = torch.stack([item["pixel_values"] for item in items])
        if random.random() < MIXUP:
            share, partner = random.uniform(0.5, 1), torch.from_numpy(random.permutation(len(items)))
            pixels, targets, weights = (torch.lerp(x[partner], x, share) for x in (pixels, targets, weights))
            ignored = ignored | ignored[partner]

        captions = [item["target"][1][side] for side in (0, 1) for item in captioned]
        prompts = [class_prompt(name, random) for name in texts.classes]
        prompts += [word_prompt(texts.words[i], random) for i in chosen.tolist()]
        # in two calls, since prompts are much shorter than captions
        captions, prompts = self._tokens(captions), self._tokens(prompts)
        return {
            "pixel_values": pixels,
            **captions,
            **{f"prompt_{name}": x for name, x in prompts.items()},
            "targets": targets,  # (n + labelled, 2n + classes)
            "ignored": ignored,
            "word_targets": weights,  # (n + labelled, WORDS)
            "alike": alike,
            "keys": [item["key"] for item in items],
            "failures": [failure for item in items for failure in item.get("failures", ())],
        }

    def _tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


class TextTrainer(AlignTrainer):
    """Captions of one photograph belong together; photographs are not looked at."""

    def contrastive_loss(self, image_embeds, text_embeds, temperature, batch):
        n = len(batch["alike"])
        temperature, targets = text_embeds.new_tensor(TEXT_TEMPERATURE), torch.eye(n, device=text_embeds.device)
        return targeted_contrastive_loss(text_embeds[:n], text_embeds[n:], temperature, targets, None, 0.0)


class TinyTrainer(AlignTrainer):
    """ALIGN's loss over captions and class prompts, and beside it words of photographs and captions of captions."""

    def contrastive_loss(self, image_embeds, text_embeds, temperature, batch):
        model, n = self.accelerator.unwrap_model(self.model), len(batch["alike"])
        prompts = {name: batch[f"prompt_{name}"] for name in ("input_ids", "attention_mask")}
        with self.accelerator.autocast():
            prompts = F.normalize(model.get_text_features(**prompts).pooler_output.float(), dim=-1)
        classes, words = prompts[:-WORDS], prompts[-WORDS:]
        texts = torch.cat([text_embeds, classes])
        smoothing = model.config.label_smoothing
        loss = targeted_contrastive_loss(
            image_embeds, texts, temperature, batch["targets"], batch["ignored"], smoothing
        )
        loss = loss + WORD_LOSS * soft_cross_entropy(image_embeds @ words.T / temperature, batch["word_targets"])
        first, second = text_embeds[:n], text_embeds[n:]
        return loss + TEXT_LOSS * targeted_contrastive_loss(first, second, temperature, batch["alike"], None, 0.0)


def train_tokenizer(texts: Texts) -> BertTokenizerFast:
    """Lower-case WordPiece of the training texts in BERT's files; [PAD] is 0."""
    sentences = [text for captions in texts.row for text in captions]
    nouns = [with_article(noun) for name in texts.classes for noun in SYNONYMS.get(name, [name])]
    sentences += [template.format(noun) for noun in nouns for template in TEMPLATES]
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(sentences, vocab_size=VOCABULARY, min_frequency=2, special_tokens=special)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=True, model_max_length=64)


def build_model(vocab_size: int) -> AlignModel:
    # EfficientNet's blocks in four stages of seven and at most 256 channels. B0 itself, at any width, learns far more
    # slowly: after 100 steps on CIFAR-10 alone its loss is 2.1, that of this tower 1.3.
    vision = AlignVisionConfig(
        image_size=SIZE, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=256, drop_connect_rate=0.05,
        in_channels=[32, 32, 64, 128], out_channels=[32, 64, 128, 256], kernel_sizes=[3, 3, 5, 5],
        strides=[2, 2, 2, 1], expand_ratios=[1, 4, 4, 4], num_block_repeats=[1, 1, 2, 2], depthwise_padding=[],
        batch_norm_momentum=0.98, virtual_batch_size=None,
    )  # fmt: skip
    # BERT's usual range of 0.02 suits 768 units. At 256 it leaves [CLS] blind to the words, and training stands still.
    text = AlignTextConfig(
        vocab_size=vocab_size, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=768,
        max_position_embeddings=64, initializer_range=0.02,
    )  # fmt: skip
    return AlignModel(
        AlignConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=256, temperature_init_value=0.07
        )
    )


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


def write_start(folder: Path, texts: Texts) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts)
    model = build_model(len(tokenizer))
    start_as_bag_of_words(model)
    model.save_pretrained(folder)
    AlignProcessor(AlignImageProcessor(size=SIZE, do_center_crop=False, crop_size=SIZE), tokenizer).save_pretrained(
        folder
    )


def halve(folder: Path) -> None:
    """Matrices in float16: half the size, and float32 again when loaded."""
    file = folder / "model.safetensors"
    tensors = {key: value.half() if value.ndim > 1 else value for key, value in load_file(file).items()}
    save_file(tensors, file.with_suffix(".unfinished"), metadata={"format": "pt"})
    os.replace(file.with_suffix(".unfinished"), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioned", nargs="+", required=True, help="parquet files with captions")
    parser.add_argument("--labelled", nargs="+", required=True, help="parquet files with label and label_name")
    parser.add_argument("--dev", help="captioned photographs to look at while it trains")
    parser.add_argument("--output", type=Path, required=True, help="folder of the stages; the model is in its `full`")
    parser.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="settings of all stages that replace the recipe's"
    )
    args = parser.parse_args()

    texts = read_texts(args.captioned, args.labelled)
    start = args.output / "start"
    if not (start / "model.safetensors").exists():
        write_start(start, texts)
    for stage, changes in STAGES.items():
        output = args.output / stage
        if not (output / "README.md").exists():  # the last file of a run
            data = args.captioned if stage == "texts" else args.captioned * CAPTIONED[stage] + args.labelled
            recipe = Path(__file__).with_name("align_tiny.yaml")
            places = [f"data={data}", f"start={start}", f"output={output}"]
            if args.dev and stage != "texts":
                places.append(f"evaluate.retrieval={args.dev}")
            trainer = TextTrainer if stage == "texts" else TinyTrainer
            build = partial(build_trainer, trainer_class=trainer, transform_class=partial(Targets, texts=texts))
            run(read_recipe("align", str(recipe), [*changes, *places, *args.changes]), build=build)
        start = output
    halve(start)


if __name__ == "__main__":
    main()
