"""The layers of the package: a file imports only from layers above its own, wherever in the file the import stands."""

import ast
from pathlib import Path

import kakao_models

SRC = Path(__file__).parents[1] / "src"
PACKAGE = "kakao_models"

# From the lowest to the highest. A folder or file may import from lines above its own, and from itself.
LAYERS = (
    ("lazy", "warn"),
    ("files",),
    ("checkpoint",),
    ("pixels",),
    ("samples", "align", "vit"),
    ("fused",),
    ("inference",),
    ("verbs",),
    ("evaluate", "search", "data", "export", "serve"),
    ("train", "conversion", "demo"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# public name, as it is imported from a lazy package -> its home
HOMES = {f"{PACKAGE}.{name}": module for module, names in kakao_models._MODULES.items() for name in names}
DATA = {"checkpoints", "photos"}  # no code


def module_files() -> dict[str, Path]:
    """Module name -> file, for every module of the package."""
    files = sorted((SRC / PACKAGE).rglob("*.py"))
    return {".".join(f.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported_by(module: str, file: Path, modules: set[str]) -> set[str]:
    """Modules of the package that `file` imports, in functions too, but not for type checkers only."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body
        for inner in ast.walk(child)
    }
    found = set()
    for node in set(ast.walk(tree)) - hidden:
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            for name in node.names:
                inner = f"{origin}.{name.name}"
                found.add(inner if inner in modules else HOMES.get(inner, origin))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in modules:
            found.add(node.value)  # importlib.import_module("kakao_models....")
    return (found & modules) - {module}


def imports() -> dict[str, set[str]]:
    files = module_files()
    return {module: imported_by(module, file, set(files)) for module, file in files.items() if module != PACKAGE}


def layer(module: str) -> str:
    return module.split(".")[1]


def test_every_folder_has_a_layer():
    there = {path.stem for path in (SRC / PACKAGE).iterdir() if path.suffix == ".py" or path.is_dir()}
    there -= DATA | {"__init__", "__main__", "__pycache__", "py.typed"}
    assert there == set(LEVEL)


def test_imports_lead_down():
    wrong = []
    for module, others in imports().items():
        if layer(module) not in LEVEL:  # __main__
            continue
        for other in sorted(others - {PACKAGE}):
            down = LEVEL[layer(other)] < LEVEL[layer(module)]
            if not down and layer(other) != layer(module):
                wrong.append(f"{module} imports {other}: {layer(other)} is not below {layer(module)}")
    assert not wrong, "\n" + "\n".join(sorted(wrong))


def test_no_circles():
    graph = imports()
    circles, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
            return
        if module in done or module not in graph:
            return
        for other in sorted(graph[module]):
            visit(other, [*path, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    assert not circles, "\n" + "\n".join(circles)
