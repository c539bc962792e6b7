"""Reads the object graph of a TensorFlow checkpoint, to see what TensorFlow would find. The package itself only writes one."""

from dataclasses import dataclass

from kakao_models.conversion.object_graph import OBJECT_GRAPH
from kakao_models.files.wire import BYTES, VARINT, decode, single, text


@dataclass
class Node:
    """An object of the program that wrote the checkpoint."""

    children: dict[str, int]  # name → number of the node
    keys: list[str]  # of its variables
    slots: list[tuple[int, str, int]]  # of an optimizer: variable, slot's name, its node


def read_graph(checkpoint) -> list[Node]:
    """The nodes of a graph; the first is the root."""
    message = checkpoint.read(OBJECT_GRAPH).item()
    return [_read_node(node) for node in _fields(message, {1: ("nodes", BYTES)})["nodes"]]


def _read_node(message: bytes) -> Node:
    node = _fields(message, {1: ("children", BYTES), 2: ("attributes", BYTES), 3: ("slots", BYTES)})
    children = [_fields(child, {1: ("number", VARINT), 2: ("name", BYTES)}) for child in node["children"]]
    attributes = [_fields(attribute, {3: ("key", BYTES)}) for attribute in node["attributes"]]
    slots = [_fields(s, {1: ("variable", VARINT), 2: ("name", BYTES), 3: ("number", VARINT)}) for s in node["slots"]]
    return Node(
        {text(single(child, "name", b"")): single(child, "number", 0) for child in children},
        [text(single(attribute, "key", b"")) for attribute in attributes],
        [(single(s, "variable", 0), text(single(s, "name", b"")), single(s, "number", 0)) for s in slots],
    )


def _fields(message: bytes, schema: dict) -> dict[str, list]:
    return decode(message, schema, skip_unknown=True, most=10**6)


def find(graph: list[Node], path: str) -> Node:
    """The node to which the names of `path` lead from the root."""
    node = graph[0]
    for name in path.split("/"):
        node = graph[node.children[name]]
    return node


def names_of(graph: list[Node]) -> dict[str, set[str]]:
    """Key of each variable → the names that objects have for it."""
    names: dict[int, set[str]] = {}
    for node in graph:
        for name, number in node.children.items():
            names.setdefault(number, set()).add(name)
    return {key: names.get(number, set()) for number, node in enumerate(graph) for key in node.keys}
