"""Embeddings cached on disk, keyed by the content of their inputs and of the model."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kakao_models.files.atomic import replacing
from kakao_models.inference.embedder import Embedder, l2_normalize
from kakao_models.inference.identity import described
from kakao_models.inference.progress import Progress

_PER_FILE = 512  # embeddings in a file
_TEXTS = 4096


class CachedEmbedder:
    """An `Embedder` that remembers, so that an interrupted evaluation resumes where it stopped.

    A file holds the embeddings of some hundred consecutive inputs; its name is the SHA-256 of their content, and its
    folder that of the model's weights, configuration and preprocessing, the engine and this package's version.

    Args:
        embedder: computes embeddings that are not kept yet.
        folder: folder of kept embeddings; None keeps none.
    """

    def __init__(self, embedder: Embedder, folder: str | os.PathLike | None = None):
        self.embedder = embedder
        self.folder = None if folder is None else Path(folder)
        self.dim = embedder.dim
        self._fingerprint = None
        self._data = hashlib.sha256()

    @property
    def temperature(self) -> float:
        return self.embedder.engine.temperature

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model, its preprocessing and what runs it."""
        if self._fingerprint is None:
            description = json.dumps(
                described(self.embedder) | {"config": self.embedder.config.to_dict()}, sort_keys=True, default=str
            )
            self._fingerprint = hashlib.sha256(description.encode()).hexdigest()
        return self._fingerprint

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 of all that was embedded so far, in order."""
        return self._data.hexdigest()

    def images(self, sources: Iterable[Any], *, normalize: bool = False, name: str = "images") -> np.ndarray:
        """Like `Embedder.images`, but an image that can't be read is an error: without it the scores would be others.

        Raises:
            ValueError: an image can't be read, or the cache holds something else than it should; both are named.
        """
        rows = self._all("features", sources, _PER_FILE, self.dim, lambda some: self._embed(some, name), name)
        return l2_normalize(rows) if normalize else rows

    def class_logits(self, sources: Iterable[Any], *, name: str = "images") -> np.ndarray:
        """Like `Embedder.class_logits`, with the same errors as `images`."""
        width = self.embedder.config.num_labels
        return self._all("logits", sources, _PER_FILE, width, lambda some: self._embed(some, name, logits=True), name)

    def texts(self, texts: Iterable[str], *, normalize: bool = False, batch_size: int | None = None) -> np.ndarray:
        """Like `Embedder.texts`."""

        def embed(some: list[str]) -> np.ndarray:
            return self.embedder.texts(some, batch_size=batch_size, progress=False)

        rows = self._all("texts", list(texts), _TEXTS, self.dim, embed, "texts")
        return l2_normalize(rows) if normalize else rows

    def _embed(self, sources: list, name: str, logits: bool = False) -> np.ndarray:
        run = self.embedder.class_logits if logits else self.embedder.images
        rows = run(sources, on_error="ignore", progress=False)
        for failure in self.embedder.failures:
            raise ValueError(f"{name}: image {self._done + failure.index} can't be read: {failure}")
        return rows

    def _all(self, kind: str, sources: Iterable[Any], size: int, width: int, embed, name: str) -> np.ndarray:
        total = len(sources) if isinstance(sources, Sized) else None
        parts, self._done = [], 0
        with Progress(name, total, None) as bar:
            for some in _batched(sources, size):
                digest = _digest(some)
                self._data.update(digest)
                parts.append(self._part(kind, digest.hex(), some, embed))
                self._done += len(some)
                bar.advance(len(some))
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def _part(self, kind: str, digest: str, sources: list, embed) -> np.ndarray:
        if self.folder is None:
            return embed(sources)
        folder = self.folder / f"{kind}-{self.fingerprint[:24]}"
        path = folder / f"{digest[:40]}.safetensors"
        made_of = {"model": self.fingerprint, "inputs": digest, "kind": kind}
        if path.exists():
            return _read(path, made_of, self.embedder.name)
        rows = np.ascontiguousarray(embed(sources), np.float32)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = made_of | {"name": self.embedder.name, "rows": hashlib.sha256(rows.data).hexdigest()}
        with replacing(path) as temporary:
            save_file({"rows": rows}, temporary, metadata=metadata)
        return rows


def _read(path: Path, made_of: dict[str, str], model: str) -> np.ndarray:
    try:
        with safe_open(path, "np") as file:
            metadata, rows = file.metadata() or {}, file.get_tensor("rows")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read ({error}): delete it, and it will be computed again") from error
    wrong = [key for key, value in made_of.items() if metadata.get(key) != value]
    if wrong:
        owner = f"{metadata.get('name', 'an unknown model')} ({metadata.get('model', '?')[:12]})"
        raise ValueError(
            f"{path} holds embeddings of another {' and '.join(wrong)}: got those of {owner}, expected those of {model} "
            f"({made_of['model'][:12]}). Was it moved or renamed? "
            "Delete it, or give another --cache"
        )
    if metadata.get("rows") != hashlib.sha256(rows.data).hexdigest():
        raise ValueError(
            f"{path} is damaged: its values are not those that were written. Delete it, and they are computed again"
        )
    return rows


def _batched(sources: Iterable[Any], size: int) -> Iterator[list]:
    remaining = iter(sources)
    while some := list(itertools.islice(remaining, size)):
        yield some


def _digest(sources: list) -> bytes:
    """SHA-256 of the content of some inputs, in order."""
    whole = hashlib.sha256()
    for source in sources:
        whole.update(_content(source))
    return whole.digest()


def _content(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return b"file" + hashlib.sha256(source).digest()
    if isinstance(source, os.PathLike):
        try:
            with open(source, "rb") as file:
                return b"file" + hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise ValueError(f"{source} can't be read: {error.strerror or error}") from error
    if isinstance(source, str):  # of images, files are given as Path: here strings are texts
        return b"text" + hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
    if isinstance(source, Image.Image):
        return f"picture {source.mode} {source.size}".encode() + hashlib.sha256(source.tobytes()).digest()
    array = np.ascontiguousarray(source)
    return f"array {array.dtype} {array.shape}".encode() + hashlib.sha256(array.tobytes()).digest()
