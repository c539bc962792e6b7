"""Writes docs/parity.md: how far every model is from the recorded outputs of the original programs.

python docs/make_parity.py             # the small models, a minute
python docs/make_parity.py --full      # B7 and L/16 too: a quarter of an hour, 10 GB of memory
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import goldens  # noqa: E402

from kakao_models import AlignModel, ViTForImageClassification  # noqa: E402

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

Largest absolute difference from the recorded outputs of the original programs (TensorFlow 2.4.1 for ALIGN, 2.8.0 for ViT), on
weights that are random everywhere. Written by `python docs/make_parity.py` (`--full`: B7 and L/16 too); the tests hold every model to the limits of
`tests/tolerances.py`, block by block.

In float64 what is left of ALIGN comes from two constants that the original rounds to float32, 1/127.5 and the root of 2; with
these put in, the difference is below 1e-9 (`test_golden_float64_with_the_original_s_float32_constants`).

| model | framework | precision | image features | text features | logits |
|---|---|---|---|---|---|
"""


def align_outputs(folder: Path, golden: goldens.Golden, dtype: torch.dtype) -> dict[str, np.ndarray]:
    model = AlignModel.from_pretrained(folder, dtype=dtype)
    tokens = {k: torch.from_numpy(golden.arrays[k]).long() for k in ("input_ids", "attention_mask", "token_type_ids")}
    pixels = torch.from_numpy(golden.images).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    with torch.inference_mode():
        return {
            "image_features": model.get_image_features(pixels).pooler_output.numpy(),
            "text_features": model.get_text_features(**tokens).pooler_output.numpy(),
            "logits_per_image": model(pixel_values=pixels, **tokens).logits_per_image.numpy(),
        }


def vit_outputs(folder: Path, golden: goldens.Golden, dtype: torch.dtype) -> dict[str, np.ndarray]:
    model = ViTForImageClassification.from_pretrained(folder, dtype=dtype)
    pixels = torch.from_numpy((golden.images.astype(np.float32) - 127.5) / np.float32(127.5)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        output = model.vit(pixels.to(dtype))
        features = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
        logits = model.classifier(features)[:, :: int(golden.arrays.get("logits_step", 1))]
        return {"pre_logits": features.numpy(), "logits": logits.numpy()}


def row(name: str, dtype: torch.dtype) -> str | None:
    golden = goldens.load(name)
    suffix = "_f64" if dtype == torch.float64 else ""
    align = name.startswith("align")
    if ("image_features" if align else "logits") + suffix not in golden.arrays:
        return None
    with tempfile.TemporaryDirectory() as folder:
        outputs = (align_outputs if align else vit_outputs)(goldens.write_folder(name, Path(folder)), golden, dtype)
    columns = ("image_features", "text_features", "logits_per_image") if align else ("pre_logits", None, "logits")
    cells = [f"{np.abs(outputs[c] - golden.arrays[c + suffix]).max():.1e}" if c else "" for c in columns]
    return f"| {WHAT[name]} | PyTorch | {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full-size models too")
    names = SMALL + FULL if parser.parse_args().full else SMALL
    rows = []
    for name in sorted(names):
        for dtype in (torch.float32, torch.float64):
            if line := row(name, dtype):
                rows.append(line)
                print(line, flush=True)
    (ROOT / "docs" / "parity.md").write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
