"""Loading a checkpoint: time and peak memory of `from_pretrained`, against transformers', each in a fresh process.

    python benchmarks/load.py

Weights are mapped from the file and read when they are first used, so both numbers come with every weight used once.
Memory is what this adds, at its peak, to a process that has imported everything. Linux only.
"""

import statistics
import subprocess
import sys

from common import arguments, checkpoint, show

PROGRAM = """
import resource, sys, time
from {module} import AlignModel
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
model = AlignModel.from_pretrained(sys.argv[1])
sum(float(p.detach().sum()) for p in model.parameters())
print(time.perf_counter() - start, peak() - before, sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20)
"""
MODULES = {
    "transformers": "transformers.models.align.modeling_align",
    "kakao_models": "kakao_models.align.modeling_torch",
}


def main() -> None:
    options = arguments(__doc__, repeats=3)
    folder = checkpoint(options.size)
    runs = {name: [] for name in MODULES}
    for _ in range(options.repeats):
        for name, module in MODULES.items():
            command = [sys.executable, "-c", PROGRAM.format(module=module), folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[name].append([float(number) for number in output.split()[-3:]])
    medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in runs.items()}
    seconds, megabytes, weights = medians["transformers"]
    rows = [
        [name, mine[0], seconds / mine[0], f"{mine[1]:.0f}", f"{mine[1] / megabytes:.2f}"]
        for name, mine in medians.items()
    ]
    columns = ["", "seconds", "times as fast", "peak MiB", "peak, ratio"]
    show(f"Loading {options.size}, {weights:.0f} MiB of parameters in float32", columns, rows)


if __name__ == "__main__":
    main()
