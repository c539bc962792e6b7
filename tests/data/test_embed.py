"""Embeddings of tables: what the Embedder says, whatever happens on the way."""

import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from fuzz import kill_embed

from kakao_models import Embedder
from kakao_models.cli import main
from kakao_models.data.download import Download, download
from kakao_models.data.embed import Settings, embed_table
from kakao_models.data.shard import write_sample_shards
from kakao_models.samples.manifest import verify_manifest
from kakao_models.samples.sources import open_source


@pytest.fixture(scope="module")
def embedder(align):
    return Embedder(align, batch_size=4, num_workers=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ten rows of pictures beside the table; the fourth is broken, the sixth has no text."""
    folder = tmp_path_factory.mktemp("table")
    names = [path.name for path in tiny.picture_folder(folder, 10)]
    (folder / names[3]).write_bytes(b"no picture")
    texts = [f"a {word} cat" for word in tiny.WORDS[:10]]
    texts[5] = None
    columns = {"id": np.arange(10) * 11, "path": names, "text": texts}
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=3)
    return folder / "t.parquet"


def read(folder):
    return pq.read_table(sorted(map(str, folder.glob("*.parquet"))))


def test_images_texts_and_scores(embedder, table, tmp_path):
    pictures = [table.parent / f"{n:03}.png" for n in range(10)]
    texts = pq.read_table(table)["text"].to_pylist()
    manifest = embed_table(embedder, table, tmp_path / "i", Settings("images", 4, "float16"))
    found = read(tmp_path / "i")
    kept = [n for n in range(10) if n != 3]
    assert found["id"].to_pylist() == [n * 11 for n in kept] and [x["name"] for x in manifest["failures"]] == ["33"]
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 4, 2]
    wanted = embedder.images([pictures[n] for n in kept])
    assert found["embedding"].type == pa.list_(pa.float16(), 16)
    np.testing.assert_allclose(np.stack(found["embedding"].to_pylist()), wanted, rtol=2e-3, atol=1e-3)
    embed_table(embedder, table, tmp_path / "t", Settings("texts", 4, normalize=True))
    found = read(tmp_path / "t")
    assert found["id"].to_pylist() == [n * 11 for n in range(10) if n != 5]
    wanted_texts = embedder.texts([text for text in texts if text], normalize=True)
    np.testing.assert_allclose(np.stack(found["embedding"].to_pylist()), wanted_texts, atol=1e-6)
    manifest = embed_table(embedder, table, tmp_path / "s", Settings("score", 100))
    both = [n for n in range(10) if n not in (3, 5)]
    image, text = embedder.images([pictures[n] for n in both]), embedder.texts([texts[n] for n in both])
    cosine = np.diag(embedder.similarity(image, text))
    found = read(tmp_path / "s")
    assert found["id"].to_pylist() == [n * 11 for n in both]
    np.testing.assert_allclose(found["align_score"].to_numpy(), cosine, atol=1e-6)
    assert manifest["failures"][1] == {"name": "55", "reason": "no text"}
    assert verify_manifest(tmp_path / "s", decode=True) == []


def test_other_sources(embedder, table, tmp_path):
    pictures = tiny.picture_folder(tmp_path / "folder", 5)
    for path in pictures:
        path.with_suffix(".txt").write_text(f"a {path.stem} cat")
    wanted = embedder.images(pictures)
    write_sample_shards(open_source(tmp_path / "folder"), tmp_path / "tars", per_shard=3)
    (tmp_path / "t.csv").write_text("path,text\n" + "\n".join(f"folder/{path.name},x" for path in pictures))
    ids = {}
    for source in ("folder", "tars", "t.csv"):
        embed_table(embedder, tmp_path / source, tmp_path / f"of-{source}", Settings(per_shard=4))
        found = read(tmp_path / f"of-{source}")
        ids[source] = found["id"].to_pylist()
        np.testing.assert_allclose(np.stack(found["embedding"].to_pylist()), wanted, atol=1e-5)
    assert ids["folder"] == [path.name for path in pictures] and ids["t.csv"] == [0, 1, 2, 3, 4]
    assert len(set(ids["tars"])) == 5


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are UTF-8 there")
def test_files_whose_names_are_not_utf8(embedder, tmp_path):
    folder = tmp_path / "folder"
    tiny.picture_folder(folder, 1)
    os.replace(folder / "000.png", os.fsencode(folder) + b"/a\xff.png")
    with open(os.fsencode(folder) + b"/b\xfe.png", "wb") as broken:
        broken.write(b"no picture")
    reasons = [write_sample_shards(open_source(folder), tmp_path / "tars")["failures"]]
    reasons.append(embed_table(embedder, folder, tmp_path / "rows", Settings("images", 4))["failures"])
    assert [[failure["name"] for failure in failures] for failures in reasons] == [["b\\xfe.png"]] * 2
    assert read(tmp_path / "rows")["id"].to_pylist() == ["a\\xff.png"]


def test_ranks_share_the_work(embedder, table, tmp_path):
    embed_table(embedder, table, tmp_path / "one", Settings("texts", 2))
    results = [
        embed_table(embedder, table, tmp_path / "three", Settings("texts", 2), rank=rank, world_size=3)
        for rank in (2, 0, 1)
    ]
    assert results[:2] == [None, None] and results[2]["rows"] == 9
    for path in (tmp_path / "one").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "three" / path.name).read_bytes()


def test_a_folder_is_not_continued_with_something_else(embedder, table, tmp_path):
    embed_table(embedder, table, tmp_path / "out", Settings("texts", 4), model="a")
    with pytest.raises(ValueError, match="model was 'a', is 'b'"):
        embed_table(embedder, table, tmp_path / "out", Settings("texts", 4), model="b")
    with pytest.raises(ValueError, match="per_shard was 4, is 5"):
        embed_table(embedder, table, tmp_path / "out", Settings("texts", 5), model="a")
    with pytest.raises(ValueError, match="computed was None, is 'bfloat16'"):
        embed_table(embedder, table, tmp_path / "out", Settings("texts", 4, computed="bfloat16"), model="a")
    with pytest.raises(FileExistsError, match="so this command did not make it"):
        embed_table(embedder, table, table.parent, Settings("texts", 4))

    def never():
        raise AssertionError("there is nothing to do")

    embed_table(never, table, tmp_path / "out", Settings("texts", 4), model="a")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_runs_end_with_the_same_rows(tmp_path):
    assert kill_embed.trial(tmp_path, 12, seed=1) >= 2


def test_the_command(align, table, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "embed", str(table), "-o", str(tmp_path / "out"), "--model", align, "--what", "score", "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and json.loads(out)["rows"] == 8 and "failed: 33" in err


def test_half_of_a_character_ends_no_run(embedder, tmp_path):
    """JSON can hold the half of a character, and no file of text."""
    row = {"id": "a\ud83d", "url": "ftp://x/\ud83d.jpg", "text": "half \ud83d", "label": "c\ud83d"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    embed_table(embedder, tmp_path / "t.jsonl", tmp_path / "out", Settings("texts"))
    assert read(tmp_path / "out")["id"].to_pylist() == ["a\\ud83d"]
    assert download(tmp_path / "t.jsonl", tmp_path / "tars", Download(retries=0)).rows == 1
