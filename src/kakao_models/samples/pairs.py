"""Local images and captions, in any of the forms people keep them, as one source of samples."""

import json
import os
from pathlib import Path

from kakao_models.samples.shards import SampleSource
from kakao_models.samples.sources import Records, open_source


def open_pairs(where: str | os.PathLike, *, images: Path | None = None, split: str | None = None) -> SampleSource:
    """A source of image-text samples.

    Args:
        where: a folder of images (captions in .txt files beside them), .csv, .tsv, .parquet, .tar, .tfrecord, a pattern
            of such, or a .json of COCO's captions or of Karpathy's splits (dataset_coco.json, dataset_flickr30k.json).
        images: the folder of the images that a .json names.
        split: of Karpathy's: train, val, test, restval; several are separated by commas.

    Raises:
        ValueError: there is nothing, or nothing that is known.
    """
    if not os.fspath(where).lower().endswith(".json"):
        if images or split:
            raise ValueError(f"{where}: a folder of images and a split go with a .json file")
        return open_source(where)
    path = Path(where)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{path}: wanted an object with a list `images`, as COCO's and Karpathy's files have")
    records = _coco(content, path) if "annotations" in content else _karpathy(content, path, split)
    if split and "annotations" in content:
        raise ValueError(f"{path}: COCO's files have no splits, they are one")
    if not records:
        raise ValueError(f"{path}: there are no images{f' of split {split}' if split else ''}")
    return Records(records, Path(images) if images else path.parent, path.name)


def _coco(content: dict, path: Path) -> list[dict]:
    try:
        captions: dict = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        return [
            {"image": image["file_name"], "captions": captions[image["id"]], "image_id": image["id"]}
            for image in content["images"]
        ]
    except KeyError as error:
        raise ValueError(f"{path}: an entry has no {error}, or names an image that isn't listed") from error


def _karpathy(content: dict, path: Path, split: str | None) -> list[dict]:
    wanted = set(split.split(",")) if split else None
    try:
        return [
            {
                "image": os.path.join(image.get("filepath", ""), image["filename"]),
                "captions": [sentence["raw"] for sentence in image["sentences"]],
                "image_id": image.get("imgid"),
            }
            for image in content["images"]
            if wanted is None or image["split"] in wanted
        ]
    except KeyError as error:
        raise ValueError(f"{path}: an image has no {error}") from error
