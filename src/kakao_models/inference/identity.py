"""Identity of a model and its preprocessing: a cache or an index knows by it whether an embedding is of the same model."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

import kakao_models
from kakao_models.checkpoint.tensors import UNUSED
from kakao_models.fused.graph_towers import as_float32
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.engine_towers import TowerEngine


def described(embedder: Embedder) -> dict[str, Any]:
    """Everything but the configuration that determines an embedding: the SHA-256 of weights and vocabulary, and settings.

    It is the same whether or not transformers' classes were loaded for the model's parts.
    """
    engine, inputs = embedder.engine, embedder.inputs
    return {
        "package": kakao_models.__version__,
        "engine": [type(engine).__name__, engine.description],
        "weights": _weights(embedder),
        "image processor": inputs.image_settings,
        "image options": embedder.image_options,
        "fast images": embedder.fast_images,
        "tokenizer": _vocabulary(inputs.vocabulary) if engine.reads_texts else None,
        "tokens": embedder.max_tokens if engine.reads_texts else None,
    }


def _vocabulary(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _weights(embedder: Embedder) -> str:
    """SHA-256 of the weights as they are in memory, whatever runs them."""
    digest = hashlib.sha256()
    for name, array in sorted(_arrays(embedder.engine), key=lambda entry: entry[0]):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _arrays(engine) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(engine, TowerEngine):  # its model object need not be loaded
        yield from ((f"{name} float32", array) for name, array in engine.source.arrays())
        return
    model = engine.model
    if hasattr(model, "state_dict"):  # PyTorch; numpy has no bfloat16, and half precision is float32 exactly
        from kakao_models.fused.towers import tensors_of

        for name, tensor in tensors_of(model).items():
            if not name.endswith(UNUSED):
                yield f"{name} {str(tensor.dtype).removeprefix('torch.')}", as_float32(tensor)
    elif hasattr(model, "weights"):  # Keras, which numbers the models of a process in their variables' names
        yield from ((f"{place:06}", np.asarray(variable)) for place, variable in enumerate(model.weights))
    else:  # Flax
        import jax

        for path, leaf in jax.tree_util.tree_leaves_with_path(engine._state):
            if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                yield jax.tree_util.keystr(path), np.asarray(leaf)
