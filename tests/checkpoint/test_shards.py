"""Canonical arrays on disk."""

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from kakao_models.checkpoint import shards


def test_tensors_are_written_as_they_look_not_as_they_lie(tmp_path):
    arrays = {"transposed": np.arange(6.0).reshape(2, 3).T, "scalar": np.float32(3).reshape(())}
    shards.write_safetensors(tmp_path / "x.safetensors", arrays)
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        for key, array in arrays.items():
            assert file.get_tensor(key).shape == array.shape
            np.testing.assert_array_equal(file.get_tensor(key), array)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    shards.write_safetensors(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def full_disk(arrays, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(shards, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        shards.write_safetensors(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_full_disk_is_a_system_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OSError, match="model.safetensors can't be written.*No space left"):
        shards.write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(1, np.float32)})
