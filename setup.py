"""Everything about the package that pip needs; pyproject.toml holds the tools' settings."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "src/kakao_models/__init__.py").read_text()).group(1)

TORCH = ["torch>=2.6"]
EXTRAS = {
    "torch": TORCH,
    "test": ["pytest>=8", "pytest-xdist>=3", "ruff>=0.9", "scipy>=1.11", "matplotlib>=3.8"],
}
EXTRAS["all"] = sorted({requirement for name in EXTRAS if name != "test" for requirement in EXTRAS[name]})

setup(
    name="kakao-models",
    version=VERSION,
    description="Kakao Brain's ALIGN and COYO-ViT: zero-shot classification, embedding, conversion and training",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"kakao_models": ["checkpoints/*/*"]},
    install_requires=[
        "transformers>=5.16,<6",
        "huggingface_hub>=1.3",
        "safetensors>=0.5",
        "numpy>=1.26",
        "google-crc32c>=1.5",
        "pillow>=11.1",
        "typer>=0.15",
        "rich>=13.9",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["kakao-models = kakao_models.cli:main"]},
    classifiers=["Programming Language :: Python :: 3", "Intended Audience :: Science/Research"],
)
