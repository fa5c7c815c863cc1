"""The table of a comparison: a line for each layer, with its largest errors and its verdict."""

import math
import re
from collections.abc import Iterable

from rich import box
from rich.table import Table

from cnn_lightning.tools.parity.layerwise.results import FAULTS, Parity, Row

_HEADINGS = {
    "output": "output",
    "input": "grad\ninput",
    "weights": "grad\nweight",
    "buffers": "buffer",
    "steps": "after\nstep",
}
"""The columns of errors: the kind of a row -> the heading."""

_SHOUTED = {
    "fault of torch": "fault OF TORCH",
    "fault of NumPy": "fault OF NUMPY",
    "both at fault": "BOTH at fault",
    "undecided": "UNDECIDED",
}


def errors_table(found: Parity, width: int) -> Table:
    """A line for each layer. A name is folded where the table would be wider than ``width``."""
    runs = {row.name: row.implementation for row in found.layers.rows}
    layers = by_layer(found.rows)
    cells = [
        (
            *(() if found.candidate else (runs.get(name, ""),)),
            *(_cell(_worst(rows, kind)) for kind in _HEADINGS),
            _cell(largest(row.native for row in rows)),
            _cell(largest(row.other for row in rows)),
            *((_cell(largest(row.numpy for row in rows)),) if found.candidate else ()),
            _verdict(rows),
        )
        for name, rows in layers.items()
    ]
    headings = ("runs\nin", *_HEADINGS.values(), "torch\nto f64", "this\nto f64", "verdict")
    if found.candidate:
        headings = (*headings[1:-1], "NumPy\nto f64", "verdict")
    columns = list(zip(headings, *cells, strict=True))
    parts = [[line for text in column for line in text.splitlines()] for column in columns[:-1]]
    parts.append([word for text in columns[-1] for word in text.split()])  # a verdict may be folded, too
    taken = sum(1 + max(map(len, each)) for each in parts)
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, show_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in headings:
        number = heading not in ("runs\nin", "verdict")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for name, row in zip(layers, cells, strict=True):
        style = "bold red" if any(each.verdict in FAULTS for each in layers[name]) else ""
        table.add_row(_folded(name or "(itself)", width - taken), *row, style=style)
    return table


def kind_of(row: Row) -> str:
    """The column that a row belongs to: a key of the headings."""
    if row.what.startswith("output"):
        return "output"
    if row.what.startswith("gradient of input"):
        return "input"
    if row.what.startswith("gradient"):
        return "weights"
    return "buffers" if row.what.startswith("buffer") else "steps"


def by_layer(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each layer, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row)
    return found


def _worst(rows: Iterable[Row], kind: str) -> float | None:
    return max((row.error for row in rows if kind_of(row) == kind), default=None)


def largest(errors: Iterable[float]) -> float | None:
    """The largest error that is a number; None where there is none."""
    return max((error for error in errors if not math.isnan(error)), default=None)


def _cell(error: float | None) -> str:
    return "" if error is None else "0" if error == 0 else f"{error:.0e}"


def _folded(name: str, width: int) -> str:
    """A dotted name in lines of at most ``width``, broken after a dot, an underscore or a space where possible."""
    width = max(width, 8)
    lines = [""]
    for part in re.split(r"(?<=[._ ])", name):
        for piece in (part[start : start + width] for start in range(0, len(part), width)):
            if len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def _verdict(rows: list[Row]) -> str:
    faults = {row.verdict: row.what for row in reversed(rows) if row.verdict in FAULTS}
    if faults:
        return "; ".join(f"{_SHOUTED.get(verdict, verdict)}: {what}" for verdict, what in reversed(faults.items()))
    flips = sum(row.flips for row in rows)
    verdicts = {row.verdict for row in rows}
    if "follows" in verdicts:
        return "follows"
    if flips:
        return f"{flips} flip{'s' * (flips > 1)}"
    return next((verdict for verdict in ("flip", "rounding") if verdict in verdicts), "equal").replace(
        "flip", "after a flip"
    )
