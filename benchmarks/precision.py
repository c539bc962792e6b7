"""How near engines, dtypes and exports are to the plain model in float32, on photographs and captions that it was not trained on.

    python benchmarks/precision.py --data flickr8k/dev.parquet --model align-small --count 1000

For each, the lowest cosine of any photograph's embedding and of any caption's, and the size of an export's models.
Engines that are not installed are left out.
`dtype="auto"` may keep float32: then both cosines are 1.
"""

import importlib
import tempfile
from pathlib import Path

import numpy as np
from common import arguments, show

from kakao_models import Embedder
from kakao_models.evaluate import read_captioned
from kakao_models.export.contract import Function, Tensor
from kakao_models.export.exporter import EXPORT_FORMATS, export
from kakao_models.pixels.images import load_image

BATCH = 32


def lowest_cosine(rows: np.ndarray, expected: np.ndarray) -> str:
    a, b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (rows, expected)
    )
    return f"{(a * b).sum(1).min():.5f}"


def batches(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def exported(embedder: Embedder, folder: Path, to: str, quantize: str | None, pixels: np.ndarray, texts: list[str]):
    """Embeddings of images and texts by an export, in its own runtime."""
    sheet = export(embedder.name, folder, to=to, quantize=quantize, force=True, progress=False)
    runtime = importlib.import_module(f"kakao_models.export.{to}")
    run = {}
    for name, entry in sheet["functions"].items():
        function = Function(name, tuple(Tensor(**tensor) for tensor in entry["inputs"]), Tensor(**entry["outputs"][0]))
        run[name] = runtime.load(folder / entry["file"], function)
    ids = EXPORT_FORMATS[to].ids
    captions = []
    for part in batches(len(texts)):
        tokens = embedder.tokenizer(texts[part], truncation=True, max_length=embedder.max_tokens, padding=True)
        captions.append(run["text"]({key: np.array(tokens[key], ids) for key in ("input_ids", "attention_mask")}))
    images = [run["image"]({"pixel_values": pixels[part]}) for part in batches(len(pixels))]
    return np.concatenate(images), np.concatenate(captions)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], data="", model="align-small", count=1000)
    data = read_captioned(args.data)
    photographs, texts = list(data.images)[: args.count], data.captions[: args.count]
    plain = Embedder(args.model)
    images, captions = plain.images(photographs), plain.texts(texts)
    rows = []
    for engine in ("torch", "openvino", "onnx"):
        for dtype in ("float32", "auto", "bfloat16"):
            try:
                other = Embedder(args.model, engine=engine, dtype=dtype)
            except (ImportError, ValueError) as error:
                print(f"{engine}, {dtype}: {error}")
                continue
            cosines = lowest_cosine(other.images(photographs), images), lowest_cosine(other.texts(texts), captions)
            rows.append([f'engine="{engine}", dtype="{dtype}"', *cosines, ""])
    pixels = np.concatenate(
        [
            plain.image_processor(images=[load_image(photo) for photo in photographs[part]], return_tensors="np")[
                "pixel_values"
            ]
            for part in batches(len(photographs))
        ]
    )
    for to, form in EXPORT_FORMATS.items():
        for quantize in (None, *form.quantize):
            with tempfile.TemporaryDirectory() as folder:
                results = exported(plain, Path(folder, "export"), to, quantize, pixels, texts)
                bytes_ = sum(
                    path.stat().st_size for path in Path(folder, "export").rglob("*") if path.suffix != ".json"
                )
            cosines = lowest_cosine(results[0], images), lowest_cosine(results[1], captions)
            rows.append([f"export, {to}, {quantize or 'float32'}", *cosines, f"{bytes_ / 1e6:.1f}"])
    title = f"{args.model}, lowest cosine over {len(photographs)} photographs and {len(texts)} captions"
    show(title, ["", "photographs", "captions", "MB"], rows)


if __name__ == "__main__":
    main()
