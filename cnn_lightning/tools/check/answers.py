"""What a function gives at one place: its values, its gradients, and its slopes to the left and to the right.

Torch's vectorised and scalar kernels differ at NaN, so each question is asked with one copy of the place and with many,
in float32 and in float64. An answer holds each different result once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""From copies of a place, shape ``(copies, numbers)``, to results of shape ``(copies, results)``."""
Numbers = tuple[float, ...]

ONE, MANY = 1, 67
"""67 values fill vectors of every width, and leave a rest for the scalar code."""
_FEW = 4
_STEP = 2.0**-20
_JUMP = 1e4
_SAME = 1e-5
"""float32's results equal float64's to about this, relative to 1 or to their size."""


@dataclass(frozen=True)
class Answer:
    """Each different result of a function at one place.

    Attributes:
        values: The outputs.
        gradients: The gradients of the first output by the numbers of the place; None where there is no graph.
        refused: The exceptions raised in place of a result.
    """

    values: tuple[Numbers, ...] = ()
    gradients: tuple[Numbers | None, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The outputs in a few letters; alternatives with "or" between."""
        return " or ".join([*map(text, self.values), *self.refused])

    @property
    def gradient(self) -> str:
        """The gradients in a few letters; alternatives with "or" between."""
        return " or ".join("none" if each is None else text(each) for each in self.gradients) or "-"

    def __str__(self) -> str:
        return f"{self.value} → {self.gradient}"

    def as_json(self) -> dict[str, Any]:
        """The results for a JSON file; numbers are texts, as JSON has no NaN."""
        values, gradients = (
            [None if row is None else " ".join(map(number, row)) for row in rows]
            for rows in (self.values, self.gradients)
        )
        return {"y": [*values, *self.refused], "dx": gradients}

    def within(self, other: "Answer") -> bool:
        """Whether ``other`` has each of these results, among others perhaps; 0 and -0 are equal."""
        return (
            all(_known(each, other.values) for each in self.values)
            and all(_known(each, other.gradients) for each in self.gradients)
            and set(self.refused) <= set(other.refused)
        )


def ask(functions: Sequence[Function], place: Numbers) -> Answer:
    """The values and gradients of functions that should be equal: one function in several memory layouts, say."""
    values: list[Numbers] = []
    gradients: list[Numbers | None] = []
    refused: list[str] = []
    for function in functions:
        for dtype in (torch.float64, torch.float32) if all(map(_is_short, place)) else (torch.float64,):
            for copies in (ONE, MANY):
                x = torch.tensor([place] * copies, dtype=dtype).requires_grad_()
                try:
                    y = function(x)
                    rows = torch.autograd.grad(y[:, 0].sum(), x, allow_unused=True)[0] if y.requires_grad else None
                except Exception as error:  # a layer may fail in any way at NaN
                    refused += [type(error).__name__]
                    continue
                _add(values, y.tolist())
                _add(gradients, [None] if rows is None else rows.tolist())
    return Answer(tuple(values), tuple(gradients), tuple(dict.fromkeys(refused)))


def slopes(function: Function, place: Numbers) -> tuple[str, str]:
    """The slopes of the first output to the left and to the right, one for each number; empty if one is not finite."""
    if not all(map(math.isfinite, place)):
        return "", ""
    found: tuple[list[str], list[str]] = ([], [])
    for index in range(len(place)):
        for side, sign in zip(found, (-1, 1), strict=True):
            moved = [list(place) for _ in range(2)]
            moved[1][index] += sign * _STEP
            try:
                with torch.no_grad():
                    here, there = (function(torch.tensor([row], dtype=torch.float64))[0, 0].item() for row in moved)
            except Exception:  # outside of what the function takes
                side.append("none")
                continue
            slope = sign * (there - here) / _STEP
            side.append("jump" if abs(slope) > _JUMP else number(round(slope, 4) + 0.0))
    return " ".join(found[0]), " ".join(found[1])


def number(value: float) -> str:
    """A number in at most four digits."""
    return f"{value:.4g}"


def text(numbers: Numbers) -> str:
    """Numbers in a few letters: of many, equal ones in a row are counted, as ``nan×3 1``."""
    each = [number(value) for value in numbers]
    if len(each) <= _FEW:
        return " ".join(each)
    runs = [(value, len(list(same))) for value, same in groupby(each)]
    return " ".join(value if count == 1 else f"{value}×{count}" for value, count in runs)


def _is_short(value: float) -> bool:
    """Whether a number is written in few digits, as kinks in the code of a layer are; float32 can't hold others."""
    return not math.isfinite(value) or float(f"{value:.7g}") == value


def _add(seen: list[Numbers | None] | list[Numbers], rows: Sequence[Sequence[float] | None]) -> None:
    for row in {repr(row): row for row in rows}.values():  # most of many copies are equal
        found = None if row is None else tuple(row)
        if not _known(found, seen):
            seen.append(found)  # type: ignore[arg-type]


def _known(row: Numbers | None, seen: Sequence[Numbers | None]) -> bool:
    return any(_equal(row, other) for other in seen)


def _equal(a: Numbers | None, b: Numbers | None) -> bool:
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and all(map(_same, a, b))


def _same(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= _SAME * max(1.0, abs(a), abs(b))
