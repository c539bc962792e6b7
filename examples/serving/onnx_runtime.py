# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "onnxruntime", "pillow", "tokenizers"]
# ///

"""Zero-shot classification with ONNX Runtime, without PyTorch and without this package.

kakao-models export align-small --to onnx --input uint8 -o align-onnx
pip install onnxruntime tokenizers pillow numpy
python examples/serving/onnx_runtime.py align-onnx "a cat,two dogs,mountains" src/kakao_models/photos/*.jpg
"""

from pathlib import Path

import inputs
import numpy as np
import onnxruntime


def run(folder, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
    """The output of the function "image", "text" or "classifier"."""
    file = Path(folder, inputs.sheet(folder)["functions"][name]["file"])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, values)[0]


if __name__ == "__main__":
    inputs.zero_shot(run)
