"""Which of two copies is wrong where they differ: each against the right value for the inputs that it had."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.swap import native_type
from cnn_lightning.tools.parity.candidates import EAGER
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.functions import InNumPyCall
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING, amplified
from cnn_lightning.tools.parity.layerwise.rulings import Rulings, is_of_torch
from cnn_lightning.tools.parity.layerwise.runner import Call, Place, Runner


@dataclass(frozen=True)
class Examined:
    """Whether a copy is wrong (None: undecided), its error against the right value, the reason, and that value."""

    wrong: bool | None
    off: float = math.nan
    why: str = ""
    right: Tensor | None = None


class Blame:
    """Examines results of the two copies."""

    def __init__(self, native: Runner, other: Runner, tolerance: float, rulings: Rulings) -> None:
        self.native, self.other, self.tolerance, self.rulings = native, other, tolerance, rulings

    def verdict(self, call: Call, native: bool | None, other: bool | None) -> str:
        """The verdict on two copies of which each is wrong, right or (None) undecided; empty where both are right."""
        # Otherwise both copies run torch's layer alike.
        ours = self.other.mode is not EAGER or call.name in self.rulings.twins or isinstance(call.module, InNumPyCall)
        if native and other:
            return "both at fault" if ours else "fault of torch"
        if native or other:
            return "fault" if other and ours else "fault of torch"
        return "undecided" if native is None or other is None else ""

    def examine(self, runner: Runner, call: Call, found: Tensor | None, place: Place, floor: float) -> Examined:
        """Whether the copy's result differs from the right one for the inputs that this layer had in this copy."""
        kind, _ = place
        users = runner.users(call, place)
        rulings = [self.rulings.on(other, kind, name, floor) for other, name in users]
        if any(ruling is None for ruling in rulings):
            alone = "the layer does not run alone in float64"
            return Examined(None if call.name in self.rulings.twins else False, why=alone)
        settled = [ruling for ruling in rulings if ruling is not None]
        lost = next((ruling for ruling in settled if ruling.value is None), None)
        if lost is not None:
            return Examined(True if lost.right == "neither" else None, why=lost.why)
        right = sum((value for ruling in settled if (value := ruling.value) is not None), start=torch.zeros(()))
        found = torch.zeros_like(right) if found is None else found
        error = relative_error(found, right, floor)[0]
        why = next((ruling.why for ruling in settled if ruling.right != "both"), settled[0].why)
        if error <= self.tolerance or _is_rounding_alone(found, right, floor or _reach(users, runner.rounds)):
            return Examined(False, error, why)
        dtype = runner.rounds
        # No format is finer than float64: there the effect of float32's rounding is measured, and scaled down.
        coarse = torch.float32 if dtype == torch.float64 else dtype
        rounding = max(
            amplified(self.rulings.two(other)[ruling.right == "second"], kind, name, floor, coarse)
            for ruling, (other, name) in zip(settled, users, strict=True)
        )
        if runner is self.other and runner.mode is EAGER:
            rounding = min(rounding, self._error_of_torch(users, kind, right, floor, coarse))
        unit = OWN_ROUNDING * torch.finfo(dtype).eps / torch.finfo(coarse).eps
        wrong = not error <= max(self.tolerance, unit * rounding, _accumulated(users, kind, right, dtype))
        if wrong:  # a method may lose digits that the numbers have: then elementary operations lose them, too
            digits = self._error_of_torch(users, kind, right, floor, coarse, elementary=True)
            wrong = not error <= unit * digits
        return Examined(wrong, error, why, right)

    def _error_of_torch(
        self,
        users: list[tuple[Call, Any]],
        kind: str,
        right: Tensor,
        floor: float,
        coarse: torch.dtype,
        *,
        elementary: bool = False,
    ) -> float:
        """The relative error of the native layers when they compute in ``coarse``, also by elementary operations.

        It is 0 if elementary operations can't compute all of it.
        """
        rounded = torch.zeros(())
        for call, name in users:
            options = {"elementary": True} if elementary else {}
            replay = self.rulings.replays.get(call, native_type(call.module), coarse, **options)
            if elementary and (replay is None or not replay.independent or not is_of_torch(call)):
                return 0.0
            value = None if replay is None else replay.alone.get(kind, name)
            rounded = rounded + (torch.zeros_like(right) if value is None else value.double())
        return relative_error(rounded, right, floor)[0]


def _is_rounding_alone(found: Tensor, right: Tensor, reach: float) -> bool:
    """Whether a result is no more than rounding: as the gradient of a bias before a norm, or a mean that is 0.

    Args:
        found: The result.
        right: The right one, in float64.
        reach: The rounding of the numbers that it is made of: of the largest gradient, or of the largest input.
    """
    if found.shape != right.shape or not right.numel():
        return False
    most = OWN_ROUNDING * reach
    return right.abs().max().item() <= most and (found.double() - right).abs().max().item() <= most


def _accumulated(users: list[tuple[Call, Any]], kind: str, right: Tensor, dtype: torch.dtype) -> float:
    """The rounding of a parameter's gradient that is summed up in half precision, over all pictures and positions.

    Each of n partial sums is rounded: their errors add up to about ``sqrt(n)`` of one. In float32 this is far below the
    tolerance.
    """
    if kind != "parameter" or dtype.itemsize > 2 or not right.dim():
        return 0.0
    terms = sum(x.numel() for call, _ in users for x in call.grad_outputs.values()) / right.shape[0]
    return torch.finfo(dtype).eps * math.sqrt(terms)


def _reach(users: list[tuple[Call, Any]], dtype: torch.dtype) -> float:
    """The rounding of the largest input."""
    inputs = [x for call, _ in users for x in call.arguments if isinstance(x, Tensor) and x.is_floating_point()]
    largest = max((x.abs().max().item() for x in inputs if x.numel()), default=0.0)
    return torch.finfo(dtype).eps * largest
