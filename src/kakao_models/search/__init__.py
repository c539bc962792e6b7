"""Search among images or texts by text, by image, and by both, in a Milvus database.

Every name is loaded on first use, and pymilvus when an index is opened.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of `_MODULES`, for type checkers and editors
    from kakao_models.search.build import BuildReport as BuildReport
    from kakao_models.search.index import Hit as Hit, SearchIndex as SearchIndex
    from kakao_models.search.pictures import hit_picture as hit_picture
    from kakao_models.search.query import compose_query as compose_query

# public name -> module that defines it
_MODULES = {
    "build": ("BuildReport",),
    "index": ("Hit", "SearchIndex"),
    "pictures": ("hit_picture",),
    "query": ("compose_query",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'kakao_models.search' has no attribute {name!r}. It has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"kakao_models.search.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
