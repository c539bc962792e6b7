"""Embedding 12-megapixel JPEGs: `Embedder.images` against PIL, transformers' processor and AlignModel, same weights.

    python benchmarks/images.py --images 16

Also without a model: reading and preprocessing alone, in one thread.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import arguments, checkpoint, difference, interleaved, show, theirs
from PIL import Image

from kakao_models import Embedder
from kakao_models.data.images import load_image


def write_photos(folder: Path, count: int, width: int, height: int) -> list[str]:
    """JPEGs with detail at every scale, like photographs."""
    paths = []
    for index in range(count):
        draw = np.random.default_rng(index)
        picture = np.zeros((height, width, 3), np.float32)
        for side in (4, 16, 64, 256, 1024):
            layer = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
            picture += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 5
        paths.append(str(folder / f"{index:03}.jpg"))
        Image.fromarray(picture.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def main() -> None:
    options = arguments(__doc__, images=16, width=4000, height=3000, batch_size=8, repeats=3)
    folder = checkpoint(options.size)
    embedder = Embedder(folder, batch_size=options.batch_size)
    model, image_processor, _ = theirs(folder)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_photos(Path(temporary), options.images, options.width, options.height)

        def read_with_transformers(path: str):
            return image_processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]

        def read_with_ours(path: str):
            image = load_image(path, size_hint=embedder.image_processor.decode_size)
            return embedder.image_processor(images=image, return_tensors="np")["pixel_values"]

        def embed_with_transformers() -> None:
            rows = []
            with torch.inference_mode():
                for start in range(0, len(paths), options.batch_size):
                    batch = [read_with_transformers(path) for path in paths[start : start + options.batch_size]]
                    rows.append(model.get_image_features(torch.cat(batch)).pooler_output)
            results["theirs"] = torch.cat(rows).numpy()

        def embed_with_ours() -> None:
            results["ours"] = embedder.images(paths)

        candidates = {
            "transformers, reading": lambda: [read_with_transformers(path) for path in paths],
            "kakao_models, reading": lambda: [read_with_ours(path) for path in paths],
            "transformers": embed_with_transformers,
            "kakao_models": embed_with_ours,
        }
        seconds = interleaved(candidates, options.repeats)
    rows = []
    for name, value in seconds.items():
        peer = seconds["transformers, reading" if name.endswith("reading") else "transformers"]
        rows.append([name, value, options.images / value, peer / value])
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (results["ours"], results["theirs"]))
    title = (
        f"{options.images} JPEGs of {options.width} x {options.height}, {options.size}; unit embeddings differ by "
        f"{difference(a, b)}"
    )
    show(title, ["", "seconds", "images/s", "times as fast"], rows)


if __name__ == "__main__":
    main()
