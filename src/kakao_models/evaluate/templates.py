"""The sentences that class names are put into for zero-shot classification."""

import ast
import importlib.util
from pathlib import Path

from kakao_models.files.lines import json_of, lines_of
from kakao_models.inference.labels import check_templates

# Plain sentences of the kind that captions of photographs are made of.
SMALL_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a close-up photo of a {}.",
    "a photo of a large {}.",
    "a photo of a small {}.",
    "{}",
)
_OPEN_CLIP = {"clip": "OPENAI_IMAGENET_TEMPLATES", "clip-simple": "SIMPLE_IMAGENET_TEMPLATES"}
_CLASS_NAMES = "IMAGENET_CLASSNAMES"


def read_templates(source: str) -> tuple[str, ...]:
    """A set of templates, each with one `{}` for the class name.

    Args:
        source: "small" (`SMALL_TEMPLATES`); "clip", the 80 of CLIP (Radford et al. 2021), or "clip-simple", its 7, read
            from the source of an installed open_clip, which is not imported (it would import torchvision); or a file:
            .txt with a template per line, .json with a list, .py with a list of lambdas as in open_clip. A text with {} is
            a template itself, such as "a photo of a {}.".

    Raises:
        ValueError: no templates there, or one that does not say where the class name goes.
        ImportError: open_clip is not installed.
    """
    if source == "small":
        return SMALL_TEMPLATES
    name = f"templates {source!r}"
    if source in _OPEN_CLIP:
        return check_templates(_from_python(_open_clip_file(), _OPEN_CLIP[source]), name)
    path = Path(source)
    if "{" in source and not path.is_file():
        return check_templates((source,), name)
    if not path.is_file():
        raise ValueError(
            f"{name}: expected small, {', '.join(_OPEN_CLIP)}, a template with {{}}, or a file with a template per line"
        )
    if path.suffix == ".py":
        return check_templates(_from_python(path, _OPEN_CLIP["clip"]), name)
    lines = json_of(path) if path.suffix == ".json" else lines_of(path)
    if not isinstance(lines, list):
        raise ValueError(f"{name}: expected a JSON list of templates, got {type(lines).__name__}")
    return check_templates(lines, name)


def imagenet_class_names() -> list[str]:
    """The 1,000 class names that CLIP uses, in the order of ImageNet's labels, read from an installed open_clip."""
    return _from_python(_open_clip_file(), _CLASS_NAMES)


def _open_clip_file() -> Path:
    spec = importlib.util.find_spec("open_clip")  # finds it without running it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "CLIP's templates and class names are read from open_clip, which is not installed: "
            "pip install --no-deps open_clip_torch, or give them as a file"
        )
    path = Path(spec.submodule_search_locations[0], "zero_shot_metadata.py")
    if not path.is_file():
        raise ImportError(f"the installed open_clip has no {path.name}: expected release 2.20 or newer")
    return path


def _from_python(path: Path, name: str) -> list[str]:
    """The strings, or lambdas of one argument that return an f-string, in the tuple or list assigned to `name`."""
    try:
        parsed = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid Python ({error})") from error
    for node in parsed.body:
        if isinstance(node, ast.Assign) and name in [target.id for target in node.targets if hasattr(target, "id")]:
            if isinstance(node.value, (ast.Tuple, ast.List)):
                return [_as_text(item, path) for item in node.value.elts]
    raise ValueError(f"{path}: found no list called {name}")


def _as_text(item: ast.expr, path: Path) -> str:
    body = item.body if isinstance(item, ast.Lambda) else item
    if isinstance(body, ast.Constant) and isinstance(body.value, str):
        return body.value
    parts = body.values if isinstance(body, ast.JoinedStr) else [None]
    texts: list[str] = []
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            texts.append(part.value.replace("{", "{{").replace("}", "}}"))
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            texts.append("{}")
        else:
            raise ValueError(f"{path}, line {item.lineno}: expected a string or a lambda that returns an f-string")
    return "".join(texts)
