"""Recorded outputs of the original programs, and the formula weights and inputs they were recorded on.

tests/golden/ holds, from kakaobrain/coyo-align (commit 8cea82e) and kakaobrain/coyo-vit (commit 08544dd), run unmodified:
    golden_<name>.npz      outputs, as recorded
    manifest_<name>.json   what was run: configuration, inputs, and the entries of its checkpoint. Trimmed: of an entry
                           only key, shape, kind and fill_key are kept
    weights.py, inputs.py  the formulas of weights and inputs, as recorded
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from golden import inputs as input_formula, weights as weight_formula

from kakao_models import AlignConfig, AlignTextConfig, AlignVisionConfig, ViTConfig
from kakao_models.align.weights import align_tpu_slots
from kakao_models.checkpoint.shards import write_safetensors
from kakao_models.checkpoint.weightmap import permute
from kakao_models.vit.weights import vit_tpu_slots

FOLDER = Path(__file__).parent / "golden"


def error(got: Any, expected: Any) -> float:
    """The largest absolute difference, in float64."""
    return float(np.abs(np.asarray(got, np.float64) - np.asarray(expected)).max())


@dataclass(frozen=True)
class Golden:
    """One recorded run."""

    name: str
    config: dict  # of the original program
    inputs: dict  # image_seed, batch, image_size, ... of the manifest
    seed: int
    variables: list[dict]  # entries of the checkpoint: key, shape, kind and, where it differs, fill_key
    arrays: Mapping[str, np.ndarray]  # what was recorded
    trained: bool  # the weights are trained ones, found only in the checkpoint file itself

    @cached_property
    def original(self) -> dict[str, np.ndarray]:
        """The weights, as a checkpoint of the original program holds them: key without its suffix → array."""
        if self.trained:
            raise ValueError(f"{self.name}: its weights are trained, no formula gives them")
        return {
            entry["key"].removesuffix(weight_formula.SUFFIX): weight_formula.fill(
                entry.get("fill_key", entry["key"]), entry["shape"], self.seed
            )
            for entry in self.variables
            if entry["kind"] == "weight"
        }

    @cached_property
    def images(self) -> np.ndarray:
        """The recorded rows of the input images, (B, H, W, 3), uint8."""
        rows = input_formula.images(self.inputs["image_seed"], self.inputs["batch"], self.inputs["image_size"])
        assert input_formula.digest(rows) == self.inputs["images_sha256"]
        return rows[: self.inputs.get("recorded_rows", self.inputs["batch"])]

    @cached_property
    def probes(self) -> dict[str, np.ndarray]:
        """`inter/slices` by name of the layer: three probes of at most 16 channels (3, C), float32."""
        return _by_name(self.arrays, "inter/")

    @cached_property
    def image_probes(self) -> dict[str, np.ndarray]:
        """`probes` of ALIGN's image tower."""
        return _by_name(self.arrays, "inter/image/")

    @cached_property
    def text_probes(self) -> dict[str, np.ndarray]:
        """`probes` of ALIGN's text tower."""
        return _by_name(self.arrays, "inter/text/")


def _by_name(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    if prefix + "names" not in arrays:
        return {}
    width = {name: shape[shape > 0][-1] for name, shape in zip(arrays[prefix + "names"], arrays[prefix + "shapes"])}
    rows = zip(arrays[prefix + "names"], arrays[prefix + "slices"])
    return {str(name): values[:, : width[name]] for name, values in rows}


@lru_cache(maxsize=2)  # a full-size model's weights are more than a gigabyte
def load(name: str) -> Golden:
    """The recorded run `name`, such as "vit_a" or "align_nano"."""
    _check_formulas()
    manifest = json.loads((FOLDER / f"manifest_{name}.json").read_text())
    return Golden(
        name=name,
        config=manifest["config"],
        inputs=manifest["inputs"],
        seed=manifest["seed"],
        variables=manifest["variables"],
        arrays=load_arrays(name),
        trained=manifest.get("trained", False),
    )


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of golden_<name>.npz."""
    with np.load(FOLDER / f"golden_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def first_rows(inputs: Mapping, golden: Golden, count: int = 4) -> tuple[dict, dict[str, np.ndarray]]:
    """Inputs of an ALIGN and its recorded outputs in float64, of the first `count` rows: in evaluation, rows do not meet,
    and float32 is compared in all of them."""
    recorded = {name: golden.arrays[f"{name}_f64"][:count] for name in ("image_features", "text_features")}
    recorded["logits_per_image"] = golden.arrays["logits_per_image_f64"][:count, :count]
    return {name: value[:count] for name, value in inputs.items()}, recorded


def probe(array: np.ndarray, channels: int = 16) -> np.ndarray:
    """The places of an output that `Golden.probes` holds, (3, C).

    Of a map (B, H, W, C) its middle in row 0 and two opposite corners in row 1; of a sequence (B, T, C) token 0 in row 0,
    tokens 1 and the last in row 1; of a vector (B, C) rows 0, 1 and the last.
    """
    places = {
        4: [(0, array.shape[1] // 2, array.shape[2] // 2), (1, 0, 0), (1, -1, -1)] if array.ndim == 4 else [],
        3: [(0, 0), (1, 1), (1, -1)],
        2: [(0,), (1,), (-1,)],
    }[array.ndim]
    return np.stack([array[place][:channels] for place in places])


def write_folder(name: str, folder: Path) -> Path:
    """A Hub folder with the configuration and weights of a recorded run, through the weight table."""
    golden = load(name)
    if name.startswith("align"):
        config = align_config(golden.config)
        slots = align_tpu_slots(config)
    else:
        config = vit_config(golden.config)
        slots = vit_tpu_slots(config, vit_key_layout(name))
    config.save_pretrained(folder)
    write_safetensors(folder / "model.safetensors", canonical(slots, golden.original))
    return folder


def canonical(slots, original: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of an original checkpoint, by their names and as they are in model.safetensors; each has one slot."""
    assert sorted(slot.local_key for slot in slots) == sorted(original)
    return {slot.key: permute(original[slot.local_key], slot.local_axes, slot.axes) for slot in slots}


def align_config(original: dict) -> AlignConfig:
    """Our configuration for that of a recorded ALIGN."""
    image, text = (original[name].split("-")[1] for name in ("img_encoder_name", "txt_encoder_name"))
    widths = {name: original[name] for name in ("width_coefficient", "depth_coefficient") if name in original}
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
    sizes = {name: original[name] for name in names.split() if name in original}
    return AlignConfig(
        vision_config=AlignVisionConfig.efficientnet(image, **widths).to_dict(),
        text_config=AlignTextConfig.bert(text, **sizes).to_dict(),
        projection_dim=original["embed_dim"],
        use_visual_projection=image != "b7",
    )


def vit_config(original: dict) -> ViTConfig:
    """Our configuration for that of a recorded ViT."""
    return ViTConfig(
        hidden_size=original["hidden_size"],
        num_hidden_layers=original["num_layers"],
        num_attention_heads=original["num_heads"],
        intermediate_size=original["mlp_dim"],
        patch_size=original["patch_size"],
        image_size=original["image_size"],
        representation_size=original["representation_size"],
        num_labels=original["num_classes"],
    )


def vit_key_layout(name: str) -> str:
    """How the checkpoint of a recorded ViT spells its keys."""
    return {"vit_nano_model_weights": "model", "vit_nano_backbone_weights": "backbone"}.get(name, "manager")


@cache
def _check_formulas() -> None:
    weight_formula.self_check()  # this numpy draws the recorded bits
