"""Canonical arrays on disk."""

import gc
import hashlib
import resource
import sys
import weakref

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from kakao_models.checkpoint import shards
from kakao_models.checkpoint.shards import array_kind, bytes_of
from kakao_models.checkpoint.tensors import LazyTensors
from kakao_models.files.mapped import forget_pages


def test_tensors_are_written_as_they_look_not_as_they_lie(tmp_path):
    arrays = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.float32(3).reshape(()),
        "big-endian": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 4), np.float32),
    }
    shards.write_safetensors(tmp_path / "x.safetensors", arrays)
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        for key, array in arrays.items():
            assert file.get_tensor(key).shape == array.shape
            np.testing.assert_array_equal(file.get_tensor(key), array)


def test_files_have_the_bytes_that_safetensors_writes(tmp_path):
    random = np.random.default_rng(0)
    arrays = {f"layer.{i}.é": random.standard_normal((i, 3)).astype(np.float32) for i in range(1, 12)}
    arrays |= {"wide": np.arange(5.0), "half": np.ones(3, np.float16), "byte": np.arange(7, dtype=np.uint8)}
    written = shards.write_safetensors(tmp_path / "ours.safetensors", arrays)
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "ours.safetensors").read_bytes()
    assert content == (tmp_path / "theirs.safetensors").read_bytes()
    assert written.files == {"ours.safetensors": hashlib.sha256(content).hexdigest()}
    assert written.tensors == {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}


def test_one_tensor_at_a_time_is_held(tmp_path):
    alive, most = set(), []

    def read(number: int) -> np.ndarray:
        array = np.full((50, 2), number, np.float32)
        alive.add(number)
        weakref.finalize(array, alive.discard, number)
        most.append(len(alive))
        return array

    entries = {f"t{number:02}": ((50, 2), lambda number=number: read(number)) for number in range(20)}
    written = shards.write_shards(tmp_path, LazyTensors(entries), 1000)
    gc.collect()
    assert max(most) == 1 and len(written.files) == 10 and len(written.tensors) == 20
    assert all(np.array_equal(array, np.full((50, 2), int(key[1:]))) for key, array in shards.read_tensors(tmp_path))


def test_only_older_weights_are_removed(tmp_path):
    others = {"model.fp16.safetensors", "model_ema.safetensors", "model-best.safetensors", "pytorch_model.bin"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    tensors = LazyTensors({name: ((50, 2), lambda: np.zeros((50, 2), np.float32)) for name in "abc"})
    for most, names in (
        (1000, {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}),
        (10_000, set()),
    ):
        shards.write_shards(tmp_path, tensors, most)
        written = names | ({"model.safetensors.index.json"} if names else {"model.safetensors"})
        assert {path.name for path in tmp_path.iterdir()} == others | written
    shards.write_shards(tmp_path, tensors, 400)
    assert {path.name for path in tmp_path.glob("*0003.safetensors")} == {
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    }
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("array", [np.zeros((3, 2), np.float32), np.zeros((2, 3)), np.zeros((2, 3), np.float16)])
def test_a_tensor_that_is_not_what_it_said_is_refused(array, tmp_path):
    with pytest.raises(ValueError, match="a: got .*, expected float32"):
        shards.write_safetensors(tmp_path / "x.safetensors", LazyTensors({"a": ((2, 3), lambda: array)}))
    with pytest.raises(ValueError, match="dtype complex128, expected one of"):
        shards.write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(3, complex)})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    shards.write_safetensors(path, {"a": np.ones(3)})
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # what the system says of a file that can't grow
    try:
        with pytest.raises(OSError, match="model.safetensors can't be written: File too large"):
            shards.write_safetensors(path, {"a": np.zeros(1000), "b": np.zeros(10)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_bytes_are_a_view_where_they_can_be():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(bytes_of(array), array) and bytes_of(array.T).tobytes() == array.T.tobytes()
    assert array_kind(array) == ("float32", (2, 3))


def in_memory(name: str) -> int:
    """KiB of a mapped file that this process holds."""
    with open("/proc/self/smaps") as file:
        lines = file.read().splitlines()
    starts = [number for number, line in enumerate(lines) if line.endswith(name)]
    return sum(int(line.split()[1]) for start in starts for line in lines[start : start + 6] if line.startswith("Rss:"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages stay until the file is closed")
def test_pages_are_forgotten_and_read_again(tmp_path):
    path = tmp_path / "forgotten.safetensors"
    values = np.arange(1 << 20, dtype=np.float32)
    shards.write_safetensors(path, {"a": values})
    with safe_open(path, "pt") as file:
        tensor = file.get_tensor("a")
    assert torch.equal(tensor, torch.from_numpy(values)) and in_memory(path.name) > 4000
    forget_pages([tmp_path / "other"])
    assert in_memory(path.name) > 4000
    forget_pages([path])
    assert in_memory(path.name) == 0
    assert torch.equal(tensor, torch.from_numpy(values))
