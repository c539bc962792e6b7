"""Groups of rows that are nearly the same: copies of a photograph that were scaled down, compressed again or edited a little."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command imports this file for a number
    from kakao_models.search.index import Hit, SearchIndex

MIN_SCORE = 0.97
_NEAREST = 10  # rows that each row is compared with; those of a larger group are found through each other


def near_duplicates(
    index: "SearchIndex", min_score: float = MIN_SCORE, *, filter: str | None = None, size: int = 256
) -> "list[list[Hit]]":
    """Groups of rows of an index, each linked to another of its group by a cosine of at least `min_score`.

    Files with the same bytes are a single row. In a group the image with the most pixels comes first, of equally many the
    largest file; the scores of the others are their cosines to it. Groups are in the order of their first paths.

    Args:
        min_score: in 0..1; near 1 only copies pass. What else passes depends on the model.
        filter: an expression of Milvus; only rows for which it is true are compared.
        size: rows that are searched for at a time.

    Raises:
        ValueError: another `min_score`, or a filter that Milvus does not understand.
    """
    if not 0 < min_score <= 1:
        raise ValueError(f"min_score: got {min_score!r}, expected a cosine above 0 and at most 1")
    group: dict[str, str] = {}  # id → another of its group, up to one that all of the group lead to
    rows: dict[str, Hit] = {}

    def root(key: str) -> str:
        while (above := group.setdefault(key, key)) != key:
            group[key] = group[above]
            key = above
        return key

    for hits, vectors in index.vectors(filter=filter, size=size):
        for hit, found in zip(hits, index.search(vectors, _NEAREST, filter=filter)):
            for other in found:
                if other.id != hit.id and other.score >= min_score:
                    rows |= {hit.id: hit, other.id: other}
                    group[root(other.id)] = root(hit.id)
    members: dict[str, list[Hit]] = {}
    for key, hit in rows.items():
        members.setdefault(root(key), []).append(hit)
    return sorted((_compared(index, some) for some in members.values()), key=lambda hits: hits[0].path)


def _compared(index: "SearchIndex", hits: "list[Hit]") -> "list[Hit]":
    hits = sorted(hits, key=lambda hit: (-hit.width * hit.height, -hit.bytes, hit.path, hit.id))
    vectors = index.vectors_of([hit.id for hit in hits])
    first = vectors[hits[0].id]
    return [replace(hit, score=float(first @ vectors[hit.id])) for hit in hits]
