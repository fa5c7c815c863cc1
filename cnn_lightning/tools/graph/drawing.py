"""A graph for the template ``graph.html.jinja``: boxes, rows, and the curves between them.

Nothing is measured in the browser: `layout` reserves the width of an open block where something stands beside it, and
heights grow as blocks open.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cnn_lightning.draw import Picture
from cnn_lightning.tools.graph.blocks import IN, OUT, Item
from cnn_lightning.tools.graph.layout import Edge, Layout, Link, lay_out

BOX = 120.0
"""The width of a node and of a folded block, in CSS pixels: a residual block fits on a phone of 360."""
FRAME = 7.0
"""Between the frame of an open block and its items, in CSS pixels."""
STRIP = 22.0
"""The height of the strip of curves between two rows, in CSS pixels."""
VISIBLE = 48
"""The most boxes at first; deeper blocks are folded."""


@dataclass(frozen=True)
class Look:
    """How a box looks.

    Attributes:
        tone: The class of its style; empty for none.
        mark: A sign of one or two characters, beside the colour.
        words: The same in words.
        picture: Below the name.
    """

    tone: str = ""
    mark: str = ""
    words: str = ""
    picture: Picture | None = None


@dataclass(frozen=True)
class Part:
    """Something in a row: a box, or a line that passes it.

    Attributes:
        space: The space at its left.
        width: Reserved for the box; 0 for a line.
        box: None for a line.
        feeds: Whether a curve leaves the box below.
        edges: Those that a line is a part of.
    """

    space: float
    width: float
    box: "Box | None" = None
    feeds: bool = False
    edges: str = ""


@dataclass(frozen=True)
class Curve:
    """A curve as the path of an SVG element.

    Attributes:
        path: Its points.
        edges: Those that it is a part of, such as ``3-5 3-out``: the numbers of two items, or ``in``, or ``out``.
    """

    path: str
    edges: str


@dataclass(frozen=True)
class Strip:
    """A row, and the curves above it. In a row that is ``free`` one box may grow."""

    curves: tuple[Curve, ...]
    parts: tuple[Part, ...]
    free: bool


@dataclass(frozen=True)
class Box:
    """A node or a block; the whole network is a block, too.

    Attributes:
        item: What it shows.
        look: How it looks.
        open: Whether a block is open at first.
        layers: The number of nodes in it.
        width: Of what is in a block, in CSS pixels, while it is folded.
        full: The same when all in it is open.
        strips: The rows of a block.
    """

    item: Item
    look: Look
    open: bool
    layers: int
    width: float = BOX
    full: float = BOX
    strips: tuple[Strip, ...] = ()


def drawn(whole: Item, look: Callable[[Item], Look], opened: Callable[[Item], bool]) -> Box:
    """The boxes of a network.

    Args:
        whole: The network, from `in_blocks`.
        look: How an item looks.
        opened: Whether a block is open at first.
    """
    if not whole.items:
        return Box(whole, look(whole), False, 1)
    boxes = [drawn(item, look, opened) for item in whole.items]
    full = [max(BOX, box.full + 2 * FRAME) if box.strips else BOX for box in boxes]
    places = lay_out(full, whole.edges, folded=BOX)
    layers = sum(box.layers for box in boxes)
    strips = _strips(boxes, places, {a for a, _ in whole.edges})
    return Box(whole, look(whole), opened(whole), layers, places.width, places.full, strips)


def open_at_first(whole: Item) -> set[int]:
    """The numbers of the blocks that are open at first: level by level, as long as few boxes are visible."""
    found = {whole.number}
    level = list(whole.items)
    visible = len(level)
    while blocks := [item for item in level if item.items]:
        level = [inner for item in blocks for inner in item.items]
        visible += len(level)
        if visible > VISIBLE:
            break
        found |= {item.number for item in blocks}
    return found


def _strips(boxes: list[Box], places: Layout, feeding: set[int]) -> tuple[Strip, ...]:
    left = -places.width / 2
    strips = []
    for row in places.rows:
        spans = [(places.x[index] - places.widths[index] / 2, index) for index in row.items]
        parts, end = [], left
        for start, index in sorted([*spans, *((x, None) for x in row.lanes)], key=lambda span: span[0]):
            if index is None:
                width, part = 0.0, Part(start - end, 0.0, edges=_named(row.lanes[start], boxes))
            else:
                width = places.widths[index]
                part = Part(start - end, width, boxes[index], index in feeding)
            parts.append(part)
            end = start + width
        free = len(row.items) == 1 and not row.lanes
        curves = tuple(Curve(_path(link, left), _named(edges, boxes)) for link, edges in row.links.items())
        strips.append(Strip(curves, tuple(parts), free))
    return tuple(strips)


def _named(edges: Iterable[Edge], boxes: list[Box]) -> str:
    def name(index: int) -> str:
        return {IN: "in", OUT: "out"}.get(index) or str(boxes[index].item.number)

    return " ".join(f"{name(a)}-{name(b)}" for a, b in edges)


def _path(link: Link, left: float) -> str:
    a, b = (place - left for place in link)
    if a == b:
        return f"M{a:g} 0V{STRIP:g}"
    return f"M{a:g} 0C{a:g} {STRIP / 2:g} {b:g} {STRIP / 2:g} {b:g} {STRIP:g}"
