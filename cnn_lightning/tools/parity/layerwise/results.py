"""What a comparison returns: a row for each tensor, with its error and verdict, and the collection of all rows."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from cnn_lightning.aten import Report
from cnn_lightning.swap import SwapReport

WHOLE = "(network)"
"""The layer name in the rows of the network as it trains, without hooks on its layers."""

FAULTS = ("fault", "fault of torch", "both at fault", "fault of NumPy", "undecided")
"""The verdicts of a disagreement: which side is wrong."""

Where = tuple[int, ...]
"""The index of a number in a tensor."""


@dataclass(frozen=True)
class Row:
    """One comparison: the largest relative error of a tensor, and its index.

    ``error`` is between the two implementations. ``native`` and ``other`` are the error of each against torch in
    float64. In a fault they are the error against the value that the judge found right for the inputs of that side (NaN
    where the judge found none).
    ``what`` is ``output``, ``gradient of input``, ``gradient of NAME``, ``buffer NAME`` or ``NAME after the step``;
    ``verdict`` is ``equal``, ``rounding``, ``flip``, ``follows`` (an earlier fault) or one of `FAULTS`: ``fault`` of
    the layer under test, ``fault of torch``, ``both at fault``, or ``undecided`` where the two differ and the judge
    can't decide which is wrong. ``why`` states how a fault was judged, ``runs`` the class that torch runs.

    ``tier`` is what the layer ran: ``fast``, or ``(formula: edited)`` or another reason. ``tiers`` is the relative
    error between its fast function and its formula on equal inputs, NaN where they were not compared; ``of`` is the one
    at fault: ``fast function``, ``formula`` or ``chain``. In the rows of a chain, and where only the tiers differ,
    ``error`` is the error between the tiers, ``native`` that of the formula against torch, and ``other`` that of the
    fast function against torch.

    With a candidate, it takes the part of the layer under test, and ``fault of NumPy`` is a verdict, too.
    Where only the comparison of NumPy with torch eager shows a fault, ``error`` and ``where`` are those of NumPy.
    ``numpy`` is the error of NumPy's layers against torch in float64, where they run beside a candidate; NaN elsewhere.
    """

    step: int
    layer: str
    call: int
    what: str
    error: float
    where: Where
    native: float
    other: float
    flips: int
    verdict: str
    why: str = ""
    runs: str = ""
    tier: str = ""
    tiers: float = math.nan
    of: str = ""
    numpy: float = math.nan

    @property
    def place(self) -> tuple[int, str, int, str]:
        """Which result it is: step, layer, call and ``what``."""
        return self.step, self.layer, self.call, self.what

    def __str__(self) -> str:
        call = f" (call {self.call + 1})" if self.call else ""
        return f"{self.layer}{call}, {self.what}"


@dataclass(frozen=True)
class Evidence:
    """What shows a fault again: the layer or part that is wrong, alone, with its inputs and upstream gradients.

    Attributes:
        row: The row of the fault.
        party: The one at fault: ``torch``, ``NumPy``, or the name of the candidate.
        part: The layer, or the part of a network, by torch's classes; as it was before the call, on the CPU.
        inputs: The arguments of its call, with their strides.
        keywords: The keyword arguments.
        upstream: The gradient of each output, by the output's index.
        place: The result that is wrong: its kind (``outputs``, ``after``, ``grad_inputs`` or ``parameter``), and its
            index or name.
        found: The wrong value.
        right: The right value, in float64.
    """

    row: Row
    party: str
    part: nn.Module
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    upstream: dict[int, Tensor]
    place: tuple[str, Any]
    found: Tensor
    right: Tensor


@dataclass(frozen=True)
class Parity:
    """All comparisons, in the order of computation."""

    rows: list[Row]
    layers: SwapReport
    dtype: str
    tolerance: float
    steps: int
    losses: list[dict[str, float]] = field(default_factory=list)
    """The loss of each step, under ``torch``, ``layers`` and ``float64``."""
    tiers: dict[str, str] = field(default_factory=dict)
    """What ran each NumPy layer of this package that calls formulas: ``fast``, or a reason as ``(formula: edited)``."""
    functions: Report | None = None
    """What computed torch's own operators, if NumPy did."""
    candidate: str = ""
    """The name of what was compared with torch eager; empty for the layers under test."""
    note: str = ""
    """What was left out of the comparison."""
    evidence: list[Evidence] = field(default_factory=list)
    """Of the first fault of each party in each layer and pass, where the layer runs alone."""

    @property
    def first(self) -> Row | None:
        """The first row in which one side is wrong by more than rounding, whichever side it is."""
        return next(iter(self.faults), None)

    @property
    def faults(self) -> list[Row]:
        """The rows whose verdict is one of `FAULTS`."""
        return [row for row in self.rows if row.verdict in FAULTS]

    @property
    def ok(self) -> bool:
        """Whether both implementations agree."""
        return self.first is None

    @property
    def flips(self) -> int:
        """The number of ReLU signs and max-pooling choices that rounding changed."""
        return sum(row.flips for row in self.rows)
