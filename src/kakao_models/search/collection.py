"""The collection of Milvus that an index is: its schema, what it says of itself, its index."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from kakao_models.search import backend
from kakao_models.search.items import OWN, metadata_digest

INSERT = 512  # rows of an insertion
KEY = "kakao_models"  # the property of a collection that says what it is of


def row_of(key: str, vector: np.ndarray, metadata: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(key, str) or not 0 < len(key) <= 64:
        raise ValueError(f"id: got {key!r:.100}, expected a string of 1 to 64 characters")
    defaults = {"path": "", "caption": "", "width": 0, "height": 0, "bytes": 0}
    metadata = {name: _plain(value) for name, value in metadata.items()}
    if wrong := set(metadata) & set(OWN):
        raise ValueError(f"metadata: {', '.join(sorted(wrong))} is a column of the index itself")
    return {**defaults, **metadata, "sha256": str(key), "vector": vector, "digest": metadata_digest(metadata)}


def _plain(value: Any) -> Any:
    """A value with the numbers and arrays of numpy in it as Python's own, and paths as strings."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def create_collection(client: Any, collection: str, metadata: dict[str, Any], shards: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(enable_dynamic_field=True, description=json.dumps({KEY: metadata}, default=str))
    schema.add_field("sha256", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=metadata["dim"])
    schema.add_field("digest", DataType.VARCHAR, max_length=16)
    schema.add_field("path", DataType.VARCHAR, max_length=8192)
    schema.add_field("caption", DataType.VARCHAR, max_length=65_535)
    for name in ("width", "height", "bytes"):
        schema.add_field(name, DataType.INT64)
    client.create_collection(
        collection,
        schema=schema,
        properties={KEY: json.dumps(metadata, default=str)},
        consistency_level=metadata["consistency"],
        num_shards=shards,
    )


def read_metadata(described: Mapping[str, Any], uri: str, collection: str) -> dict[str, Any]:
    """The identity and options of the index, as they were stored when it was made.

    Args:
        described: description of the collection by a client, or the schema.json of a local one.
    """
    for text in (described["properties"].get(KEY), described.get("description")):
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            metadata = json.loads(text)
            metadata = metadata.get(KEY, metadata)
            if isinstance(metadata, dict) and "weights" in metadata:
                return metadata
    raise ValueError(f"{uri}: collection {collection!r} was not made by kakao-models, and its model is unknown")


def load_collection(client: Any, uri: str, collection: str, metadata: dict[str, Any]) -> None:
    """Makes the index of a new collection, or of one whose making was interrupted, and loads it."""
    from pymilvus.exceptions import MilvusException

    if metadata["index"][0] == "FLAT" and backend.is_local(uri):
        return  # Milvus Lite compares with every row by itself; an index of this type is a second copy on the disk
    if not client.list_indexes(collection):
        _make_index(client, uri, collection, metadata)
    try:
        client.load_collection(collection)
    except MilvusException:
        if not backend.is_local(uri):
            raise
        # Milvus Lite writes files of an index in place: what a kill left of one is no index. The rows have them all.
        client.drop_index(collection, "vector")
        _make_index(client, uri, collection, metadata)
        client.load_collection(collection)


def _make_index(client, uri: str, collection: str, metadata: dict[str, Any]) -> None:
    kind, params = metadata["index"]
    if params and backend.is_local(uri):
        params = {"params": params}  # pymilvus sends them one by one, Milvus Lite looks for them under this name
    index = client.prepare_index_params()
    index.add_index("vector", index_type=kind, metric_type=metadata["metric"], params=params)
    client.create_index(collection, index)
