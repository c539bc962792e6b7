"""Imports on first use, and whether there is something to import."""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any


def attach(
    package: str,
    modules: Mapping[str, tuple[str, ...]],
    subpackages: tuple[str, ...] = (),
    extras: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that imports each public name on first use (PEP 562).

    Args:
        package: the package's `__name__`.
        modules: module, as `import_module` takes it (".name" is relative to the package) -> names that it defines.
        subpackages: subpackages that are attributes too.
        extras: module that may be missing -> the package that provides it, and our extra that installs it.
    """
    home = {name: module for module, names in modules.items() for name in names}
    names, extras = sorted(home), extras or {}

    def get(name: str) -> Any:
        if name in subpackages:
            return importlib.import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}. It has: {', '.join(names)}")
        try:
            value = getattr(importlib.import_module(home[name], package), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name not in extras:
                raise
            needed, extra = extras[error.name]
            raise ImportError(f"{name} needs {needed}: pip install 'kakao-models[{extra}]'") from error
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *subpackages})

    return get, list_names, names


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported. It is not imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
