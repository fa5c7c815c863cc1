"""The report of layers as a command prints it: one line if all layers are alike, otherwise a short table.

Equal blocks, and blocks in which all is alike, are one row each. A block in which something differs says so in its row,
and lines below the table name what differs, so that no native layer and no edited formula is hidden.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from torch import nn

from cnn_lightning.callbacks.layer_sizes import Size
from cnn_lightning.swap import Row, SwapReport
from cnn_lightning.swap.report import NOTHING

WIDTH = 80
"""Columns of the screen; every line fits into them."""
MOST_ROWS = 12
"""Rows of a table; blocks are opened, level by level, while it has no more."""
MOST_MERGED = 24
"""The same where neighbours of different types have been merged."""
LONGEST, SHORTEST = (26, 20), 14
"""Characters of a name and of a type; longer ones lose their middle, more of it in a table that is too wide."""

Label = tuple[str, str]
"""An implementation and its note without the chain, as ("numpy", "fast")."""
VIEW: Label = ("numpy", "")
"""The label of a NumPy layer without a formula, such as Flatten."""
HEADS = ("layer", "type", "output", "params", "FLOPs", "implementation")
GAPS = (2, 1, 1, 1, 2)
"""Spaces behind each column but the last."""
INDENT, MIXED = "  ", "mixed"
ENOUGH = len("numpy  (formula: replaced)")
"""Characters that the last column gets in every table."""


@dataclass
class Node:
    """A module with rows of the report: of itself, of modules inside it, or both.

    Args:
        name: The dotted name.
        type: The name of its class.
        size: What was measured.
        row: Its own row.
        children: By their own names.
    """

    name: str
    type: str
    size: Size
    row: Row | None = None
    children: "dict[str, Node]" = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """All rows, its own first."""
        if self.row is not None:
            yield self.row
        for child in self.children.values():
            yield from child.rows()

    def opened(self) -> "list[Node]":
        """Its children, below its own row if it has one; itself if it has none."""
        own = [] if self.row is None else [replace(self, size=Size(), children={})]
        return [*own, *self.children.values()] if self.children else [self]

    def form(self) -> object:
        """What two blocks have in common that are equal."""
        own = None if self.row is None else (label(self.row), self.row.chain)
        return self.type, self.size, own, tuple((name, child.form()) for name, child in self.children.items())


def lines_of(report: SwapReport, net: nn.Module, sizes: Mapping[str, Size]) -> list[str]:
    """The lines to print.

    Args:
        report: What runs each layer.
        net: The network.
        sizes: From `layer_sizes.sizes_of`; without a size the cells of a layer are empty.
    """
    counts = Counter(row.implementation for row in report.rows if row.implementation != NOTHING)
    head = "layers: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    if not counts:
        return ["layers: none"]
    found = labels(report.rows)
    if len(found) == 1:
        return [_alike(head, next(iter(found)), report)]
    root = tree(report, net, sizes)
    groups = _groups(root)
    main = found.most_common(1)[0][0]
    total = sizes.get("", Size())
    return [head, *_table(groups, total), *_differing(groups, main)]


def label(row: Row) -> Label:
    """What computes a layer, and why, without the names of other layers."""
    return row.implementation, replace(row, chain=()).note


def labels(rows: Iterable[Row]) -> "Counter[Label]":
    """How often each label occurs among layers that compute; a view, which has no formula, is as other NumPy layers."""
    found = Counter(label(row) for row in rows if row.implementation != NOTHING)
    if any(name == VIEW[0] and note for name, note in found):
        found.pop(VIEW, None)
    return found


def _alike(head: str, of_all: Label, report: SwapReport) -> str:
    """The one line."""
    note = of_all[1]
    line = f"{head} {note}" if note.startswith("(") else ", ".join(filter(None, (head, note)))
    chains = dict.fromkeys(_chain(row, report.rows) for row in report.rows if "with" in row.tier)
    if not chains:
        return _cut(line, WIDTH)
    named = f"{line}; as one: {', '.join(chains)}"
    return named if len(named) <= WIDTH else f"{line}; {len(chains)} chains of layers as one"


def _chain(row: Row, rows: Sequence[Row]) -> str:
    """The full names of the layers that are computed as one with this one, in their order."""
    home, _, own = row.name.rpartition(".")
    inside = {f"{home}.{name}".removeprefix(".") for name in (own, *row.chain)}
    return " ".join(each.name for each in rows if each.name in inside)


# ---- blocks


def tree(report: SwapReport, net: nn.Module, sizes: Mapping[str, Size]) -> Node:
    """The rows of a report, in the blocks of the network."""
    modules = dict(net.named_modules(remove_duplicate=False))
    root = Node("", type(net).__name__, sizes.get("", Size()))
    for row in report.rows:
        node, path = root, ""
        for part in filter(None, row.name.split(".")):
            path = f"{path}.{part}".removeprefix(".")
            kind = type(modules[path]).__name__ if path in modules else row.type
            node = node.children.setdefault(part, Node(path, kind, sizes.get(path, Size())))
        node.row, node.type = row, row.type.rpartition(".")[2]
    return root


Group = list[Node]
"""Neighbours that are one row of the table."""


def _groups(root: Node) -> list[Group]:
    """The rows of the table: blocks opened as far as they fit, equal neighbours together."""
    level = root.opened()
    found = _equal(level)
    if len(found) > MOST_ROWS:
        found = [list(group) for _, group in groupby(level, _kinds)]
        return found if len(found) <= MOST_MERGED else [list(group) for _, group in groupby(level, _is_loss)]
    while True:
        deeper = [each for node in level for each in node.opened()]
        if len(deeper) == len(level) or len(_equal(deeper)) > MOST_ROWS:
            return found
        level, found = deeper, _equal(deeper)


def _is_loss(node: Node) -> bool:
    return node.name == "loss"


def _kinds(node: Node) -> object:
    return _is_loss(node), frozenset(labels(node.rows()))


def _equal(nodes: list[Node]) -> list[Group]:
    def home(node: Node) -> object:
        return node.name.rpartition(".")[0], node.form()

    return [list(group) for _, group in groupby(nodes, home)]


# ---- cells


def _table(groups: list[Group], total: Size) -> list[str]:
    """The rows, with a head and a sum; what does not fit into the last column is a note below."""
    notes: list[str] = []
    cells = [[*_cells(group), _implementation(group)] for group in groups]
    cells.append(["total", "", "", short(total.parameters), short(total.flops), ""])
    widths, left = _widths(cells)
    lines = [_line(list(HEADS), widths)]
    for row in cells:
        implementation, _, note = row[-1].partition("  ")
        if len(row[-1]) > left and note:
            if note not in notes:
                notes.append(note)
            row[-1] = f"{implementation}  [{notes.index(note) + 1}]"
        elif len(row[-1]) > left:
            row[-1] = MIXED
        lines.append(_line(row, widths))
    return [*lines, *(line for number, note in enumerate(notes, 1) for line in _wrapped(f"[{number}] {note}"))]


def _widths(cells: list[list[str]]) -> tuple[list[int], int]:
    """The widths of all columns but the last, whose texts are cut to fit; and what is left for the last."""
    widths = [max(len(row[at]) for row in [list(HEADS), *cells]) for at in range(len(HEADS) - 1)]
    widths[:2] = [min(each) for each in zip(widths, LONGEST, strict=False)]
    room = WIDTH - len(INDENT) - sum(GAPS)
    wanted = max(len(row[-1]) for row in [list(HEADS), *cells] if len(row[-1]) <= ENOUGH)
    for at in (0, 1):
        widths[at] -= max(0, min(sum(widths) + wanted - room, widths[at] - SHORTEST))
    for row in cells:
        row[:2] = [_cut(text, width) for text, width in zip(row, widths[:2], strict=False)]
    return widths, room - sum(widths)


def _line(cells: list[str], widths: list[int]) -> str:
    name, kind, shape, parameters, flops, implementation = cells
    texts = [name.ljust(widths[0]), kind.ljust(widths[1]), shape.ljust(widths[2])]
    texts += [parameters.rjust(widths[3]), flops.rjust(widths[4])]
    line = "".join(text + " " * gap for text, gap in zip(texts, GAPS, strict=True))
    return f"{INDENT}{line}{implementation}".rstrip()


def _cells(group: Group) -> list[str]:
    first, last = group[0], group[-1]
    kinds = {node.type for node in group}
    kind = first.type if len(kinds) == 1 else "layers"
    count = len(group)
    inside = {child.type for child in first.children.values()}
    if count == 1 and first.type == "Sequential" and len(inside) == 1 and len(first.children) > 1:
        kind, count = inside.pop(), len(first.children)  # a stage
    if count > 1:
        kind = f"{count} {kind}"
    return [
        _span(first.name, last.name) or "(the network)",
        kind,
        "x".join(map(str, last.size.shape)),
        short(sum(node.size.parameters for node in group)),
        short(sum(node.size.flops for node in group)),
    ]


def _implementation(group: Group) -> str:
    """What computes the layers of a row: implementation, two spaces, note; or how many each computes."""
    rows = [row for node in group for row in node.rows()]
    if len(rows) == 1:
        return f"{rows[0].implementation}  {rows[0].note}".rstrip()
    found = labels(rows)
    if not found:
        return NOTHING
    if len(found) == 1:
        return "  ".join(filter(None, next(iter(found))))
    counts = Counter(row.implementation for row in rows if row.implementation != NOTHING)
    return ", ".join(f"{count} {name}" for name, count in counts.items()) if len(counts) > 1 else MIXED


def _span(first: str, last: str) -> str:
    """The names of neighbours: ``layer1.1-2`` for ``layer1.1`` to ``layer1.2``."""
    if first == last:
        return first
    home, _, own = last.rpartition(".")
    return f"{first}-{own}" if first.rpartition(".")[0] == home else f"{first} - {last}"


def _cut(text: str, width: int) -> str:
    """The text, without its middle if it is too long."""
    half = (width - 2) // 2
    return text if len(text) <= width else f"{text[: width - 2 - half]}..{text[len(text) - half :]}"


def short(number: float) -> str:
    """Three digits and a unit, as ``1.23M``; empty for 0."""
    if not number:
        return ""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            break
        number /= 1000
    return f"{number:.0f}{unit}" if not unit or number >= 99.95 else f"{number:.3g}{unit}"


# ---- what differs inside of blocks


def _differing(groups: list[Group], main: Label) -> list[str]:
    """A line for each kind of layer, in blocks where not all is alike, that is not computed as most layers are."""
    found: dict[tuple[str, Label], list[Row]] = {}
    for group in groups:
        rows = [row for node in group for row in node.rows()]
        if len(labels(rows)) < 2:
            continue
        for row in rows:
            own = label(row)
            if own != main and (own != VIEW or main[0] != VIEW[0]) and row.implementation != NOTHING:
                alike = row.type.rpartition(".")[2], (own[0], _pattern(own[1]))
                found.setdefault(alike, []).append(row)
    lines = []
    for (kind, (implementation, note)), rows in found.items():
        where = [each or "(the network)" for each in patterns([row.name for row in rows])]
        notes = {label(row)[1] for row in rows}
        note = notes.pop() if len(notes) == 1 else note
        text = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
        lines += _wrapped(f"{len(rows)} {kind} ({text}): {implementation}  {note}".rstrip())
    return [f"  of these, not {' '.join(filter(None, main))}:", *(f"  {line}" for line in lines)] if lines else []


NUMBER = re.compile(r"\d+(?=\.)|(?<=\.)\d+$|^\d+$")
"""A number in a dotted name, except at the end of its last word: ``layer1.0.conv2`` has two."""


def _pattern(text: str) -> str:
    return NUMBER.sub("*", text)


def patterns(names: Iterable[str]) -> list[str]:
    """Dotted names that differ in numbers alone as one, with a star for each number that differs."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_pattern(name), []).append(name)
    found = []
    for same in alike.values():
        numbers = [set(each) for each in zip(*map(NUMBER.findall, same), strict=True)]
        texts = iter([each.pop() if len(each) == 1 else "*" for each in numbers])
        found.append(NUMBER.sub(lambda _, texts=texts: next(texts), same[0]))  # type: ignore[misc]
    return found


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH - 4, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False, tabsize=1
    )
