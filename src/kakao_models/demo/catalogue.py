"""The index behind the page's search and map: the one that is given, or one of the photographs inside the package."""

import hashlib
import heapq
import json
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from kakao_models.pixels.images import ImageError
from kakao_models.search import Hit, SearchIndex, hit_picture
from kakao_models.search.index import COLLECTION

from .models import ZERO_SHOT, Models
from .photos import BUNDLED, data_uri

_THUMBNAIL = 240  # pixels
_BLANK = data_uri(Image.new("RGB", (8, 8), (128, 128, 128)), 8)


class Catalogue:
    """An index and the pictures that it leads to. Other processes may search it, and one may write to it, meanwhile.

    Args:
        models: where the index's model comes from.
        folder: where the page's own index is made.
        uri: address of an index. Without one, one of the photographs inside the package is made when it is first asked for,
            with the first model that is offered.
        roots: only images in these folders are shown, regardless of the paths in an index.
        token, collection: passed to `SearchIndex.open`.

    Raises:
        OSError: no such index.
        ValueError: no index of images of this package.
    """

    def __init__(
        self,
        models: Models,
        folder: Path,
        uri: str | None = None,
        *,
        roots: Sequence[Path] = (),
        token: str | None = None,
        collection: str = COLLECTION,
    ):
        self._models, self._folder, self._roots = models, folder, [BUNDLED] if uri is None else list(roots)
        self._lock = threading.Lock()  # one thread makes it while others wait
        self._index: SearchIndex | None = None
        self._closed = False
        self.name = "the photographs inside the package" if uri is None else uri.rpartition("@")[2]  # no password
        self.thumbnail = lru_cache(maxsize=2048)(self._thumbnail)
        if uri is not None:  # problems are reported before the page starts
            self._index = SearchIndex.open(uri, token=token, collection=collection)
            if (kind := self._index.metadata["kind"]) != "images":
                self.close()
                raise ValueError(f"{uri}: is an index of {kind}, but this page needs an index of images")
            if model := self._index.metadata["model"]:
                models.offer(model)

    def rows(self, limit: int, loading: Callable[[str], None]) -> tuple[list[Hit], np.ndarray]:
        """At most `limit` photographs and their embeddings (N, D). Of more a sample is drawn, by hashes of their ids: it is
        the same each time, and of other photographs only where some were added or removed.

        Raises:
            ValueError: the index is empty.
        """
        index = self.open(loading)
        chosen = heapq.nsmallest(
            limit, (key for key, _ in index.all_ids()), lambda key: hashlib.sha256(key.encode()).digest()
        )
        pages = list(index.vectors(filter=f"sha256 in {json.dumps(chosen, ensure_ascii=False)}")) if chosen else []
        if not pages:
            raise ValueError(f"{self.name}: the index is empty: kakao-models index build FOLDER --index {self.name}")
        return [hit for hits, _ in pages for hit in hits], np.concatenate([vectors for _, vectors in pages])

    def picture(self, path: str, side: int) -> Image.Image:
        """The picture at a path of the index, of about that size.

        Raises:
            ImageError: it can't be read, or is outside of the folders that may be shown.
        """
        picture = hit_picture(path, roots=self._roots, size_hint=(side, side))
        picture.thumbnail((side, side))
        return picture

    def _thumbnail(self, path: str) -> tuple[str, str]:
        """URI of a small picture, and why there is none."""
        try:
            return data_uri(self.picture(path, _THUMBNAIL), _THUMBNAIL), ""
        except ImageError as error:
            return _BLANK, error.reason

    def open(self, loading: Callable[[str], None] = lambda name: None) -> SearchIndex:
        """The index, with its model.

        Raises:
            OSError: its model is not available.
            ValueError: the model of this name has other weights.
        """
        if self._index is None:
            name = self._models.offered[0]
        elif self._index.embedder is None:
            name = self._index.metadata["model"] or self._models.offered[0]
        else:
            return self._index
        embedder = self._models.get(ZERO_SHOT, name, loading).embedder  # without the lock: it may take minutes
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.name}: the page is being closed")
            if self._index is None:
                index = SearchIndex.open(self._folder / "photos.db", embedder, create=True)
                index.build([BUNDLED])
                self._index = index
            elif self._index.embedder is None:
                self._index.use(embedder)
            return self._index

    def close(self) -> None:
        """Lets go of the index, for good."""
        with self._lock:
            self._closed = True
            if self._index is not None:
                self._index.close()
                self._index = None
