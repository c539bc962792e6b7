"""The version and the dependencies of the package; everything else about it is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "src/kakao_models/__init__.py").read_text()).group(1)

TORCH = ["torch>=2.8"]  # older ones can't trace transformers' ViT
SEARCH = ["pymilvus>=3.0", "milvus-lite>=3.2"]
KERAS = ["keras>=3.11.3"]  # older releases have holes in their loading
# No framework needs another.
EXTRAS = {
    "torch": TORCH,
    "keras": KERAS,  # for those who bring its backend, such as tensorflow-cpu
    "tensorflow": ["tensorflow>=2.18", *KERAS],
    # nnx.view; jax.shard_map; flatbuffers, with which jax.export writes a program
    "flax": ["jax>=0.10", "flax>=0.12.4", "optax>=0.2.8", "flatbuffers>=24.3"],
    "convert": [*TORCH, "h5py>=3.11", "msgpack>=1.1"],
    "train": [
        *TORCH,
        "accelerate>=1.3",
        "datasets>=4.8",
        "pyarrow>=21",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
    ],
    "data": [
        "datasets>=4.8",
        "duckdb>=1.2",
        "ibis-framework[duckdb]>=10",
        "matplotlib>=3.9",
        "pyarrow>=21",
        "scipy>=1.14",
    ],
    "spark": ["pyspark>=4.3"],  # data --backend pyspark; beside data, and Java 17
    "search": SEARCH,
    "evaluate": ["scikit-learn>=1.6", "scipy>=1.14", "pyarrow>=18", "matplotlib>=3.9"],
    "mieb": ["mteb>=2.26"],  # evaluate mieb; it requires PyTorch
    "demo": ["gradio>=6.31", "scikit-learn>=1.6", *SEARCH],
    "fast": ["simplejpeg>=1.8"],  # a faster decoder of JPEGs, for fast_images=True
    "heic": ["pillow-heif>=1.0"],  # photographs of phones
    "openvino": ["openvino>=2025.0"],  # runs models without a framework
    "onnx": ["onnxruntime>=1.20"],  # likewise
    "export": [*TORCH, "onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20", "openvino>=2025.0", "nncf>=2.15"],
    "serve": ["fastapi>=0.115", "pydantic>=2.10", "uvicorn>=0.34", "prometheus-client>=0.21"],  # beside a framework
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "nbconvert>=7.16", "ruff>=0.9"],  # ruff: signatures
    "notebooks": ["nbclient>=0.10", "ipykernel>=6.29"],  # make notebooks; the notebooks themselves name other extras
    "test-torch": ["sentence-transformers>=6"],  # beside test, where PyTorch may be: it requires that
    "test": [
        "pytest>=8",
        "pytest-xdist>=3",
        "pyarrow>=18",
        "scipy>=1.14",
        "h5py>=3.11",
        "msgpack>=1.1",
        "optuna>=4",
        "playwright>=1.50",
    ],
}
EXTRAS["all"] = sorted(
    {
        requirement
        for name in EXTRAS
        if name not in ("docs", "notebooks", "test", "test-torch", "spark", "mieb")
        for requirement in EXTRAS[name]
    }
)

setup(
    version=VERSION,
    install_requires=[
        "transformers>=5.23,<6",
        "huggingface_hub>=1.31",
        "tokenizers>=0.23.1",
        "safetensors>=0.8",
        "numpy>=1.26",
        "ml_dtypes>=0.5",  # bfloat16 in numpy
        "filelock>=3.16",
        "google-crc32c>=1.6",  # the first with a compiled one for Python 3.11
        "pillow>=11.1",
        "pyyaml>=6",
        "typer>=0.16",
        "rich>=13.9",
    ],
    extras_require=EXTRAS,
)
