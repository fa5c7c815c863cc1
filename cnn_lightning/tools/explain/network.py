"""The network as a picture at the top of the page: a chain of layers in columns, or any other network as a graph."""

from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.draw import Picture
from cnn_lightning.tools.explain import chain
from cnn_lightning.tools.explain.record import Layer, Recording
from cnn_lightning.tools.graph.blocks import Item, in_blocks
from cnn_lightning.tools.graph.drawing import Box, Look, drawn, open_at_first
from cnn_lightning.tools.graph.record import Graph, Node, graph_of

LONGEST = 24
"""Layers of a chain in columns; a longer one is drawn as a graph."""
STRIP_MAPS = 4
"""Maps of a layer in a graph's node."""
STRIP_TILE = 25
"""The width of such a map, in CSS pixels: four fit into a node."""


@dataclass(frozen=True)
class Network:
    """What the template needs: ``graph`` is None for a chain; ``data`` is for the page's script."""

    graph: Box | None
    data: dict[str, Any]


def network(net: nn.Module, image: Tensor, pixels: Tensor, seen: Recording, *, still: bool = True) -> Network:
    """The picture of a network.

    Args:
        net: The network, in evaluation mode.
        image: The normalised picture (1, C, H, W).
        pixels: The same with values from 0 to 1 (C, H, W).
        seen: What was recorded of it.
        still: Whether the page can't compute the maps.
    """
    graph = graph_of(net, image)
    if is_chain(graph, seen):
        return Network(None, {"columns": chain.columns(pixels, seen, still=still)})
    whole = in_blocks(_from_picture_to_loss(graph, seen.layers[-1]))
    items = list(whole.all())
    layers = {(layer.name, layer.again - 1): layer for layer in seen.layers}
    shown = {item.number: layers.get((item.name, item.call)) for item in items if item.node is not None}
    opened = _opened(whole)
    ends = {"picture": draw.photograph(pixels.numpy(), "", 56), "normalise": strip(image)}

    def look(item: Item) -> Look:
        if item.name in ends and not item.type:
            return Look(picture=ends[item.name])
        last = shown.get(max(inner.number for inner in item.all()))
        return Look(picture=None if last is None else strip(last.y))

    box = drawn(whole, look, lambda item: item.number in opened)
    nodes = {number: None if layer is None else layer.label for number, layer in shown.items()}
    return Network(box, {"labels": nodes})


def _opened(whole: Item) -> set[int]:
    """The blocks that are open at first, with the first one that branches: a skip is to be seen at once."""
    opened = open_at_first(whole)
    branching = (block for block in whole.blocks() if len(block.edges) > len(block.items) + 1)
    return opened | {block.number for block in islice(branching, 1)}


def is_chain(graph: Graph, seen: Recording) -> bool:
    """Whether the network is a short chain of recorded layers."""
    n = len(graph.nodes)
    calls = [(layer.name, layer.again - 1) for layer in seen.layers[:-1]]
    return (
        graph.edges == tuple(pairwise(range(n)))
        and [(node.name, node.call) for node in graph.nodes[1:-1]] == calls
        and 0 < n - 2 <= LONGEST
    )


def _from_picture_to_loss(graph: Graph, loss: Layer) -> Graph:
    """The graph with the normalisation of the picture after its input, and the loss as its last node."""
    first, *inner = graph.nodes
    picture = replace(first, name="picture")
    normalise = Node("function", "normalise", "", 0, first.shapes, ())
    last = Node("module", "loss", loss.kind, 0, ((),), ())
    nodes = (picture, normalise, *inner, last)
    edges = {(0, 1), (len(nodes) - 2, len(nodes) - 1), *((a + 1, b + 1) for a, b in graph.edges)}
    return Graph(nodes, tuple(sorted(edges)), graph.types)


def strip(output: Tensor) -> Picture | None:
    """The first maps of an output (1, C, h, w) side by side; None if it has no maps."""
    if output.dim() != 4 or output[0, 0].numel() == 1:
        return None
    maps = output[0, :STRIP_MAPS].numpy()
    return draw.grid(maps, "Feature maps", columns=STRIP_MAPS, side=STRIP_TILE, tile=STRIP_TILE)
