"""Named filters of image-text tables, as Ibis expressions: COYO's, ALIGN's, and any range of any column.

COYO: https://github.com/kakaobrain/coyo-dataset, "Data Filtering". ALIGN: https://arxiv.org/abs/2102.05918, section 3.

A row whose tested value is null or NaN is dropped by a filter of values; a filter of frequencies does not count nulls
and keeps such rows. Words are what spaces, tabs and line ends separate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ibis
import ibis.expr.types as ir

from kakao_models.data.counting import (
    digest,
    drop_keys,
    frequent_keys,
    numbered,
    shared_keys,
    tokens_of,
    words_of,
)
from kakao_models.data.neighbours import near_embeddings, near_hashes
from kakao_models.samples.tables import fresh, require, without

SAME_IMAGE_COLUMNS = ("image_phash", "imagehash", "url")  # what says that two rows have one image, best first
NSFW = ("nsfw_score_opennsfw2", "nsfw_score_gantman")


@dataclass(frozen=True)
class FilterKind:
    """A filter without its parameters.

    `apply` is of one row: (table, **parameters) → a boolean column; or of all (`is_global`): (table, context,
    **parameters) → the rows that are kept, and how many are dropped, None where that takes another pass to know.
    """

    name: str
    defaults: Mapping[str, Any]
    apply: Callable
    is_global: bool
    help: str

    def __str__(self) -> str:
        parameters = ", ".join(f"{name}={value}" for name, value in self.defaults.items() if value not in (None, ""))
        return f"{self.name:<16} {self.help}  [{parameters}]"


@dataclass(frozen=True)
class Filter:
    kind: FilterKind
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = ", ".join(
            f"{name}={_text(value)}" for name, value in self.parameters.items() if value not in (None, "")
        )
        return f"{self.kind.name}({arguments})" if arguments else self.kind.name


FILTERS: dict[str, FilterKind] = {}


def _filter(name: str, is_global: bool = False, **defaults):
    def add(function):
        FILTERS[name] = FilterKind(name, defaults, function, is_global, function.__doc__.strip().split("\n")[0])
        return function

    return add


@_filter("size", min=200, strict=False)
def _size(table, min, strict):
    """The shorter side has at least `min` pixels (`strict`: more)."""
    require(table, ("width", "height"), "size")
    short = ibis.least(_number(table.width), _number(table.height))
    return _known(table, "width", "height") & (short > min if strict else short >= min)


@_filter("aspect", max=3.0, strict=False)
def _aspect(table, max, strict):
    """The longer side is at most `max` times (`strict`: less than) the shorter."""
    require(table, ("width", "height"), "aspect")
    width, height = _number(table.width), _number(table.height)
    short, long = ibis.least(width, height), ibis.greatest(width, height)
    within = long < short * max if strict else long <= short * max
    return _known(table, "width", "height") & (short > 0) & within


@_filter("nsfw", max=0.5)
def _nsfw(table, max):
    """Neither OpenNSFW2 nor GantMan/NSFW gives more than `max`."""
    columns = [name for name in NSFW if name in table.columns] or NSFW
    require(table, columns, "nsfw")
    return ibis.and_(*(_between(table[name], None, max) for name in columns))


@_filter("words", min=3, max=256)
def _words(table, min, max):
    """`word_count`, or where there is none the words of the text, from `min` to `max`."""
    if "word_count" in table.columns:
        return _between(table.word_count, min, max)
    return _unigrams(table, min, max)


@_filter("unigrams", min=3, max=20)
def _unigrams(table, min, max):
    """The text has `min` to `max` words, counted."""
    require(table, ("text",), "unigrams")
    return _between(words_of(table.text).length(), min, max)


@_filter("length", min=6, max=1000)
def _length(table, min, max):
    """`text_length`, or where there is none the characters of the text, from `min` to `max`."""
    if "text_length" in table.columns:
        return _between(table.text_length, min, max)
    require(table, ("text",), "length")
    return _between(table.text.length(), min, max)


@_filter("range", column="", min=None, max=None)
def _range(table, column, min, max):
    """Any column of numbers from `min` to `max`."""
    require(table, (column,), "range")
    return _between(table[column], min, max)


def _range_of(name: str, column: str, **defaults) -> None:
    def keep(table, min=None, max=None):
        require(table, (column,), name)
        return _between(table[column], min, max)

    keep.__doc__ = f"`{column}` from `min` to `max`."
    _filter(name, **{"min": None, "max": None, **defaults})(keep)


_range_of("watermark", "watermark_score", max=0.5)
_range_of("aesthetic", "aesthetic_score_laion_v2", min=5.0)
_range_of("clip-b32", "clip_similarity_vitb32", min=0.25)
_range_of("clip-l14", "clip_similarity_vitl14", min=0.2)
_range_of("faces", "num_faces", max=0)
_range_of("align-score", "align_score", min=0.2)


@_filter("text-frequency", is_global=True, max=10)
def _text_frequency(table, context, max):
    """Texts of more than `max` rows are dropped, all their rows."""
    require(table, ("text",), "text-frequency")
    return drop_keys(table, *frequent_keys(table, table.text.cast("string"), max, context))


@_filter("images-per-text", is_global=True, max=10, image="")
def _images_per_text(table, context, max, image):
    """Texts that more than `max` different images share are dropped (ALIGN)."""
    return _shared(table, context, "text", _image(table, image, "images-per-text"), max)


@_filter("texts-per-image", is_global=True, max=1000, image="")
def _texts_per_image(table, context, max, image):
    """Images with more than `max` different texts are dropped (ALIGN)."""
    return _shared(table, context, _image(table, image, "texts-per-image"), "text", max)


@_filter("dedup", is_global=True, columns=("image_phash", "text"))
def _dedup(table, context, columns):
    """One of the rows that agree in `columns` is kept: the first by id, then by the other columns."""
    require(table, columns, "dedup")
    key, place = fresh(table, "digest"), fresh(table, "place")
    values = [table[name].cast("string") for name in columns]
    marked = table.mutate(**{key: digest(table, *values)})
    counts = marked.filter(marked[key].notnull()).group_by(key).agg(rows=ibis._.count())
    # Only rows that may have a double are sorted: hardly ever many, where sorting all would be the costliest step
    repeated = context.hold(counts.filter(ibis._.rows > 1))
    several = marked.semi_join(repeated, key)
    first = [name for name in ("id", "url") if name in table.columns]
    order = first + [name for name in table.columns if name not in first and not table[name].type().is_nested()]
    window = ibis.window(
        group_by=[several[name].cast("string") for name in columns], order_by=[several[name] for name in order]
    )
    ordered = several.mutate(**{place: ibis.row_number().over(window)})
    chosen = context.hold(ordered.filter(ordered[place] == 0).select(*table.columns))
    alone = marked.anti_join(repeated, key).select(*table.columns)
    dropped = repeated.select("rows").union(chosen.agg(rows=-ibis._.count()))
    return alone.union(chosen), dropped.rows.sum().fill_null(0)


@_filter("rare-tokens", is_global=True, top=100_000_000)
def _rare_tokens(table, context, top):
    """Texts with a word or pair of words that is not among the `top` most frequent of the raw data (ALIGN)."""
    require(table, ("text",), "rare-tokens")
    counts = tokens_of(context.raw.select("text")).group_by("token").agg(rows=ibis._.count())
    common = counts.order_by([ibis.desc("rows"), ibis.asc("token")]).limit(top).select("token")
    texts = context.hold(numbered(table.select("text").filter(ibis._.text.notnull()).distinct(), "number"))
    tokens = tokens_of(texts, "number")  # with its text, each token of a long text would be as large as that
    rare = context.hold(tokens.anti_join(context.hold(common), "token").select("number").distinct())
    return without(table, table.text, context.hold(texts.semi_join(rare, "number").select(key="text"))), None


@_filter("eval-hashes", is_global=True, file="", bits=3, image="")
def _eval_hashes(table, context, file, bits, image):
    """Images whose pHash differs in at most `bits` bits from one in `file` (lines, a table, a folder of pictures)."""
    return near_hashes(table, _image(table, image, "eval-hashes"), file, bits, context.hold), None


@_filter("eval-embeddings", is_global=True, file="", embeddings="", above=0.975)
def _eval_embeddings(table, context, file, embeddings, above):
    """Images whose embedding (`embeddings`, by id) has a cosine of more than `above` with one in `file` (ALIGN)."""
    require(table, ("id",), "eval-embeddings")
    return near_embeddings(table, embeddings, file, above), None


def _shared(table, context, key: str, other: str, most: int):
    require(table, (key, other), "frequencies")
    return drop_keys(table, *shared_keys(table, table[key].cast("string"), table[other], most, context))


def _image(table: ir.Table, named: str, what: str) -> str:
    if named:
        require(table, (named,), what)
        return named
    column = next((name for name in SAME_IMAGE_COLUMNS if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{what}: the table has no column {' or '.join(SAME_IMAGE_COLUMNS)}; name the column: image=..."
        )
    return column


def _number(column: ir.Value) -> ir.FloatingValue:
    number = column.try_cast("float64") if column.type().is_string() else column.cast("float64")
    return ibis.ifelse(number.isnan(), ibis.null("float64"), number)  # DuckDB and Spark: larger than any number


def _known(table: ir.Table, *columns: str) -> ir.BooleanValue:
    return ibis.and_(*(_number(table[name]).notnull() for name in columns))  # least(1, NULL) is 1 in DuckDB


def _between(column: ir.Value, low: float | None, high: float | None) -> ir.BooleanValue:
    number = _number(column)
    bounds = [number.notnull()]
    if low is not None:
        bounds.append(number >= low)
    if high is not None:
        bounds.append(number <= high)
    return ibis.and_(*bounds)


def _text(value: Any) -> str:
    return "+".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
