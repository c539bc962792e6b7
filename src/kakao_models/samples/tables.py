"""Tables of any size as Ibis expressions on DuckDB or Spark: Parquet, CSV, JSON lines or a data set of the Hub."""

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import ibis
import ibis.expr.types as ir

from kakao_models.checkpoint.hub import asking, pin_data_set
from kakao_models.files.atomic import flush, workplace
from kakao_models.samples.coyo import TYPES
from kakao_models.samples.paths import TABLES, files_of, is_hub, suffix_of
from kakao_models.samples.text import TextTable, separator_of

BACKENDS = ("duckdb", "pyspark")


def connect(
    backend: str = "duckdb", *, memory_limit: str | None = None, threads: int | None = None, spill: Path | None = None
):
    """An Ibis connection.

    Args:
        backend: "duckdb", embedded, which spills to disk what is too large; or "pyspark", the session of spark-submit
            or a local one.
        memory_limit: DuckDB's limit, such as "8GB"; by default 80 % of the machine's memory.
        threads: DuckDB's threads; by default one per CPU core.
        spill: folder for data that DuckDB moves out of memory.
    """
    if backend == "duckdb":
        if spill:
            spill.mkdir(parents=True, exist_ok=True)
        options = {"memory_limit": memory_limit, "threads": threads, "temp_directory": spill and str(spill)}
        connection = ibis.duckdb.connect(**{name: value for name, value in options.items() if value})
        connection.raw_sql("SET preserve_insertion_order = false")  # otherwise whole row groups wait in memory
        return connection
    if backend != "pyspark":
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    try:
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise ImportError(
            "the backend pyspark needs Spark: pip install 'kakao-models[data,spark]', and Java 17 or newer"
        ) from error
    return ibis.pyspark.connect(SparkSession.builder.appName("kakao-models data").getOrCreate())


def is_parquet(source: str) -> bool:
    """Whether a source is local Parquet, so that single columns can be read repeatedly."""
    return not is_hub(source) and suffix_of(files_of(source)[0]) == ".parquet"


def open_table(connection: ibis.BaseBackend, source: str | os.PathLike) -> ir.Table:
    """A table by its name; columns of COYO have the published types, regardless of the file.

    Other columns of a CSV file are text. A value that is not of its column's type becomes null, but ids that are not all
    whole numbers stay text.

    Args:
        source: a file, pattern or folder of .parquet, .csv, .tsv, .jsonl; hf://owner/name.

    Raises:
        ValueError: there is no such source, or it is of an unknown kind.
    """
    name = os.fspath(source)
    if is_hub(name):
        return _typed(_hub_table(connection, name.removeprefix("hf://")))
    return _typed(read_files(connection, files_of(name)))


def read_files(connection: ibis.BaseBackend, paths: Sequence[str | os.PathLike]) -> ir.Table:
    """The table of files of one kind, with the types they say; columns of CSV files are text."""
    paths = [os.fspath(path) for path in paths]
    kind = TABLES[suffix_of(paths[0])]
    separator = separator_of(paths[0]) if kind == "csv" else ","
    if kind == "csv" and (other := next((path for path in paths if separator_of(path) != separator), None)):
        raise ValueError(f"{other}: its separator is {separator_of(other)!r}, but {paths[0]} has {separator!r}")
    if connection.name == "duckdb":
        import duckdb

        patterns = [glob.escape(path) for path in paths]  # it takes the names of files for patterns
        if kind == "csv":
            options = {"header": True, "all_varchar": True, "delim": separator, "quote": '"', "escape": '"'}
            options["max_line_size"] = 2**24
            try:
                return getattr(connection, f"read_{kind}")(patterns, **options)
            except duckdb.InvalidInputException:
                for path in paths:
                    TextTable(path)  # says which line is wrong, in words of this package
                raise
        # text stays text, also where all of it looks like dates
        options = {"dateformat": "none", "timestampformat": "none"} if kind == "json" else {}
        return getattr(connection, f"read_{kind}")(patterns, **options)
    from pyspark.sql import SparkSession

    reader = SparkSession.builder.getOrCreate().read
    if kind == "csv":
        reader = reader.options(header=True, sep=separator, quote='"', escape='"', multiLine=True)
    view = f"kakao_models_{uuid.uuid4().hex}"  # Ibis passes one path to Spark, not several
    frame = reader.parquet(*paths) if kind == "parquet" else getattr(reader, kind)(paths)
    frame.createOrReplaceTempView(view)
    return connection.table(view)


def write_parquet(table: ir.Table, folder: Path) -> int:
    """Writes a table as Parquet files into a folder that must not be there, and counts its rows."""
    import pyarrow.parquet as pq

    if table.get_backend().name == "duckdb":
        folder.mkdir(parents=True)
        options = {"compression": "zstd", "compression_level": 1}  # 3 is slower, and its files are hardly smaller
        table.to_parquet(folder / "part-00000.parquet", row_group_size=131_072, **options)
    else:
        table.to_parquet(folder, compression="zstd")
    return sum(pq.ParquetFile(path).metadata.num_rows for path in folder.glob("*.parquet"))


@contextmanager
def new_folder(output: Path | None, connection: ibis.BaseBackend, spill: Path | None = None) -> Iterator[Path]:
    """A folder to work in. If the block makes a folder `done` in it, that becomes `output`; the rest is removed.

    Data that DuckDB moves out of memory goes there too, unless `spill` names a folder. Without an `output`, the folder is
    in `spill` or where temporary files are.

    Raises:
        FileExistsError: `output` already exists, or another process works on it.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="kakao-models-", dir=spill) as folder:
            yield _spilling(connection, Path(folder), spill)
        return
    output = output.absolute()
    with workplace(output, output) as folder:
        if output.exists():
            raise FileExistsError(f"{output} already exists. Choose another name, or remove it first.")
        yield _spilling(connection, folder, spill)
        if (folder / "done").exists():
            for path in (folder / "done").iterdir():
                flush(path)
            for path in folder.iterdir():  # first: a run that is killed here leaves gigabytes
                if path.name != "done" and path.is_dir():
                    shutil.rmtree(path)
            (folder / "done").rename(output)


def _spilling(connection, folder: Path, spill: Path | None) -> Path:
    if connection.name == "duckdb" and spill is None:
        import duckdb

        with contextlib.suppress(duckdb.Error):  # it has begun to spill already, elsewhere
            connection.raw_sql(f"SET temp_directory = '{str(folder / 'spill').replace(chr(39), 2 * chr(39))}'")
    return folder


def require(table: ir.Table, columns: Sequence[str], what: str) -> None:
    """Raises:
    ValueError: the table lacks one of the columns.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{what}: the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")


def join_columns(table: ir.Table, other: ir.Table) -> ir.Table:
    """The table with the columns that only `other` has, by id; null where it has no such id.

    Raises:
        ValueError: a table without ids, or a duplicate id in `other`.
    """
    require(table, ("id",), "join")
    require(other, ("id",), "join")
    if other.id.type() != table.id.type():  # of one table all ids may be whole numbers, of the other not
        other = other.mutate(id=other.id.try_cast(table.id.type()))
    counts = other.filter(other.id.notnull()).group_by("id").agg(rows=ibis._.count())
    if counts.filter(ibis._.rows > 1).count().execute():
        raise ValueError("join: the joined table has duplicate ids")
    added = [name for name in other.columns if name not in table.columns]
    return table.left_join(other.select("id", *added), "id").select(*table.columns, *added)


def without(table: ir.Table, key: ir.Value, dropped: ir.Table) -> ir.Table:
    """The rows whose key is not in the column `key` of `dropped`; a null is not."""
    name = fresh(table, "key")
    return table.mutate(**{name: key}).anti_join(dropped.rename(**{name: "key"}), name).drop(name)


def fresh(table: ir.Table, name: str) -> str:
    """A name that no column has, also not where upper and lower case are the same."""
    taken = {column.lower() for column in table.columns}
    while name in taken:
        name += "_"
    return name


def _typed(table: ir.Table) -> ir.Table:
    schema = table.schema()
    expected = {name: TYPES[name] for name in table.columns if name in TYPES and str(schema[name]) != TYPES[name]}
    if "id" in expected and schema["id"].is_string():  # names are ids too
        number = table.id.try_cast("int64")
        if table.filter(table.id.notnull() & number.isnull()).limit(1).count().execute():
            del expected["id"]
    return table.mutate(**{name: table[name].try_cast(kind) for name, kind in expected.items()}) if expected else table


def _hub_table(connection, name: str) -> ir.Table:
    if connection.name != "duckdb":
        raise ValueError(
            f"hf://{name}: Spark reads only local or mounted files. Download first: hf download --repo-type dataset {name}"
        )
    from huggingface_hub import HfFileSystem

    class Files(HfFileSystem):
        def modified(self, path: str) -> datetime:
            """DuckDB asks when a file changed, HfFileSystem does not know. The files of a commit never do."""
            return datetime.fromtimestamp(0, UTC)

    owner, repo, *folder = name.split("/")
    commit, system = pin_data_set(f"{owner}/{repo}"), Files()
    place = "/".join([f"datasets/{owner}/{repo}@{commit}" if commit else f"datasets/{owner}/{repo}", *folder])
    with asking(name, {}, kind="data set"):
        paths = sorted(system.glob(f"{place}/**/*.parquet"))
    if not paths:
        raise ValueError(f"hf://{name}: this data set has no Parquet files")
    connection.register_filesystem(system)
    return connection.read_parquet([f"hf://{path}" for path in paths])
