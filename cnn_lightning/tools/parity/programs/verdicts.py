"""Which side is wrong in the smallest part in which torch eager and a program differ, and what shows it again.

The right value is the one on which torch and NumPy agree in float64. Where these two differ, a third float64 result
decides, by elementary tensor operations (`elementary`); where it can't, the comparison of the layers of the part does.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from cnn_lightning.tools import judge
from cnn_lightning.tools.elementary import Elementary
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.results import Evidence, Row
from cnn_lightning.tools.parity.layerwise.runner import Place, is_gradient
from cnn_lightning.tools.parity.programs.parts import Alone, Results, filled, in_layers, in_words
from cnn_lightning.tools.parity.programs.yardstick import Found, Trial

_NAMES = {"first": "torch's", "second": "NumPy's"}


class Judged:
    """The rows and the evidence of a part that differs.

    Args:
        trial: The part.
        name: The name of the program.
        step: The number of the step.
        torch_faults: The rows of layers in which a comparison of NumPy with torch found one of the two wrong.
        note: What is added to the name of each result.
    """

    def __init__(self, trial: Trial, name: str, step: int, torch_faults: Sequence[Row], note: str) -> None:
        self.trial, self.name, self.step, self.torch_faults, self.note = trial, name, step, torch_faults, note
        self._part = trial.part
        self._native, self._other, self._exact = (self._run(by) for by in (trial.native, trial.program, trial.exact))
        self._numpy, self._exact_numpy = (self._by_numpy(dtype) for dtype in (trial.dtype, torch.float64))
        self._shown: set[tuple[str, bool]] = set()

    def rows(self) -> Iterator[tuple[Row, list[Evidence]]]:
        """The row of each result that differs; and for the first of each side and pass, what shows it again."""
        for place, found in self.trial.confirmed.items():
            yield self._row(place, found)

    def _run(self, by: Alone) -> Results:
        return by(self._part.point, backward=self.trial.backward)

    def _row(self, place: Place, found: Found) -> tuple[Row, list[Evidence]]:
        right, why = self._right(place, found)
        native, other, numpy = filled(self._native[place], self._other.get(place), (self._numpy or {}).get(place))
        off = [math.nan if right is None else relative_error(x, right, found.floor)[0] for x in (native, other, numpy)]
        off[2] = math.nan if self._numpy is None else off[2]
        wrong = [right is not None and not error <= found.allowed for error in off[:2]]
        wrong[1] |= native.dtype != other.dtype
        verdict = {
            (False, False): "undecided",
            (False, True): "fault",
            (True, False): "fault of torch",
            (True, True): "both at fault",
        }[wrong[0], wrong[1]]
        name, call, what = self._part.name, self._part.visits[0].index, in_words(place) + self.note
        row = Row(self.step, name, call, what, found.error, found.where, off[0], off[1], 0, verdict, why, numpy=off[2])
        evidence = []
        for party, bad, value in zip(("torch", self.name), wrong, (native, other), strict=True):
            key = (party, is_gradient(place))
            if bad and right is not None and key not in self._shown:
                self._shown.add(key)
                evidence.append(self._evidence(row, party, place, value, right))
        return row, evidence

    def _evidence(self, row: Row, party: str, place: Place, found: Tensor, right: Tensor) -> Evidence:
        point = self._part.point.mapped(lambda x: x.to(self.trial.dtype).cpu())
        part = self._part.module().to(self.trial.dtype).cpu()
        return Evidence(row, party, part, point.arguments, point.keywords, point.upstream, place, found, right)

    def _by_numpy(self, dtype: torch.dtype) -> Results | None:
        """The results by NumPy; None where it can't run the part."""
        try:
            return self._run(Alone(in_layers(self._part.module().to(dtype), "numpy"), dtype))
        except Exception:  # a user's module may raise anything in another precision
            return None

    @cached_property
    def _elementary(self) -> Results | None:
        """The results by elementary operations; None where some operator of the part is not torch's."""
        mode = Elementary()
        try:
            found = self._run(Alone(self._part.module().double(), torch.float64, around=lambda: mode))
        except Exception:  # as above
            return None
        return found if mode.is_second_opinion else None

    def _right(self, place: Place, found: Found) -> tuple[Tensor | None, str]:
        """The right value, in float64, and how it was found; None where it can't be decided."""
        second = self._elementary if self._exact_numpy is None else self._exact_numpy
        if second is None:
            return self._exact[place], "torch in float64; no other implementation runs this part"
        ours, theirs = filled(second.get(place), self._exact[place])
        if relative_error(ours, theirs, found.floor)[0] <= found.allowed:
            return theirs, "two float64 results agree"
        third = None if self._elementary is None else self._elementary.get(place)
        nearer = "unclear" if third is None else judge.of_forwards(theirs, ours, third)
        why = "of three float64 results the one by elementary tensor operations agrees with "
        if nearer in _NAMES:
            return {"first": theirs, "second": ours}[nearer], why + _NAMES[nearer]
        inside = [row for row in self.torch_faults if any(_inside(row.layer, each.name) for each in self._part.visits)]
        if {row.verdict for row in inside} == {"fault of torch"}:
            return ours, f"torch is wrong in {inside[0]}"
        if inside and all(row.verdict in ("fault", "fault of NumPy") for row in inside):
            return theirs, f"NumPy is wrong in {inside[0]}"
        return None, why + "neither"


def _inside(layer: str, part: str) -> bool:
    return not part or layer == part or layer.startswith(f"{part}.")
