"""LiteRT in its own runtime, beside the embedder."""

import json
import zipfile

import tensorflow as tf
from exports import TEXTS, as_bytes, close, cosines, exported, of_bytes, of_page, tokens


def test_litert(align, embedder, tmp_path):
    folder, _ = exported(align, tmp_path / "out", to="litert", quantize="int8", input="uint8", what="image")
    run = tf.lite.Interpreter(str(folder / "image.tflite")).get_signature_runner("image_features")
    assert cosines(run(images=as_bytes())["image_features"], of_bytes(embedder)).min() > 0.99
    with zipfile.ZipFile(folder / "image.tflite") as archive:
        assert json.loads(archive.read("export.json"))["quantize"] == "int8"


def test_litert_of_texts(align, embedder, tmp_path):
    folder, _ = exported(align, tmp_path / "out", to="litert", what="text", normalize=True)
    run = tf.lite.Interpreter(str(folder / "text.tflite")).get_signature_runner("text_features")
    ids, mask = tokens(embedder, "int32").values()
    rows = of_page("tf.lite", "litert", folder, ids=ids, mask=mask)["rows"]
    close(rows, embedder.texts(TEXTS, normalize=True))
    close(run(**tokens(embedder, "int32"))["text_features"], embedder.texts(TEXTS, normalize=True))
    close(run(**tokens(embedder, "int32", ["a cat"]))["text_features"], embedder.texts(["a cat"], normalize=True))
