"""Spark gives what DuckDB gives, row for row: the same expressions on the other backend, in local mode."""

import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables_brute import kept, random_table, write_table

from kakao_models.data.curate import curate
from kakao_models.data.distribute import all_ranks
from kakao_models.data.download import Download, download
from kakao_models.data.labels import label_stats, to_multilabel
from kakao_models.data.recipes import RECIPES, parse_flag, parse_flags
from kakao_models.data.stats import summarize
from kakao_models.samples.rows import Rows
from kakao_models.samples.tables import connect, join_columns, open_table

sql = pytest.importorskip("pyspark.sql")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
]

COYO, ALIGN = (
    ("size:min=100", "aspect:max=4", "nsfw:max=0.59", "length:min=2,max=5000", "words:min=1,max=8", "text-frequency:max=15", "dedup"),
    ("size:min=100,strict=true", "aspect:max=4,strict=true", "texts-per-image:max=12", "images-per-text:max=9",
     "rare-tokens:top=120", "unigrams:min=1,max=6"),
)  # fmt: skip
FLAGS = (
    *("size", "aspect", "nsfw", "words", "words:min=2,max=4", "unigrams:min=1,max=3", "length", "watermark"),
    *("aesthetic:min=4.5", "clip-b32", "clip-l14:min=0.1,max=0.3", "faces", "range:column=num_faces,min=2"),
    *("text-frequency", "text-frequency:max=3", "images-per-text:max=2", "texts-per-image:max=3"),
    *("texts-per-image:max=4,image=url", "dedup", "dedup:columns=text", "dedup:columns=url+text+num_faces"),
    *("rare-tokens:top=20", "rare-tokens"),
)


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    folder = tmp_path_factory.mktemp("spark")
    options = {"ui.enabled": "false", "sql.shuffle.partitions": "2", "driver.host": "127.0.0.1", "driver.memory": "3g"}
    options |= {"driver.bindAddress": "127.0.0.1", "sql.warehouse.dir": str(folder / "warehouse")}
    # compiling each query to Java takes longer than running it on so few rows
    options |= {"sql.codegen.wholeStage": "false", "sql.codegen.factoryMode": "NO_CODEGEN"}
    builder = sql.SparkSession.builder.master("local[2,2]")  # a task may fail once
    for name, value in options.items():
        builder = builder.config(f"spark.{name}", value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield connect("pyspark")
    session.stop()


@pytest.fixture(scope="module")
def duckdb():
    return connect(threads=1)


def rows_of(folder):
    """All rows with all columns, by id; NaN is NaN."""
    table = pq.read_table(folder)
    return repr(table.select(sorted(table.column_names)).sort_by("id").to_pylist())


def both(spark, duckdb, source, filters, folder):
    accounts = []
    for name, backend in (("spark", spark), ("duckdb", duckdb)):
        accounts.append(curate(backend, open_table(backend, source), filters, folder / name))
    assert accounts[0].steps == accounts[1].steps
    assert rows_of(folder / "spark") == rows_of(folder / "duckdb")
    shutil.rmtree(folder / "spark")
    return accounts[0]


def test_a_few_filters(spark, duckdb, tmp_path):
    source = write_table(random_table(5, 300), tmp_path / "t.parquet")
    account = both(spark, duckdb, source, parse_flags(("size:min=100", "text-frequency:max=9", "dedup")), tmp_path)
    assert all(step.dropped for step in account.steps) and account.kept > 5


@pytest.mark.slow
def test_ranks_are_tasks(spark, tmp_path):
    """Outputs are those of ranks by hand; a task that fails is run again and goes on, but not for what input does."""

    def run(rank, world_size, source=str(tmp_path / "t.parquet"), output=str(tmp_path / "spark")):
        import pathlib

        from kakao_models.data.download import Download, download

        tried = pathlib.Path(f"{output}.{rank}")
        if rank == 1 and not tried.exists():
            tried.touch()
            raise OSError("a full disk")
        return download(source, output, Download(per_shard=2), rank=rank, world_size=world_size)

    urls = [f"http://127.0.0.1:9/{number}" for number in range(9)]  # not asked: a private address
    pq.write_table(pa.table({"url": urls}), tmp_path / "t.parquet")
    parts, done = Rows(tmp_path / "t.parquet").parts(2), []
    where = {"output": tmp_path / "spark", "parts": parts, "advance": done.append}
    outcomes = all_ranks(run, 3, "pyspark", **where)
    assert sum(outcome.tried for outcome in outcomes) == sum(done) == 9 and sorted(done) == [2, 3, 4]
    assert (tmp_path / "spark.1").exists()
    whole = download(tmp_path / "t.parquet", tmp_path / "one", Download(per_shard=2))
    assert whole.errors == {"not a public address": 9}
    for path in (tmp_path / "one").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "spark" / path.name).read_bytes(), path.name
    again = {"world_size": 2, "distributor": "pyspark"}
    assert download(tmp_path / "t.parquet", tmp_path / "spark", Download(per_shard=2), **again).tried == 0

    def fails(rank, world_size):
        raise OSError(f"rank {rank} of {world_size}") if rank else ValueError("no column url")

    with pytest.raises(ChildProcessError, match="as often as the cluster lets it: OSError: rank 1 of 2"):
        all_ranks(fails, 2, "pyspark", **where)


@pytest.mark.slow
def test_the_recipes(spark, duckdb, tmp_path):
    frame = random_table(5, 800)
    source = write_table(frame, tmp_path / "t.parquet")
    for number, flags in enumerate((COYO, ALIGN)):
        (tmp_path / str(number)).mkdir()
        account = both(spark, duckdb, source, parse_flags(flags), tmp_path / str(number))
        assert all(step.dropped for step in account.steps) and account.kept > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_filter(spark, duckdb, tmp_path, seed):
    frame = random_table(seed)
    frame.loc[3, "text"] = "huge " * 200_000
    source = write_table(frame, tmp_path / "t.parquet")
    found = frame.image_phash.dropna().unique()
    (tmp_path / "eval.txt").write_text("\n".join(found[::70]))
    draw = np.random.default_rng(seed)
    embedded = pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=400 * 3)), 3)
    pq.write_table(pa.table({"id": frame.id.astype("int64"), "embedding": embedded}), tmp_path / "e.parquet")
    np.save(tmp_path / "e.npy", draw.normal(size=(3, 3)))
    flags = FLAGS + tuple(f"eval-hashes:bits={bits},file={tmp_path / 'eval.txt'}" for bits in (0, 3, 6))
    flags += (f"eval-embeddings:file={tmp_path / 'e.npy'},embeddings={tmp_path / 'e.parquet'},above=0.9",)
    for number, flag in enumerate(flags):
        (tmp_path / str(number)).mkdir()
        item = parse_flag(flag)
        account = both(spark, duckdb, source, [item], tmp_path / str(number))
        if item.kind.name != "eval-embeddings":
            assert account.kept == len(kept(item.kind.name, frame, frame, item.parameters)), flag
    for name, flags in RECIPES.items():
        (tmp_path / name).mkdir()
        both(spark, duckdb, source, parse_flags(flags), tmp_path / name)


@pytest.mark.slow
def test_statistics_labels_joins_and_texts(spark, duckdb, tmp_path):
    frame = random_table(2, 300)
    source = write_table(frame, tmp_path / "t.parquet")
    one, other = (summarize(open_table(backend, source)).as_dict() for backend in (spark, duckdb))
    for name, column in other["columns"].items():
        mean = one["columns"][name].pop("mean")
        assert mean == (pytest.approx(column.pop("mean"), rel=1e-12) if mean is not None else column.pop("mean"))
    assert one == other
    draw = np.random.default_rng(0)
    rows = [
        {"id": n, "labels": draw.choice(9, n % 5, replace=False).tolist(), "label_probs": draw.random(n % 5).tolist()}
        for n in range(60)
    ]
    rows[7] |= {"labels": None, "label_probs": None}
    rows[8] |= {"labels": [1, 2], "label_probs": [0.9, float("nan")]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    tables = [open_table(backend, tmp_path / "l.parquet") for backend in (spark, duckdb)]
    one, other = (label_stats(table, (0.0, 0.5)) for table in tables)
    assert one == other
    one, other = (to_multilabel(table, 0.5).to_pyarrow().sort_by("id").to_pylist() for table in tables)
    assert one == other
    pq.write_table(pa.table({"id": [3, 6], "align_score": [0.1, 0.3]}), tmp_path / "s.parquet")
    texts = frame[frame.text != ""]
    texts.to_json(tmp_path / "t.jsonl", orient="records", lines=True, force_ascii=False)
    for kind in ("parquet", "jsonl"):
        for name, backend in (("spark", spark), ("duckdb", duckdb)):
            table = join_columns(
                open_table(backend, tmp_path / f"t.{kind}"), open_table(backend, tmp_path / "s.parquet")
            )
            filters = parse_flags(("align-score:min=0.05", "dedup:columns=text"))
            curate(backend, table, filters, tmp_path / f"{kind}-{name}", copy=True)
        assert rows_of(tmp_path / f"{kind}-spark") == rows_of(tmp_path / f"{kind}-duckdb")
