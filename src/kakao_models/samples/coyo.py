"""The published columns, types and ranges of COYO-700M and COYO-Labeled-300M, and checks of a table against them.

Columns, ranges and counts: https://github.com/kakaobrain/coyo-dataset, README.md and subset/COYO-Labeled-300M.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A published column; `lowest` and `highest` are the published extremes, None where none are published."""

    name: str
    type: str  # its name in Ibis
    meaning: str
    lowest: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class Dataset:
    name: str
    hub: str
    rows: int
    columns: tuple[Column, ...]

    @property
    def types(self) -> dict[str, str]:
        return {column.name: column.type for column in self.columns}


_ID = Column("id", "int64", "unique number of the pair, from Spark's monotonically_increasing_id", 0)
_URL = Column("url", "string", "address of the image: src of the <img> element")

COYO_700M = Dataset(
    "COYO-700M",
    "kakaobrain/coyo-700m",
    746_972_269,
    (
        _ID,
        _URL,
        Column("text", "string", "alt of the <img> element"),
        Column("width", "int64", "pixels", 200, 21_449),
        Column("height", "int64", "pixels", 200, 22_507),
        Column("image_phash", "string", "perceptual hash of the image, 16 hexadecimal digits"),
        Column("text_length", "int64", "characters of the text", 6, 1000),
        # The filter's limit is 256 words; the published table reaches 323
        Column("word_count", "int64", "words of the text, separated by spaces", 3, 323),
        Column("num_tokens_bert", "int64", "tokens of BertTokenizer", 1, 811),
        Column("num_tokens_gpt", "int64", "tokens of GPT2TokenizerFast", 3, 1523),
        Column("num_faces", "int64", "faces that SCRFD finds", 0, 736),
        Column("clip_similarity_vitb32", "float64", "cosine of CLIP ViT-B/32", -0.080871, 0.591796),
        Column("clip_similarity_vitl14", "float64", "cosine of CLIP ViT-L/14", -0.176269, 0.581542),
        Column("nsfw_score_opennsfw2", "float64", "OpenNSFW2", 0.0, 0.499755),
        Column("nsfw_score_gantman", "float64", "GantMan/NSFW", 0.0, 0.5),
        Column("watermark_score", "float64", "probability of a watermark", 0.0, 1.0),
        Column("aesthetic_score_laion_v2", "float64", "LAION-Aesthetics-Predictor V2", 1.171712, 8.082607),
    ),
)

COYO_LABELED_300M = Dataset(
    "COYO-Labeled-300M",
    "kakaobrain/coyo-labeled-300m",
    300_000_000,
    (
        _ID,
        _URL,
        Column("imagehash", "string", "perceptual hash of the image, 16 hexadecimal digits"),
        Column("labels", "array<int64>", "the 50 most likely of ImageNet-21K's 21,841 classes, by EfficientNetV2-XL"),
        Column("label_probs", "array<float64>", "their probabilities"),
        Column("width", "int64", "pixels"),
        Column("height", "int64", "pixels"),
    ),
)

DATASETS = (COYO_700M, COYO_LABELED_300M)
CLASSES = 21_841  # classes of ImageNet-21K
TYPES = COYO_700M.types | COYO_LABELED_300M.types


def published(columns: Iterable[str]) -> Dataset:
    """The one of the two data sets that has most of these columns."""
    return max(DATASETS, key=lambda dataset: len(set(dataset.types) & set(columns)))


@dataclass(frozen=True)
class Finding:
    """A difference from the published table: an observation, never a reason to stop."""

    column: str
    problem: str

    def __str__(self) -> str:
        return f"{self.column}: {self.problem}"


def check_columns(types: Mapping[str, str]) -> list[Finding]:
    """Columns that are missing, additional, or of another kind, against the published table that is most alike."""
    dataset = published(types)
    findings = [Finding(name, f"missing ({dataset.name} has it)") for name in dataset.types if name not in types]
    for name, kind in types.items():
        expected = dataset.types.get(name)
        if expected is None:
            findings.append(Finding(name, f"not a column of {dataset.name}"))
        elif _kind(kind) != _kind(expected):
            findings.append(Finding(name, f"is {kind}, {dataset.name} has {expected}"))
    return findings


def check_ranges(rows: int, summary: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    """Values missing, or outside of the published range.

    Args:
        summary: column → `nulls`, `min` and `max`.
    """
    findings = []
    for column in published(summary).columns:
        values = summary.get(column.name, {})
        if values.get("nulls"):
            findings.append(Finding(column.name, f"{values['nulls']} of {rows} rows have none"))
        low, high = values.get("min"), values.get("max")
        if low is not None and column.lowest is not None and low < column.lowest - 1e-6:
            findings.append(Finding(column.name, f"reaches down to {low:g}, published is {column.lowest:g}"))
        if high is not None and column.highest is not None and high > column.highest + 1e-6:
            findings.append(Finding(column.name, f"reaches up to {high:g}, published is {column.highest:g}"))
    return findings


def _kind(name: str) -> str:
    """Widths don't matter: the Hub's files have 32-bit numbers where other copies have 64."""
    for kind in ("array", "uint", "int", "float", "decimal"):
        if name.startswith(kind):
            return {"uint": "int", "decimal": "float"}.get(kind, kind)
    return name
