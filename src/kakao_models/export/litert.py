"""Keras models as LiteRT (TensorFlow Lite) files with named signatures."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from kakao_models.checkpoint.keras_export import converted
from kakao_models.export.contract import Contract
from kakao_models.export.exporter import SHEET, Place
from kakao_models.export.samples import RunFunction
from kakao_models.export.saved_model import functions, keras_model
from kakao_models.inference.embedder import Embedder


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, Place]:
    """A file for each function, with export.json and labels.txt in it as a zip archive at its end, which is where TensorFlow
    Lite's metadata keeps associated files: `unzip image.tflite` takes them out.
    """
    files = {SHEET: json.dumps(contract.described(), ensure_ascii=False)}
    if labels := contract.facts.get("labels"):
        files["labels.txt"] = "".join(f"{label}\n" for label in labels)
    signatures, variables = functions(keras_model(embedder, contract), contract)
    places = {}
    for name, function in contract.functions.items():
        signature = function.output.name
        places[name] = Place(f"{name}.tflite", signature)
        content = converted({signature: signatures[signature]}, variables, contract.quantize)
        (folder / places[name].file).write_bytes(content)
        with zipfile.ZipFile(folder / places[name].file, "a") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
    return places


def load(folder: Path, contract: Contract, name: str) -> RunFunction:
    """Runs a function by its signature, in LiteRT's interpreter."""
    interpreter = _interpreter()(os.fspath(folder / f"{name}.tflite"), num_threads=1)
    output = contract.functions[name].output.name
    runner = interpreter.get_signature_runner(output)

    def run(inputs: dict[str, np.ndarray], interpreter=interpreter) -> np.ndarray:  # which owns the runner
        return runner(**inputs)[output]

    return run


def _interpreter() -> type:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # TensorFlow's own, the same program
        return tf.lite.Interpreter
    return Interpreter
