import json
import os
import subprocess
import sys

import numpy as np
import pytest

from kakao_models.inference.output import check_format, print_scores, scores_as_json, write_embeddings

ODD = "caf\udce9.png"  # how Python holds a file name in Latin-1


def test_names_never_stand_beside_other_rows(tmp_path, monkeypatch):
    """The array can't be written, as on a full disk: the files of an earlier run stay, both."""
    path, rows = tmp_path / "out.npy", np.ones((2, 3), np.float32)
    write_embeddings(path, ["a", "b"], rows)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(file, array):
        raise OSError("24 requested and 8 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"^\S*out\.npy can't be written: 24 requested"):
        write_embeddings(path, ["c", "d"], rows)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_killed_between_its_two_files_no_names_stand_beside_other_rows(tmp_path, monkeypatch):
    path, rows = tmp_path / "out.npy", np.ones((2, 3), np.float32)
    write_embeddings(path, ["a", "b"], rows)
    replace, done = os.replace, []

    def killed(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(replace(source, target))

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_embeddings(path, ["c", "d"], 2 * rows)
    assert [file.name for file in tmp_path.iterdir()] == ["out.npy"] and (np.load(path) == 2).all()


def test_what_a_killed_process_left_is_cleared(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left, running, other = (
        tmp_path / f".{name}.tmp" for name in (f"out.npy.{gone.stdout.strip()}", f"out.npy.{os.getppid()}", "out.npy.x")
    )
    for file in (left, running, other):
        file.touch()
    write_embeddings(tmp_path / "out.npy", ["a"], np.ones((1, 3), np.float32))
    assert {file.name for file in tmp_path.iterdir()} == {"out.npy", "out.names.json", running.name, other.name}


def test_a_file_name_that_is_not_in_utf8_loses_nothing(tmp_path, capsys):
    rows = np.ones((2, 3), np.float32)
    write_embeddings(tmp_path / "out.npy", [ODD, "고양이"], rows)
    assert json.loads((tmp_path / "out.names.json").read_text(encoding="utf-8")) == [ODD, "고양이"]
    scores = [{"score": 1.0, "label": "cat"}]
    assert json.loads(scores_as_json([ODD], [scores], []).encode())[0]["image"] == ODD
    print_scores([ODD], [scores])
    assert "caf\\udce9.png" in capsys.readouterr().out


def test_a_file_name_that_is_not_in_utf8_in_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_embeddings(tmp_path / "out.parquet", [ODD], np.ones((1, 3), np.float32))
    assert parquet.read_table(tmp_path / "out.parquet")["name"].to_pylist() == ["caf\\xe9.png"]


def test_labels_are_printed_as_they_are(capsys):
    print_scores(["x:cat:.png"], [[{"score": 0.5, "label": ":dog: [red]"}]])
    assert "x:cat:.png" in (out := capsys.readouterr().out) and ":dog: [red] 50.0%" in out


def test_a_folder_is_no_place_for_an_array(tmp_path):
    (tmp_path / "out.npy").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_format(tmp_path / "out.npy")
