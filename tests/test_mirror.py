"""The modeling files of the three frameworks mirror each other: the same classes in the same order, made alike."""

import ast
from pathlib import Path

import pytest

import kakao_models

ROOT = Path(kakao_models.__file__).parent
# A layer that the framework has itself, or that transformers' ViT brings
OWN = {"DepthwiseConv", "AlignDepthwiseConv", "_FollowFile"}
FROM_TRANSFORMERS = {"ImageClassifierOutput", "ViTPatchEmbeddings", "ViTMLP", "ViTPooler"}


def classes(family: str, framework: str, prefix: str) -> dict[str, list[str] | None]:
    """Name without prefix → arguments of the constructor, None if it has none of its own."""
    tree = ast.parse((ROOT / family / f"modeling_{framework}.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name not in OWN and node.name.removeprefix(prefix) not in OWN:
            init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
            found[node.name.removeprefix(prefix)] = init and [argument.arg for argument in init.args.args]
    return found


@pytest.mark.parametrize("family", ["align", "vit"])
@pytest.mark.parametrize("framework, prefix", [("tf", "TF"), ("flax", "Flax")])
def test_same_classes_made_alike(family, framework, prefix):
    theirs, ours = classes(family, "torch", ""), classes(family, framework, prefix)
    assert [name for name in ours if name not in FROM_TRANSFORMERS] == list(theirs)
    for name, arguments in theirs.items():
        if arguments is not None and ours[name] is not None:
            assert ours[name] == arguments, name
