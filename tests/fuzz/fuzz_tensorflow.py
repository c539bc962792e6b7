"""Damaged and forged TensorFlow checkpoints: each is refused with a CheckpointError, or read as it was written.

    python tests/fuzz/fuzz_tensorflow.py [COUNT] [SEED]

Damage leaves the checksums as they are: then either an error comes or exactly the original tensors. A forgery has right
checksums over an index that lies: then a tensor has the bytes of some tensor that was written (the checksums protect bytes;
what an index calls them, nothing protects).
"""

import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import google_crc32c
import numpy as np

from kakao_models.conversion import bundle, sstable
from kakao_models.conversion.tensorflow import open_checkpoint
from kakao_models.files.wire import CheckpointError

CHECKPOINTS = Path(__file__).parent.parent / "golden" / "checkpoints"
NAMES = ("vit_nano_backbone_weights", "vit_nano_ckpt", "vit_nano_model_weights", "vit_nano_adamw_ckpt")
NUMBERS = (0, 1, 2, 127, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@dataclass(frozen=True)
class Original:
    files: dict[str, bytes]  # by what is left of the name: checkpoint, index, data
    names: dict[str, str]
    tensors: dict[str, bytes]


@cache
def original(name: str) -> Original:
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    names = {"checkpoint": "checkpoint", "index": checkpoint.files[0].name, "data": checkpoint.files[1].name}
    files = {part: (CHECKPOINTS / name / file).read_bytes() for part, file in names.items()}
    return Original(files, names, {key: content(checkpoint.read(key)) for key in checkpoint.entries})


def content(tensor: np.ndarray) -> bytes:
    return b"".join(tensor.reshape(-1)) if tensor.dtype == object else tensor.tobytes()


def damage(data: bytes, rng: random.Random) -> bytes:
    """Another sequence of bytes."""
    if not data:
        return b"\0"
    at, size = rng.randrange(len(data)), rng.choice((1, 1, 4, 16, 300))
    noise = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    return rng.choice(
        (
            lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            lambda: data[:at] + noise + data[at + size :],
            lambda: data[:at],
            lambda: data[:at] + data[at + size :],
            lambda: data[:at] + noise + data[at:],
            lambda: data[:at] + data[at : at + size] + data[at:],
            lambda: data[at:] + data[:at],
            lambda: data + noise,
        )
    )()


def damaged(source: Original, rng: random.Random) -> dict[str, bytes | None]:
    """Files, some with damage, one perhaps missing or of another checkpoint."""
    files: dict[str, bytes | None] = dict(source.files)
    part = rng.choice(("index", "index", "data", "data", "checkpoint"))
    match rng.randrange(20):
        case 0:
            files[part] = None
        case 1:
            files[part] = original(rng.choice(NAMES)).files[part]
        case kind:
            for _ in range(1 if kind < 16 else rng.randrange(1, 20)):
                files[part] = damage(files[part], rng)
    return files


def forged_index(source: Original, rng: random.Random) -> dict[str, bytes]:
    """Files whose index has right checksums, and lies."""
    pairs = list(sstable.read_table(source.files["index"]).items())
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(pairs))
        key, value = pairs[at]
        match rng.randrange(8):
            case 0:
                pairs[at] = key, damage(value, rng)
            case 1:
                pairs[at] = damage(key, rng), value
            case 2:
                pairs.insert(rng.randrange(len(pairs)), (key, value))
            case 3:
                del pairs[at]
            case 4:
                other = rng.randrange(len(pairs))
                pairs[at], pairs[other] = (key, pairs[other][1]), (pairs[other][0], value)
            case _ if key:
                pairs[at] = key, lie(value, rng)
        if rng.random() < 0.5:
            pairs.sort()
        if not pairs:
            break
    return source.files | {"index": sstable.write_table(pairs)}


def lie(value: bytes, rng: random.Random) -> bytes:
    """The message of an entry that says something else."""
    try:
        entry = bundle.read_entry(value)
    except CheckpointError:
        return value
    number = rng.choice((*NUMBERS, entry.size, entry.offset, rng.randrange(1 << 20)))
    shape = [*entry.shape, number][:: rng.choice((1, -1))]
    lies = [{"shard": number}, {"offset": number}, {"size": number}, {"crc32c": number & 0xFFFFFFFF}, {"shape": shape}]
    lies += [{"shape": entry.shape[::-1]}, {"shape": [1] * 40}, {"shape": [0, number]}, {"size": 0, "shape": [0]}]
    lies += [{"dtype": rng.choice(("float64", "int32", "bfloat16", "string", "bool", "uint8"))}, {"dtype": "string"}]
    return bundle.entry_message(replace(entry, **rng.choice(lies)))


def forged_blocks(source: Original, rng: random.Random) -> dict[str, bytes]:
    """Files whose index has damage within a block, and right checksums again."""
    index = source.files["index"]
    size = len(index) - 48 - 3 * 5  # one block of entries, as small checkpoints have, and two more
    meta, _ = sstable._read_handle(index[-48:], 0)
    start, end = rng.choice(((0, meta[0] - 5), (meta[0], meta[0] + meta[1]), (meta[0] + meta[1] + 5, size + 10)))
    content = damage(index[start:end], rng)[: end - start].ljust(end - start, b"\0")
    kind = index[end : end + 1] if rng.random() < 0.9 else rng.choice((b"\1", b"\4", b"\xff"))
    crc = sstable.mask(google_crc32c.value(content + kind)).to_bytes(4, "little")
    return source.files | {"index": index[:start] + content + kind + crc + index[end + 5 :]}


def check(folder: Path, source: Original, forged: bool) -> str:
    """What reading came to: "refused" or "read". Raises AssertionError where neither is right."""
    try:
        checkpoint = open_checkpoint(folder)
        tensors = {}
        for key, entry in checkpoint.entries.items():
            tensor = checkpoint.read(key)
            assert tensor.shape == entry.shape, key
            tensors[key] = narrow(tensor) if entry.dtype == "bfloat16" else content(tensor)
    except CheckpointError as error:
        assert str(folder) in str(error), f"no file is named: {error}"
        return "refused"
    if forged:
        written = {*source.tensors.values(), b""}
        assert all(value in written for value in tensors.values())
    else:
        assert tensors == source.tensors
    return "read"


def narrow(tensor: np.ndarray) -> bytes:
    return (tensor.view("<u4") >> 16).astype("<u2").tobytes()


def fuzz(count: int, seed: int, folder: Path) -> Counter:
    """Tries `count` mutations in `folder`: what they were → how many were refused, and how many read."""
    results: Counter = Counter()
    for number in range(seed, seed + count):
        rng = random.Random(number)
        source = original(rng.choice(NAMES))
        mutate = rng.choice((damaged, damaged, forged_index, forged_blocks))
        files = mutate(source, rng)
        for part, data in files.items():
            if data is None:
                (folder / source.names[part]).unlink(missing_ok=True)
            elif data is not source.files[part] or not (folder / source.names[part]).exists():
                (folder / source.names[part]).write_bytes(data)
        try:
            results[mutate.__name__, check(folder, source, forged=mutate is not damaged)] += 1
        except BaseException as error:
            error.add_note(f"mutation {number}, by {mutate.__name__}")
            raise
        for file in folder.iterdir():
            file.unlink()
    return results


def main(count: int = 10_000, seed: int = 0) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # what asks for more memory fails
    slowest, results = 0.0, Counter()
    folder = Path(tempfile.mkdtemp())
    try:
        for number in range(seed, seed + count):
            start = time.perf_counter()
            results += fuzz(1, number, folder)
            slowest = max(slowest, time.perf_counter() - start)
    finally:
        shutil.rmtree(folder)
    for (mutation, outcome), times in sorted(results.items()):
        print(f"{mutation:<14} {outcome:<8} {times:6}")
    print(f"slowest: {slowest:.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
