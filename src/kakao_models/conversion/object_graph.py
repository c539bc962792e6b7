"""What the keys of a TensorFlow 2 checkpoint mean: paths through the objects of the program that wrote it.

TensorFlow restores by walking the live objects from the root, child by child, along the names in the checkpoint's object
graph (message TrackableObjectGraph, tensorflow/core/protobuf/trackable_object_graph.proto); the keys only say where a
node's value lies. Graph and keys agree: a key is the shortest path of names to its variable, and a suffix.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from kakao_models.files.wire import (
    BYTES,
    VARINT,
    CheckpointError,
    bytes_field,
    decode,
    number_field,
    single,
    text,
    within,
)

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # the key of the graph itself
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_MAX_ITEMS = 500_000  # nodes, children, attributes and slots; a trained ALIGN-B7 has 15,000

KeyKind = Literal["weight", "optimizer_slot", "optimizer", "counter", "metric", "object_graph"]


def path_of(key: str) -> str:
    """The path of names that a variable's key stands for: the key without its suffix.

    Raises:
        CheckpointError: not the key of a variable.
    """
    path = key.removesuffix(SUFFIX)
    if path == key or not path or not all(path.replace(_SLOT, "/").split("/")) or path.count(_SLOT) > 1:
        raise CheckpointError(f"{key}: not the key of a variable, <path>{SUFFIX}")
    if any(name.startswith(".") for name in path.replace(_SLOT, "/").split("/")):
        raise CheckpointError(f"{key}: reserved or escaped names in it, which the original programs don't have")
    return path


def key_of(path: str) -> str:
    """The key of the variable at a path of names."""
    return path + SUFFIX


def slot_key(key: str, slot: str, optimizer: str = "optimizer") -> str:
    """The key of what an optimizer keeps beside a variable, such as its moving average, slot "average"."""
    return f"{path_of(key)}{_SLOT}{optimizer}/{slot}{SUFFIX}"


def kind_of(key: str) -> KeyKind:
    """What an entry of the original programs' checkpoints is, from its key. All that isn't something else is a weight.

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
    if re.fullmatch(r"loss(_i2t|_t2i)?_tracker/(total|count)", path):
        return "metric"
    return "weight"


@dataclass(slots=True)
class Attribute:
    """A value of an object; that of a variable has the name VARIABLE_VALUE."""

    name: str
    full_name: str  # the variable's name; empty where a distribution strategy wrote the checkpoint
    key: str


@dataclass(slots=True)
class Node:
    """An object of the program."""

    children: dict[str, int] = field(default_factory=dict)  # name → number of the node
    attributes: list[Attribute] = field(default_factory=list)
    slots: list[tuple[int, str, int]] = field(default_factory=list)  # of an optimizer: variable, slot's name, its node


@dataclass(slots=True)
class ObjectGraph:
    """The objects of a program. Node 0 is the root; the same object may have several names, and cycles are possible."""

    nodes: list[Node]

    def find(self, path: str) -> Node | None:
        """The node to which the names of `path` lead from the root."""
        number: int | None = 0
        for name in path.split("/"):
            number = self.nodes[number].children.get(name)
            if number is None:
                return None
        return self.nodes[number]

    def names(self) -> dict[str, set[str]]:
        """Key of each variable → the names that objects have for it."""
        names: dict[int, set[str]] = {}
        for node in self.nodes:
            for name, number in node.children.items():
                names.setdefault(number, set()).add(name)
        return {
            attribute.key: names.get(number, set())
            for number, node in enumerate(self.nodes)
            for attribute in node.attributes
            if attribute.name == "VARIABLE_VALUE"
        }

    def to_bytes(self) -> bytes:
        """The message, as a checkpoint holds it."""
        return b"".join(bytes_field(1, _node_message(node)) for node in self.nodes)

    @classmethod
    def from_bytes(cls, message: bytes) -> "ObjectGraph":
        """Reads the message.

        Raises:
            CheckpointError: it is damaged, or absurdly large.
        """
        nodes = decode(message, {1: ("nodes", BYTES)}, skip_unknown=True, most=_MAX_ITEMS)["nodes"]
        graph, items = cls([]), len(nodes)
        for number, data in enumerate(nodes):
            if items > _MAX_ITEMS:
                raise CheckpointError(f"an object graph with more than {_MAX_ITEMS} nodes and names")
            with within(f"node {number} of the object graph"):
                node = _read_node(data, len(nodes))
            items += len(node.children) + len(node.attributes) + len(node.slots)
            graph.nodes.append(node)
        if not graph.nodes:
            raise CheckpointError("an object graph without nodes")
        return graph


def object_graph(keys: Iterable[str]) -> ObjectGraph:
    """The smallest graph with which TensorFlow finds the variables of `keys`: the names in the paths, and no others.

    Raises:
        CheckpointError: a key that isn't one of a variable, or a slot without its variable.
    """
    numbers, graph = {"": 0}, ObjectGraph([Node()])

    def number_of(path: str) -> int:
        if path not in numbers:
            parent, _, name = path.rpartition("/")
            parent = number_of(parent)
            numbers[path] = graph.nodes[parent].children[name] = len(graph.nodes)
            graph.nodes.append(Node())
        return numbers[path]

    for key in sorted(key for key in keys if key != OBJECT_GRAPH):
        path = path_of(key)
        variable, _, slot = path.partition(_SLOT)
        if slot:
            if variable not in numbers or not graph.nodes[numbers[variable]].attributes:
                raise CheckpointError(f"{key}: a slot, but {key_of(variable)} isn't there")
            optimizer, _, name = slot.rpartition("/")
            graph.nodes[number_of(optimizer)].slots.append((numbers[variable], name, len(graph.nodes)))
            graph.nodes.append(Node(attributes=[Attribute("VARIABLE_VALUE", path, key)]))
        else:
            graph.nodes[number_of(path)].attributes.append(Attribute("VARIABLE_VALUE", path, key))
    return graph


def _node_message(node: Node) -> bytes:
    out = [bytes_field(1, number_field(1, number) + bytes_field(2, name)) for name, number in node.children.items()]
    out += [
        bytes_field(2, bytes_field(1, a.name) + bytes_field(2, a.full_name) + bytes_field(3, a.key))
        for a in node.attributes
    ]
    out += [
        bytes_field(3, number_field(1, variable) + bytes_field(2, name) + number_field(3, number))
        for variable, name, number in node.slots
    ]
    return b"".join(out)


def _read_node(data: bytes, count: int) -> Node:
    schema = {1: ("children", BYTES), 2: ("attributes", BYTES), 3: ("slots", BYTES)}
    fields = decode(data, schema, skip_unknown=True, most=_MAX_ITEMS)
    node = Node()
    for child in fields["children"]:
        values = decode(child, {1: ("number", VARINT), 2: ("name", BYTES)}, skip_unknown=True)
        name = text(single(values, "name", b""))
        if name in node.children:
            raise CheckpointError(f"two children of the name {name!r}")
        node.children[name] = _number(values, "number", count)
    for attribute in fields["attributes"]:
        values = decode(attribute, {1: ("name", BYTES), 2: ("full_name", BYTES), 3: ("key", BYTES)}, skip_unknown=True)
        node.attributes.append(Attribute(*(text(single(values, name, b"")) for name in ("name", "full_name", "key"))))
    for slot in fields["slots"]:
        values = decode(slot, {1: ("variable", VARINT), 2: ("name", BYTES), 3: ("number", VARINT)}, skip_unknown=True)
        variable, number = _number(values, "variable", count), _number(values, "number", count)
        node.slots.append((variable, text(single(values, "name", b"")), number))
    return node


def _number(values: dict[str, list], name: str, count: int) -> int:
    number = single(values, name, 0)
    if number >= count:
        raise CheckpointError(f"{name} is node {number}, of {count}")
    return number
