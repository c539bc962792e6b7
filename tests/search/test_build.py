"""Building: what is new is embedded, what is known is not, what is gone goes; interruptions leave no trace."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import image_tables
import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from kakao_models import Embedder
from kakao_models.data.shard import write_sample_shards
from kakao_models.data.writers import StoredSample, TarWriter
from kakao_models.samples.sources import open_source
from kakao_models.search import SearchIndex, compose_query, hit_picture

FUZZ = Path(__file__).parents[1] / "fuzz"


def rows_of(index):
    return {hit.id: (hit, vector) for hits, vectors in index.vectors() for hit, vector in zip(hits, vectors)}


@pytest.fixture
def folder(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.fixture
def counting(embedder, monkeypatch):
    """How many images are decoded and embedded."""
    seen, features = [], embedder.engine.features
    monkeypatch.setattr(embedder.engine, "features", lambda values: seen.append(len(values)) or features(values))
    return seen


def test_rows_are_embeddings_by_the_hash_of_their_files(built, embedder, photos):
    wanted = [number for number in range(10) if number not in (3, 6)]
    paths = [photos / f"{number:03}.png" for number in wanted]
    vectors = embedder.images(paths, normalize=True)
    with SearchIndex.open(built, embedder) as index:
        rows = rows_of(index)
    assert len(rows) == 8
    for path, vector in zip(paths, vectors):
        hit, stored = rows[hashlib.sha256(path.read_bytes()).hexdigest()]
        np.testing.assert_allclose(stored, vector, atol=1e-6)
        assert (hit.path, hit.width, hit.height, hit.bytes) == (str(path), 60, 48, path.stat().st_size)
        assert hit.caption == ("a red dog" if path.stem == "000" else "")


def test_a_second_run_adds_what_is_new_alone(embedder, folder, tmp_path, counting):
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        counting.clear()
        first = index.build(folder)
        assert (first.added, first.duplicates, first.unchanged) == (8, 1, 0)
        assert (
            first.failures == [(str(folder / "003.png"), first.failures[0][1])]
            and "not an image" in first.failures[0][1]
        )
        assert first.seen == 10 and sum(counting) == 8
        counting.clear()
        tiny.picture(77).save(folder / "new.png")
        advanced = []
        again = index.build(folder, advance=advanced.append)
        assert (again.added, again.unchanged, again.duplicates, again.updated) == (1, 8, 1, 0)
        assert sum(counting) == 1 and sum(advanced) == 11 and index.count == 9


def test_moved_and_captioned_anew_without_embedding(embedder, folder, tmp_path, counting):
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        index.build(folder)
        before = rows_of(index)
        (folder / "sub").mkdir()
        (folder / "004.png").rename(folder / "sub" / "moved.png")
        (folder / "000.txt").write_text("another caption")
        counting.clear()
        done = index.build(folder)
        assert (done.added, done.updated, done.unchanged) == (0, 2, 6) and not counting
        after = rows_of(index)
    assert {hit.path for hit, _ in after.values()} >= {str(folder / "sub" / "moved.png")}
    assert "another caption" in {hit.caption for hit, _ in after.values()}
    assert all((after[key][1] == before[key][1]).all() for key in before) and len(after) == 8


def test_sync_removes_what_is_gone_and_keeps_what_can_not_be_read(embedder, folder, tmp_path):
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        index.build(folder)
        (folder / "004.png").unlink()
        (folder / "005.png").write_bytes(b"")  # cut short for the moment, say
        assert index.build(folder).removed == 0 and index.count == 8
        done = index.build(folder, sync=True)
        assert done.removed == 1 and index.count == 7
        assert str(folder / "005.png") in {hit.path for hit, _ in rows_of(index).values()}
        assert index.build(folder, sync=True).removed == 0


@pytest.mark.filterwarnings("ignore:.* can't be listed")
def test_sync_keeps_the_rows_of_a_folder_that_can_not_be_listed(embedder, folder, tmp_path, monkeypatch):
    (folder / "shut").mkdir()
    for name in ("004.png", "005.png"):
        (folder / name).rename(folder / "shut" / name)
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        index.build(folder)
        pictures.shut(monkeypatch, folder / "shut")
        (folder / "007.png").unlink()
        assert index.build(folder, sync=True).removed == 1 and index.count == 7


@pytest.mark.parametrize("counted", [False, True])
def test_sync_keeps_the_rows_of_a_damaged_tar(embedder, folder, tmp_path, counted):
    members = [(f"{number:03}.png", (folder / f"{number:03}.png").read_bytes()) for number in (0, 1, 2, 4)]
    path = Path(image_tables.write_tar(tmp_path / "a.tar", members))
    whole = path.read_bytes()
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "005.png", tmp_path / "other")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        index.build([path, tmp_path / "other"])
        before = index.count
        path.write_bytes(whole[: whole.rindex(b"004.png") + 100])
        if counted:  # as img2dataset does beside its tars
            (tmp_path / "a_stats.json").write_text('{"successes": 4}')
            done = index.build([path, tmp_path / "other"], sync=True)
            assert done.removed == 0 and "a.tar: damaged after 3 samples" in done.failures[0][1]
        else:
            with pytest.raises(ValueError, match="a.tar: damaged after 3 samples"):
                index.build([path, tmp_path / "other"], sync=True)
        assert index.count == before


def test_columns_of_a_table(embedder, photos, tmp_path):
    names = [f"{number:03}.png" for number in range(10) if number != 3]
    shutil.copytree(photos, tmp_path / "t")
    columns = {
        "image_path": [*names, "../secret.png"],
        "caption": [f"text {name}" for name in names] + [None],
        "id": np.arange(10) * 7,
        "score": [0.5] * 9 + [float("nan")],
        "taken": pa.array([1700000000] * 10, pa.timestamp("s")),
        "tags": [["a", "b"]] * 10,
        "sha256": ["their own"] * 10,
        "embedding": [[1.0, 2.0]] * 10,
    }
    tiny.picture(5).save(tmp_path / "secret.png")
    pq.write_table(pa.table(columns), tmp_path / "t" / "t.parquet", row_group_size=4)
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        done = index.build(tmp_path / "t" / "t.parquet")
        assert (done.added, done.duplicates) == (8, 1)
        assert len(done.failures) == 1 and "is outside of" in done.failures[0][1] and "--root" in done.failures[0][1]
        (hit,) = index.search(np.ones(16, np.float32), 9, filter="id == 14 and score > 0.4")
        assert hit.caption == "text 002.png" and hit.path == str(tmp_path / "t" / "002.png")
        assert hit.metadata == {
            "id": 14,
            "score": 0.5,
            "taken": "2023-11-14T22:13:20",
            "tags": ["a", "b"],
            "sha256_": "their own",
        }
        assert index.build(tmp_path / "t" / "t.parquet", roots=[tmp_path], columns=["id"]).updated == 8
        (hit,) = index.search(np.ones(16, np.float32), 9, filter="id == 14")
        assert hit.metadata == {"id": 14}
        assert index.count == 8  # the secret picture is 005.png once more


def test_links_do_not_lead_out_of_a_table_either(embedder, tmp_path):
    (tmp_path / "t").mkdir()
    tiny.picture(5).save(tmp_path / "secret.png")
    (tmp_path / "t" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "t" / "t.jsonl").write_text(json.dumps({"path": "link.png"}) + "\n")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        with pytest.raises(ValueError, match="is outside of"):
            index.build(tmp_path / "t" / "t.jsonl")


def test_pictures_within_tables_and_tars(embedder, photos, tmp_path):
    data = [(photos / f"{number:03}.png").read_bytes() for number in (0, 1, 2)]
    pq.write_table(pa.table({"image": data + [None, b"broken"], "text": list("abcde")}), tmp_path / "t.parquet")
    writer = TarWriter(tmp_path / "00000.tar")
    for number in (4, 5):
        content = (photos / f"{number:03}.png").read_bytes()
        writer.write(
            StoredSample(
                f"00000{number}", content, "png", (f"caption {number}",), (), {"url": "http://x/y", "w": number}
            )
        )
    writer.close()
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        done = index.build([tmp_path / "t.parquet", tmp_path / "00000.tar"])
        assert done.added == 5 and [reason for _, reason in done.failures][0] == "no image"
        rows = {hit.caption: hit for hit, _ in rows_of(index).values()}
    assert set(rows) == {"a", "b", "c", "caption 4", "caption 5"}
    assert rows["caption 5"].path == f"{tmp_path}/00000.tar::000005" and rows["caption 5"].metadata["w"] == 5
    assert rows["b"].path == f"{tmp_path}/t.parquet::1"
    for caption, number in (("b", 1), ("caption 5", 5)):
        assert hit_picture(rows[caption], roots=[tmp_path]).tobytes() == tiny.picture(number).tobytes()


def test_training_shards(embedder, photos, tmp_path):
    write_sample_shards(open_source(photos), tmp_path / "shards", per_shard=4)
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        assert index.build(tmp_path / "shards").added == 8


def test_texts(embedder, tmp_path):
    (tmp_path / "t.txt").write_text("a red dog\n\na blue sea\na red dog\nthe small house\n")
    pq.write_table(pa.table({"text": ["a cat", None, "a blue sea"], "lang": ["en"] * 3}), tmp_path / "t.parquet")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True, kind="texts") as index:
        done = index.build([tmp_path / "t.txt", tmp_path / "t.parquet"])
        assert (done.added, done.duplicates, len(done.failures)) == (4, 2, 1)
        best = index.search("a blue sea", 1)[0]
        assert best.caption == "a blue sea" and best.score > 0.99999
        assert best.id == hashlib.sha256(b"a blue sea").hexdigest()
        with pytest.raises(ValueError, match="no image has a .txt"):
            index.build(tiny.picture_folder(tmp_path / "p", 1)[0].parent)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda folder: folder, "has no samples"),
        (lambda folder: folder / "missing", "no such file or folder"),
        (lambda folder: [], "got no sources to index"),
    ],
)
def test_nothing_to_build(embedder, tmp_path, make, said):
    (tmp_path / "empty").mkdir()
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        with pytest.raises(ValueError, match=said):
            index.build(make(tmp_path / "empty"))


def test_nothing_readable_never_empties_an_index(embedder, folder, tmp_path):
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        index.build(folder)
        for path in folder.glob("*.png"):
            path.write_bytes(b"")
        with pytest.raises(ValueError, match="all 10 inputs failed"):
            index.build(folder, sync=True)
        assert index.count == 8


def test_files_that_are_no_files(embedder, folder, tmp_path):
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        reasons = {Path(name).name: reason for name, reason in index.build(folder).failures}
    assert reasons["pipe.png"] == "is not a regular file" and "no such file" in reasons["dangling.png"].lower()
    assert set(reasons) == {"pipe.png", "dangling.png", "003.png"}


def test_a_row_that_names_no_file_fails_alone(embedder, photos, tmp_path):
    shutil.copy(photos / "000.png", tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "t.csv").write_bytes(b"image\na.png\n\0.png\nloop/b.png\n")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        assert len(index.build(tmp_path / "t.csv").failures) == 2 and index.count == 1


def test_an_insertion_holds_whole_batches(embedder, photos, tmp_path, monkeypatch):
    """Batches of 3, 3 and 2 new images; at four rows they are inserted, all or none."""
    monkeypatch.setattr("kakao_models.search.build.INSERT", 4)
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        inserted, upsert = [], index.client.upsert
        monkeypatch.setattr(index.client, "upsert", lambda name, rows: inserted.append(len(rows)) or upsert(name, rows))
        assert index.build(photos).added == 8
    assert inserted == [6, 2]


def test_an_interrupted_build_keeps_what_it_embedded(embedder, photos, tmp_path, counting):
    def interrupt(images):
        raise KeyboardInterrupt

    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        with pytest.raises(KeyboardInterrupt):
            index.build(photos, advance=lambda images: sum(counting) >= 3 and interrupt(images))
        kept = index.count
        assert 0 < kept < 8
        assert index.build(photos).added == 8 - kept


def test_names_that_are_no_utf8(embedder, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(photos / "000.png", folder / name)
    shutil.copy(photos / "001.png", folder / r"kept \udce9 as it is.png")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        assert index.build(folder).added == 2 and index.build(folder, sync=True).unchanged == 2
        hits = index.search(np.ones(16, np.float32), 2)
    assert {Path(hit.path).name for hit in hits} == {r"caf\udce9.png", r"kept \udce9 as it is.png"}
    found = {Path(hit.path).name[0]: hit_picture(hit, roots=[folder]).tobytes() for hit in hits}
    assert found == {"c": tiny.picture(0).tobytes(), "k": tiny.picture(1).tobytes()}


def test_texts_without_a_usable_embedding(embedder, tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("a red dog\na blue sea\nthe small house\na cat\n")
    texts = embedder.engine.texts

    def broken(*arguments):
        rows = texts(*arguments)
        rows[1], rows[2] = np.nan, 0
        return rows

    with SearchIndex.open(tmp_path / "x.db", embedder, create=True, kind="texts") as index:
        monkeypatch.setattr(embedder.engine, "texts", broken)
        done = index.build(tmp_path / "t.txt")
        assert done.added == 2 and len(done.failures) == 2 and index.count == 2
    assert all("its embedding is not finite, or all zeros" in reason for _, reason in done.failures)


def test_batches_are_those_of_the_sources_whatever_is_there(embedder, photos, tmp_path, counting):
    """Parts of four: 000 to 003 (broken), 004 to 007 (006 is 001), 008 and 009."""
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        counting.clear()
        index.build(photos)
        assert counting == [3, 3, 2] and embedder.failures == []
        whole = rows_of(index)
        second = [key for key, (hit, _) in whole.items() if Path(hit.path).stem in ("004", "005", "007")]
        index.delete(second)
        counting.clear()
        index.build(photos)
        assert counting == [3]  # the same batch, and so the same bits
        assert all((vector == whole[key][1]).all() for key, (_, vector) in rows_of(index).items())


def test_a_vit_searches_by_images(photos, tmp_path):
    vit = Embedder(tiny.vit_folder(tmp_path / "vit"), batch_size=4)
    with SearchIndex.open(tmp_path / "x.db", vit, create=True) as index:
        assert index.build(photos).added == 8
        best = index.search(compose_query(vit, image=photos / "004.png"), 1)[0]
        assert best.path == str(photos / "004.png") and best.score > 0.9999
        with pytest.raises(ValueError, match="has no text tower"):
            index.search("a dog")


def test_columns_that_are_too_much(embedder, photos, tmp_path):
    data = [(photos / "000.png").read_bytes(), (photos / "001.png").read_bytes()]
    columns = {"image": data, "long": ["x" * 70_000, "y"], "text": ["é" * 70_000, "b"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        done = index.build(tmp_path / "t.parquet")
        assert done.added == 1 and "choose fewer with --columns" in done.failures[0][1]
        with pytest.warns(UserWarning, match="columns: no row has 'other', so the index lacks it"):
            assert index.build(tmp_path / "t.parquet", columns=["other"]).added == 1
        captions = sorted(len(hit.caption.encode()) for hit, _ in rows_of(index).values())
    assert captions == [1, 65_534]  # cut between letters


def test_kills_leave_no_trace():
    """A few of tests/fuzz/kill_index.py, in a process of its own: gRPC does not survive its forks here."""
    ran = subprocess.run([sys.executable, FUZZ / "kill_index.py", "3", "1"], capture_output=True, text=True)
    assert ran.returncode == 0 and "each as one run makes it" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed runs are forks")
def test_readers_beside_writers_that_are_killed():
    """One kill of tests/fuzz/kill_search.py."""
    ran = subprocess.run([sys.executable, FUZZ / "kill_search.py", "1", "1"], capture_output=True, text=True)
    assert ran.returncode == 0 and "1 of 1 kills" in ran.stderr, ran.stderr[-3000:]
    assert re.search(
        r"^1 kills over \d+ databases; [1-9]\d* answers of 8 readers, .* committed state; \d+ s$", ran.stdout
    )
