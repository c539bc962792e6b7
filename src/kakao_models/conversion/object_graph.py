"""The keys of a TensorFlow 2 checkpoint and their meaning: paths through the objects of the process that wrote it.

TensorFlow restores by walking the live objects from the root, child by child, along the names in the checkpoint's object
graph (message TrackableObjectGraph, tensorflow/core/protobuf/trackable_object_graph.proto); the keys only say where a
node's value lies. Graph and keys agree: a key is the shortest path of names to its variable, and a suffix.
"""

import re
from collections.abc import Iterable
from typing import Literal

from kakao_models.files.wire import CheckpointError, bytes_field, number_field

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # the key of the graph itself
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_CHILDREN, _ATTRIBUTES, _SLOTS = 1, 2, 3  # numbers of the fields of a node

KeyKind = Literal["weight", "optimizer_slot", "optimizer", "counter", "metric", "object_graph"]


def path_of(key: str) -> str:
    """The path of names that a variable's key stands for: the key without its suffix.

    Raises:
        CheckpointError: not the key of a variable.
    """
    path = key.removesuffix(SUFFIX)
    if path == key or not path or not all(path.replace(_SLOT, "/").split("/")) or path.count(_SLOT) > 1:
        raise CheckpointError(
            f"{key}: expected the key of a variable, <path>{SUFFIX}. A checkpoint with names as keys is TensorFlow 1's "
            "(tf.train.Saver): load it into the original model, and save that with model.save_weights"
        )
    if any(name.startswith(".") for name in path.replace(_SLOT, "/").split("/")):
        raise CheckpointError(f"{key}: its names are reserved or escaped, which the original code never writes")
    return path


def key_of(path: str) -> str:
    """The key of the variable at a path of names."""
    return path + SUFFIX


def kind_of(key: str) -> KeyKind:
    """The kind of an entry of an original checkpoint, from its key. A key of no other kind is a weight.

    Raises:
        CheckpointError: not the key of a variable, nor that of the object graph.
    """
    if key == OBJECT_GRAPH:
        return "object_graph"
    path = path_of(key)
    if _SLOT in path:
        return "optimizer_slot"
    if path.startswith("optimizer/"):
        return "optimizer"
    if path in ("save_counter", "ckpt_saved_iterations"):
        return "counter"
    if re.fullmatch(r"(.+/)?(\w+_tracker|metrics/\d+)/(total|count)", path):
        return "metric"
    return "weight"


def object_graph(keys: Iterable[str]) -> bytes:
    """The message of the smallest object graph with which TensorFlow finds the variables of `keys`.

    Raises:
        CheckpointError: a key that isn't one of a variable, or a slot without its variable.
    """
    numbers: dict[str, int] = {}  # path of a node → its number
    nodes: list[dict[int, list[bytes]]] = []  # of each node, the messages in its fields

    def add_node() -> int:
        nodes.append({_CHILDREN: [], _ATTRIBUTES: [], _SLOTS: []})
        return len(nodes) - 1

    def number_of(path: str) -> int:
        if path not in numbers:
            parent, _, name = path.rpartition("/")
            parent = number_of(parent)
            numbers[path] = add_node()
            nodes[parent][_CHILDREN].append(number_field(1, numbers[path]) + bytes_field(2, name))
        return numbers[path]

    def add_variable(number: int, path: str, key: str) -> None:
        attribute = bytes_field(1, "VARIABLE_VALUE") + bytes_field(2, path) + bytes_field(3, key)
        nodes[number][_ATTRIBUTES].append(attribute)

    numbers[""] = add_node()
    for key in sorted(keys):
        path = path_of(key)
        variable, _, slot = path.partition(_SLOT)
        if not slot:
            add_variable(number_of(path), path, key)
            continue
        if variable not in numbers or not nodes[numbers[variable]][_ATTRIBUTES]:
            raise CheckpointError(f"{key}: it is a slot variable of {key_of(variable)}, which is missing")
        optimizer, _, name = slot.rpartition("/")
        owner, number = number_of(optimizer), add_node()
        reference = number_field(1, numbers[variable]) + bytes_field(2, name) + number_field(3, number)
        nodes[owner][_SLOTS].append(reference)
        add_variable(number, path, key)
    return b"".join(
        bytes_field(1, b"".join(bytes_field(field, value) for field, values in node.items() for value in values))
        for node in nodes
    )
