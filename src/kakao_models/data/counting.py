"""Counts over a whole table, exact, in memory that does not grow with the length of its texts.

What is rare cannot be frequent: texts are counted by a 64-bit digest first, and only the rows whose digest was seen often
enough are counted exactly. Two texts with one digest cost a little time there, and change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from kakao_models.samples.tables import without

DIGEST_BITS = range(16, 65)


@dataclass(frozen=True)
class Context:
    """Input of a filter of frequencies besides the rows that the filters before it kept.

    raw: the table before any filter.
    digest_bits: count digests of this many bits, in one pass, rather than texts; None is exact.
    hold: computes a table now and keeps it for as long as the filters run.
    """

    raw: ir.Table
    digest_bits: int | None = None
    hold: Callable[[ir.Table], ir.Table] = lambda table: table


@ibis.udf.scalar.builtin(name="hash")
def _hash_of_duckdb(value) -> dt.uint64: ...


@ibis.udf.scalar.builtin(name="xxhash64")
def _hash_of_spark(value) -> dt.int64: ...


def digest(table: ir.Table, *values: ir.Value, bits: int = 64) -> ir.IntegerValue:
    """A whole number that is the same wherever all values are; each backend has its own. Null if one value is."""
    function, kind = {"duckdb": (_hash_of_duckdb, "uint64"), "pyspark": (_hash_of_spark, "int64")}[
        table.get_backend().name
    ]
    together = values[0] if len(values) == 1 else ibis.struct({f"v{number}": v for number, v in enumerate(values)})
    number = function(together)
    if bits < 64:
        number = number & ibis.literal((1 << bits) - 1, type=kind)
    known = ibis.and_(*(value.notnull() for value in values))
    return ibis.ifelse(known, number, ibis.null(kind))


@ibis.udf.scalar.builtin(name="monotonically_increasing_id")
def _number_of_spark() -> dt.int64: ...


def numbered(table: ir.Table, name: str) -> ir.Table:
    """The table with a column of whole numbers, each once; for `hold`: another run of the expression may number otherwise."""
    spark = table.get_backend().name == "pyspark"  # where a window without groups is the work of one machine
    return table.mutate(**{name: _number_of_spark() if spark else ibis.row_number()})


def frequent_keys(table: ir.Table, key: ir.Value, most: int, context: Context) -> tuple[ir.Value, ir.Table]:
    """The value to compare, and a table (key, rows) of the keys of more than `most` rows."""
    if context.digest_bits is not None:
        key = digest(table, key, bits=context.digest_bits)
        rows = table.select(key=key).filter(ibis._.key.notnull())
    else:
        rows = _often(table, key, most, context)
    counts = rows.group_by("key").agg(rows=ibis._.count())
    return key, context.hold(counts.filter(ibis._.rows > most))


def shared_keys(
    table: ir.Table, key: ir.Value, other: ir.Value, most: int, context: Context
) -> tuple[ir.Value, ir.Table]:
    """The value to compare, and a table (key, rows) of the keys with more than `most` distinct `other`."""
    if context.digest_bits is not None:
        key = digest(table, key, bits=context.digest_bits)
        some = table.select(key=key, other=other).filter(ibis._.key.notnull())
    else:
        some = _often(table, key, most, context, other=other)
    counts = some.group_by("key").agg(rows=ibis._.count(), different=ibis._.other.nunique())
    return key, context.hold(counts.filter(ibis._.different > most).select("key", "rows"))


def drop_keys(table: ir.Table, key: ir.Value, dropped: ir.Table) -> tuple[ir.Table, ir.IntegerScalar]:
    """The rows whose key is not in (key, rows), and how many there are of the others."""
    return without(table, key, dropped.select("key")), dropped.rows.sum().fill_null(0)


def _often(table: ir.Table, key: ir.Value, most: int, context: Context, **others: ir.Value) -> ir.Table:
    """(key, others) of the rows whose key may be that of more than `most` rows."""
    marked = table.select(key=key, digest=digest(table, key), **others).filter(ibis._.key.notnull())
    counted = marked
    for name in others:
        counted = counted.filter(counted[name].notnull())
    often = counted.group_by("digest").agg(rows=ibis._.count()).filter(ibis._.rows > most).select("digest")
    return marked.semi_join(context.hold(often), "digest").drop("digest")


def words_of(text: ir.StringValue) -> ir.ArrayValue:
    """The words of a text; of an empty one, none."""
    spaced = text.translate("\t\n\r\f", "    ")  # a tenth of the time of a regular expression
    return spaced.split(" ").filter(lambda word: word != "")


def tokens_of(texts: ir.Table, *others: str) -> ir.Table:
    """(token, others): a row for each word, and for each pair of words that follow one another."""
    split = texts.filter(texts.text.notnull()).select(*others, words=words_of(texts.text))
    single = split.select(*others, token=split.words.unnest())
    several = split.filter(split.words.length() > 1)
    words = several.words
    pairs = ibis.range(0, words.length() - 1).map(lambda i: words[i].concat(" ", words[i + 1]))
    return single.union(several.select(*others, token=pairs.unnest()))
