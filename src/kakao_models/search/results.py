"""Hits for screens and files: a table, or a page with the pictures."""

import os
import sys
from collections.abc import Sequence

from PIL import Image

from kakao_models.pixels.contact_sheet import SIDE, cell, picture_page
from kakao_models.search.index import Hit
from kakao_models.search.items import FIELDS
from kakao_models.search.pictures import hit_picture


def print_hits(hits: Sequence[Hit]) -> None:
    """A table on stdout: score, path, and what else there is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    further = list(dict.fromkeys(name for hit in hits for name in hit.metadata))[:4]
    sized = any(hit.width for hit in hits)
    judged = any(hit.relevance is not None for hit in hits)
    columns = (
        ["score", *(["relevance"] if judged else []), "path"]
        + (["size"] if sized else [])
        + ["caption"] * any(hit.caption for hit in hits)
        + further
    )
    for name in columns:
        table.add_column(name, overflow="fold" if name == "path" else "ellipsis", no_wrap=name != "path")
    for hit in hits:
        known = {"score": f"{hit.score:.4f}", "path": cell(_short(hit.path) or hit.id, 400)}
        known |= {"relevance": f"{hit.relevance:.1%}"} if hit.relevance is not None else {}
        known |= {"size": f"{hit.width}x{hit.height}", "caption": cell(hit.caption, 60)}
        values = [known.get(name) or cell(hit.metadata.get(name), 30) for name in columns]
        table.add_row(*(Text(value) for value in values))  # Text: nothing in the data is markup
    if hits:
        Console(width=None if sys.stdout.isatty() else 200, emoji=False).print(table)


def hits_page(hits: Sequence[Hit], title: str, *, roots: Sequence[str | os.PathLike] | None = None) -> tuple[str, int]:
    """A page of HTML with the pictures of hits in it, and how many could not be read.

    Args:
        title: such as the query.
        roots: folders that may be shown; see `hit_picture`.
    """

    def read(place: int) -> Image.Image:
        return hit_picture(hits[place], roots=roots, size_hint=(SIDE, SIDE))

    rows = [
        {"caption": hit.caption, "score": hit.score}
        | ({} if hit.relevance is None else {"relevance": hit.relevance})
        | {name: getattr(hit, name) for name in FIELDS if name != "caption" and getattr(hit, name)}
        | hit.metadata
        for hit in hits
    ]
    return picture_page(rows, title, f"{len(hits)} results; {{lost}} pictures could not be read.", read)


def _short(path: str) -> str:
    """A path as seen from here, where that is shorter."""
    if not os.path.isabs(path):
        return path
    here = os.path.relpath(path)
    return here if len(here) < len(path) else path
