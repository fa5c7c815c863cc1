"""The nodes of a graph in blocks: a block is one call of a module that has modules in it.

Blocks follow the calls, not the dotted names alone: the nodes of a call lie together in time, so that the blocks of one
level form a graph without a circle, also where a module is called twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cnn_lightning.tools.graph.record import Graph, Node, Scope

IN, OUT = -1, -2
"""In the edges of a block: all that lies outside before it, and after it."""


@dataclass
class Item:
    """A node, or a block of items.

    Attributes:
        name: The dotted name; of an operation its plain name.
        call: The index of the call, from 0.
        type: The class; empty for operations, input and output.
        label: The name without that of the block around it.
        number: The place among all items, a block before what is in it; the whole network has 0.
        node: The index of the node; None for a block.
        items: The items of a block, in the order of computation.
        edges: Between the items of a block, by their index in it, `IN` or `OUT`.
    """

    name: str
    call: int
    type: str
    label: str
    number: int = 0
    node: int | None = None
    items: list["Item"] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)

    def nodes(self) -> Iterator[int]:
        """The indices of all nodes in it."""
        if self.node is not None:
            yield self.node
        for item in self.items:
            yield from item.nodes()

    def all(self) -> Iterator["Item"]:
        """Itself, and all items in it, in the order of their numbers."""
        yield self
        for item in self.items:
            yield from item.all()

    def blocks(self) -> Iterator["Item"]:
        """All blocks in it, itself included."""
        return (item for item in self.all() if item.items)


def in_blocks(graph: Graph) -> Item:
    """The whole network as a block. A block that would hold one item only is left out; the item stands for it."""
    whole = Item("", 0, "", "")
    _fill(whole, graph, list(range(len(graph.nodes))), depth=0)
    _connect(whole, graph)
    for number, item in enumerate(whole.all()):
        item.number = number
    return whole


def _fill(block: Item, graph: Graph, nodes: Sequence[int], depth: int) -> None:
    groups: dict[Scope | int, list[int]] = {}
    for index in nodes:
        scopes = graph.nodes[index].scopes
        groups.setdefault(scopes[depth] if depth < len(scopes) else index, []).append(index)
    for key, members in groups.items():
        block.items.append(_item(block, graph, key, members, depth))


def _item(block: Item, graph: Graph, key: Scope | int, members: list[int], depth: int) -> Item:
    if isinstance(key, int):
        node = graph.nodes[key]
        return Item(node.name, node.call, node.type, _label(node, block.name), node=key)
    name, call = key
    inner = Item(name, call, graph.types[name], _within(name, block.name))
    _fill(inner, graph, members, depth + 1)
    if len(inner.items) > 1:
        return inner
    only = inner.items[0]
    only.label = _within(only.name, block.name) if only.type else only.label
    return only


def _label(node: Node, block: str) -> str:
    return _within(node.name, block) if node.kind == "module" else node.name


def _within(name: str, block: str) -> str:
    """A dotted name without that of the block that it lies in."""
    return name.removeprefix(f"{block}.") if block else name


def _connect(block: Item, graph: Graph) -> None:
    """The edges of a block and of all blocks in it."""
    place = {node: index for index, item in enumerate(block.items) for node in item.nodes()}
    found = {(place.get(a, IN), place.get(b, OUT)) for a, b in graph.edges if a in place or b in place}
    block.edges = sorted((a, b) for a, b in found if a != b)
    for item in block.items:
        if item.items:
            _connect(item, graph)
