"""Kills training runs at random points, again and again; where the last of them gets to is where one run gets to.

    python tests/fuzz/kill_train.py [KILLS] [SEED]

Each run is a process: a recipe of a tiny ALIGN with chunks, ghost batches, dropout, LAMB, a moving average and
workers or none. It is killed (SIGKILL) after a random time, or before or after a random one of the renames that give a
checkpoint or a model its name.
"""

import hashlib
import io
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny
import training
from fuzz import kills

from kakao_models.train.recipe import read_recipe
from kakao_models.train.run import run

STEPS = 12
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "kakao_models.train.run", "training"])


def write_recipe(folder: Path) -> str:
    rows = training.records(40)
    table = {"image": [_png(row["image"]) for row in rows], "captions": [row["captions"] for row in rows]}
    pq.write_table(pa.table(table), folder / "train.parquet")
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    values = {
        "about": "Killed.",
        "output": "",
        "data": str(folder / "train.parquet"),
        "start": tiny.align_folder(folder / "start"),
        "model": {"vision_config": {"virtual_batch_size": 4, "drop_connect_rate": 0.2}, "text_config": dropout},
        "batch_size": 16,
        "chunk_size": 8,
        "steps": STEPS,
        "optimizer": "lamb",
        "lr": 0.01,
        "weight_decay": 0.1,
        "warmup": 3,
        "ema": 0.9,
        "workers": 0,
        "log_every": 1,
        "save_every": 2,
        "augment": {"resize": 36, "crop": 32},
        "trainer": {"use_cpu": True, "report_to": []},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def _png(picture) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _child(file: str, changes: list[str], when: str, place: int) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if when != "time":
        kills.die_at_rename(when, place)
    run(read_recipe("align", file, changes))


def train(file: str, changes: list[str], when: str = "time", place: int = 0, seconds: float | None = None) -> int:
    """Exit code of a run in a process of its own, which is killed after `seconds`."""
    process = _CONTEXT.Process(target=_child, args=(file, changes, when, place))
    process.start()
    process.join(seconds)
    if seconds is not None and process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def result(output: Path) -> dict[str, str]:
    """Hashes of what a run leaves: the model, and the last checkpoint's optimizer, schedule, random numbers and average."""
    last = output / f"checkpoint-{STEPS}"
    files = [output / "model.safetensors", *(last / name for name in ("model.safetensors", "ema.safetensors"))]
    found = {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        found[name] = repr(torch.load(last / name, weights_only=False))
    return found


def trial(folder: Path, wanted_kills: int, seed: int) -> int:
    """Kills runs until `wanted_kills` were killed, finishing a folder whenever it got that far; returns how many folders.

    Raises:
        AssertionError: a finished run differs from the uninterrupted one.
    """
    draw, killed, finished = random.Random(seed), 0, 0
    file = write_recipe(folder)
    torch.set_printoptions(precision=12, threshold=sys.maxsize)
    start = time.monotonic()
    assert train(file, [f"output={folder / 'whole'}"]) == 0
    longest, wanted = time.monotonic() - start, result(folder / "whole")
    while killed < wanted_kills:
        output, workers = folder / f"killed{finished}", draw.choice((0, 1))
        changes = [f"output={output}", f"workers={workers}"]
        for _ in range(draw.randrange(2, 7)):
            when, place, seconds = (
                draw.choice(("time", "before", "after")),
                draw.randrange(1, 5),
                draw.uniform(0, longest),
            )
            code = train(file, changes, when, place, seconds if when == "time" else None)
            assert code in (0, -signal.SIGKILL), f"seed {seed}: {output}: a run failed with {code}"
            killed += code != 0
        assert train(file, changes) == 0, f"seed {seed}: {output} could not be gone on with"
        found = result(output)
        differ = [name for name in wanted if found[name] != wanted[name]]
        assert not differ, f"seed {seed}: {output}: {differ} differ"
        finished += 1
    return finished


if __name__ == "__main__":
    kills.main(trial, 20, "runs, each as one that was left alone")
