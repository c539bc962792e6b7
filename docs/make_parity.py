"""Writes docs/parity.md: how far every model is from the recorded outputs of the original code.

python docs/make_parity.py             # the small models, in every framework that is installed: a few minutes
python docs/make_parity.py --full      # B7 and L/16 too: most of an hour, 12 GB of memory
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import goldens  # noqa: E402

import kakao_models  # noqa: E402

SMALL = ["align_a", "align_b", "align_nano", "vit_a", "vit_b", "vit_nano_ckpt"]
FULL = ["align_c", "align_d", "vit_c", "vit_d", "vit_e"]
WHAT = {
    "align_a": "ALIGN, B0 + BERT-mini",
    "align_b": "ALIGN, B3 + BERT-mini (CC3M)",
    "align_c": "ALIGN, B7 + BERT-base (released)",
    "align_d": "ALIGN, B7 + BERT-large",
    "align_nano": "ALIGN, a few blocks",
    "vit_a": "ViT-Ti/16, 64 px, pre-logits",
    "vit_b": "ViT-S/16, 96 px",
    "vit_c": "ViT-L/16, 224 px, 21,841 classes",
    "vit_d": "ViT-L/16, 384 px",
    "vit_e": "ViT-L/16, 512 px",
    "vit_nano_ckpt": "ViT, two layers",
}
HEAD = """# Parity

The table has the largest absolute difference of each model from the recorded outputs of the original code (TensorFlow 2.4.1 for ALIGN, 2.8.0
for ViT), with fully randomised weights. The last column is the largest difference from our PyTorch model on the same inputs, over all outputs.
`python docs/make_parity.py` writes this page (with `--full`, B7 and L/16 too). The tests check every model against the limits in
`tests/tolerances.py`, block by block.

ALIGN's remaining difference in float64 comes from two constants that the original code rounds to float32: 1/127.5 and the square root of 2.
With these rounded constants, the difference is below 1e-9 (`test_golden_float64_with_the_original_s_float32_constants`).

| model | framework | precision | image features | text features | logits | from PyTorch |
|---|---|---|---|---|---|---|
"""
PREFIX = {"PyTorch": "", "Keras": "TF", "Flax": "Flax"}
PACKAGE = {"PyTorch": "torch", "Keras": "tensorflow", "Flax": "flax"}


def load(framework: str, name: str, folder: Path, dtype: str):
    """The model of a folder, and what runs a function of it on named numpy arrays and gives numpy arrays."""
    kind = "AlignModel" if name.startswith("align") else "ViTForImageClassification"
    model = getattr(kakao_models, PREFIX[framework] + kind).from_pretrained(folder, dtype=dtype)
    if framework == "Flax":
        from flax_arrays import jitted

        return lambda function, **inputs: jitted(function)(model, **inputs)

    def run(function: Callable, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if framework == "PyTorch":
            inputs = {key: torch.from_numpy(value) for key, value in inputs.items()}
        with torch.inference_mode():
            return {key: np.asarray(value) for key, value in function(model, **inputs).items()}

    return run


def align_outputs(model, pixel_values, **tokens) -> dict:
    return {
        "image_features": model.get_image_features(pixel_values).pooler_output,
        "text_features": model.get_text_features(**tokens).pooler_output,
        "logits_per_image": model(pixel_values=pixel_values, **tokens).logits_per_image,
    }


def vit_outputs(model, pixel_values) -> dict:
    output = model.vit(pixel_values)
    features = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
    return {"pre_logits": features, "logits": model.classifier(features)}


def outputs(framework: str, name: str, golden: goldens.Golden, folder: Path, dtype: str) -> dict[str, np.ndarray]:
    run = load(framework, name, folder, dtype)
    if name.startswith("align"):
        tokens = {k: golden.arrays[k].astype(np.int64) for k in ("input_ids", "attention_mask", "token_type_ids")}
        pixels = golden.images.transpose(0, 3, 1, 2).astype(dtype) / 127.5 - 1
        return run(align_outputs, pixel_values=pixels, **tokens)
    pixels = ((golden.images.astype(np.float32) - 127.5) / np.float32(127.5)).transpose(0, 3, 1, 2)
    found = run(vit_outputs, pixel_values=pixels.astype(dtype))
    return found | {"logits": found["logits"][:, :: int(golden.arrays.get("logits_step", 1))]}


def rows(name: str, dtype: str, frameworks: list[str]) -> list[str]:
    """A line per framework, with the differences of every output; none where nothing was recorded."""
    golden = goldens.load(name)
    suffix = "_f64" if dtype == "float64" else ""
    align = name.startswith("align")
    columns = ("image_features", "text_features", "logits_per_image") if align else ("pre_logits", None, "logits")
    if columns[-1] + suffix not in golden.arrays:
        return []
    lines, ours = [], None
    with tempfile.TemporaryDirectory() as parent:
        folder = goldens.write_folder(name, Path(parent))
        for framework in frameworks:
            with contextlib.ExitStack() as stack:
                if framework == "Flax" and dtype == "float64":
                    import jax

                    stack.enter_context(jax.enable_x64(True))
                found = outputs(framework, name, golden, folder, dtype)
            ours = ours or found
            cells = [f"{np.abs(found[c] - golden.arrays[c + suffix]).max():.1e}" if c else "" for c in columns]
            between = f"{max(np.abs(found[c] - ours[c]).max() for c in found):.1e}" if found is not ours else ""
            lines.append(f"| {WHAT[name]} | {framework} | {dtype} | {' | '.join(cells)} | {between} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full-size models too")
    names = SMALL + FULL if parser.parse_args().full else SMALL
    frameworks = [framework for framework, package in PACKAGE.items() if find_spec(package)]
    lines = [
        line for name in sorted(names) for dtype in ("float32", "float64") for line in rows(name, dtype, frameworks)
    ]
    (ROOT / "docs" / "parity.md").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
