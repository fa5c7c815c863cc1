"""The page of a comparison: the network as a graph, each layer with its verdict, and its numbers on a click."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cnn_lightning.files import written
from cnn_lightning.page.template import as_json, rendered
from cnn_lightning.tools.graph.blocks import Item, in_blocks
from cnn_lightning.tools.graph.drawing import STRIP, Look, drawn, open_at_first
from cnn_lightning.tools.graph.record import SIGNS, Graph, Node, graph_of
from cnn_lightning.tools.parity.layerwise.results import FAULTS, WHOLE, Parity, Row
from cnn_lightning.tools.parity.report import summary
from cnn_lightning.tools.parity.subject import Subject
from cnn_lightning.tools.parity.table import kind_of, largest

_PASSES = {
    "output": "forward",
    "buffers": "forward",
    "input": "backward",
    "weights": "backward",
    "steps": "optimizer",
}

_BEFORE = ("step", "pass", "result")
"""The columns before those of errors."""


@dataclass(frozen=True)
class Verdict:
    """How a verdict is shown. ``tone`` is its class in the style, ``mark`` the sign that stands beside the colour."""

    verdict: str
    tone: str
    mark: str
    words: str
    meaning: str


def write(subject: Subject, found: Parity, path: str) -> None:
    """Write the page to ``path``.

    Raises:
        UserError: The file can't be written.
    """
    text = render(subject, found)
    with written("--html", path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(subject: Subject, found: Parity) -> str:
    """The text of the page."""
    graph = _with_loss(graph_of(subject.net, subject.batches[0][0]), subject)
    whole = in_blocks(graph)
    items = list(whole.all())
    rows = _by_item(items, graph, found.rows)
    party = found.candidate or "layers under test"
    verdicts = _verdicts(party, found)
    grave = {each.verdict: index for index, each in enumerate(verdicts)}

    def worst(inside: Iterable[Item]) -> Verdict | None:
        return max(
            (verdicts[grave[row.verdict]] for item in inside for row in rows[item.number]),
            key=lambda each: grave[each.verdict],
            default=None,
        )

    def look(item: Item) -> Look:
        verdict = worst(item.all())
        return Look() if verdict is None else Look(verdict.tone, verdict.mark, verdict.words)

    fault = found.first
    first = next((item.number for item in items if any(row is fault for row in rows[item.number])), None)
    opened = open_at_first(whole) | {block.number for block in whole.blocks() if _holds(block, first)}
    columns = _columns(found)
    lines = summary(found)
    present = {row.verdict for row in found.rows}
    return rendered(
        "cnn_lightning.tools.parity",
        "cnn_lightning.tools.graph",
        subject=subject,
        found=found,
        party=party,
        shown=[each for each in verdicts if each.verdict in present],
        others=[each for each in verdicts if each.verdict not in present],
        answers=[line for line in lines if line.startswith("parity: ")],
        remarks=[line for line in lines if not line.startswith("parity: ")],
        first=first,
        graph=drawn(whole, look, lambda item: item.number in opened),
        strip=STRIP,
        layers=[_line(item, rows[item.number], worst([item])) for item in items if rows[item.number]],
        data=as_json(
            {
                "verdicts": [asdict(each) for each in verdicts],
                "columns": [*_BEFORE, *columns, "verdict"],
                "items": _items(items, graph, rows, grave, columns),
            }
        ),
    )


def _verdicts(party: str, found: Parity) -> list[Verdict]:
    """All verdicts, from the mildest to the gravest."""
    return [
        Verdict("equal", "equal", "=", "equal", f"The results are within {found.tolerance:.0e}."),
        Verdict(
            "rounding", "rounding", "≈", "rounding", "They differ by more, because their inputs differ by rounding."
        ),
        Verdict(
            "flip",
            "flip",
            "⇅",
            "flip",
            "Rounding changed a ReLU's sign or a max-pooling's choice, here or in an earlier layer.",
        ),
        Verdict("follows", "follows", "↳", "follows", "Right for its own inputs, which an earlier fault changed."),
        Verdict("undecided", "wrong nobodys", "?", "undecided", "One of the two is wrong; which one is not known."),
        Verdict("fault", "wrong theirs", "✗", f"fault of {party}", f"The number of {party} is wrong."),
        Verdict("fault of NumPy", "wrong numpys", "✗N", "fault of NumPy", "NumPy's number is wrong."),
        Verdict("fault of torch", "wrong torchs", "✗T", "fault of torch", "The number of torch eager is wrong."),
        Verdict("both at fault", "wrong both", "✗✗", "both at fault", f"Those of torch eager and {party} are wrong."),
    ]


# ---- the graph


def _with_loss(graph: Graph, subject: Subject) -> Graph:
    """The graph with the loss as its last node."""
    loss = Node("module", "loss", type(subject.loss).__name__, 0, ((),), ())
    last = len(graph.nodes)
    return replace(graph, nodes=(*graph.nodes, loss), edges=(*graph.edges, (last - 1, last)))


def _by_item(items: list[Item], graph: Graph, rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each item.

    Those of a layer that is no item belong to what it lies in, else to the output; those of a chain to its last layer;
    those of a function to its node in the block that calls it.
    """
    calls = {(item.name, item.call): item.number for item in items if item.type} | _functions(items, graph)
    output = next(item.number for item in items if item.name == "output" and not item.type)
    found: list[list[Row]] = [[] for _ in items]
    for row in rows:
        name = row.layer.split()[-2] if row.layer.endswith(" (chain)") else row.layer
        block, colon, function = name.rpartition(":")
        sign = f"{block}{colon}{SIGNS.get(function, function).strip('_')}"
        place = calls.get((name, row.call), calls.get((sign, row.call)))
        name = block or name
        while place is None and name:
            place = calls.get((name, 0))
            name = name.rpartition(".")[0]
        found[output if place is None or row.layer == WHOLE else place].append(row)
    return found


def _functions(items: list[Item], graph: Graph) -> dict[tuple[str, int], int]:
    """The items of functions, by the block and the function as ``block:function``, and the index of the call."""
    found: dict[tuple[str, int], int] = {}
    counted: Counter[str] = Counter()
    for item in sorted(items, key=lambda item: item.node or 0):
        node = None if item.node is None else graph.nodes[item.node]
        if node is not None and node.kind == "function":
            name = f"{node.scopes[-1][0] if node.scopes else ''}:{node.name}".removeprefix(":")
            found[name, counted[name]] = item.number
            counted[name] += 1
    return found


def _holds(block: Item, number: int | None) -> bool:
    return any(item.number == number for item in block.all())


def _items(
    items: list[Item],
    graph: Graph,
    rows: list[list[Row]],
    grave: dict[str, int],
    columns: dict[str, str],
) -> list[dict[str, Any]]:
    """What the page shows of each item, in the order of their numbers."""
    of_node = {item.node: item.number for item in items if item.node is not None}
    made = []
    for item in items:
        inside = set(item.nodes())
        made.append(
            {
                "name": _name(item, graph),
                "type": item.type,
                "shapes": [_shape(shape) for shape in graph.nodes[item.node].shapes] if item.node is not None else [],
                "last": item.number + sum(1 for _ in item.all()) - 1,
                "from": sorted({of_node[a] for a, b in graph.edges if b in inside and a not in inside}),
                "to": sorted({of_node[b] for a, b in graph.edges if a in inside and b not in inside}),
                "rows": [_cells(item, row, grave, columns) for row in rows[item.number]],
            }
        )
    return made


def _name(item: Item, graph: Graph) -> str:
    """The name of an item, with the call from the second on, and of an operation with the block that it is in."""
    if item.call:
        return f"{item.name} (call {item.call + 1})"
    scopes = graph.nodes[item.node].scopes if item.node is not None and not item.type else ()
    return f"{item.name} in {scopes[-1][0]}" if scopes else item.name or "the network"


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a number"


# ---- numbers


def _columns(found: Parity) -> dict[str, str]:
    """The columns of errors: the heading -> the field of a row."""
    party = found.candidate or "layers"
    columns = {f"{party} to torch": "error", "torch to float64": "native", f"{party} to float64": "other"}
    has_numpy = any(not math.isnan(row.numpy) for row in found.rows)
    return columns | ({"NumPy to float64": "numpy"} if has_numpy else {})


def _cells(item: Item, row: Row, grave: dict[str, int], columns: dict[str, str]) -> list[Any]:
    """The step, the cells of the table from the second to the last but one, the verdict's index, and a note."""
    layer = row.layer.removeprefix(f"{item.name}.") or "the network"
    what = row.what if row.layer in (item.name, WHOLE) else f"{layer}: {row.what}"
    errors = [number(getattr(row, field)) for field in columns.values()]
    return [row.step + 1, _PASSES[kind_of(row)], what, *errors, grave[row.verdict], _note(row)]


def number(error: float | None) -> str:
    """An error with two digits; empty where there is none."""
    if error is None or math.isnan(error):
        return ""
    return "∞" if math.isinf(error) else "0" if error == 0 else f"{error:.1e}"


def _note(row: Row) -> str:
    """What else is known of a comparison, in one line."""
    notes = [row.why] if row.why else []
    if row.verdict in FAULTS and row.where:
        notes.append(f"the largest error is at {list(row.where)}")
    if row.flips:
        notes.append(f"{row.flips} flip{'s' * (row.flips > 1)}")
    if row.of:
        notes.append(f"wrong is the {row.of}")
        if row.error == row.tiers:
            notes.append(
                "the errors are those of the fast code to the formula, the formula to torch, the fast to torch"
            )
    if row.tier not in ("", "fast"):
        notes.append(f"ran {row.tier}")
    return "; ".join(notes)


def _line(item: Item, rows: list[Row], verdict: Verdict | None) -> dict[str, Any]:
    """A line of the table of all layers."""
    errors = {
        name: number(largest(row.error for row in rows if _PASSES[kind_of(row)] == name))
        for name in dict.fromkeys(_PASSES.values())
    }
    name = item.name + (f" (call {item.call + 1})" if item.call else "")
    return {"number": item.number, "name": name, "type": item.type, "errors": errors, "verdict": verdict}
