"""Speed on this machine beside transformers as it ships: same weights, same run, in turns. Markdown, and JSON.

    python benchmarks/speed.py --json speed.json
    python benchmarks/speed.py --only b7,texts --ways torch,openvino,openvino:bfloat16 --clock cpu

Parts: peak (matrix products and memory of the machine), b7 and texts (B7 + BERT-base, random weights), vit (L/16 at 384
pixels), jpeg (files to embeddings, and reading alone), labels (1,000 labels x 100 JPEG files), start (a process that
imports, loads and embeds one text). "x" is how many times as fast as transformers' AlignModel, ViTForImageClassification,
processors or pipeline; the cosine is the lowest of any row's with transformers' row.

Two parts are run only when they are named: int8, align-small quantized by NNCF beside itself in float32 on crops of the
package's photographs and on texts; compile, align-small compiled in a fresh process, and in a second one, which finds it.

On a machine that others use too, `--clock cpu` compares seconds of CPU time instead of those on the wall.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import (
    SIZES,
    checkpoint,
    machine,
    product,
    sentences,
    shortest,
    theirs,
    vit_checkpoint,
    write_photos,
)
from PIL import Image

from kakao_models import Embedder, pipeline
from kakao_models.inference.runners import computes_bfloat16
from kakao_models.pixels.images import load_image, load_pixels

PARTS = ("peak", "b7", "texts", "vit", "jpeg", "labels", "start")
OTHER_PARTS = ("int8", "compile")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Table:
    """Rows of one machine, measured in turns."""

    def __init__(self, clock: str, repeats: int):
        self.rows: list[dict] = []
        self.now, self._repeats = CLOCKS[clock], repeats

    def compare(self, what: str, ways: dict[str, Callable[[], object]], times: dict[str, float] | None = None) -> None:
        """Median seconds of each way, its ratio to the first one, and the cosine of their rows where they are arrays.

        Args:
            times: what a way's seconds are to be multiplied by, if it did only a part of the work.
        """
        seconds, results = {name: [] for name in ways}, {}
        for repeat in range(self._repeats + 1):
            for name, run in ways.items():
                if repeat == 0 and (times or {}).get(name, 1) > 1:
                    continue  # too long to be run for warming up
                start = self.now()
                results[name] = run()
                if repeat:
                    seconds[name].append(self.now() - start)
        medians = {name: statistics.median(values) * (times or {}).get(name, 1) for name, values in seconds.items()}
        first = next(iter(ways))
        for name, value in medians.items():
            row = {"what": what, "way": name, "seconds": value, "times": medians[first] / value}
            if isinstance(results[first], np.ndarray):
                row["cosine"] = float(cosine(results[first], results[name]))
            self.add(row)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        print(markdown(row), flush=True)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return ((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))).min()


def markdown(row: dict) -> str:
    cells = [row["what"], row["way"], f"{row['seconds']:.3g}", f"{row['times']:.2f}", f"{row.get('cosine', ''):.7}"[:9]
             if "cosine" in row else row.get("note", "")]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def peak(table: Table, options) -> None:
    for dtype in ("float32", "bfloat16") if computes_bfloat16() else ("float32",):
        seconds, speed = product(dtype, table.now)
        table.add({"what": "peak", "way": f"matrix product, {dtype}", "seconds": seconds, "times": 1.0,
                   "note": f"{speed / 1e9:.0f} GFLOP/s"})  # fmt: skip
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    best = shortest(lambda: np.copyto(target, source), table.now)
    table.add({"what": "peak", "way": "copying memory, one thread", "seconds": best, "times": 1.0,
               "note": f"{2 * source.nbytes / best / 1e9:.1f} GB/s read and written"})  # fmt: skip


def embedders(folder: str, options) -> dict[str, Embedder]:
    """A way, "torch" or "openvino:bfloat16" → what runs it."""
    found = {}
    for way in options.ways.split(","):
        engine, _, dtype = way.partition(":")
        found[way] = Embedder(folder, engine=engine, dtype=dtype or None, batch_size=options.batch_size)
    return found


def b7(table: Table, options) -> None:
    folder = checkpoint(options.size)
    model, processor, _ = theirs(folder)
    ours = embedders(folder, options)
    some = next(iter(ours.values()))
    for count in (8, 1):
        draw = np.random.default_rng(0)
        pictures = [
            Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((400, 300), 3)
            for _ in range(count)
        ]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        prepared = np.stack([some.image_processor.pixels(picture) for picture in pictures])

        def with_transformers(pixels=pixels) -> np.ndarray:
            with torch.inference_mode():
                return model.get_image_features(pixels).pooler_output.numpy()

        ways = {"transformers": with_transformers}
        ways |= {name: lambda e=e, p=prepared: e.engine.features(p) for name, e in ours.items()}
        table.compare(f"image tower, batch {count}", ways)


def texts(table: Table, options) -> None:
    from transformers.models.align.processing_align import AlignProcessor as TheirProcessor

    folder = checkpoint(options.size)
    model, image_processor, tokenizer = theirs(folder)
    processor = TheirProcessor(image_processor, tokenizer)
    short = sentences(options.texts, 4, 16)

    def with_transformers(**padding) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(short), 32):
                batch = processor(text=short[start : start + 32], return_tensors="pt", **padding)
                rows.append(model.get_text_features(**batch).pooler_output)
        return torch.cat(rows).numpy()

    ways = {"transformers": with_transformers, "transformers, padding=True": lambda: with_transformers(padding=True)}
    ways |= {name: lambda e=e: e.texts(short) for name, e in embedders(folder, options).items()}
    table.compare(f"{options.texts} texts of 4 to 16 words", ways)


def vit(table: Table, options) -> None:
    from transformers import ViTForImageClassification as Theirs

    folder = vit_checkpoint(options.size)
    model = Theirs.from_pretrained(folder).eval()
    count = 4
    pixels = np.random.default_rng(0).integers(
        0, 256, (count, model.config.image_size, model.config.image_size, 3), dtype=np.uint8
    )
    floats = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)

    def with_transformers() -> np.ndarray:
        with torch.inference_mode():
            return model(floats).logits.numpy()

    ways = {"transformers": with_transformers}
    ways |= {name: lambda e=e: e.engine.logits(pixels) for name, e in embedders(folder, options).items()}
    table.compare(f"ViT classifier, batch {count}", ways)


def jpeg(table: Table, options) -> None:
    folder = checkpoint(options.size)
    peer, ours = theirs(folder), embedders(folder, options)
    for way in options.fast_ways.split(",") if options.fast_ways else ():
        engine, _, dtype = way.partition(":")
        ours[f"{way}, fast_images"] = Embedder(
            folder, engine=engine, dtype=dtype or None, batch_size=options.batch_size, fast_images=True
        )
    for width, height in ((500, 375), (4000, 3000)):
        with tempfile.TemporaryDirectory() as temporary:
            paths = write_photos(Path(temporary), 8, width, height)
            jpeg_files(table, f"8 JPEG files of {width} x {height}", paths, peer, ours)


def jpeg_files(table: Table, what: str, paths: list[str], peer: tuple, ours: dict[str, Embedder]) -> None:
    model, processor, _ = peer
    preparation = next(iter(ours.values())).image_processor

    def read(path: str) -> torch.Tensor:
        return processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]

    def read_all() -> None:
        for path in paths:
            read(path)

    def read_one(path: str) -> np.ndarray:
        return preparation.pixels(load_image(path))

    def read_one_fast(path: str) -> np.ndarray:
        return preparation.fast_pixels(load_pixels(path, size_hint=preparation.decode_size))

    def in_turn(read_one: Callable) -> None:
        for path in paths:
            read_one(path)

    def with_transformers() -> np.ndarray:
        with torch.inference_mode():
            return model.get_image_features(torch.cat(list(map(read, paths)))).pooler_output.numpy()

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # as the Embedder reads
        ways = {"transformers, which has one thread": read_all}
        for name, read_ours in (("kakao_models", read_one), ("kakao_models, fast_images", read_one_fast)):
            ways[f"{name}, one thread"] = lambda read_ours=read_ours: in_turn(read_ours)
            ways[f"{name}, {torch.get_num_threads()} threads"] = lambda f=read_ours: list(threads.map(f, paths))
        table.compare(f"{what}, read to bytes of the model's size", ways)
    ways = {"transformers": with_transformers} | {name: lambda e=e: e.images(paths) for name, e in ours.items()}
    table.compare(f"{what} to embeddings", ways)


def labels(table: Table, options) -> None:
    import transformers

    folder = checkpoint(options.size)
    model, image_processor, tokenizer = theirs(folder)
    task = "zero-shot-image-classification"
    names = sentences(options.labels, 1, 3)
    peer = transformers.pipeline(task, model=model, image_processor=image_processor, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_photos(Path(temporary), options.images, 500, 375)
        ways = {"transformers": lambda: peer([Image.open(paths[0])], candidate_labels=names) and None}
        ways |= {
            name: lambda e=e: pipeline(task, e)(paths, names, top_k=5) and None
            for name, e in embedders(folder, options).items()
        }
        # transformers takes each image with all labels anew: one image tells how long all take
        table.compare(f"{options.labels} labels x {options.images} JPEG files (transformers: 1 image, times {options.images})",
                      ways, {"transformers": options.images})  # fmt: skip


def int8(table: Table, options) -> None:
    """Measures int8 engines: speed, and distance from float32."""
    import nncf

    from kakao_models.inference.runners import openvino_core
    from kakao_models.inference.selfcheck import PHOTOS, TEXTS

    nncf.set_log_level("ERROR")
    embedder, draw = Embedder("align-small"), np.random.default_rng(0)
    graphs = embedder.engine.source.graphs(embedder.engine._pixels)
    pixels = []
    for index in range(256):
        picture = load_image(PHOTOS[index % len(PHOTOS)])
        side = int(min(picture.size) * draw.uniform(0.3, 1))
        left, top = (int(draw.integers(0, length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side))
        pixels.append(embedder.inputs.preprocessing.pixels(crop).transpose(2, 0, 1)[None])
    known = " ".join(TEXTS).split()
    ids = [embedder.tokenizer(" ".join(draw.choice(known, n)), return_tensors="np") for n in draw.integers(4, 17, 256)]
    tokens = [(encoded["input_ids"], encoded["attention_mask"]) for encoded in ids]
    for what, items in (("image", [(image,) for image in pixels]), ("text", tokens)):
        model = openvino_core().read_model(graphs[what].message())
        names = [port.any_name for port in model.inputs]
        calibration = nncf.Dataset(items[:128], lambda item, names=names: dict(zip(names, item)))
        kind = nncf.ModelType.TRANSFORMER if what == "text" else None
        ways = {"float32": model, "int8": nncf.quantize(model, calibration, subset_size=128, model_type=kind)}
        runs = {
            name: openvino_core().compile_model(way, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            for name, way in ways.items()
        }
        table.compare(
            f"align-small, {what}, one at a time, 128 of them",
            {
                name: lambda run=run, items=items: np.concatenate([run(list(item))[0] for item in items[128:]])
                for name, run in runs.items()
            },
        )


START = {
    "transformers": "from transformers.models.align.modeling_align import AlignModel\n"
    "AlignModel.from_pretrained({folder!r})",
    "kakao_models, Embedder": "from kakao_models import Embedder\nEmbedder({folder!r})",
    "kakao_models, AlignModel": "from kakao_models import AlignModel\nAlignModel.from_pretrained({folder!r})",
    "import torch": "import torch",
}


def start(table: Table, options) -> None:
    """Measures fresh processes, with their CPU time."""
    folder = checkpoint(options.size)

    def seconds(program: str) -> float:
        before, begin = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", program.format(folder=folder)], check=True, capture_output=True)
        after = os.times()
        used = after.children_user - before.children_user + after.children_system - before.children_system
        return used if options.clock == "cpu" else time.perf_counter() - begin

    taken = {name: [] for name in START}
    for _ in range(options.repeats):
        for name, program in START.items():
            taken[name].append(seconds(program))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in medians.items():
        table.add(
            {"what": "start: import and load", "way": name, "seconds": value, "times": medians["transformers"] / value}
        )


COMPILE = """
from kakao_models import Embedder
from kakao_models.inference.selfcheck import PHOTOS, TEXTS
embedder = Embedder("align-small", engine={engine!r})
embedder.images(PHOTOS)
embedder.texts(TEXTS)
"""


def compile(table: Table, options) -> None:
    """Measures the time from the start of a process to the first embeddings."""
    kept = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    first = None
    with tempfile.TemporaryDirectory() as cache:
        for way, engine in (("compile", "compile"), ("compile, the second time", "compile"), ("torch", "torch")):
            begin = time.perf_counter()
            program = [sys.executable, "-c", COMPILE.format(engine=engine)]
            subprocess.run(program, check=True, capture_output=True, env=kept | {"XDG_CACHE_HOME": cache})
            seconds = time.perf_counter() - begin
            first = first or seconds
            what = "align-small, from the start of a process to embeddings"
            table.add({"what": what, "way": way, "seconds": seconds, "times": first / seconds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base", help="small: B0 and BERT-mini; base: B7 and BERT-base")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    lower = computes_bfloat16()
    ways = "torch,openvino" + ",torch:bfloat16,openvino:bfloat16" * lower
    parser.add_argument("--ways", default=ways, help="ENGINE or ENGINE:DTYPE")
    fast = "openvino:bfloat16" if lower else "openvino"
    parser.add_argument("--fast-ways", default=fast, help="of the part jpeg, with fast_images=True")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the rows into this file")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - {*PARTS, *OTHER_PARTS}:
        parser.error(f"--only: {min(unknown)} is none of {', '.join((*PARTS, *OTHER_PARTS))}")
    print(f"{machine()}; {options.clock} seconds, {options.size}\n")
    print("| what | way | seconds | x | lowest cosine |\n| --- | --- | --- | --- | --- |")
    table = Table(options.clock, options.repeats)
    for part in options.only.split(","):
        globals()[part](table, options)
        if options.json:
            facts = {"machine": machine(), "clock": options.clock, "size": options.size, "rows": table.rows}
            options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
