"""Converting a TPU checkpoint: MB/s and peak memory, at any size, on random weights.

    python benchmarks/convert.py --image l2 --text large --max-shard-size 500

Memory is the peak of a fresh process that does nothing else, mapped pages included; the bound is 1.5 times the largest shard
plus 500 MB. The disk's own speed is that of a file as large, written and read in the same run. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import machine

from kakao_models import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.weightmap import permute
from kakao_models.conversion.object_graph import SUFFIX
from kakao_models.conversion.tensorflow import write_checkpoint

# Not ru_maxrss: a process that subprocess starts inherits its parent's
PROGRAM = """
import json, re, sys, time
from kakao_models.conversion.convert import convert
steps = {}
def advance(step, done, total):
    now = time.perf_counter(), time.process_time()
    steps.setdefault(step, [now, now])[1] = now
report = convert(sys.argv[1], sys.argv[2], max_shard_size=int(sys.argv[3]), advance=advance)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
worst = max(stage["difference"] / stage["limit"] for stage in report["verification"])
steps = {step: [b - a for a, b in zip(first, last)] for step, (first, last) in steps.items()}
print(json.dumps([report["seconds"], time.process_time(), peak, worst, steps]))
"""


def write_random(prefix: Path, config: AlignConfig) -> None:
    """A checkpoint with weights that keep activations in a healthy range."""
    import torch

    from kakao_models import AlignModel

    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in AlignModel(config).state_dict().items()}
    random = np.random.default_rng(0)

    def draw(slot) -> np.ndarray:
        shape = shapes[slot.key]
        if slot.key.endswith("running_var") or (len(shape) == 1 and slot.key.endswith("weight")):
            values = random.uniform(0.8, 1.2, shape)
        elif len(shape) < 2:
            values = random.uniform(-0.05, 0.05, shape) if shape else np.array(0.07)
        elif slot.key.endswith("embeddings.weight"):
            values = random.standard_normal(shape) * 0.02
        else:
            values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return permute(values.astype(np.float32), slot.axes, slot.local_axes)

    slots = align_tpu_slots(config)
    write_checkpoint(prefix, {slot.local_key + SUFFIX: (lambda slot=slot: draw(slot)) for slot in slots})


def disk_speed(folder: Path, size: int) -> tuple[float, float]:
    """MB/s of writing a file of `size` bytes to the disk, and of reading it from there, not from memory."""
    block, file = os.urandom(1 << 20), folder / "speed"
    start = time.perf_counter()
    with open(file, "wb") as stream:
        for _ in range(size >> 20):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    written = time.perf_counter()
    with open(file, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while stream.read(1 << 20):
            pass
    read = time.perf_counter()
    file.unlink()
    return size / 1e6 / (written - start), size / 1e6 / (read - written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="b7", help="b0 to b7, or l2 (default: b7)")
    parser.add_argument("--text", default="base", help="mini, base or large (default: base)")
    parser.add_argument("--max-shard-size", type=int, default=5000, help="in MB (default: 5000)")
    options = parser.parse_args()
    vision, text = AlignVisionConfig.efficientnet(options.image), AlignTextConfig.bert(options.text)
    projection = vision.output_channels if options.image in ("b7", "l2") else 640  # these two have no projection
    config = AlignConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=projection)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "source", "model-weights")
        prefix.parent.mkdir()
        write_random(prefix, config)
        for file in prefix.parent.iterdir():  # the first pass is to read from the disk
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = sum(file.stat().st_size for file in prefix.parent.iterdir()) / 1e6
        output = Path(folder, "output")
        command = [sys.executable, "-c", PROGRAM, prefix, output, str(options.max_shard_size * 10**6)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, busy, peak, worst, steps = json.loads(said.splitlines()[-1])
        largest = max(file.stat().st_size for file in output.glob("*.safetensors")) / 1e6
        writing, reading = disk_speed(Path(folder), int(size * 1e6))
    print(machine())
    print(f"\n| {options.image} + {options.text} | {size:,.0f} MB |\n|---|---|")
    print(f"| conversion with reading back, verification and hashes | {seconds:.1f} s, {size / seconds:.0f} MB/s |")
    for step, (taken, working) in steps.items():
        print(f"| of that, {step} | {taken:.1f} s, {size / taken:.0f} MB/s; CPU {working:.1f} s |")
    print(f"| CPU time, imports included | {busy:.1f} s |")
    print(f"| the disk alone | writes {writing:.0f} MB/s, reads {reading:.0f} MB/s |")
    bound = (1.5 * largest + 500) / 1.048576
    print(f"| peak memory | {peak:,.0f} MiB; bound {bound:,.0f} MiB (largest shard {largest:,.0f} MB) |")
    print(f"| worst stage of the verification | {worst:.1%} of what is allowed |")


if __name__ == "__main__":
    main()
