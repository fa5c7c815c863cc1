"""Where the items of one block stand: rows from top to bottom by the longest path, and a place in the row.

Places are counted from the middle of the block, where its input and its output are. An edge that passes rows runs
straight down in a lane beside the items; all edges from one item share its lane. Heights are left to the page: a row
stands below the one before. So is the width of an item that is alone in its row, with no lane beside it: it may grow
when it opens. Any other item gets the width that it has when all in it is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cnn_lightning.tools.graph.blocks import IN, OUT

GAP = 12.0
"""Between two items of a row, in CSS pixels."""
LANE = 12.0
"""Between two lanes, in CSS pixels."""
_SWEEPS = 4
"""Of the search for an order with few crossings."""
_MOVES = 20
"""Times that the items of a row of several move to the mean places of their neighbours."""

Link = tuple[float, float]
"""A curve between two rows: its x at the upper and at the lower end."""
Edge = tuple[int, int]
"""Between two items, by their index, `IN` or `OUT`."""


@dataclass(frozen=True)
class Row:
    """A row, and the strip above it.

    Attributes:
        links: The curves in the strip above the row, and the edges that each is a part of.
        items: The items of the row from left to right.
        lanes: The x of each line that passes the row, and the edges that it is a part of.
    """

    links: Mapping[Link, Sequence[Edge]]
    items: tuple[int, ...]
    lanes: Mapping[float, Sequence[Edge]]


@dataclass(frozen=True)
class Layout:
    """The places of items, in CSS pixels.

    Attributes:
        rows: From top to bottom. The last has no items where edges leave the block: only the strip above it counts.
        x: The middle of each item; 0 is the middle of the block.
        widths: Of the items.
        width: Of the block, while the items that may grow are folded.
        full: Of the block, when all in it is open.
    """

    rows: tuple[Row, ...]
    x: tuple[float, ...]
    widths: tuple[float, ...]
    width: float
    full: float


def lay_out(full: Sequence[float], edges: Sequence[tuple[int, int]], *, folded: float) -> Layout:
    """Place items.

    Args:
        full: The width of each item when all in it is open.
        edges: Between items, from the lower to the higher index, or from `IN`, or to `OUT`.
        folded: The width of a folded item.
    """
    items = range(len(full))
    row = _rows(len(full), edges)
    rows: list[list[int]] = [[] for _ in range(row[OUT])]
    for index in items:
        rows[row[index]].append(index)
    passed = {number for a, b in edges for number in range(row[a] + 1, row[b])}
    alone = {members[0] for number, members in enumerate(rows) if len(members) == 1 and number not in passed}
    widths = [folded if index in alone else full[index] for index in items]
    _order(rows, edges)
    x = _places(rows, widths, edges)
    left = min((x[index] - widths[index] / 2 for index in items), default=0.0)
    right = max((x[index] + widths[index] / 2 for index in items), default=0.0)
    lanes = {
        source: ((left if slot < 0 else right) + LANE * slot, end)
        for source, (slot, end) in _lanes(edges, row, x).items()
    }
    reach = max([-left, right, *(abs(place) for place, _ in lanes.values())])
    grown = max((abs(x[index]) + full[index] / 2 for index in alone), default=0.0)
    return Layout(
        _drawn(rows, edges, row, x, lanes),
        tuple(x[index] for index in items),
        tuple(widths),
        2 * reach,
        2 * max(reach, grown),
    )


def _rows(count: int, edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The row of each item: one below the lowest that feeds it."""
    before: dict[int, list[int]] = {}
    for a, b in edges:
        before.setdefault(b, []).append(a)
    row = {IN: -1}
    for index in range(count):
        row[index] = 1 + max((row[each] for each in before.get(index, ())), default=-1)
    row[OUT] = 1 + max(row.values())
    return row


def _order(rows: list[list[int]], edges: Sequence[tuple[int, int]]) -> None:
    """Sort each row by the mean place of the neighbours in the row above, then below; the best of all sweeps stays."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    where = {index: number for number, row in enumerate(rows) for index in row}
    for a, b in edges:
        if where.get(b, 0) - where.get(a, -2) == 1:
            above.setdefault(b, []).append(a)
            below.setdefault(a, []).append(b)
    best, least = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(_SWEEPS if least else 0):
        down = sweep % 2 == 0
        near = above if down else below
        for row, other in zip(rows[1:], rows, strict=False) if down else zip(rows[-2::-1], rows[::-1], strict=False):
            place = {index: number for number, index in enumerate(other)}
            own = {index: number for number, index in enumerate(row)}
            row.sort(key=lambda index: _mean([place[each] for each in near.get(index, ())], own[index]))
        if (found := _crossings(rows, below)) < least:
            best, least = [list(row) for row in rows], found
    rows[:] = best


def _crossings(rows: list[list[int]], below: Mapping[int, list[int]]) -> int:
    found = 0
    for row, other in pairwise(rows):
        place = {index: number for number, index in enumerate(other)}
        links = [(number, place[each]) for number, index in enumerate(row) for each in below.get(index, ())]
        found += sum(a < c and b > d for a, b in links for c, d in links)
    return found


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _places(rows: list[list[int]], widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> dict[int, float]:
    """The middle of each item, as near to its neighbours' as the row allows. What is alone in a row stands at 0."""
    near: dict[int, list[int]] = {index: [] for index in (*range(len(widths)), IN, OUT)}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    x = dict.fromkeys(near, 0.0)
    crowded = [row for row in rows if len(row) > 1]
    for move in range(_MOVES):
        for row in crowded if move % 2 == 0 else reversed(crowded):
            wanted = [_mean([x[each] for each in near[index]], 0.0) for index in row]
            x |= zip(row, _apart(wanted, [widths[index] for index in row]), strict=True)
    return {index: float(round(place)) for index, place in x.items()}


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The places nearest to those wanted, by the sum of squares with the widths as weights, without an overlap.

    Less the offsets that keep the items apart, this is an isotonic regression, by merging neighbours that are too near.
    """
    offsets = [0.0]
    for a, b in pairwise(widths):
        offsets.append(offsets[-1] + (a + b) / 2 + GAP)
    groups: list[tuple[float, float, int]] = []
    """Of items that touch: their weighted sum, their weight, and their number."""
    for place, offset, width in zip(wanted, offsets, widths, strict=True):
        total, weight, count = width * (place - offset), width, 1
        while groups and groups[-1][0] / groups[-1][1] > total / weight:
            other = groups.pop()
            total, weight, count = total + other[0], weight + other[1], count + other[2]
        groups.append((total, weight, count))
    level = [total / weight for total, weight, count in groups for _ in range(count)]
    return [base + offset for base, offset in zip(level, offsets, strict=True)]


def _lanes(
    edges: Sequence[tuple[int, int]], row: Mapping[int, int], x: Mapping[int, float]
) -> dict[int, tuple[int, int]]:
    """Of each item that feeds a row beyond the next: its lane, and the last row that it passes.

    Lanes are counted from the items outwards: 1, 2, ... on the right, -1, -2, ... on the left. A short one lies inside.
    """
    ends: dict[int, int] = {}
    sums: dict[int, float] = {}
    for a, b in edges:
        if row[b] - row[a] > 1:
            ends[a] = max(ends.get(a, 0), row[b] - 1)
            sums[a] = sums.get(a, 0.0) + x[b] + x[a]
    taken: dict[int, list[tuple[int, int]]] = {}
    found: dict[int, tuple[int, int]] = {}
    for source in sorted(ends, key=lambda each: ends[each] - row[each]):
        first, last = row[source] + 1, ends[source]
        step = -1 if sums[source] < -1 else 1
        slot = step
        while any(a <= last and first <= b for a, b in taken.get(slot, ())):
            slot += step
        taken.setdefault(slot, []).append((first, last))
        found[source] = (slot, last)
    return found


def _drawn(
    rows: list[list[int]],
    edges: Sequence[Edge],
    row: Mapping[int, int],
    x: Mapping[int, float],
    lanes: Mapping[int, tuple[float, int]],
) -> tuple[Row, ...]:
    """The rows, and the curves between them. ``lanes``: of an item its lane's x and last row."""
    links: list[dict[Link, list[Edge]]] = [{} for _ in range(len(rows) + 1)]
    passing: list[dict[float, list[Edge]]] = [{} for _ in range(len(rows) + 1)]
    for edge in edges:
        a, b = edge
        first, last = row[a] + 1, row[b]
        if first == last:
            links[last].setdefault((x[a], x[b]), []).append(edge)
            continue
        lane = lanes[a][0]
        links[first].setdefault((x[a], lane), []).append(edge)
        for number in range(first, last):
            passing[number].setdefault(lane, []).append(edge)
            links[number + 1].setdefault((lane, lane if number + 1 < last else x[b]), []).append(edge)
    whole = [*rows, []] if links[-1] else rows
    return tuple(
        Row(dict(sorted(links[number].items())), tuple(items), dict(sorted(passing[number].items())))
        for number, items in enumerate(whole)
    )
