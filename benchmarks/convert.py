"""Converting a TPU checkpoint: MB/s and peak memory, at any size, on random weights.

    python benchmarks/convert.py --image l2 --text large

Memory is the peak of a fresh process that does nothing else; the bound is 1.5 times the largest shard plus 500 MB. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import machine

from kakao_models import AlignConfig, AlignTextConfig, AlignVisionConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.tensorflow import SUFFIX, write_checkpoint
from kakao_models.checkpoint.weightmap import permute

PROGRAM = """
import json, resource, sys
from kakao_models.checkpoint.convert import convert
report = convert(sys.argv[1], sys.argv[2])
worst = max(stage["difference"] / stage["limit"] for stage in report["proof"])
print(json.dumps([report["seconds"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, worst]))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="b7", help="b0 to b7, or l2 (default: b7)")
    parser.add_argument("--text", default="base", help="mini, base or large (default: base)")
    options = parser.parse_args()
    vision, text = AlignVisionConfig.efficientnet(options.image), AlignTextConfig.bert(options.text)
    projection = vision.output_channels if options.image in ("b7", "l2") else 640  # these two have no projection
    config = AlignConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=projection)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "source", "model-weights")
        prefix.parent.mkdir()
        write_random(prefix, config)
        size = sum(file.stat().st_size for file in prefix.parent.iterdir()) / 1e6
        command = [sys.executable, "-c", PROGRAM, str(prefix), str(Path(folder, "output"))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, peak, worst = json.loads(output.splitlines()[-1])
    print(machine())
    print(f"\n| {options.image} + {options.text} | {size:,.0f} MB |\n|---|---|")
    print(f"| conversion with reading back, proof and hashes | {seconds:.0f} s, {size / seconds:.0f} MB/s |")
    print(f"| peak memory | {peak:,.0f} MiB; bound {1.5 * size / 1.048576 + 500:,.0f} MiB |")
    print(f"| worst stage of the proof | {worst:.1%} of what is allowed |")


if __name__ == "__main__":
    main()
