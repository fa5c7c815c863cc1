"""The subgradient that NumPy takes at each kink, tie, NaN and infinity, next to torch's of the installed version."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cnn_lightning.aten import numpy_ops
from cnn_lightning.ops.fast.chooser import fast
from cnn_lightning.tools.check.answers import Answer, Function, Numbers, ask, slopes, text
from cnn_lightning.tools.check.places import Setting, settings

DIFFERS = "DIFFERS"
Cells = tuple[str, str, str, str, str]
_ZERO_SIGN = "0 / -0"
_WIDTHS = (14, 15, 19, 19, 7)
"""Of the columns, with 1 between: 78 letters."""
LEGEND = (
    'One row a place; several numbers are the inputs of one output. "left | right" are the slopes on either side of '
    'the place, "jump" where the function is not continuous. "y → dx" are the output and the gradient taken there '
    '(of the first output). "or": torch contradicts itself there, as its vectorised and its scalar kernels differ; '
    'either counts as equal. "0 / -0": only the sign of a zero differs, which does not count.'
)


@dataclass(frozen=True)
class Row:
    """One place of one layer.

    Attributes:
        layer: The layer with its options.
        at: The numbers of the input.
        left: The slope to the left, empty where the place is not finite.
        right: The slope to the right.
        formula: What the layer gives with the formulas.
        fast: What it gives with the fast functions.
        torch: What torch gives; None if there is nothing to compare with.
    """

    layer: str
    at: str
    left: str
    right: str
    formula: Answer
    fast: Answer
    torch: Answer | None

    @property
    def differs(self) -> bool:
        """Whether a result is none of torch's."""
        theirs = self.torch
        return theirs is not None and not all(ours.within(theirs) for ours in (self.formula, self.fast))

    @property
    def word(self) -> str:
        """What stands out: `DIFFERS`; or that only the sign of a zero differs, which is said and not counted."""
        if self.differs:
            return DIFFERS
        theirs = self.torch
        if theirs is None or len(theirs.values) > 1:
            return ""
        return _ZERO_SIGN if any(ours.value != theirs.value for ours in (self.formula, self.fast)) else ""

    def cells(self) -> Cells:
        """The row of the table."""
        ours = str(self.formula)
        if ours != str(self.fast):
            ours = f"formula {ours}, fast {self.fast}"
        sides = f"{self.left} | {self.right}" if self.left else ""
        return self.at, sides, ours, str(self.torch) if self.torch else "", self.word

    def as_json(self) -> dict[str, Any]:
        """The row for a JSON file; numbers are texts, as JSON has no NaN."""
        answers = {"formula": self.formula, "fast": self.fast, "torch": self.torch}
        found = {name: answer.as_json() for name, answer in answers.items() if answer is not None}
        place = {"layer": self.layer, "at": self.at, "left": self.left, "right": self.right}
        return {**place, **found, "differs": self.differs}


@contextmanager
def quiet() -> Iterator[None]:
    """Compare layers with torch itself, with no warning of the NaNs that are asked for.

    On one thread: waking the others takes longer than 67 numbers do, up to ten times on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with numpy_ops(False), warnings.catch_warnings(), torch.random.fork_rng([]), torch.enable_grad():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        torch.set_num_threads(threads)


def row_of(
    layer: str, place: Numbers, ours: Sequence[Function], theirs: Sequence[Function], at: str | None = None
) -> Row:
    """Ask a layer, by both tiers, and torch at one place."""
    with fast(False):
        formula = ask(ours, place)
        left, right = slopes(ours[0], place)
    with fast(True):
        quick = ask(ours, place)
    native = ask(theirs, place) if theirs else None
    return Row(layer, text(place) if at is None else at, left, right, formula, quick, native)


def catalogue() -> list[Row]:
    """Every layer of the catalogue at its places."""
    with quiet():
        return [row for setting in settings() for row in _rows(setting)]


def _rows(setting: Setting) -> Iterator[Row]:
    ours, theirs = (setting.functions(kind) for kind in (setting.entry.layer, setting.entry.native))
    for place in setting.places:
        yield row_of(setting.name, place, ours, theirs)


# ---- printing


def show(rows: Sequence[Row], console: Console, ours: str = "NumPy", legend: str = "") -> None:
    """Print the rows in 80 columns; layers with equal rows are one block."""
    console.print(f"{LEGEND} {legend}", highlight=False, style="dim")
    console.print(_lines([("at", "left | right", f"{ours}: y → dx", f"torch {_version()}", "")], "bold"))
    blocks: dict[tuple[Cells, ...], list[str]] = {}
    for name in dict.fromkeys(row.layer for row in rows):
        blocks.setdefault(tuple(row.cells() for row in rows if row.layer == name), []).append(name)
    for cells, names in blocks.items():
        console.print(", ".join(names), style="bold", highlight=False, markup=False)
        console.print(_lines(cells))
    console.print(verdict(rows), style="bold red" if any(row.differs for row in rows) else "green", highlight=False)


def _lines(cells: Sequence[Sequence[str]], style: str = "") -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    for width in _WIDTHS:
        table.add_column(width=width, overflow="fold")
    for row in cells:
        table.add_row(*row, style="bold red" if DIFFERS in row else style)
    return table


def verdict(rows: Sequence[Row]) -> str:
    """One line: how many places differ, and where torch contradicts itself."""
    layers = len({row.layer for row in rows})
    head = f"{layers} {'layer' if layers == 1 else 'layers'}, {len(rows)} places"
    asked = [row.torch for row in rows if row.torch is not None]
    if not asked:
        return f"{head}; no class of torch to compare with: --reference names one"
    many = sum(len(each.values) > 1 or len(each.gradients) > 1 for each in asked)
    head += f"; torch contradicts itself at {many} of them" if many else ""
    off = [f"{row.layer} at {row.at}" for row in rows if row.differs]
    if not off:
        return f"{head}; none differs from torch {_version()}"
    return f"{head}; torch {_version()} differs at {len(off)}: {', '.join(off)}"


def _version() -> str:
    return torch.__version__.partition("+")[0]


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows, with the version of torch."""
    return {"torch": torch.__version__, "places": [row.as_json() for row in rows]}
