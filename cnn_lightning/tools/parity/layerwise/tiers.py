"""The two tiers of one layer side by side: its formula and its fast function, and which of them is wrong."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.layers import bridge
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import LAYERS, formula_file, native_type
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING, Replay, amplified
from cnn_lightning.tools.parity.layerwise.results import Where
from cnn_lightning.tools.parity.layerwise.rulings import Rulings
from cnn_lightning.tools.parity.layerwise.runner import Call, Place, Runner

TOLERANCE = 1e-9
"""The relative error beyond which the tiers differ, in float64."""

_NEARER = 10.0
"""torch's result agrees with one tier against the other where it is this many times nearer to it."""
_OURS = frozenset(LAYERS.values())


def tier(module: nn.Module, device: torch.device) -> str:
    """What runs a layer of this package there: "fast", or why its formulas do; empty for any other module."""
    file = formula_file(module) if type(module) in _OURS else ""
    if not file:
        return ""
    if not bridge.computes_on_host(device):
        return f"(formula: on {device.type})"
    why = chooser.why_formula(file)
    return f"(formula: {why})" if why else "fast"


def wrong(of_fast: float, of_formula: float, name: str) -> str:
    """Which of two tiers is wrong, by their errors against torch: ``name``, "formula", or "formula or name"."""
    if _NEARER * of_formula < of_fast:
        return name
    return "formula" if _NEARER * of_fast < of_formula else f"formula or {name}"


@dataclass(frozen=True)
class Apart:
    """The error between two tiers in one result, the tier at fault, and the error of each against torch in float64."""

    error: float = math.nan
    where: Where = ()
    of: str = ""
    why: str = ""
    of_formula: float = math.nan
    of_fast: float = math.nan


class Tiers:
    """Compares the tiers in the calls of ``other``, the copy under test."""

    def __init__(self, other: Runner, tolerance: float, rulings: Rulings, device: torch.device) -> None:
        self.other, self.tolerance, self.rulings = other, tolerance, rulings
        self.names = {name: tier(module, device) for name, module in other.named()}
        """The tier of each layer."""
        self._apart: dict[Any, Apart] = {}

    def step(self, floor: float) -> None:
        """Compare all calls of this step that fast functions ran, in float64; ``floor`` is that of gradients there."""
        self._apart.clear()
        for call in self.other.calls:
            if self.names[call.name] == "fast":
                self._apart |= self._compared(call, torch.float64, floor)

    def apart(self, call: Call, place: Place | None) -> Apart:
        """The error between the tiers in a result; of a parameter that several calls use, the largest."""
        if place is None:
            return Apart()
        found = [self._apart.get((id(user), place[0], key), Apart()) for user, key in self.other.users(call, place)]
        return max(found, key=lambda each: (bool(each.of), -1.0 if math.isnan(each.error) else each.error))

    def of_own_dtype(self, call: Call, place: Place | None, floor: float) -> str:
        """The tier at fault in the precision of the run, where both tiers agree in float64."""
        dtype = self.other.dtype
        if place is None or dtype == torch.float64:
            return ""
        users = self.other.users(call, place)
        found = [self._compared(user, dtype, floor).get((id(user), place[0], key)) for user, key in users]
        return next((each.of for each in found if each is not None and each.of), "")

    def _compared(self, call: Call, dtype: torch.dtype, floor_of_gradients: float) -> dict[Any, Apart]:
        """Every result of a call: the error between its tiers, and which is wrong where they differ."""
        kind, exact = type(call.module), dtype == torch.float64
        fast, formula = (Replay(call, kind, dtype, formulas=formulas) for formulas in (False, True))
        places: list[Place] = [("outputs", index) for index in range(len(fast.alone.outputs))]
        places += [("after", key) for key in fast.alone.after]
        places += [("parameter" if isinstance(key, str) else "grad_inputs", key) for key in fast.point]
        found = {}
        for place in places:
            a, b = fast.alone.get(*place), formula.alone.get(*place)
            if a is None or b is None:
                continue
            floor = floor_of_gradients if place[0] in ("parameter", "grad_inputs") else 0.0
            error, where = relative_error(a, b, floor)
            of, why, offs = "", "", (math.nan, math.nan)
            if not error <= (TOLERANCE if exact else self.tolerance):
                rounding = amplified(fast, *place, floor, torch.float32) if exact else 0.0
                if not error <= OWN_ROUNDING * rounding * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps:
                    of, why, offs = self._blame(call, place, a, b, floor)
            found[id(call), *place] = Apart(error, where, of, why, *offs)
        return found

    def _blame(
        self, call: Call, place: Place, fast: Tensor, formula: Tensor, floor: float
    ) -> tuple[str, str, tuple[float, float]]:
        """The tier that torch's float64 result disagrees with, the reason, and the error of each against torch."""
        native = self.rulings.replays.get(call, native_type(call.module), torch.float64)
        third = None if native is None else native.alone.get(*place)
        if third is None:
            return "formula or fast function", "torch gives no third result", (math.nan, math.nan)
        of_formula, of_fast = (relative_error(value, third, floor)[0] for value in (formula, fast))
        of = wrong(of_fast, of_formula, "fast function")
        agrees = {"formula": "the fast function", "fast function": "the formula"}.get(of, "neither")
        return of, f"of three float64 results torch's agrees with {agrees}", (of_formula, of_fast)
