"""Throughput of the originals' recipes on this machine, and what it projects their whole runs to on GPUs.

    python benchmarks/recipes.py --steps 3 --precision fp32

Each recipe runs as `kakao-models train` runs it, loader, augmentation, loss and optimizer included, on made-up shards, with
a small batch of two chunks, so that what gradient caching runs twice is run twice. The first step is not
counted. Work is counted by torch.utils.flop_counter on a forward pass of one sample (a multiplication and an addition are two
operations), and a step is taken for three forward passes, or four where chunks are embedded twice. That work, over the time
of a step, is set beside what a plain matrix product of the same precision reaches on the same device: this share is what
the projection carries over to a GPU, whose matrix products are taken from its data sheet.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from common import arguments, checkpoint, show
from loader import write_shards
from torch.utils.flop_counter import FlopCounterMode

from kakao_models.train.callbacks import read_logs
from kakao_models.train.recipe import read_recipe
from kakao_models.train.run import build_trainer

# Samples of the whole run (of ViT: 300 million, 7 times), and of a batch here: ALIGN's chunks hold whole ghost batches of 16.
RUNS = {
    "align_b3_mini_cc3m": ("align", 16_384 * 100_000, 32),
    "align_b7_base_coyo700m": ("align", 65_536 * 300_000, 32),
    "vit_l16_pretrain": ("vit", 7 * 300_000_000, 4),
}
GPUS = {"A100": 312e12, "H100": 989e12}  # operations a second, bfloat16 without sparsity, of NVIDIA's data sheets


def matrix_product(device: str, precision: str) -> float:
    """Operations a second of a product of two square matrices, the fastest of five."""
    side, dtype = 4096 if device == "cuda" else 2048, torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def forward_work(trainer) -> float:
    """Operations of a forward pass of one sample."""
    model = trainer.model
    batch = next(iter(trainer.get_train_dataloader()))
    names = "pixel_values", "input_ids", "attention_mask"
    one = {name: batch[name][:1].to(trainer.args.device) for name in names if name in batch}
    if "input_ids" in one:  # 64 tokens, as `max_tokens` allows
        one = {"pixel_values": one["pixel_values"], "input_ids": torch.ones(1, 64, dtype=torch.long).to(model.device)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**one)
    return counter.get_total_flops()


def measure(name: str, kind: str, batch: int, shards: list[str], folder: Path, args) -> tuple[float, float]:
    """Samples a second, and operations of a forward pass of a sample."""
    changes = [f"data={shards}", f"output={folder}", f"steps={args.steps + 1}", "log_every=1", "save_every=1000000"]
    changes += [f"batch_size={batch}", f"chunk_size={batch // 2}", f"precision={args.precision}", "warmup=0"]
    changes += ["workers=0", f"trainer={{use_cpu: {args.device == 'cpu'}, report_to: [], save_strategy: 'no'}}"]
    if kind == "align":
        changes += [f"tokenizer={checkpoint('base')}", "pad_to=max_tokens"]
    else:
        changes += ["epochs=null"]
    with contextlib.redirect_stderr(io.StringIO()):
        trainer = build_trainer(read_recipe(kind, name, changes))
        work = forward_work(trainer)
        trainer.train()
    rates = [line["samples_per_second"] for line in read_logs(folder / "training.jsonl") if "loss" in line]
    return args.steps / sum(1 / rate for rate in rates[1:]), work


def main() -> None:
    args = arguments(
        __doc__.splitlines()[0],
        steps=3,
        precision="fp32",
        device="cpu",
        price=2.0,
        only=";".join(RUNS),
    )
    product = matrix_product(args.device, args.precision)
    measured, projected = [], []
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), 256)
        for name in args.only.split(";"):
            kind, samples, batch = RUNS[name]
            rate, work = measure(name, kind, batch, shards, Path(folder, name), args)
            passes = 4 if kind == "align" else 3
            total = passes * work * samples
            share = rate * passes * work / product
            measured.append([name, rate, work / 1e9, passes, rate * passes * work / 1e9, f"{share:.0%}"])
            hours = [total / (share * speed) / 3600 for speed in GPUS.values()]
            cost = [value for h in hours for value in (f"{h:,.0f}", f"{h * args.price:,.0f}")]
            projected.append([name, f"{samples:.3g}", f"{total:.2g}", *cost])
    said = f"{args.device}, {args.precision}; a matrix product: {product / 1e9:,.0f} GFLOP/s"
    columns = ["recipe", "samples/s", "forward, GFLOP a sample", "passes", "GFLOP/s", "share of a matrix product"]
    show(f"Throughput of the recipes, {said}", columns, measured)
    gpus = [column for gpu in GPUS for column in (f"hours of one {gpu}", f"at {args.price:g} dollars")]
    show(
        "Projected whole runs, at the same share of a GPU's matrix products",
        ["recipe", "samples", "FLOP", *gpus],
        projected,
    )


if __name__ == "__main__":
    main()
