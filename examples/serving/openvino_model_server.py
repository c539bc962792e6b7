# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "pillow", "tokenizers"]
# ///

"""Zero-shot classification through OpenVINO Model Server, with the KServe protocol.

    kakao-models export align-small --to openvino --input uint8 -o align-ov
    docker run --rm -p 8000:8000 -v "$PWD/align-ov:/models" openvino/model_server \\
        --config_path /models/config.json --rest_port 8000
    python examples/serving/openvino_model_server.py align-ov "a cat,two dogs,mountains" src/kakao_models/photos/*.jpg

The folder is a model repository for the server: config.json names the models `image` and `text`, each with its version
1/model.xml; mount it as /models, which is where config.json says they are.
"""

import json
import urllib.request

import inputs
import numpy as np

URL = "http://127.0.0.1:8000/v2/models/{name}/infer"
TYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}


def request(values: dict[str, np.ndarray]) -> dict:
    """The body of an inference request."""
    return {
        "inputs": [
            {"name": key, "shape": value.shape, "datatype": TYPES[value.dtype.name], "data": value.ravel().tolist()}
            for key, value in values.items()
        ]
    }


def run(folder, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
    body, kind = json.dumps(request(values)).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(URL.format(name=name), body, kind)) as answer:
        output = json.load(answer)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


if __name__ == "__main__":
    inputs.zero_shot(run)
