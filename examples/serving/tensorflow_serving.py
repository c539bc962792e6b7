# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "pillow", "tokenizers"]
# ///

"""Zero-shot classification through TensorFlow Serving.

    kakao-models export align-small --to saved_model --input uint8 -o align-tf
    docker run --rm -p 8501:8501 -v "$PWD/align-tf:/models/align" -e MODEL_NAME=align tensorflow/serving
    python examples/serving/tensorflow_serving.py align-tf "a cat,two dogs,mountains" src/kakao_models/photos/*.jpg

The folder is a model's folder as the server wants it: the version is its subfolder 1/, everything else is ignored. For a
new version export again and move its 1/ here as 2/; the server loads it automatically.
"""

import json
import urllib.request

import inputs
import numpy as np

URL = "http://127.0.0.1:8501/v1/models/align:predict"


def request(folder, name: str, values: dict[str, np.ndarray]) -> dict:
    """The body of a predict request for the function "image", "text" or "classifier"."""
    signature = inputs.sheet(folder)["functions"][name]["signature"]
    return {"signature_name": signature, "inputs": {key: value.tolist() for key, value in values.items()}}


def run(folder, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
    body = json.dumps(request(folder, name, values)).encode()
    with urllib.request.urlopen(urllib.request.Request(URL, body, {"Content-Type": "application/json"})) as answer:
        return np.array(json.load(answer)["outputs"], np.float32)  # one output: not named in the answer


if __name__ == "__main__":
    inputs.zero_shot(run)
