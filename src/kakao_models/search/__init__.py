"""Search among images or texts by text, by image, and by both, in a Milvus database.

Every name is loaded on first use, and pymilvus when an index is opened.
"""

from typing import TYPE_CHECKING

from kakao_models.lazy import attach

if TYPE_CHECKING:  # the names of `_MODULES`, for type checkers and editors
    from kakao_models.search.build import BuildReport as BuildReport
    from kakao_models.search.duplicates import near_duplicates as near_duplicates
    from kakao_models.search.index import Hit as Hit, SearchIndex as SearchIndex
    from kakao_models.search.pictures import hit_picture as hit_picture
    from kakao_models.search.query import compose_query as compose_query

# module -> public names that it defines
_MODULES = {
    ".build": ("BuildReport",),
    ".duplicates": ("near_duplicates",),
    ".index": ("Hit", "SearchIndex"),
    ".pictures": ("hit_picture",),
    ".query": ("compose_query",),
}

__getattr__, __dir__, __all__ = attach(__name__, _MODULES)
