"""Which value of a result is right for the inputs of a call: two float64 results, and the judge where they differ."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.swap import LAYERS, native_type
from cnn_lightning.tools import judge
from cnn_lightning.tools.elementary import Elementary
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.functions import FunctionCall, InNumPyCall
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING, Replay, Replays, amplified
from cnn_lightning.tools.parity.layerwise.runner import Call


@dataclass(frozen=True)
class Ruling:
    """The right value of a result, None where neither implementation has it; and which one has it."""

    value: Tensor | None
    right: judge.Right
    why: str


class Rulings:
    """The rulings on the results of a step's calls; each is made once.

    ``twins`` has, by the name of a layer, the class under test where it is another than torch's, or where NumPy
    computes its ``functions``.
    """

    def __init__(self, twins: dict[str, type[nn.Module]], tolerance: float, *, functions: bool = False) -> None:
        self.twins, self.tolerance, self.functions = twins, tolerance, functions
        self.replays = Replays()
        self._made: dict[Any, Ruling | None] = {}

    def clear(self) -> None:
        """Forget the last step."""
        self.replays.clear()
        self._made.clear()

    def on(self, call: Call, kind: str, key: Any, floor: float) -> Ruling | None:
        """The right value of one result in float64; None where the layer can't be computed alone."""
        place = (id(call), kind, key)
        if place not in self._made:
            first, second = self.two(call)
            self._made[place] = None if first is None else self._ruling(first, second, kind, key, floor)
        return self._made[place]

    def two(self, call: Call) -> tuple[Replay | None, Replay | None]:
        """The call in float64 by torch's layer, and by a second implementation."""
        native, twin = native_type(call.module), self.twins.get(call.name)
        if isinstance(call.module, FunctionCall):
            return self.replays.get(call, FunctionCall, torch.float64), self.replays.get(
                call, InNumPyCall, torch.float64
            )
        if twin is None and not is_of_torch(call):
            return None, None  # both copies run a user's layer, whose state is unknown
        first = self.replays.get(call, native, torch.float64)
        if twin is not None and self.functions:
            return first, self.replays.get(call, twin, torch.float64, functions=True)
        second = self.replays.get(call, twin or LAYERS.get(native, native), torch.float64)
        if twin is None and (second is None or second is first):
            second = self.replays.get(call, native, torch.float64, contiguous=True)
        return first, second

    def _ruling(self, first: Replay, second: Replay | None, kind: str, key: Any, floor: float) -> Ruling:
        a = first.alone.get(kind, key)
        b = a if second is None else second.alone.get(kind, key)
        if a is None and b is None:
            a = b = torch.zeros_like(first.point[key])
        a, b = (torch.zeros_like(other) if x is None and other is not None else x for x, other in ((a, b), (b, a)))
        assert a is not None
        assert b is not None
        apart = max(relative_error(a, b, floor)[0], relative_error(b, a, floor)[0])
        agreed = Ruling(a, "both", "two float64 results agree")
        if second is None or apart <= self.tolerance / 10:
            return agreed
        rounding = amplified(first, kind, key, floor, torch.float32)
        if apart <= OWN_ROUNDING * rounding * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps:
            return agreed
        if kind in ("outputs", "after"):
            return _on_forward(first, a, b, kind, key)
        return self._on_backward(first, second, a, b, key)

    def _on_backward(self, first: Replay, second: Replay, a: Tensor, b: Tensor, key: Any) -> Ruling:
        values = {"first": a, "second": b}
        forwards = [self.on(first.call, "outputs", index, 0.0) for index in range(len(first.alone.outputs))]
        lost = [ruling.right for ruling in forwards if ruling is not None and ruling.right != "both"]
        right, nearby = judge.of_backwards(first.party(), second.party(), key)
        why = "central differences in float64 of each side's own forward"
        if right == "both" and lost:  # each is the gradient of its own forward, and one of those is wrong
            right = lost[0]
        elif right == "both" and nearby and not all(torch.isfinite(x).all() for x in first.point.values()):
            return Ruling(None, "unclear", "they differ only at numbers that are not finite")
        elif right == "both" and nearby:
            return _at_ties(first, a, b, key)
        elif right in values and lost and right != lost[0]:
            right = "neither"
        if right not in values:
            why += {"neither": " agree with neither", "both": " agree with both"}.get(right, " are not precise enough")
        return Ruling(values.get(right), "unclear" if right == "both" else right, why)


def is_of_torch(call: Call) -> bool:
    """Whether a call is of a layer or function of torch, and not of a user's native layer."""
    native = native_type(call.module)
    return native is FunctionCall or native.__module__.startswith(("torch.", "torchvision."))


def _at_ties(first: Replay, a: Tensor, b: Tensor, key: Any) -> Ruling:
    """Torch's choice is the rule, unless its own elementary operations choose otherwise."""
    with Elementary() as elementary:
        third = first.run().gradients.get(key)
    if third is not None and elementary.is_second_opinion and judge.of_forwards(a, b, third) == "second":
        why = "they differ only at tied inputs, where torch by elementary tensor operations chooses as the layer does"
        return Ruling(b, "second", why)
    return Ruling(a, "first", "they differ only at tied inputs, where torch's choice is the rule")


def _on_forward(first: Replay, a: Tensor, b: Tensor, kind: str, key: Any) -> Ruling:
    with torch.no_grad(), Elementary() as elementary:
        outputs, after = first.forward(first.point)
    if not elementary.is_second_opinion:
        return Ruling(
            None, "unclear", "the native layer uses other operators than torch's, so there is no third result"
        )
    right = judge.of_forwards(a, b, outputs[key] if kind == "outputs" else after[key])
    why = "of three float64 results the one by elementary tensor operations agrees with "
    why += {"first": "torch's", "second": "the layer's"}.get(right, "neither")
    return Ruling({"first": a, "second": b}.get(right), right, why)
