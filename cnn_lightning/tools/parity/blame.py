"""Which of two copies is wrong where they differ: each against the right value for the inputs that it had."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.swap import native_type
from cnn_lightning.tools.parity.distance import relative_error
from cnn_lightning.tools.parity.replay import OWN_ROUNDING, amplified
from cnn_lightning.tools.parity.rulings import Rulings
from cnn_lightning.tools.parity.runner import Call, Place, Runner


@dataclass(frozen=True)
class Examined:
    """Whether a copy is wrong (None: undecided), its error against the right value, and how that was judged."""

    wrong: bool | None
    off: float = math.nan
    why: str = ""


class Blame:
    """Examines results of the two copies."""

    def __init__(self, native: Runner, other: Runner, tolerance: float, rulings: Rulings) -> None:
        self.native, self.other, self.tolerance, self.rulings = native, other, tolerance, rulings

    def verdict(self, call: Call, native: bool | None, other: bool | None) -> str:
        """The verdict on two copies of which each is wrong, right or (None) undecided; empty where both are right."""
        ours = call.name in self.rulings.twins  # otherwise both copies run torch's layer
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
        error = relative_error(torch.zeros_like(right) if found is None else found, right, floor)[0]
        why = next((ruling.why for ruling in settled if ruling.right != "both"), settled[0].why)
        if error <= self.tolerance:
            return Examined(False, error, why)
        dtype = runner.dtype
        # No format is finer than float64: there the effect of float32's rounding is measured, and scaled down.
        coarse = torch.float32 if dtype == torch.float64 else dtype
        rounding = max(
            amplified(self.rulings.two(other)[ruling.right == "second"], kind, name, floor, coarse)
            for ruling, (other, name) in zip(settled, users, strict=True)
        )
        if runner is self.other:
            rounding = min(rounding, self._rounding_of_torch(users, kind, right, floor, coarse))
        rounding *= torch.finfo(dtype).eps / torch.finfo(coarse).eps
        return Examined(not error <= max(self.tolerance, OWN_ROUNDING * rounding), error, why)

    def _rounding_of_torch(
        self, users: list[tuple[Call, Any]], kind: str, right: Tensor, floor: float, coarse: torch.dtype
    ) -> float:
        """The relative error of the native layers when they compute in ``coarse``."""
        rounded = torch.zeros(())
        for call, name in users:
            replay = self.rulings.replays.get(call, native_type(call.module), coarse)
            value = None if replay is None else replay.alone.get(kind, name)
            rounded = rounded + (torch.zeros_like(right) if value is None else value.double())
        return relative_error(rounded, right, floor)[0]
