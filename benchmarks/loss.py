"""The tiled contrastive loss beside the dense one: seconds of forward and backward, and memory beyond the embeddings.

    python benchmarks/loss.py --samples 16384 --repeats 3

Dense is `align.modeling_torch.contrastive_loss` of all logits, the same function. It needs about 24 bytes for each of the
samples² logits, and is left out where they would not fit into `--dense-gigabytes`.

`--open-clip FOLDER` adds open_clip's loss, which has no label smoothing: all are then computed without. The folder is what
`pip download --no-deps open_clip_torch` brought, unpacked; its loss module alone is loaded, so that nothing else of it
(torchvision among others) has to be installed. The loss is checked to be half of ours, which adds both directions.
"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import arguments, peak, show

from kakao_models.align.modeling_torch import contrastive_loss
from kakao_models.train.loss import tiled_contrastive_loss


def their_loss(folder: str) -> torch.nn.Module:
    """open_clip's `ClipLoss`."""
    place = importlib.util.spec_from_file_location("open_clip_loss", Path(folder, "open_clip", "loss.py"))
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module.ClipLoss()


def run(kind: str, samples: int, width: int, device: str, repeats: int, open_clip: str) -> tuple[float, float]:
    """Fastest seconds, and gigabytes beyond what was there before."""
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(2, samples, width, device=device), dim=-1)
    images, texts = (x.clone().requires_grad_() for x in embeds)
    temperature = torch.tensor(0.05, device=device, requires_grad=True)
    del embeds
    smoothing = 0.0 if open_clip else 0.1
    theirs = their_loss(open_clip) if open_clip else None
    if theirs:
        few = images[:64].detach(), texts[:64].detach()
        twice = 2 * theirs(*few, 1 / temperature.detach())
        torch.testing.assert_close(twice, tiled_contrastive_loss(*few, temperature.detach(), 0.0))
    before, seconds = peak(device), []
    for _ in range(repeats):
        images.grad = texts.grad = None
        start = time.perf_counter()
        if kind == "dense":
            loss = contrastive_loss(images @ texts.t() / temperature, smoothing)
        elif kind == "open_clip":
            loss = theirs(images, texts, 1 / temperature)
        else:
            loss = tiled_contrastive_loss(images, texts, temperature, smoothing)
        loss.backward()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak(device) - before


def main() -> None:
    args = arguments(
        __doc__.splitlines()[0], samples=16384, width=640, repeats=3, device="cpu", dense_gigabytes=8.0, open_clip=""
    )
    kinds = ("dense", *(["open_clip"] if args.open_clip else []), "tiled")
    rows, samples = [], 1024
    while samples <= args.samples:
        found = {}
        for kind in kinds:
            if kind != "tiled" and 24 * samples**2 > args.dense_gigabytes * 1e9:
                found[kind] = ("-", "-")
                continue
            # a process of its own: the peak of memory of another would hide this one's
            given = (kind, samples, args.width, args.device, args.repeats, args.open_clip)
            call = f"import loss; print(*loss.run{given!r})"
            done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=sys.path[0])
            if done.returncode:
                raise SystemExit(done.stderr)
            found[kind] = tuple(map(float, done.stdout.split()))
        seconds = {kind: found[kind][0] for kind in kinds}
        ratios = ["-" if seconds[kind] == "-" else seconds[kind] / seconds["tiled"] for kind in kinds[:-1]]
        rows.append([f"{samples:,}", *seconds.values(), *ratios, *(found[kind][1] for kind in kinds)])
        samples *= 2
    columns = [f"{kind}, s" for kind in kinds] + [f"times {kind}" for kind in kinds[:-1]] + [f"{k}, GB" for k in kinds]
    smoothing = "no label smoothing" if args.open_clip else "label smoothing 0.1"
    title = f"Contrastive loss, forward and backward, D = {args.width}, {smoothing}, {args.device}"
    show(title, ["samples", *columns], rows)


if __name__ == "__main__":
    main()
