"""Zero-shot classification with ONNX Runtime: neither PyTorch nor this package is needed.

kakao-models export align-tiny --to onnx --input uint8 -o align-onnx
pip install onnxruntime tokenizers pillow numpy
python examples/serving/onnx_runtime.py align-onnx "a cat,two dogs,mountains" examples/photos/*.jpg
"""

import sys
from pathlib import Path

import inputs
import numpy as np
import onnxruntime


def run(folder, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
    """The output of the function "image", "text" or "classifier"."""
    file = Path(folder, inputs.sheet(folder)["functions"][name]["file"])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, values)[0]


def main() -> None:
    folder, labels, *files = sys.argv[1:]
    labels = labels.split(",")
    images = run(folder, "image", {"images": inputs.pictures(folder, files)})
    texts = run(folder, "text", inputs.tokens(folder, [f"This is a photo of {label}." for label in labels]))
    inputs.show(files, labels, inputs.scores(folder, images, texts))


if __name__ == "__main__":
    main()
