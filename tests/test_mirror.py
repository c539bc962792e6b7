"""The modeling files of the three frameworks mirror each other: the same classes in the same order, made alike."""

import ast
import importlib
from functools import partial
from pathlib import Path

import pytest
import tiny

import kakao_models
from kakao_models import AlignForImageClassification, AlignModel, ViTForImageClassification
from kakao_models.align.weights import align_slots
from kakao_models.vit.weights import vit_slots

ROOT = Path(kakao_models.__file__).parent
# A layer that the framework has itself, or that transformers' ViT brings
OWN = {"DepthwiseConv", "AlignDepthwiseConv", "_FollowFile"}
# Attributes that are there once: Keras makes a layer's variables by itself, NNX' and PyTorch's layers hold them, PyTorch
# drops out by functions, and only NNX and PyTorch can compute activations again
OWN_ATTRIBUTES = {
    "torch": {"config"},
    "tf": {"beta", "gamma", "moving_mean", "moving_variance", "eps", "momentum", "start", "num_attention_heads"},
    "flax": {"gradient_checkpointing", "scaling"},
}
PLAIN = {"patch_size", "dropout", "drop_connect"}  # numbers and layers without parameters, which not every one keeps
# `output` and `layers` mean something else to Keras
RENAMED = {"output": "output_layer", "layers": "layer"}
# A file of PyTorch whose twins are line by line alike: "align/modeling", "align/classification", "vit/modeling"
FILES = sorted(
    str(file.relative_to(ROOT)).removesuffix("_torch.py")
    for model in ROOT.glob("*/modeling_torch.py")
    for file in (model, *model.parent.glob("classification_torch.py"))
)


def attributes(file: str, framework: str, prefix: str) -> dict[str, set[str]]:
    """Name of a class without prefix → the attributes that its constructor gives it, by their names in Keras and NNX."""
    tree = ast.parse((ROOT / f"{file}_{framework}.py").read_text())
    found = {}
    for node in tree.body:
        inits = [f for f in getattr(node, "body", []) if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        if isinstance(node, ast.ClassDef) and inits:
            places = [x for x in ast.walk(inits[0]) if isinstance(x, ast.Attribute) and isinstance(x.ctx, ast.Store)]
            names = {place.attr for place in places if isinstance(place.value, ast.Name) and place.value.id == "self"}
            names = {RENAMED.get(name, name) for name in names} - OWN_ATTRIBUTES[framework] - PLAIN
            found[node.name.removeprefix(prefix)] = names
    return found


def imports_of_transformers(file: str) -> list[tuple[str, ast.alias]]:
    """(module, name) of what PyTorch's file imports from transformers."""
    tree = ast.parse((ROOT / f"{file}_torch.py").read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [(node.module, name) for node in nodes if node.module.startswith("transformers") for name in node.names]


def base_of(file: str):
    """transformers' modeling file of the same model, where PyTorch's classes extend it: it is imported as `base`."""
    found = [f"{module}.{name.name}" for module, name in imports_of_transformers(file) if name.asname == "base"]
    return importlib.import_module(found[0]) if found else None


def brought(file: str) -> set[str]:
    """Names that transformers gives to PyTorch's file, where the others write their own."""
    return {name.name for _, name in imports_of_transformers(file)} | set(dir(base_of(file)))


def classes(file: str, framework: str, prefix: str) -> dict[str, list[str] | None]:
    """Name without prefix → arguments of the constructor, None if it has none of its own."""
    tree = ast.parse((ROOT / f"{file}_{framework}.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name not in OWN and node.name.removeprefix(prefix) not in OWN:
            init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
            found[node.name.removeprefix(prefix)] = init and [argument.arg for argument in init.args.args]
    return found


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("framework, prefix", [("tf", "TF"), ("flax", "Flax")])
def test_same_classes_made_alike(file, framework, prefix):
    theirs, ours = classes(file, "torch", ""), classes(file, framework, prefix)
    assert [name for name in ours if name in theirs or name not in brought(file)] == list(theirs)
    for name, arguments in theirs.items():
        if arguments is not None and ours[name] is not None:
            assert ours[name] == arguments, name


@pytest.mark.parametrize("file", FILES)
def test_constructors_make_the_same_attributes(file):
    torch, keras, flax = (attributes(file, *which) for which in (("torch", ""), ("tf", "TF"), ("flax", "Flax")))
    assert keras.keys() & flax.keys()
    for name in keras.keys() & flax.keys():
        assert keras[name] == flax[name], name
        if base_of(file) is None:  # else PyTorch's layers are transformers', which their own constructors make
            assert torch.get(name, keras[name]) == keras[name], name


def calls(file: str, framework: str, prefix: str) -> dict[str, list[str]]:
    """Class and method, without prefix → the arguments of the models' calls and features, in their order."""
    tree = ast.parse((ROOT / f"{file}_{framework}.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Model", "ForImageClassification")):
            for method in (f for f in node.body if isinstance(f, ast.FunctionDef)):
                if method.name in ("forward", "call", "__call__", "get_text_features", "get_image_features"):
                    name = "call" if method.name in ("forward", "__call__") else method.name
                    arguments = [argument.arg for argument in method.args.args if argument.arg != "training"]
                    found[f"{node.name.removeprefix(prefix)}.{name}"] = arguments
    return found


@pytest.mark.parametrize("file, count", [("align/modeling", 5), ("align/classification", 1), ("vit/modeling", 2)])
def test_models_are_called_alike(file, count):
    torch, keras, flax = (calls(file, *which) for which in (("torch", ""), ("tf", "TF"), ("flax", "Flax")))
    assert keras == flax and len(flax) == count
    if file != "vit/modeling":  # a ViT's backbone in PyTorch has transformers' forward
        assert torch == flax


def test_parameters_have_the_same_places():
    """Of PyTorch's models in memory, and in Keras and NNX, whose paths loading holds against their variables."""
    align, vit = tiny.align_config(use_visual_projection=True), tiny.vit_config(representation_size=24)
    classifier = partial(align_slots, head=True), tiny.align_vision_config(), AlignForImageClassification
    models = (align_slots, align, AlignModel), (vit_slots, vit, ViTForImageClassification), classifier
    for slots, config, model in models:
        names = [name for name, _ in model(config).named_parameters()]
        wanted = {".".join(RENAMED.get(part, part) for part in name.split(".")[:-1]) for name in names}
        for dialect in ("keras", "nnx"):
            assert {slot.local_key.rpartition(".")[0] for slot in slots(config, dialect)} == wanted, dialect
