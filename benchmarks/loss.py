"""The tiled contrastive loss beside the dense one: seconds of forward and backward, and memory beyond the embeddings.

    python benchmarks/loss.py --samples 16384 --repeats 3

Dense is `align.modeling_torch.contrastive_loss` of all logits, the same function. It needs about 24 bytes for each of the
samples² logits, and is left out where they would not fit into `--dense-gigabytes`.
"""

import resource
import subprocess
import sys
import time

import torch
from common import arguments, show

from kakao_models.align.modeling_torch import contrastive_loss
from kakao_models.train.loss import tiled_contrastive_loss


def run(kind: str, samples: int, width: int, device: str, repeats: int) -> tuple[float, float]:
    """Fastest seconds, and gigabytes beyond what was there before."""
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(2, samples, width, device=device), dim=-1)
    images, texts = (x.clone().requires_grad_() for x in embeds)
    temperature = torch.tensor(0.05, device=device, requires_grad=True)
    del embeds
    before, seconds = peak(device), []
    for _ in range(repeats):
        images.grad = texts.grad = None
        start = time.perf_counter()
        if kind == "dense":
            loss = contrastive_loss(images @ texts.t() / temperature, 0.1)
        else:
            loss = tiled_contrastive_loss(images, texts, temperature, 0.1)
        loss.backward()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak(device) - before


def peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    args = arguments(__doc__.splitlines()[0], samples=16384, width=640, repeats=3, device="cpu", dense_gigabytes=8.0)
    rows, samples = [], 1024
    while samples <= args.samples:
        found = {}
        for kind in ("dense", "tiled"):
            if kind == "dense" and 24 * samples**2 > args.dense_gigabytes * 1e9:
                found[kind] = ("-", "-")
                continue
            # a process of its own: the peak of memory of another would hide this one's
            call = f"import loss; print(*loss.run({kind!r}, {samples}, {args.width}, {args.device!r}, {args.repeats}))"
            done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=sys.path[0])
            if done.returncode:
                raise SystemExit(done.stderr)
            found[kind] = tuple(map(float, done.stdout.split()))
        ratio = found["dense"][0] / found["tiled"][0] if found["dense"][0] != "-" else "-"
        rows.append([f"{samples:,}", found["dense"][0], found["tiled"][0], ratio, found["dense"][1], found["tiled"][1]])
        samples *= 2
    columns = ["samples", "dense, s", "tiled, s", "times as fast", "dense, GB", "tiled, GB"]
    show(f"Contrastive loss, forward and backward, D = {args.width}, {args.device}", columns, rows)


if __name__ == "__main__":
    main()
