"""Every filter against plain Python on random tables with nulls, NaN, unicode, huge texts and doubles."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from tables_brute import kept, random_table, write_table

from kakao_models.data.curate import curate
from kakao_models.data.neighbours import perceptual_hash, read_hashes
from kakao_models.data.recipes import RECIPES, make_filter, parse_flag, read_recipe
from kakao_models.samples.tables import connect, open_table

FLAGS = (
    *(
        "size",
        "size:min=200,strict=true",
        "aspect",
        "aspect:max=3,strict=true",
        "aspect:max=1.5",
        "nsfw",
        "nsfw:max=0.45",
    ),
    *("words", "words:min=2,max=4", "unigrams", "unigrams:min=1,max=3", "length", "watermark", "aesthetic:min=4.5"),
    *("clip-b32", "clip-l14:min=0.1,max=0.3", "faces", "faces:min=1,max=2", "range:column=num_faces,min=2"),
    *("text-frequency", "text-frequency:max=3", "images-per-text:max=2", "texts-per-image:max=3"),
    *("texts-per-image:max=4,image=url", "dedup", "dedup:columns=text", "dedup:columns=url+text+num_faces"),
    *("rare-tokens:top=20", "rare-tokens:top=1", "rare-tokens"),
)


def ids(folder):
    return sorted(pq.read_table(folder, columns=["id"])["id"].to_pylist())


@pytest.fixture(scope="module")
def duckdb():
    return connect(threads=1)


@pytest.fixture(scope="module")
def hashes(tmp_path_factory):
    path = tmp_path_factory.mktemp("hashes") / "eval.txt"
    found = random_table(0).image_phash.dropna().unique()
    path.write_text("\n".join(found[::70]))
    return path


@pytest.mark.parametrize("seed", [0, 1])
def test_each_filter_is_what_plain_python_says(duckdb, hashes, tmp_path, seed):
    frame = random_table(seed)
    table = open_table(duckdb, write_table(frame, tmp_path / "t.parquet"))
    flags = FLAGS + tuple(f"eval-hashes:bits={bits},file={hashes}" for bits in (0, 1, 3, 6))
    selective = 0
    for number, flag in enumerate(flags):
        item = parse_flag(flag)
        account = curate(duckdb, table, [item], tmp_path / str(number))
        wanted = sorted(kept(item.kind.name, frame, frame, item.parameters))
        assert ids(tmp_path / str(number)) == wanted, flag
        (step,) = account.steps
        assert (account.rows, step.kept, step.dropped) == (len(frame), len(wanted), len(frame) - len(wanted))
        selective += 0 < len(wanted) < len(frame)
    assert selective >= len(flags) - 6  # so few keep all or nothing that a filter without effect would be seen


def brute(frame, filters):
    counts, table = [len(frame)], frame
    for item in filters:
        table = table[table.id.isin(kept(item.kind.name, table, frame, item.parameters))]
        counts.append(len(table))
    return sorted(table.id), counts


RECIPE = (
    *("watermark:max=0.9", "text-frequency:max=50", "aspect:max=4", "length:min=2,max=5000", "dedup"),
    *("images-per-text:max=15", "texts-per-image:max=12", "rare-tokens:top=120", "unigrams:min=1,max=6"),
)


def test_filters_one_after_another(duckdb, hashes, tmp_path):
    frame = random_table(5, 1500)
    source = write_table(frame, tmp_path / "t.parquet")
    filters = [parse_flag(flag) for flag in (*RECIPE, f"eval-hashes:bits=2,file={hashes}")]
    account = curate(duckdb, open_table(duckdb, source), filters, tmp_path / "out")
    wanted, counts = brute(frame, filters)
    assert ids(tmp_path / "out") == wanted and len(wanted) > 8
    assert (account.rows, account.kept) == (counts[0], counts[-1])
    assert [step.kept for step in account.steps] == counts[1:]
    assert [step.dropped for step in account.steps] == [a - b for a, b in zip(counts, counts[1:])]
    assert all(step.dropped for step in account.steps)
    back = pq.read_table(tmp_path / "out").to_pandas().set_index("id").sort_index()
    original = frame.set_index("id").loc[back.index]
    assert list(back.columns) == list(original.columns)
    assert [x if x is None or x == x else None for x in original.text] == back.text.where(
        back.text.notna(), None
    ).tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.parquet"]  # nothing is left behind


def test_digests_may_drop_more_and_never_keep_more(duckdb, tmp_path):
    frame = random_table(2, 600)
    table = open_table(duckdb, write_table(frame, tmp_path / "t.parquet"))
    item = parse_flag("text-frequency:max=5")
    exact = set(kept("text-frequency", frame, frame, item.parameters))
    account = curate(duckdb, table, [item], tmp_path / "wide", digest_bits=64)
    assert set(ids(tmp_path / "wide")) == exact and "approximate" in str(account)
    crowd = frame.copy()
    crowd["text"] = [f"text {number}" for number in range(len(crowd))]  # all different: 600 texts in 65,536 digests
    crowded = open_table(duckdb, write_table(crowd, tmp_path / "c.parquet"))
    curate(duckdb, crowded, [parse_flag("text-frequency:max=1")], tmp_path / "narrow", digest_bits=16)
    left = set(ids(tmp_path / "narrow"))
    digest = crowded.select("id", digest=crowded.text.hash()).to_pandas().set_index("id").digest % 2**16
    assert left == set(digest.index[digest.map(digest.value_counts()) <= 1]) and 500 < len(left) < len(crowd)


def test_double_ids_have_one_answer(duckdb, tmp_path):
    frame = random_table(3, 200)
    frame["id"] = 7
    results = []
    for seed in range(3):
        shuffled = frame.sample(frac=1, random_state=seed)
        table = open_table(duckdb, write_table(shuffled, tmp_path / f"{seed}.parquet"))
        curate(duckdb, table, [parse_flag("dedup:columns=text")], tmp_path / f"out{seed}")
        rows = pq.read_table(tmp_path / f"out{seed}").to_pylist()
        results.append(sorted(map(repr, rows)))
    assert results[0] == results[1] == results[2]


def test_hashes_of_a_folder_of_pictures(duckdb, tmp_path):
    paths = tiny.picture_folder(tmp_path / "eval", 4)
    wave = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)  # (8, 32): the DCT, written out
    wanted = []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
        strong = wave @ pixels @ wave.T
        bits = "".join("1" if value > np.median(strong) else "0" for value in strong.reshape(-1))
        wanted.append(f"{int(bits, 2):016x}")
    assert read_hashes(tmp_path / "eval") == sorted(wanted) and len(set(wanted)) == 4
    same = perceptual_hash(Image.open(paths[0]).resize((90, 72)))
    assert (int(same, 16) ^ int(wanted[0], 16)).bit_count() <= 6
    rows = {"id": [1, 2, 3], "image_phash": [wanted[2].upper(), f"{int(wanted[0], 16) ^ (1 << 63):016x}", "0" * 16]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    table = open_table(duckdb, tmp_path / "t.parquet")
    curate(duckdb, table, [parse_flag(f"eval-hashes:file={tmp_path / 'eval'},bits=0")], tmp_path / "out")
    curate(duckdb, table, [parse_flag(f"eval-hashes:file={tmp_path / 'eval'},bits=1")], tmp_path / "out1")
    assert (ids(tmp_path / "out"), ids(tmp_path / "out1")) == ([2, 3], [3])


def test_near_embeddings(duckdb, tmp_path):
    draw = np.random.default_rng(0)
    theirs = draw.normal(size=(5, 8)).astype(np.float32)
    ours = draw.normal(size=(300, 8)).astype(np.float32)
    ours[::3] = theirs[draw.integers(0, 5, 100)] + draw.normal(size=(100, 8)) * 0.15
    ours *= draw.uniform(0.1, 9, (300, 1)).astype(np.float32)
    number = np.arange(300) * 5
    frame = random_table(1, 310)
    frame["id"] = np.concatenate([number, np.arange(10) + 5000])  # the last ten have no embedding
    embedded = pa.FixedSizeListArray.from_arrays(pa.array(ours.reshape(-1)), 8)
    pq.write_table(pa.table({"id": number, "embedding": embedded}), tmp_path / "e.parquet")
    np.save(tmp_path / "eval.npy", theirs)
    item = parse_flag(f"eval-embeddings:file={tmp_path / 'eval.npy'},embeddings={tmp_path / 'e.parquet'}")
    curate(duckdb, open_table(duckdb, write_table(frame, tmp_path / "t.parquet")), [item], tmp_path / "out")
    length = np.linalg.norm(ours, axis=1)[:, None] * np.linalg.norm(theirs, axis=1)
    near = ((ours.astype(np.float64) @ theirs.T) / length).max(1) > 0.975
    assert ids(tmp_path / "out") == sorted([*number[~near].tolist(), *range(5000, 5010)]) and 20 < near.sum() < 100


def test_text_formats_say_what_parquet_says(duckdb, tmp_path):
    frame = random_table(4, 150)
    frame = frame[frame.text != ""]  # which CSV cannot tell from nothing
    found = [None if text is None else f"000000000000{index:04d}" for index, text in enumerate(frame.text)]
    frame = frame.assign(image_phash=pd.Series(found, frame.index, dtype=object))
    write_table(frame, tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, force_ascii=False)
    filters = [parse_flag(flag) for flag in ("size", "length:min=1,max=9000", "dedup:columns=text", "clip-b32:min=0")]
    found = {}
    for kind in ("parquet", "csv", "jsonl"):
        curate(duckdb, open_table(duckdb, tmp_path / f"t.{kind}"), filters, tmp_path / kind)
        found[kind] = pq.read_table(tmp_path / kind, columns=["id", "text", "image_phash"]).sort_by("id").to_pylist()
    assert found["csv"] == found["parquet"] == found["jsonl"] and len(found["csv"]) > 10


def test_recipes(tmp_path):
    assert [item.kind.name for item in read_recipe("coyo")] == [flag.split(":")[0] for flag in RECIPES["coyo"]]
    path = tmp_path / "r.yaml"
    path.write_text("- size: {min: 300}\n- dedup: {columns: [url, text]}\n- text-frequency\n- faces:\n")
    assert [str(item) for item in read_recipe(path)] == [
        "size(min=300, strict=False)", "dedup(columns=url+text)", "text-frequency(max=10)", "faces(max=0)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "flag, message",
    [
        ("sise", "unknown filter; expected one of aesthetic"),
        ("size:max=3", "unknown parameter 'max'; expected min, strict"),
        ("size:min=big", "got 'big', expected a number"),
        ("size:strict=1", "got 1, expected true or false"),
        ("words:min=9,max=3", "no row would pass"),
        ("size:min", "is not of the form parameter=value"),
        ("range:min=1", "needs column"),
        ("eval-hashes", "needs file"),
        ("size:min=.nan", "expected a number"),
    ],
)
def test_wrong_filters_say_what_is_wrong(flag, message):
    with pytest.raises(ValueError, match=message):
        parse_flag(flag)


def test_a_missing_column_is_said_before_any_work(duckdb, tmp_path):
    pq.write_table(pa.table({"url": ["a"], "text": ["b"]}), tmp_path / "t.parquet")
    table = open_table(duckdb, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="size: the table has no column width, height; it has url, text"):
        curate(duckdb, table, [make_filter("text-frequency"), make_filter("size")], tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        curate(duckdb, table, [make_filter("text-frequency")], tmp_path / "out")


def test_hashes_of_rows_that_may_lack_them(tmp_path):
    (tmp_path / "h.jsonl").write_text(
        '{"url": "x"}\n{"image_phash": "0123456789abcdef"}\n{"image_phash": 1234567890123456}\n'
    )
    assert read_hashes(tmp_path / "h.jsonl") == ["0123456789abcdef", "1234567890123456"]
