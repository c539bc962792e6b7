"""The loader of training data alone, on one core, beside the usual loop of webdataset over the same shards.

    python benchmarks/loader.py --pictures 1000

The shards are tars as img2dataset writes them, of JPEGs of 400 x 300 pixels with a caption each. All but the last way give
pictures of 289 pixels, cut at random out of 346 x 346 and flipped half of the time, scaled to -1..1, and a caption. One
process and no workers, so that it is one core's work; ways run in turns, and each has run once before it is measured.
"""

import io
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import arguments, interleaved, sentences, show
from PIL import Image

from kakao_models import AlignImageProcessor
from kakao_models.samples.sources import open_source
from kakao_models.train.augment import Augmentation, InceptionCrop, RandomCrop
from kakao_models.train.data import TrainData
from kakao_models.train.transform import SampleTransform

SHARDS = 4


def write_shards(folder: Path, pictures: int) -> list[str]:
    """Paths of tars with `pictures` samples in all, with a caption and a label each."""
    draw, captions = np.random.default_rng(0), sentences(pictures, 5, 15)
    paths = [folder / f"{shard:05}.tar" for shard in range(SHARDS)]
    for shard, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for number in range(shard, pictures, SHARDS):
                out = io.BytesIO()
                small = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8))
                small.resize((400, 300), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
                parts = (
                    ("jpg", out.getvalue()),
                    ("txt", captions[number].encode()),
                    ("cls", str(number % 1000).encode()),
                )
                for kind, data in parts:
                    member = tarfile.TarInfo(f"{number:09}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return [str(path) for path in paths]


def crop_and_flip(picture: Image.Image) -> torch.Tensor:
    """The usual preprocessing in PIL and torch: (3, 289, 289)."""
    picture = picture.resize((346, 346), Image.Resampling.BILINEAR)
    top, left = random.randint(0, 57), random.randint(0, 57)
    picture = picture.crop((left, top, left + 289, top + 289))
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)


def with_webdataset(paths: list[str]) -> Callable[[], int]:
    import webdataset

    data = webdataset.WebDataset(paths, shardshuffle=SHARDS).shuffle(1000).decode("pilrgb").to_tuple("jpg", "txt")
    data = data.map_tuple(crop_and_flip, str)
    return lambda: sum(1 for _ in data)


def with_ours(paths: list[str], augment: Augmentation) -> Callable[[], int]:
    # captions become tokens in batches, which neither loop makes
    data = TrainData(open_source(paths), SampleTransform(augment, AlignImageProcessor(), tokenizer=str))
    return lambda: sum("key" in data[0, position] for position in range(len(data)))


def main() -> None:
    args = arguments(__doc__.splitlines()[0], pictures=1000, repeats=3)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), args.pictures)
        ways = {
            "webdataset and PIL (antialiased)": with_webdataset(paths),
            "ours, antialiased": with_ours(paths, RandomCrop(346, 289, antialias=True)),
            "ours, as the original (no antialiasing)": with_ours(paths, RandomCrop(346, 289)),
            "ours, inception crop to 224": with_ours(paths, InceptionCrop(224)),
        }
        for name, run in ways.items():
            assert run() == args.pictures, name
        seconds = interleaved(ways, args.repeats)
    first = next(iter(seconds.values()))
    rows = [[name, args.pictures / value, first / value] for name, value in seconds.items()]
    show("The loader alone, one core", ["way", "images/s", "times as fast"], rows)


if __name__ == "__main__":
    main()
