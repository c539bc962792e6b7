"""Prepares the inputs of an exported model as export.json says, with Pillow, numpy and tokenizers only."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def sheet(folder) -> dict:
    """The content of an export's export.json."""
    return json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))


def pictures(folder, files) -> np.ndarray:
    """(B, H, W, 3) uint8, for an export made with `--input uint8`: upright, resized and cropped like the model's own
    preprocessing."""
    about = sheet(folder)
    if about["input"] != "uint8":
        raise SystemExit(f"{folder} takes images as {about['input']}; export it with --input uint8")
    how = json.loads(Path(folder, about["preprocessing"]["file"]).read_text(encoding="utf-8"))
    if how["preprocessing"] != "hf":
        raise SystemExit("this model resizes as TensorFlow does, which Pillow can't: export it with --input picture")
    rows = []
    for file in files:
        picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        size = how["size"]
        if "height" not in size:
            raise SystemExit(f"this model keeps the aspect ratio ({size}): resize the shorter side yourself")
        picture = picture.resize((size["width"], size["height"]), how["resample"])
        if how["do_center_crop"]:
            height, width = how["crop_size"]["height"], how["crop_size"]["width"]
            top, left = (picture.height - height) // 2, (picture.width - width) // 2
            picture = picture.crop((left, top, left + width, top + height))
        rows.append(np.asarray(picture))
    return np.stack(rows)


def tokens(folder, texts) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, (B, L), in the dtype that the export expects."""
    about = sheet(folder)
    tokenizer = Tokenizer.from_file(str(Path(folder, about["tokenizer"]["file"])))
    tokenizer.enable_truncation(about["tokenizer"]["max_tokens"])
    tokenizer.enable_padding(pad_id=about["tokenizer"]["pad_token_id"])
    rows = tokenizer.encode_batch(list(texts))
    dtype = about["functions"]["text"]["inputs"][0]["dtype"]
    return {
        "input_ids": np.array([row.ids for row in rows], dtype),
        "attention_mask": np.array([row.attention_mask for row in rows], dtype),
    }


def scores(folder, image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """(images, texts): probabilities of the texts; they sum to 1 for each image."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image_features, text_features)]
    logits = unit[0] @ unit[1].T / sheet(folder)["temperature"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def zero_shot(run: Callable[[str, str, dict[str, np.ndarray]], np.ndarray]) -> None:
    """FOLDER LABEL,LABEL,... IMAGE ... of the command line: the best three labels of each image.

    Args:
        run: (folder, "image" or "text", inputs) → features.
    """
    if len(sys.argv) < 4:
        raise SystemExit(f"usage: python {sys.argv[0]} FOLDER LABEL,LABEL,... IMAGE ...")
    folder, labels, *files = sys.argv[1:]
    labels = labels.split(",")
    try:
        images = run(folder, "image", {"images": pictures(folder, files)})
        texts = run(folder, "text", tokens(folder, [f"This is a photo of {label}." for label in labels]))
    except URLError as error:
        raise SystemExit(f"no server answers ({error.reason}); {sys.argv[0]} begins with how to start one") from error
    for file, row in zip(files, scores(folder, images, texts)):
        best = np.argsort(-row)[:3]
        print(f"{Path(file).name:20}", "  ".join(f"{labels[index]} {row[index]:.1%}" for index in best))
