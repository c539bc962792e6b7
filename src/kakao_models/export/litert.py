"""Keras models as LiteRT (TensorFlow Lite) files with named signatures."""

import os
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from kakao_models.checkpoint.keras_export import converted
from kakao_models.export.contract import Contract, Function
from kakao_models.export.samples import RunFunction
from kakao_models.export.saved_model import functions
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.engine_tf import KerasEngine


def write(embedder: Embedder, contract: Contract, folder: Path) -> dict[str, str]:
    """A file for each function, with export.json and labels.txt in it as a zip archive at its end, which is where TensorFlow
    Lite's metadata keeps associated files: `unzip image.tflite` takes them out.
    """
    signatures, variables = functions(contract.source_model(embedder, KerasEngine), contract)
    files = {}
    for name, function in contract.functions.items():
        files[name] = f"{name}.tflite"
        signature = function.output.name
        content = converted({signature: signatures[signature]}, variables, contract.quantize)
        (folder / files[name]).write_bytes(content)
        with zipfile.ZipFile(folder / files[name], "a") as archive:
            for asset, text in contract.assets().items():
                archive.writestr(asset, text)
    return files


def load(path: Path, function: Function) -> RunFunction:
    """Runs a function by its signature, in LiteRT's interpreter."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # TensorFlow's own, the same program
        Interpreter = tf.lite.Interpreter
    interpreter = Interpreter(os.fspath(path), num_threads=1)
    output = function.output.name
    runner = interpreter.get_signature_runner(output)

    def run(inputs: dict[str, np.ndarray], interpreter=interpreter) -> np.ndarray:  # which owns the runner
        return runner(**inputs)[output]

    return run
