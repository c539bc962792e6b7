"""The fixed inputs on which an exported model is compared with its source, and the comparison.

Axes: B batch  D width of an output
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from kakao_models.export.contract import AS_IT_IS, Contract
from kakao_models.inference.embedder import Embedder

_TEXTS = (
    "a cat",
    "two brown dogs running along the beach at sunset",
    " ".join(["a photo of a red car and a small house by the sea"] * 8),  # longer than any model reads
)
_SIZES = ((97, 130), (212, 141))  # height, width of what "picture" is tried with

RunFunction = Callable[[dict[str, np.ndarray]], np.ndarray]


def compare(embedder: Embedder, contract: Contract, name: str, run: RunFunction) -> dict[str, Any]:
    """Runs function `name` of an export beside its source, for one input and for several.

    Returns:
        `cosine`, the smallest of any row; `difference`, the largest of any number, and `of`, the largest number of the
        source; of a classifier also `same_best`, the share of rows whose best label is the same.

    Raises:
        ValueError: the export's output has another shape, or is not finite.
    """
    outputs, references = [], []
    for inputs, expected in _samples(embedder, contract, name):
        got = np.asarray(run(inputs), np.float32)
        shapes = ", ".join(f"{key} {value.shape}" for key, value in inputs.items())
        if got.shape != expected.shape:
            raise ValueError(
                f"the exported {name} gives shape {got.shape} for inputs {shapes}, expected {expected.shape}"
            )
        if not np.isfinite(got).all():
            raise ValueError(f"the exported {name} gives NaN or infinity for inputs {shapes}")
        outputs.append(got)
        references.append(expected)
    got, expected = np.concatenate(outputs).astype(np.float64), np.concatenate(references).astype(np.float64)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (got * expected).sum(1) / np.maximum(lengths, 1e-30)
    cosines[(got == expected).all(1)] = 1  # rows of zeros too: a new classifier's
    result = {
        "inputs": len(got),
        "cosine": float(cosines.min()),
        "difference": float(np.abs(got - expected).max()),
        "of": float(np.abs(expected).max()),
    }
    if name == "classifier":
        result["same_best"] = float((got.argmax(1) == expected.argmax(1)).mean())
    return result


def _samples(embedder: Embedder, contract: Contract, name: str) -> Iterator[tuple[dict, np.ndarray]]:
    """(inputs, what the source gives for them), of batches of one and of several."""
    if name == "text":
        ids = contract.functions["text"].inputs[0].dtype
        for texts in (_TEXTS[:1], _TEXTS):
            rows = embedder.tokenizer(list(texts), truncation=True, max_length=embedder.max_tokens, padding=True)
            inputs = {key: np.array(rows[key], ids) for key in ("input_ids", "attention_mask")}
            yield inputs, embedder.texts(texts, normalize=contract.normalize)
        return
    kind, size = contract.pixels.kind, contract.pixels.size
    for count, shape in zip((1, 3), _SIZES if kind == "picture" else (size, size)):
        pictures = [picture(seed, *shape) for seed in range(count)]
        options = {} if kind == "picture" else AS_IT_IS
        if kind == "float":
            pixels = embedder.image_processor(images=pictures, return_tensors="np", **options)["pixel_values"]
            inputs = {"pixel_values": np.asarray(pixels)}
        else:
            inputs = {"images": np.stack(pictures)}
        output = "logits" if name == "classifier" else "features"
        batches = embedder.iter_images(
            pictures, output=output, normalize=contract.normalize, on_error="raise", processor_options=options
        )
        yield inputs, np.concatenate([batch.values for batch in batches])


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: large soft patches of colour with fine grain, the same wherever it is made."""
    random = np.random.default_rng(seed)
    patches = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    soft = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(soft + random.integers(-12, 13, soft.shape), 0, 255).astype(np.uint8)
