"""Freed memory stays with the process: allocated again, it needs no new pages of the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from kakao_models.train.memory import keep_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_memory()
x = torch.ones(16 << 20)  # 64 MB
for _ in range(8):
    x + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_memory_is_used_again():
    def faults(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") * 4 < faults("give back")  # where the heap ends may still move, once or twice
