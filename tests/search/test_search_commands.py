"""The commands index and search, as from a shell."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from kakao_models.inference.output import write_embeddings
from kakao_models.inference.relevance import Relevance
from kakao_models.search import SearchIndex

LITE_2 = Path(__file__).parent / "milvus-lite-2" / "photos.db"


def test_from_pictures_to_results(model, photos, tmp_path, command):
    where, photos = tmp_path / "x.db", shutil.copytree(photos, tmp_path / "photos")
    build = ("index", "build", photos, "--to", where, "--model", model)
    (photos / "raw.cr2").touch()
    code, out, err = command(*build)
    assert code == 1 and "8 rows; 8 added" in out and f"failed: {photos}/003.png: " in err
    assert err.count("raw.cr2") == 1  # a warning, although the folder is listed twice
    (photos / "003.png").unlink()
    code, out, _ = command(*build, "--sync", "--json")
    said = json.loads(out)
    assert code == 0 and (said["rows"], said["added"], said["unchanged"], said["failures"]) == (8, 0, 8, [])

    search = ("search", "--index", where)
    code, out, _ = command(*search, "a dog", "--image", photos / "001.png", "--minus", "a cat", "-k", 3, "--json")
    hits = json.loads(out)
    assert code == 0 and len(hits) == 3 and hits[0]["score"] >= hits[1]["score"]
    code, out, _ = command(*search, "--image", photos / "002.png", "--weight", "image=3", "-k", 1, "--json")
    assert json.loads(out)[0]["path"] == str(photos / "002.png") and json.loads(out)[0]["score"] > 0.9999
    page = tmp_path / "p.html"
    code, out, err = command(*search, "dog", "--filter", 'caption like "%dog%"', "--html", page, "--root", photos)
    assert code == 0 and "000.png" in out and "a red dog" in out and "1 of 1 images" in err
    assert page.read_text().count("data:image/jpeg") == 1 and not list(tmp_path.glob(".*"))
    code, out, _ = command(*search, "dog", "--filter", "width > 9999", "--json")
    assert (code, json.loads(out)) == (0, [])
    code, out, err = command(*search, "dog " * 10_000, "-k", 1, "--json")
    assert code == 0 and len(json.loads(out)) == 1 and "is longer than 64 tokens" in err

    code, out, _ = command("index", "info", "--index", where, "--json")
    assert code == 0 and json.loads(out)["rows"] == 8 and json.loads(out)["model"] == model
    code, out, _ = command("index", "info", "--index", where)
    assert "rows           8" in out
    code, out, _ = command("index", "duplicates", "--index", where, "--min-score", -0.0)
    assert code == 2
    code, out, _ = command("index", "duplicates", "--index", where, "--min-score", 0.001, "--filter", "width > 0")
    assert code == 0 and out.endswith(" groups of 8 rows\n")
    code, out, _ = command("index", "duplicates", "--index", where, "--min-score", 1.0, "--json")
    assert (code, json.loads(out)) == (0, [])
    code, out, _ = command("index", "delete", hits[0]["id"], "--index", where)
    assert code == 0 and "1 removed, 7 left" in out
    code, out, _ = command("index", "delete", "--filter", "width > 0", "--index", where, "--json")
    assert json.loads(out)["removed"] == 7
    code, out, _ = command("index", "delete", "--all", "--index", where)
    assert code == 0
    code, _, err = command(*search, "dog")
    assert code == 2 and "no collection 'images'" in err


def test_texts_and_stored_embeddings(model, tmp_path, command):
    (tmp_path / "t.txt").write_text("a red dog\na blue sea\n")
    where = ("--to", tmp_path / "t.db", "--what", "texts")
    code, out, _ = command("index", "build", tmp_path / "t.txt", *where, "--model", model)
    assert code == 0 and "2 added" in out
    code, out, _ = command("search", "a blue sea", "--index", tmp_path / "t.db", "-k", 1)
    assert "a blue sea" in out and "1.0000" in out
    code, out, _ = command("index", "load", LITE_2, "--to", tmp_path / "n.db", "--model", model, "--json")
    assert code == 0 and json.loads(out) == {"index": str(tmp_path / "n.db"), "rows": 4, "loaded": 4}
    write_embeddings(tmp_path / "e.npy", ["x.png"], np.ones((1, 16), np.float32))
    files = ("search", "a blue sea", "--index", tmp_path / "e.npy", "--json")
    code, out, _ = command(*files, "--model", model)
    assert code == 0 and [hit["path"] for hit in json.loads(out)] == ["x.png"]
    code, _, err = command(*files)
    assert code == 2 and "name the model of its embeddings: add --model" in re.sub(r"[│\s]+", " ", err)


def test_nothing_is_found_where_nothing_fits(built, embedder, photos, tmp_path, command):
    with SearchIndex.open(built, embedder) as index:
        scores = [hit.score for hit in index.search("a dog", 8)]
    search, mine = ("search", "a dog", "--index", built, "--engine", "torch", "--json"), tmp_path / "mine.json"
    Relevance((-1.0, 1.0), (0.0, 1.0)).write(mine)
    least = (1 + scores[2]) / 2
    code, out, _ = command(*search, "--calibration", mine, "--min-relevance", least - 1e-9)
    hits = json.loads(out)
    assert code == 0 and len(hits) == 3
    assert [hit["relevance"] for hit in hits] == pytest.approx([(1 + score) / 2 for score in scores[:3]])
    code, out, err = command(*search, "--calibration", mine, "--min-relevance", 1)
    assert (
        code == 0
        and json.loads(out) == []
        and f"nothing fits: the best match has a relevance of {(1 + scores[0]) / 2:.1%}" in err
    )
    guaranteed = {"coverage": {"0.9": scores[2]}, "precision": {"0.5": 1.0}}
    Relevance((-1.0, 1.0), (0.0, 1.0), guarantees=guaranteed).write(mine)
    code, out, _ = command(*search, "--calibration", mine, "--min-relevance", "coverage=0.9")
    assert code == 0 and len(json.loads(out)) == 3
    code, out, err = command(*search, "--calibration", mine, "--min-relevance", "precision=0.5")
    assert code == 0 and json.loads(out) == [] and "--min-relevance is precision=0.5" in err
    code, _, err = command(*search, "--calibration", mine, "--min-relevance", "recall=0.5")
    assert code == 2 and "or a guarantee: coverage=0.9 or precision=0.5" in re.sub(r"[│\s]+", " ", err)
    code, out, _ = command(*search[:-1], "--calibration", mine, "--min-relevance", 0)
    assert code == 0 and "relevance" in out.splitlines()[0]
    code, out, err = command(*search, "--min-relevance", 0.5)
    assert code == 2 and not out and "has no calibration" in err and "kakao-models evaluate relevance" in err
    code, _, err = command(*search, "--image", photos / "001.png", "--calibration", mine, "--min-relevance", 0.5)
    assert code == 2 and "needs a query of only texts" in re.sub(r"[│\s]+", " ", err)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("search", "-k", "3"), "nothing to search for"),
        (("search", "x", "--weight", "sound=2"), "expected text=NUMBER"),
        (("search", "x", "--weight", "text=many"), "expected text=NUMBER"),
        (("search", "x", "--search-params", "[1]"), "expected a JSON object"),
        (("search", "x", "--search-params", "{"), "not valid JSON"),
        (("search", "x", "--html", "no/such/folder/x.html"), "a folder that exists"),
        (("search", "x", "--html", "/dev/null/x.html"), "a folder that exists"),
        (("search", "x", "--index", "missing.db"), "no such index. Build it: kakao-models index build"),
        (("search", "x", "--index", "missing.index"), "ends in .db"),
        (("index", "delete", "--json"), "give ids, a --filter, or --all"),
        (("index", "info", "--index", LITE_2), "Milvus Lite 2.*index load"),
        (("index", "build", "missing/", "--model", "MODEL"), "no such file or folder"),
        (("index", "build", ".", "--model", "MODEL"), "has no samples"),
        (("index", "build", ".", "--model", "MODEL", "--index-params", "x"), "not valid JSON"),
    ],
)
def test_what_a_user_gets_wrong(model, tmp_path, command, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*(model if argument == "MODEL" else argument for argument in arguments))
    assert code == 2 and not out
    assert re.search(said, re.sub(r"[│\s]+", " ", err)), err
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused(built, model, tmp_path, command):
    other = tiny.align_folder(tmp_path / "other", seed=1)
    code, _, err = command("search", "a dog", "--index", built, "--model", other)
    assert code == 2 and f"holds embeddings of {model}" in err and str(other) in err
