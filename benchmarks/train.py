"""A training step of ALIGN beside transformers' `AlignModel`.

    python benchmarks/train.py --size small --batch 16 --image-size 289 --dtype float32

A step is forward, loss, backward and an update by SGD; each runs in a process of its own, because of the peak of memory.
Ours is as `AlignTrainer` runs it: on a CPU, freed memory is kept (`kakao_models.train.memory`), and arrays are
channels-last. "transformers, memory kept" is transformers' model with that first setting, which its own Trainer has not:
it shows what of the difference is the model's. transformers' model has no gradient checkpointing of the image tower, and
replaces its batch norms' statistics at every step. `--kinds` chooses among the rows.
"""

import subprocess
import sys
import time

import torch
from common import arguments, checkpoint, peak, show

from kakao_models.train.memory import keep_memory
from kakao_models.train.recompute import checkpointing

KINDS = ("transformers", "transformers, memory kept", "ours", "ours, activations again", "ours, blocks again")


def step(
    kind: str, size: str, batch: int, image_size: int, dtype: str, device: str, repeats: int
) -> tuple[float, float]:
    """Fastest seconds of a step, and the peak of memory in gigabytes beyond what the loaded model has."""
    torch.manual_seed(0)
    ours = kind.startswith("ours")
    if kind != "transformers" and device == "cpu":
        keep_memory()
    if ours:
        from kakao_models import AlignModel
    else:
        from transformers.models.align.modeling_align import AlignModel
    model = AlignModel.from_pretrained(checkpoint(size)).train().to(device)
    if ours:
        model.text_model.pooler.requires_grad_(False)
    if kind.endswith("again"):
        model.activation_checkpointing_enable(checkpointing(kind.split()[1]))
    if ours and device == "cpu":
        model.to(memory_format=torch.channels_last)
    pixels = torch.rand(batch, 3, image_size, image_size, device=device) * 2 - 1
    ids = torch.randint(5, 1000, (batch, 64), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before, seconds = peak(device), []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return min(seconds), peak(device) - before


def main() -> None:
    args = arguments(
        __doc__.splitlines()[0],
        batch=16,
        image_size=289,
        dtype="float32",
        device="cpu",
        repeats=3,
        kinds=";".join(KINDS),
    )
    checkpoint(args.size)
    rows = []
    for kind in args.kinds.split(";"):
        given = (kind, args.size, args.batch, args.image_size, args.dtype, args.device, args.repeats)
        call = f"import train; print(*train.step{given!r})"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=sys.path[0])
        if done.returncode:
            rows.append([kind, "failed", done.stderr.strip().splitlines()[-1][:80], "", ""])
            continue
        seconds, gigabytes = map(float, done.stdout.split()[-2:])
        first = rows[0] if rows else [None, seconds, gigabytes]
        rows.append([kind, seconds, gigabytes, first[1] / seconds, gigabytes / first[2]])
    title = f"A training step, {args.size}, batch {args.batch}, {args.image_size} px, {args.dtype}, {args.device}"
    show(title, ["model", "seconds", "GB beyond the model", "times as fast", "share of the memory"], rows)


if __name__ == "__main__":
    main()
