"""Random tables like COYO's, and its filters row by row in pandas and plain Python."""

import re
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = (
    *(
        "a red cat",
        "a red  cat",
        "A red cat",
        "the sea",
        "",
        " ",
        "naïve café é",
        "日本 語 の 文",
        "x" * 5000,
        "\u2028 odd one",
    ),
    *(
        "tab\tand\nline end",
        "a b c d e f g h i j k l m n o p q r s t u v",
        "\u00a0nbsp only words",
        "'quote\" it",
        "e\u0301 two",
    ),
    *("na", "NULL", "nan", "emoji 🙂 here", "a,comma here"),
)


def random_table(seed: int, rows: int = 400) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    texts = [TEXTS[i] for i in draw.integers(0, len(TEXTS), rows)]
    texts = [text if draw.random() < 0.7 else f"{text} {draw.integers(0, 6)}" for text in texts]
    base = np.random.default_rng(99).integers(0, 1 << 62, 12, dtype=np.int64)  # the same in all tables
    flips = 1 << draw.integers(0, 62, (rows, 3), dtype=np.int64)
    some = draw.integers(0, 2, (rows, 3), dtype=np.int64)
    hashes = base[draw.integers(0, 12, rows)] ^ np.bitwise_xor.reduce(flips * some, axis=1)
    hashes = [f"{int(value):016x}" for value in hashes]
    scores = lambda low, high: np.round(draw.uniform(low, high, rows), 2)  # noqa: E731  so that bounds are hit
    frame = {
        "id": draw.permutation(rows).astype(np.int64) * 3,
        "url": [f"http://x/{draw.integers(0, 60)}" for _ in range(rows)],
        "text": texts,
        "width": draw.choice([0, 150, 199, 200, 201, 300, 600, 601], rows),
        "height": draw.choice([0, 100, 199, 200, 201, 300, 600], rows),
        "image_phash": [hashes[i] if draw.random() < 0.5 else f"{int(base[i % 12]):016x}" for i in range(rows)],
        "text_length": [len(text) for text in texts],
        "word_count": [len(text.split(" ")) for text in texts],
        "num_faces": draw.integers(0, 4, rows),
        "clip_similarity_vitb32": scores(-0.1, 0.5),
        "clip_similarity_vitl14": scores(-0.1, 0.5),
        "nsfw_score_opennsfw2": scores(0.3, 0.6),
        "nsfw_score_gantman": scores(0.3, 0.6),
        "watermark_score": scores(0, 1),
        "aesthetic_score_laion_v2": scores(3, 7),
    }
    table = pd.DataFrame({name: pd.Series(list(values), dtype=object) for name, values in frame.items()})
    for name in table.columns.drop("id"):
        table.loc[draw.random(rows) < 0.04, name] = None
    for name in ("watermark_score", "clip_similarity_vitb32", "nsfw_score_gantman"):
        table.loc[draw.random(rows) < 0.04, name] = float("nan")
    return table


def write_table(frame: pd.DataFrame, path):
    schema = pa.schema([(name, _type(name)) for name in frame.columns])
    columns = [pa.array(list(frame[name]), schema.field(name).type, from_pandas=False) for name in frame.columns]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)
    return path


def _type(name):
    if name in ("url", "text", "image_phash"):
        return pa.string()
    return pa.int64() if name in ("id", "width", "height", "text_length", "word_count", "num_faces") else pa.float64()


def words(text: str) -> list[str]:
    return [word for word in re.split("[ \t\n\r\f]+", text) if word]


def tokens(text: str) -> list[str]:
    found = words(text)
    return found + [f"{a} {b}" for a, b in zip(found, found[1:])]


def known(*values) -> bool:
    return all(value is not None and value == value for value in values)


def between(value, low, high) -> bool:
    return known(value) and (low is None or value >= low) and (high is None or value <= high)


def row_passes(name: str, row, p: dict) -> bool:
    low, high = p.get("min"), p.get("max")
    match name:
        case "size":
            short = known(row.width, row.height) and min(row.width, row.height)
            return known(row.width, row.height) and (short > low if p["strict"] else short >= low)
        case "aspect":
            if not known(row.width, row.height) or min(row.width, row.height) <= 0:
                return False
            ratio = max(row.width, row.height) / min(row.width, row.height)
            return ratio < high if p["strict"] else ratio <= high
        case "nsfw":
            return between(row.nsfw_score_opennsfw2, None, high) and between(row.nsfw_score_gantman, None, high)
        case "words":
            return between(row.word_count, low, high)
        case "unigrams":
            return row.text is not None and low <= len(words(row.text)) <= high
        case "length":
            return between(row.text_length, low, high)
        case "range":
            return between(row[p["column"]], low, high)
    column = {
        "watermark": "watermark_score",
        "aesthetic": "aesthetic_score_laion_v2",
        "clip-b32": "clip_similarity_vitb32",
        "clip-l14": "clip_similarity_vitl14",
        "faces": "num_faces",
    }[name]
    return between(row[column], low, high)


def kept(name: str, table: pd.DataFrame, raw: pd.DataFrame, p: dict) -> list[int]:
    """Ids of the rows that a filter keeps."""
    rows = [row for _, row in table.iterrows()]
    if name == "text-frequency":
        counts = Counter(row.text for row in rows)
        return [row.id for row in rows if row.text is None or counts[row.text] <= p["max"]]
    if name in ("images-per-text", "texts-per-image"):
        image = p["image"] or "image_phash"
        key, other = ("text", image) if name == "images-per-text" else (image, "text")
        others = defaultdict(set)
        for row in rows:
            if row[key] is not None and row[other] is not None:
                others[row[key]].add(row[other])
        return [row.id for row in rows if row[key] is None or len(others[row[key]]) <= p["max"]]
    if name == "dedup":
        seen, found = set(), []
        for row in sorted(rows, key=lambda row: row.id):
            key = tuple(row[column] for column in p["columns"])
            if None in key or key not in seen:
                found.append(row.id)
            seen.add(key)
        return found
    if name == "rare-tokens":
        counts = Counter(token for text in raw.text if text is not None for token in tokens(text))
        order = sorted(counts, key=lambda token: (-counts[token], token.encode()))
        common = set(order[: p["top"]])
        return [row.id for row in rows if row.text is None or common.issuperset(tokens(row.text))]
    if name == "eval-hashes":
        theirs = [int(line, 16) for line in open(p["file"])]
        near = lambda text: min((int(text, 16) ^ other).bit_count() for other in theirs) <= p["bits"]  # noqa: E731
        return [row.id for row in rows if row.image_phash is None or not near(row.image_phash)]
    return [row.id for row in rows if row_passes(name, row, p)]
