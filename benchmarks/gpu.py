"""Measures the models on a GPU: this file needs torch and transformers alone, and can be copied anywhere.

    python benchmarks/gpu.py                      # B7 and ViT-L/16, inference, a training step, the loss at 65,536
    python benchmarks/gpu.py --device cpu --tiny  # checks that it runs

Beside transformers' models, eager and compiled, stand the same weights as this package runs them (`kakao_models`, if it
is installed). The fraction of the card's own peak is that of a measured matrix product (ViT) and of a measured copy
(B7, whose depthwise convolutions and activations move memory): operations and bytes are counted from the shapes, and
bytes as if every activation were written and read once, in the type that is computed in.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
from transformers import AlignConfig, AlignModel, ViTConfig, ViTForImageClassification


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(2):
        run()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peaks(device: torch.device, dtype: torch.dtype, tiny: bool, repeats: int) -> tuple[float, float]:
    """Operations/s of a matrix product in `dtype`, bytes/s of a copy (read and written)."""
    n = 512 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = 2 * n**3 / timed(lambda: a @ b, device, repeats)
    source = torch.empty((1 << 22) if tiny else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return product, 2 * source.numel() / timed(lambda: target.copy_(source), device, repeats)


def counted(model: nn.Module, run: Callable[[], object], width: int) -> tuple[float, float]:
    """Multiply-adds times two of the convolutions and products in a call, bytes of activations in and out of them."""
    operations = bytes_moved = 0

    def look(module, inputs, output):
        nonlocal operations, bytes_moved
        x = inputs[0]
        bytes_moved += (x.numel() + output.numel()) * width
        if isinstance(module, nn.Conv2d):
            operations += 2 * output.numel() * math.prod(module.weight.shape[1:])
        else:
            operations += 2 * output.numel() * module.weight.shape[1]

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    run()
    for hook in hooks:
        hook.remove()
    return operations, bytes_moved


def align(tiny: bool) -> tuple[AlignModel, int]:
    """B7 and BERT-base with random weights, and the size of its images."""
    if not tiny:
        config = AlignConfig(vision_config={"image_size": 289, "hidden_dim": 640}, projection_dim=640)
        return AlignModel(config), 289
    vision = {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 80, "image_size": 64}
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return AlignModel(AlignConfig(vision_config=vision, text_config=text, projection_dim=80)), 64


def vit(tiny: bool) -> tuple[ViTForImageClassification, int]:
    """L/16 at 384 pixels with random weights, and that size."""
    sizes = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, image_size=384)
    if tiny:
        sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=64)
    config = ViTConfig(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, num_labels=1000, **sizes)
    return ViTForImageClassification(config), sizes["image_size"]


def ours(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable | None:
    """The same weights in this package's fused form, where it is installed."""
    try:
        from kakao_models import AlignConfig, ViTConfig
        from kakao_models.fused.towers import tensors_of, towers
    except ImportError:
        return None
    kind = AlignConfig if model.config.model_type == "align" else ViTConfig
    found = towers(kind.from_config(model.config), tensors_of(model.float().cpu()))
    model.to(device, dtype)
    tower = found.get("classifier", found["image"]).to(device, dtype)
    return tower.to(memory_format=torch.channels_last) if device.type == "cuda" else tower


@torch.inference_mode()
def inference(name: str, build: Callable, batch: int, options, device, dtype, peak, bandwidth) -> list[dict]:
    torch.manual_seed(0)
    model, size = build(options.tiny)
    model = model.eval().to(device, dtype)
    pixels = torch.rand(batch, 3, size, size, device=device).mul_(2).sub_(1).to(dtype)

    def call(module: nn.Module) -> torch.Tensor:
        if module.config.model_type == "align":
            return module.get_image_features(pixels).pooler_output
        return module(pixels).logits

    operations, moved = counted(model, lambda: call(model), dtype.itemsize)
    fused = ours(model, device, dtype)
    ways: dict[str, Callable] = {"transformers, eager": lambda: call(model)}
    mode = "max-autotune" if device.type == "cuda" else "default"
    if options.compile:
        compiled = torch.compile(model.vision_model if name == "B7" else model, mode=mode, dynamic=False)
        ways["transformers, compiled"] = lambda: (
            compiled(pixels).pooler_output if name == "B7" else compiled(pixels).logits
        )
    if fused is not None:
        last = pixels.contiguous(memory_format=torch.channels_last) if name == "B7" else pixels
        ways["kakao_models"] = lambda: fused(last)
        if options.compile:
            compiled_ours = torch.compile(fused, mode=mode, dynamic=False)
            ways["kakao_models, compiled"] = lambda: compiled_ours(last)
    reference = call(model).float()
    rows = []
    for way, run in ways.items():
        seconds = timed(run, device, options.repeats)
        cosine = F.cosine_similarity(run().float().flatten(1), reference.flatten(1)).min().item()
        rows.append(
            {
                "what": f"{name}, batch {batch}",
                "way": way,
                "per_second": batch / seconds,
                "times": rows[0]["seconds"] / seconds if rows else 1.0,
                "seconds": seconds,
                "matmul_peak": operations / seconds / peak,
                "bandwidth": moved / seconds / bandwidth,
                "cosine_to_eager": cosine,
            }
        )
    return rows


def training(batch: int, options, device, dtype) -> dict:
    """A step of B7 + BERT-base in mixed precision: forward, contrastive loss, backward, AdamW."""
    torch.manual_seed(0)
    model, size = align(options.tiny)
    model = model.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    pixels = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    ids = torch.randint(1000, 2000, (batch, 64), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype):
            out = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
        labels = torch.arange(batch, device=device)
        logits = out.logits_per_image.float()
        loss = F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = timed(step, device, options.repeats)
    row = {
        "what": f"training step, batch {batch}",
        "way": "transformers",
        "seconds": seconds,
        "per_second": batch / seconds,
    }
    return row | {"times": 1.0}


def loss(count: int, width: int, options, device) -> list[dict]:
    """The contrastive loss and its gradients over all pairs of `count` embeddings: in one matrix, and in tiles."""
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(count, width, device=device)).requires_grad_() for _ in range(2))

    def dense() -> None:
        logits = images @ texts.t() / 0.05
        labels = torch.arange(count, device=device)
        (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)).backward()
        images.grad = texts.grad = None

    def tiled() -> None:
        tile_loss(images, texts, 0.05, min(8192, count)).backward()
        images.grad = texts.grad = None

    rows = []
    for way, run in {"in one matrix": dense, "in tiles": tiled}.items():
        row = {"what": f"loss at batch {count}", "way": way}
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            row["seconds"] = timed(run, device, options.repeats)
            row["per_second"] = count / row["seconds"]
            if device.type == "cuda":
                row["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        except torch.OutOfMemoryError:
            row["seconds"] = float("nan")
            images.grad = texts.grad = None
        rows.append(row)
    return rows


def tile_loss(images: torch.Tensor, texts: torch.Tensor, temperature: float, tile: int) -> torch.Tensor:
    """The same number with `tile` rows of the matrix in memory at a time, which are computed again for the gradient."""

    def rows_of(a: torch.Tensor, b: torch.Tensor, start: int) -> torch.Tensor:
        logits = a @ b.t() / temperature
        return F.cross_entropy(logits, torch.arange(start, start + len(a), device=a.device), reduction="sum")

    total = images.new_zeros(())
    for a, b in ((images, texts), (texts, images)):
        for start in range(0, len(a), tile):
            part = a[start : start + tile]
            total = total + torch.utils.checkpoint.checkpoint(rows_of, part, b, start, use_reentrant=False)
    return total / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--train-batch-size", type=int, default=32)
    parser.add_argument("--loss-batch-size", type=int, default=65_536)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="small models and sizes, to see that everything runs")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--json", help="also write the rows into this file")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu --tiny checks that everything runs")
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.tiny:
        options.batch_size, options.train_batch_size, options.loss_batch_size, options.repeats = 2, 2, 256, 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    peak, bandwidth = peaks(device, dtype, options.tiny, options.repeats)
    print(
        f"{name}, torch {torch.__version__}; measured: {peak / 1e12:.3g} TFLOP/s in {options.dtype}, {bandwidth / 1e9:.4g} GB/s\n"
    )
    rows = []
    for model, build in {"B7": align, "ViT-L/16": vit}.items():
        for batch in (options.batch_size, 1):
            rows += inference(model, build, batch, options, device, dtype, peak, bandwidth)
    rows.append(training(options.train_batch_size, options, device, dtype))
    rows += loss(options.loss_batch_size, 640, options, device)
    columns = [
        "what",
        "way",
        "seconds",
        "per_second",
        "times",
        "matmul_peak",
        "bandwidth",
        "cosine_to_eager",
        "gigabytes",
    ]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        print("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {"device": name, "torch": torch.__version__, "flops": peak, "bytes": bandwidth, "rows": rows},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
