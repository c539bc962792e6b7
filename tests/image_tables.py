"""Five images with captions and classes, in every form that people keep them in."""

import csv
import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import tiny

from kakao_models.data.shard import Options, write_sample_shards
from kakao_models.data.writers import example, record
from kakao_models.samples.sources import open_source

COUNT = 5
CAPTIONS = ["a red dog", "2020-01-02", 'a "sea", blue', "ein süßes Haus", "2 cats"]
NUMBERS = [1, 0, 2, 1, 0]
CLASSES = ["bird", "cat", "golden dog"]
NAMES = [CLASSES[number] for number in NUMBERS]


def content(number: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    tiny.picture(number).save(out, form)
    return out.getvalue()


def files(folder) -> list[str]:
    (folder / "pictures").mkdir(exist_ok=True)
    for number in range(COUNT):
        (folder / "pictures" / f"{number}.png").write_bytes(content(number))
    return [f"pictures/{number}.png" for number in range(COUNT)]


def write_csv(path, columns: dict, separator: str = ",", encoding: str = "utf-8"):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
    data = text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path, columns: dict, **options):
    pq.write_table(pa.table(columns), path, row_group_size=2, **options)
    return path


def write_jsonl(path, columns: dict):
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def write_tar(path, members: list[tuple[str, bytes]]):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def encoded() -> list[bytes]:
    return [content(number) for number in range(COUNT)]


def members(labels, form: str = "png") -> list[list[tuple[str, bytes]]]:
    found = []
    for number, (caption, label) in enumerate(zip(CAPTIONS, labels)):
        parts = {
            form: content(number, {"tif": "TIFF"}.get(form, form.upper())),
            "txt": b"\xef\xbb\xbf" + caption.encode(),
        }
        parts["cls"] = str(label).encode()
        found.append([(f"{number:04}.{kind}", data) for kind, data in parts.items()])
    return found


def mac(labels):
    """As macOS packs them: `._name` beside every file, all names begin with "./"."""
    hidden = b"\0\5\x16\7\0\2\0\0Mac OS X" + b"\0" * 100
    flat = [member for sample in members(labels) for member in sample]
    return [entry for name, data in flat for entry in ((f"./._{name}", hidden), (f"./{name}", data))]


def image_folder(folder, labels):
    """ImageFolder of `datasets`, with metadata.csv."""
    write_csv(folder / "metadata.csv", {"file_name": files(folder), "text": CAPTIONS, "label": labels})
    return folder


def shards(form: str):
    def make(folder, labels):
        write_csv(folder / "t.csv", {"image": files(folder), "caption": CAPTIONS, "label": labels})
        write_sample_shards(open_source(folder / "t.csv"), folder / "shards", options=Options(form), per_shard=2)
        return folder / "shards"

    return make


def downloaded(folder, labels):
    """As `data download` and img2dataset write it: tables and statistics beside the tars."""
    parts = [member for sample in members(labels) for member in sample]
    write_tar(folder / "00000.tar", parts)
    write_parquet(folder / "00000.parquet", {"url": ["x"] * COUNT, "status": ["success"] * COUNT})
    (folder / "00000_stats.json").write_text(json.dumps({"successes": COUNT}))
    (folder / "plan.json").write_text("{}")
    return folder


def saved(folder, labels):
    import datasets

    rows = {"image": [{"bytes": data, "path": None} for data in encoded()], "text": CAPTIONS}
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    if isinstance(labels[0], str):
        rows["label"], features["label"] = NUMBERS, datasets.ClassLabel(names=CLASSES)
    else:
        rows["label"], features["label"] = labels, datasets.Value("int32")
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(folder / "saved")
    return folder / "saved"


def tfrecord(folder, labels):
    texts = [label.encode() if isinstance(label, str) else label for label in labels]
    rows = [
        example({"jpeg": [content(number)], "sentences": [CAPTIONS[number].encode()], "class": [texts[number]]})
        for number in range(COUNT)
    ]
    (folder / "a.tfrecord").write_bytes(b"".join(map(record, rows)))
    return folder / "a.tfrecord"


TABLES = {
    "parquet of paths": lambda folder, labels: write_parquet(
        folder / "T.Parquet", {"image_path": files(folder), "caption": CAPTIONS, "label": labels}
    ),
    "parquet of bytes": lambda folder, labels: write_parquet(
        folder / "t.parquet", {"img": encoded(), "sentences": [[text] for text in CAPTIONS], "label": labels}
    ),
    "jpeg and raw": lambda folder, labels: write_parquet(
        folder / "t.parquet", {"jpeg": encoded(), "raw": CAPTIONS, "labels": [[label] for label in labels]}
    ),
    "a url beside the image": lambda folder, labels: write_parquet(
        folder / "t.parquet", {"url": ["http://x"] * COUNT, "Image": encoded(), "TEXT": CAPTIONS, "Label": labels}
    ),
    "csv": lambda folder, labels: write_csv(
        folder / "t.CSV", {"image": files(folder), "caption": CAPTIONS, "label": labels}
    ),
    "csv of Excel": lambda folder, labels: write_csv(
        folder / "t.csv", {"Image": files(folder), "Caption": CAPTIONS, "Class": labels}, ";", "utf-8-sig"
    ),
    "tsv": lambda folder, labels: write_csv(
        folder / "t.tsv", {"filepath": files(folder), "title": CAPTIONS, "label": labels}, "\t"
    ),
    "csv.gz": lambda folder, labels: write_csv(
        folder / "t.csv.gz", {"path": files(folder), "text": CAPTIONS, "label": labels}
    ),
    "jsonl": lambda folder, labels: write_jsonl(
        folder / "t.jsonl", {"image": files(folder), "caption": CAPTIONS, "label": labels}
    ),
    "metadata.csv": image_folder,
    "tar": lambda folder, labels: write_tar(folder / "0.tar", sum(members(labels), [])),
    "tar of a Mac": lambda folder, labels: write_tar(folder / "0.tar", mac(labels)),
    "tar in another order": lambda folder, labels: write_tar(
        folder / "0.tar", [sample[place] for place in range(3) for sample in members(labels)]
    ),
    "tar of TIFF": lambda folder, labels: write_tar(folder / "0.tar", sum(members(labels, "tif"), [])),
    "tar of GIF": lambda folder, labels: write_tar(folder / "0.tar", sum(members(labels, "gif"), [])),
    "tfrecord": tfrecord,
    "shards of tar": shards("webdataset"),
    "shards of TFRecord": shards("tfrecord"),
    "shards of Parquet": shards("parquet"),
    "download": downloaded,
    "datasets": saved,
}
