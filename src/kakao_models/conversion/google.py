"""Google's published ViT, an .npz of google-research/vision_transformer (also of AugReg): read tensor by tensor.

Its tensors are presented under the keys of the original TPU code, key_layout "model" or "backbone", so that everything after
is the same for both. Both implementations compute the same function: tanh-approximated GELU, LayerNorm with 1e-6, images in
-1..1 that were resized to a square.

Axes: D width  N heads  K width per head  M inner width  O output  H, W, I of a patch
"""

import math
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.checkpoint.tensors import LazyTensors, TensorEntry, check_keys, float32
from kakao_models.conversion.recognize import check_overrides, vit_config
from kakao_models.conversion.source_checkpoint import SourceCheckpoint
from kakao_models.vit.processing import ViTImageProcessor
from kakao_models.vit.weights import TPU_KEY_LAYOUTS, vit_tpu_slots

_LAYER, _BLOCK = "enc_layers/{}/", "Transformer/encoderblock_{}/"
_ATTENTION, _MLP = _BLOCK + "MultiHeadDotProductAttention_1/", _BLOCK + "MlpBlock_3/"
# original's module -> Google's module, the axes of Google's kernel (or scale) and bias
_LAYERS = {
    _LAYER + "layernorm1": (_BLOCK + "LayerNorm_0", "D", "D"),
    _LAYER + "att/query_dense": (_ATTENTION + "query", "DNK", "NK"),
    _LAYER + "att/key_dense": (_ATTENTION + "key", "DNK", "NK"),
    _LAYER + "att/value_dense": (_ATTENTION + "value", "DNK", "NK"),
    _LAYER + "att/combine_heads": (_ATTENTION + "out", "NKD", "D"),
    _LAYER + "layernorm2": (_BLOCK + "LayerNorm_2", "D", "D"),
    _LAYER + "mlp/layer_with_weights-0": (_MLP + "Dense_0", "DM", "M"),
    _LAYER + "mlp/layer_with_weights-1": (_MLP + "Dense_1", "MD", "D"),
}
_REST = {"embedding": ("embedding", "HWID", "D"), "norm": ("Transformer/encoder_norm", "D", "D")}
_PRE_LOGITS = {"representation": ("pre_logits", "DO", "O")}


def read_npz(path: Path, **overrides: Any) -> SourceCheckpoint:
    """Recognises a ViT of Google's.

    Args:
        overrides: sizes to compare with the tensors'. The number of heads is theirs too.

    Raises:
        ValueError: a damaged file, pickles in it, a key of unknown kind, tensors of another model (a hybrid with a ResNet
            among them), or an override that contradicts them.
    """
    stored = _members(path)
    hybrid = [key for key in stored if key.startswith(("conv_root/", "gn_root/", "block1/"))]
    if hybrid:
        raise ValueError(f"{path} is a hybrid of a ResNet and a ViT ({hybrid[0]}, ...), expected a plain ViT")
    key_layout = "model" if "head/kernel" in stored else "backbone"
    prefix, head = TPU_KEY_LAYOUTS[key_layout]
    layers = len({key.split("/")[1] for key in stored if key.startswith("Transformer/encoderblock_")}) or 1
    modules = {
        prefix + ours.format(i): (theirs.format(i), *axes)
        for i in range(layers)
        for ours, (theirs, *axes) in _LAYERS.items()
    }
    modules |= {prefix + ours: theirs for ours, theirs in _REST.items()}
    if "pre_logits/kernel" in stored:
        modules |= {prefix + ours: theirs for ours, theirs in _PRE_LOGITS.items()}
    if head:
        modules[head] = ("head", "DO", "O")
    names = {
        prefix + "class_emb": ("cls", "11D"),
        prefix + "pos_emb": ("Transformer/posembed_input/pos_embedding", "1LD"),
    }
    for ours, (theirs, kernel, bias) in modules.items():
        leaves = ("gamma", "beta", "scale") if kernel == "D" else ("kernel", "bias", "kernel")
        names[f"{ours}/{leaves[0]}"] = f"{theirs}/{leaves[2]}", kernel
        names[f"{ours}/{leaves[1]}"] = f"{theirs}/bias", bias
    check_keys([theirs for theirs, _ in names.values()], stored, path)
    tensors = LazyTensors({ours: _flat(path, theirs, axes, stored[theirs]) for ours, (theirs, axes) in names.items()})
    heads = stored[_ATTENTION.format(0) + "query/kernel"][0][1]
    config, _ = vit_config({key: tensors.shape(key) for key in tensors}, num_attention_heads=heads)
    check_overrides(overrides, [config])
    return SourceCheckpoint(
        family="vit",
        config=config,
        slots=vit_tpu_slots(config, key_layout),
        tensors=tensors,
        key_layout=key_layout,
        files=[path],
        kind="Google's published .npz",
        names={ours: theirs for ours, (theirs, _) in names.items()},
        image_processor=ViTImageProcessor(preprocessing="tf", size=config.image_size),
    )


def _flat(path: Path, key: str, axes: str, entry: TensorEntry) -> TensorEntry:
    """The tensor with heads and width per head in one axis, as the original has them."""
    shape, read = entry
    if len(shape) != len(axes):
        raise ValueError(f"{path}: {key} has shape {shape}, expected axes {axes}")
    flat = []
    for axis, size in zip(axes, shape):
        if axis == "K":
            flat[-1] *= size
        else:
            flat.append(size)
    return tuple(flat), lambda: read().reshape(flat)


def _members(path: Path) -> dict[str, TensorEntry]:
    """key → shape and reader of every array. Only the headers are read."""
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if key in members:
                    raise ValueError(f"{path}: duplicate tensor {key}")
                with archive.open(member) as file:
                    members[key] = (
                        _header(file, member.file_size, f"{path}: {key}"),
                        partial(_read, path, member.filename),
                    )
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}. Is the download complete?") from error
    return members


def _header(file, size: int, name: str) -> tuple[int, ...]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name} is not a numpy array ({error})") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled Python objects, expected numbers. None of them was loaded")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(
            f"{name} should hold {dtype} {shape}, but {size - file.tell()} bytes follow, which is another size"
        )
    return shape


def _read(path: Path, member: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # at the end, where zipfile compares checksums
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: {member} can't be read: {error}. Is the file damaged?") from error
    return float32(array, f"{path}: {member}")
