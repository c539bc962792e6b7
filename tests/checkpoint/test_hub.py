"""Checkpoints as folders."""

import numpy as np
import pytest
from safetensors import safe_open

from kakao_models.checkpoint import hub


def test_a_bundled_checkpoint_goes_by_its_name(tmp_path, monkeypatch):
    assert "align-tiny" in hub.bundled_checkpoints()
    assert hub.resolve("align-tiny") == str(hub.BUNDLED / "align-tiny")
    assert hub.resolve("kakaobrain/align-base") == "kakaobrain/align-base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "align-tiny").mkdir()
    assert hub.resolve("align-tiny") == "align-tiny"  # a folder of that name wins
    assert hub.resolve(tmp_path) == str(tmp_path)


def test_tensors_are_written_as_they_look_not_as_they_lie(tmp_path):
    arrays = {"transposed": np.arange(6.0).reshape(2, 3).T, "scalar": np.float32(3).reshape(())}
    hub.write_safetensors(tmp_path / "x.safetensors", arrays)
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        for key, array in arrays.items():
            assert file.get_tensor(key).shape == array.shape
            np.testing.assert_array_equal(file.get_tensor(key), array)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    hub.write_safetensors(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def full_disk(arrays, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(hub, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        hub.write_safetensors(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
