"""Shared by the benchmarks: a machine's name, checkpoints with random weights, timing, tables."""

import argparse
import os
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import BertTokenizer

import kakao_models
from kakao_models import (
    AlignConfig,
    AlignImageProcessor,
    AlignModel,
    AlignProcessor,
    AlignTextConfig,
    AlignVisionConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

# transformers' AlignModel has no image projection, so the smaller size gets the width of its image tower.
SIZES = {
    "small": lambda: AlignConfig(
        vision_config=AlignVisionConfig.efficientnet("b0").to_dict(),
        text_config=AlignTextConfig.bert("mini").to_dict(),
        projection_dim=320,
        temperature_init_value=0.05,
    ),
    "base": lambda: AlignConfig.base(temperature_init_value=0.05),
}


def arguments(description: str, **options) -> argparse.Namespace:
    """Options of a benchmark: each given name with its default, and the size of the model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base", help="small: B0 and BERT-mini; base: B7 and BERT-base")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def machine() -> str:
    """CPU, cores and versions, for the line above a table."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load before {load:.1f}; {versions}, "
        f"kakao-models {kakao_models.__version__}"
    )


def words(count: int = 30_000) -> list[str]:
    """Made-up words, each one token of the checkpoint's vocabulary."""
    syllables = [first + vowel for first in "bdfgklmnprstv" for vowel in "aeiou"]
    return [a + b + c for a in syllables for b in syllables for c in syllables][:count]


def sentences(count: int, shortest: int, longest: int, seed: int = 0, vocabulary: list[str] | None = None) -> list[str]:
    """Different texts of `shortest` to `longest` words, by default of `words`."""
    draw = random.Random(seed)
    vocabulary = vocabulary or words()
    return [" ".join(draw.choices(vocabulary, k=draw.randint(shortest, longest))) for _ in range(count)]


def checkpoint(size: str) -> str:
    """A complete ALIGN folder with random weights, written once into the folder for temporary files."""
    folder = Path(tempfile.gettempdir(), f"kakao-models-benchmark-{size}-{kakao_models.__version__}")
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        AlignModel(SIZES[size]()).save_pretrained(folder)
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words()]
        tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
        AlignProcessor(AlignImageProcessor(), tokenizer).save_pretrained(folder)
    return str(folder)


def vit_checkpoint(size: str) -> str:
    """A complete ViT classifier with random weights: L/16 at 384 pixels, or Ti/16 at 64."""
    folder = Path(tempfile.gettempdir(), f"kakao-models-benchmark-vit-{size}-{kakao_models.__version__}")
    if not (folder / "preprocessor_config.json").exists():
        torch.manual_seed(0)
        config = ViTConfig.vit(*(("l",) if size == "base" else ("ti",)), image_size=384 if size == "base" else 64)
        config.num_labels = 1000
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight, std=0.02)  # the original's head starts at zero
        model.save_pretrained(folder)
        ViTImageProcessor(size=config.image_size).save_pretrained(folder)
    return str(folder)


def write_photos(folder: Path, count: int, width: int, height: int) -> list[str]:
    """JPEGs with detail at every scale, like photographs."""
    paths = []
    for index in range(count):
        draw = np.random.default_rng(index)
        picture = np.zeros((height, width, 3), np.float32)
        for side in (4, 16, 64, 256, 1024):
            layer = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
            picture += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 5
        paths.append(str(folder / f"{index:03}.jpg"))
        Image.fromarray(picture.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def theirs(folder: str):
    """transformers' own model, image processor and tokenizer, from the same folder."""
    from transformers.models.align.modeling_align import AlignModel as TheirModel
    from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

    model = TheirModel.from_pretrained(folder).eval()
    options = AlignImageProcessor.from_pretrained(folder).to_dict()
    return model, EfficientNetImageProcessorPil.from_dict(options), BertTokenizer.from_pretrained(folder)


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turns so that a change of the machine's load meets all of them."""
    seconds = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def shortest(run: Callable[[], object], now: Callable[[], float] = time.perf_counter, repeats: int = 5) -> float:
    """The shortest of several runs, in seconds of a clock."""
    seconds = []
    for _ in range(repeats):
        start = now()
        run()
        seconds.append(now() - start)
    return min(seconds)


def product(dtype: str, now: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
    """Seconds of a large matrix product, and its operations per second: the machine's peak."""
    n = 2048
    a, b = (torch.randn(n, n).to(getattr(torch, dtype)) for _ in range(2))
    a @ b
    seconds = shortest(lambda: a @ b, now)
    return seconds, 2 * n**3 / seconds


def difference(a, b) -> str:
    """Largest absolute difference, for a table."""
    return f"{np.abs(np.asarray(a) - np.asarray(b)).max():.1e}"


def show(title: str, columns: list[str], rows: list[list]) -> None:
    """Prints a markdown table under the machine's name."""
    print(f"\n### {title}\n\n{machine()}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def peak(device: str) -> float:
    """GB that this process has had at most: of a GPU, or of memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
