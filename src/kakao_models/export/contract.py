"""Inputs and outputs of an exported model: the same for every format.

Axes: B batch  H, W height, width  L tokens  D width of the features
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from kakao_models.inference.embedder import Embedder
from kakao_models.pixels.resize import center_box

SHEET = "export.json"
IMAGE_INPUTS = ("float", "uint8", "picture")
PARTS = ("image", "text", "both", "classifier")


@dataclass(frozen=True)
class Tensor:
    """An input or an output; names in `shape` are sizes that may differ from call to call."""

    name: str
    dtype: str
    shape: list[str | int]
    about: str


@dataclass(frozen=True)
class Function:
    """ "image", "text" or "classifier": inputs by name, one output."""

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor


@dataclass(frozen=True)
class ImageInput:
    """Form of the images that a graph takes, and what it does to them.

    kind: "float", (B, 3, H, W) as the image processor gives it; "uint8", (B, H, W, 3) at the model's size; "picture",
        (B, any height, any width, 3).
    size: H, W.
    scale, offset: per channel, pixel_values = scale * byte + offset.
    resized, box: only of "picture": the size to resize to, and the part (top, left, H, W) of that.
    """

    kind: str
    size: tuple[int, int]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    resized: tuple[int, int] = (0, 0)
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Contract:
    """The functions of an export and how they are called.

    normalize: whether features have length 1; never of a classifier.
    quantize: None, or how the weights are stored.
    metadata: what export.json says beside the functions; also embedded into the files.
    where: `revision` and `token`, for a format that loads the checkpoint in its own framework.
    """

    functions: dict[str, Function]
    pixels: ImageInput
    normalize: bool
    quantize: str | None
    metadata: dict[str, Any]
    where: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """The content of export.json: `metadata`, and the functions with their tensors."""
        functions = {
            name: {"inputs": [asdict(tensor) for tensor in function.inputs], "outputs": [asdict(function.output)]}
            for name, function in self.functions.items()
        }
        return {**self.metadata, "functions": functions}

    def described_json(self) -> str:
        return json.dumps(self.described(), ensure_ascii=False)

    def assets(self) -> dict[str, str]:
        """Name → content of the text files that TensorFlow's formats hold beside the model."""
        labels = self.metadata.get("labels")
        listed = {"labels.txt": "".join(f"{label}\n" for label in labels)} if labels else {}
        return {SHEET: self.described_json()} | listed

    def source_model(self, embedder: Embedder, framework: type) -> Any:
        """The plain model in float32: the embedder's, or where another framework runs that, one of this engine's."""
        engine = embedder.engine
        own = isinstance(engine, framework)
        return (engine if own else framework.load(embedder.name, device="cpu", **self.where)).model


def contract(embedder: Embedder, what: str | None, kind: str, ids: str, metadata: dict, where: dict) -> Contract:
    """The contract by which `embedder`'s model is exported.

    Args:
        what: one of `PARTS`; by default all that the model is made for.
        kind: the kind of `ImageInput`.
        ids: dtype of token ids in the format, "int32" or "int64".
        metadata, where: see `Contract`.

    Raises:
        ValueError: the model has no such part, or its preprocessing can't be in a graph.
    """
    names = _parts(embedder, what)
    normalize = metadata["normalized"]
    pixels = _pixels(embedder, kind)
    if normalize and names == ("classifier",):
        raise ValueError("--normalize scales embeddings to length 1, but a classifier gives logits. Leave it out")
    unit = ", each row of length 1" if normalize else ", not normalised"
    features = {
        "image": Tensor("image_features", "float32", ["batch", embedder.dim], "embeddings of the images" + unit),
        "text": Tensor("text_features", "float32", ["batch", embedder.dim], "embeddings of the texts" + unit),
    }
    if "classifier" in names:
        logits = ["batch", embedder.config.num_labels]
        features["classifier"] = Tensor("logits", "float32", logits, "one number per label, before any softmax")
    inputs = {"image": _image_inputs(pixels), "text": _text_inputs(embedder, ids), "classifier": _image_inputs(pixels)}
    functions = {name: Function(name, inputs[name], features[name]) for name in names}
    return Contract(functions, pixels, normalize, metadata["quantize"], metadata, where)


def _parts(embedder: Embedder, what: str | None) -> tuple[str, ...]:
    engine = embedder.engine
    there = ("image", "text") if engine.reads_texts else ("image", "classifier") if engine.classifies else ("image",)
    if what is None:
        return there if engine.reads_texts else there[-1:]
    expected = ("image", "text") if what == "both" else (what,)
    if absent := [name for name in expected if name not in there]:
        raise ValueError(
            f"{embedder.name} has no {absent[0]} to export, only {' and '.join(there)}. Use --what {there[-1]}"
        )
    return expected


def _pixels(embedder: Embedder, kind: str) -> ImageInput:
    processor = embedder.image_processor
    resized, crop = dict(processor.size), dict(processor.crop_size or {})
    size = crop if processor.do_center_crop else resized if processor.do_resize and "height" in resized else None
    if size is None:
        side = getattr(embedder.config, "vision_config", embedder.config).image_size
        height, width = (side, side) if isinstance(side, int) else side
    else:
        height, width = size["height"], size["width"]
    # The processor itself says what becomes of a byte: rescaling and normalisation are affine, per channel.
    squares = [np.full((height, width, 3), byte, np.uint8) for byte in (0, 255)]
    black, white = processor(images=squares, return_tensors="np", **AS_IT_IS)["pixel_values"][:, :, 0, 0]
    scale = (white.astype(np.float64) - black) / 255
    plain = ImageInput(kind, (height, width), tuple(scale.tolist()), tuple(black.astype(np.float64).tolist()))
    if kind != "picture":
        return plain
    if not (
        processor.preprocessing == "tf" and processor.do_resize and processor.resample == Image.Resampling.BILINEAR
    ):
        raise ValueError(
            f"--input picture: a graph cannot reproduce the resizing of {embedder.name} ({processor.resizing()}) to the "
            "pixel. Use --input uint8 and resize images before the call; export.json says how"
        )
    if "height" not in resized:
        raise ValueError(f"--input picture: {embedder.name} keeps the aspect ratio ({resized}). Use --input uint8")
    full = resized["height"], resized["width"]
    return replace(plain, resized=full, box=center_box(*full, height, width))


AS_IT_IS = {"do_resize": False, "do_center_crop": False}  # processor options for images that have the model's size


def _image_inputs(pixels: ImageInput) -> tuple[Tensor, ...]:
    height, width = pixels.size
    if pixels.kind == "float":
        about = "RGB as preprocessor_config.json makes it: resized, rescaled, normalised"
        return (Tensor("pixel_values", "float32", ["batch", 3, height, width], about),)
    if pixels.kind == "uint8":
        about = "resized to this size by the caller; rescaling and normalisation are in the graph"
        return (Tensor("images", "uint8", ["batch", height, width, 3], f"RGB, 0 to 255, upright, {about}"),)
    about = "of any size; resizing, cropping and normalisation are in the graph"
    return (Tensor("images", "uint8", ["batch", "height", "width", 3], f"RGB, 0 to 255, upright, {about}"),)


def _text_inputs(embedder: Embedder, ids: str) -> tuple[Tensor, ...]:
    if not embedder.engine.reads_texts:
        return ()
    most, words = embedder.max_tokens, embedder.config.text_config.vocab_size
    return (
        Tensor("input_ids", ids, ["batch", "tokens"], f"of tokenizer.json, below {words}; at most {most} tokens"),
        Tensor("attention_mask", ids, ["batch", "tokens"], "1 at tokens, 0 at padding, which comes after them"),
    )
