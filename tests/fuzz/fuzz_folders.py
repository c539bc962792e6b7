"""Damaged and forged model folders: each loads, or is refused with one sentence, within 20 s of CPU, whatever reads it.

    python tests/fuzz/fuzz_folders.py [COUNT] [SEED] [READER ...]

A mutation changes one file of a folder: its bytes, or of JSON (also of the header of a safetensors file) one value. It is then read
by one of `READERS`, drawn at random or named. What counts as one sentence is what the command prints as such: a ValueError, OSError
or ImportError with words of this package, and no chance error of a parser (UnicodeDecodeError, JSONDecodeError). A pickle that would
run code is among the mutations; it must not.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

import kakao_models
from kakao_models import Embedder, cli

SECONDS, PATIENCE = 20, 200  # of CPU; and of waiting, on a machine that is busy with other things
MARK = "fuzz_folders_ran_code"  # of the environment, set by code in a pickle
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "0", "gelu", "\ud800",
    "../../etc/passwd", [], [None], [1], [1, 2, 3], [[]], {}, {"a": 1}, {"0": "cat"}, [1e30] * 3, ["a", "b"],
)  # fmt: skip


class Code:
    def __reduce__(self):
        return exec, (f"import os; os.environ['{MARK}'] = '1'",)


def loaded(framework: str, kind: str) -> Callable[[Path], Any]:
    return lambda folder: getattr(kakao_models, f"{framework}{kind}").from_pretrained(folder)


def embedded(folder: Path) -> None:
    embedder = Embedder(folder)
    embedder.images([tiny.picture(0)])
    if embedder.engine.reads_texts:
        embedder.texts(["a cat"])


def command(*words: str) -> Callable[[Path], None]:
    """Runs the command; FOLDER and OUT in its words stand for the folder and a path beside it."""

    def run(folder: Path) -> None:
        places = {"FOLDER": str(folder), "OUT": str(folder.parent / "out")}
        picture = folder.parent / "picture.png"
        if not picture.exists():
            tiny.picture(0).save(picture)
        places["PICTURE"] = str(picture)
        try:
            cli.main([places.get(word, word) for word in words])
        except SystemExit as ended:
            if ended.code not in (None, 0, 1, 2):
                raise RuntimeError(f"exit code {ended.code}") from None
        finally:
            shutil.rmtree(folder.parent / "out", ignore_errors=True)

    return run


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {  # name -> model, function
    "align": ("align", loaded("", "AlignModel")),
    "align processor": ("align", loaded("", "AlignProcessor")),
    "align keras": ("align", loaded("TF", "AlignModel")),
    "align flax": ("align", loaded("Flax", "AlignModel")),
    "align embedder": ("align", embedded),
    "vit": ("vit", loaded("", "ViTForImageClassification")),
    "vit processor": ("vit", loaded("", "ViTImageProcessor")),
    "vit keras": ("vit", loaded("TF", "ViTForImageClassification")),
    "vit flax": ("vit", loaded("Flax", "ViTForImageClassification")),
    "vit embedder": ("vit", embedded),
    "info align": ("align", command("info", "FOLDER")),
    "info vit": ("vit", command("info", "FOLDER")),
    "convert align": ("align", command("convert", "FOLDER", "OUT")),
    "convert vit": ("vit", command("convert", "FOLDER", "OUT")),
    "classify align": ("align", command("classify", "PICTURE", "--model", "FOLDER", "--labels", "a cat,a dog")),
    "classify vit": ("vit", command("classify", "PICTURE", "--model", "FOLDER")),
}


def originals(folder: Path) -> dict[str, dict[str, bytes]]:
    """The files of a folder of each model. The weights are also there as a pickle."""
    makers = {"align": tiny.align_folder, "vit": tiny.vit_folder}
    found = {}
    for name, make in makers.items():
        path = Path(make(folder / name))
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        found[name] = {file.name: file.read_bytes() for file in path.iterdir()}
    return found


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place within JSON."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(value: Any, rng: random.Random) -> Any:
    """JSON with one value changed, left out, doubled or added."""
    value = copy.deepcopy(value)
    *path, last = rng.choice([place for place in places(value) if place] or [("x",)])
    inner = value
    for key in path:
        inner = inner[key]
    kind = rng.randrange(6)
    if kind == 0 and isinstance(inner, (dict, list)):
        del inner[last]
    elif kind == 1 and isinstance(inner, dict):
        inner[rng.choice(["x", "", "model_type", "size", "dtype", "auto_map", "\u202e"])] = rng.choice(VALUES)
    elif kind == 2 and isinstance(inner[last], (int, float)) and not isinstance(inner[last], bool):
        inner[last] = inner[last] * rng.choice([-1, 0, 2, 1.5, 10**6])
    else:
        inner[last] = copy.deepcopy(rng.choice(VALUES))
    return value


def damaged(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64))
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + rng.randbytes(size)
    if kind == 2:
        return rng.choice(
            (b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"version https://git-lfs.github.com/spec/v1\n")
        )
    noise = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    return data[:at] + noise + data[at + size :]


def forged(name: str, data: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json"):
        return json.dumps(changed(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    if name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(changed(json.loads(data[8 : 8 + size]), rng)).encode("utf-8", "surrogatepass")
        length = len(header) if rng.random() < 0.9 else rng.choice((0, 2**32, 2**63, len(header) + 1))
        return length.to_bytes(8, "little") + header + data[8 + size :]
    if name.endswith(".bin"):
        objects = (Code(), {"a": Code()}, [1, 2], {"a": 1}, {1: torch.zeros(2)}, torch.zeros(3), {"a": np.zeros(3)})
        file = io.BytesIO()
        chosen = rng.choice(objects)
        torch.save(chosen, file) if rng.random() < 0.7 else file.write(pickle.dumps(chosen))
        return file.getvalue()
    return damaged(data, rng)


def mutated(files: dict[str, bytes], rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """(which file was changed, all files). A changed pickle stands alone, without model.safetensors."""
    name = rng.choice(sorted(files))
    files = dict(files)
    files.pop("model.safetensors" if name == "pytorch_model.bin" else "pytorch_model.bin", None)
    if rng.random() < 0.05:
        del files[name]
    else:
        files[name] = forged(name, files[name], rng) if rng.random() < 0.7 else damaged(files[name], rng)
    return name, files


def check(reader: Callable[[Path], Any], folder: Path) -> str:
    """ "read" or "refused".

    Raises:
        AssertionError: another error than one of a sentence, or code was run.
    """

    def late(*_: Any) -> None:
        raise AssertionError(f"it takes longer than {SECONDS} s of CPU, or {PATIENCE} s")

    has_alarm = hasattr(signal, "SIGALRM")  # not on Windows, where nothing bounds the time
    if has_alarm:
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, late)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(folder)
        outcome = "read"
    except (ValueError, OSError, ImportError) as error:
        assert not isinstance(error, (UnicodeError, json.JSONDecodeError)), repr(error)
        assert str(error).strip(), "an error without words"
        outcome = "refused"
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert "Traceback" not in output.getvalue(), output.getvalue()[-2000:]
    assert MARK not in os.environ
    return outcome


def fuzz(count: int, seed: int, folder: Path, readers: tuple[str, ...] = tuple(READERS), stop: bool = True) -> Counter:
    """Tries `count` mutations in `folder`: reader, outcome → how many.

    Args:
        stop: False prints each failure, and goes on.
    """
    sources, results = originals(folder / "originals"), Counter()
    for number in range(seed, seed + count):
        rng = random.Random(number)
        reader = rng.choice(readers)
        model, read = READERS[reader]
        name, files = mutated(sources[model], rng)
        target = folder / "model"
        target.mkdir()
        for file, data in files.items():
            (target / file).write_bytes(data)
        try:
            results[reader, check(read, target)] += 1
        except AssertionError as error:
            error.add_note(f"mutation {number} of {name}, by {reader}")
            if stop:
                raise
            print(f"mutation {number} of {name}, by {reader}: {str(error)[-600:]}", flush=True)
            results[reader, "FAILED"] += 1
        shutil.rmtree(target)
    return results


def main(count: int = 10_000, seed: int = 0, *readers: str) -> int:
    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    try:
        results = fuzz(count, seed, folder, readers or tuple(READERS), stop=False)
    finally:
        shutil.rmtree(folder)
    for (reader, outcome), times in sorted(results.items()):
        print(f"{reader:<18} {outcome:<8} {times:6}")
    print(f"{count} mutations in {time.perf_counter() - start:.0f} s")
    return int(any(outcome == "FAILED" for _, outcome in results))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:]))
