"""Whether the results of a part differ by more than rounding explains, and which side then is wrong.

A result of torch eager or of the program is wrong where its error is larger than the tolerance and than ten times the
effect of rounding: of inputs, parameters, and the results and gradients of each layer, rounded at random, on the result
in float64. It must be so at three points: at the recorded inputs, and twice where each input is moved by a thousandth.
A ReLU or max-pool whose inputs were so nearly equal that rounding decided is not near a tie there; inputs that are
exactly equal stay equal. What is then blamed must be wrong at four more points (`Trial.confirmed`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cnn_lightning.tools.parity.candidates import Build
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.replay import OWN_ROUNDING
from cnn_lightning.tools.parity.layerwise.results import Where
from cnn_lightning.tools.parity.layerwise.runner import Place, is_gradient
from cnn_lightning.tools.parity.programs.parts import (
    Alone,
    Part,
    Point,
    Results,
    filled,
    floats,
    floor_of,
    is_float,
    moved,
)

_NEARBY = 1e-3
_SEEDS = (1, 2)
_MORE_SEEDS = (3, 4, 5, 6)


@dataclass(frozen=True)
class Found:
    """How one result of a part differs."""

    error: float
    where: Where
    allowed: float
    """The error that is no fault."""
    floor: float
    native: float
    """The error of torch eager against torch in float64; ``other`` is that of the program."""
    other: float

    def beyond(self, allowed: float) -> set[str]:
        """Those of ``native`` and ``other`` whose error is larger."""
        return {side for side in ("native", "other") if not getattr(self, side) <= allowed}


class Trial:
    """A part by torch eager and by a program, in one precision."""

    def __init__(
        self, part: Part, build: Build, dtype: torch.dtype, tolerance: float, *, program: Alone | None, backward: bool
    ) -> None:
        self.part, self.dtype, self.tolerance, self.backward = part, dtype, tolerance, backward
        self._allowed: dict[Place, float] = {}
        self.native = self._by_torch(dtype)
        self.exact = self._by_torch(torch.float64)
        self._activation = 0.0
        for layer in self.exact.module.modules():
            layer.register_forward_hook(self._measure)
        if program is None:
            module = part.module().to(dtype)
            example = part.point.mapped(lambda x: x.to(dtype)).arguments
            program = Alone(module, dtype, build(module, example))
        self.program = program

    def _by_torch(self, dtype: torch.dtype, *, rounded: int = 0) -> Alone:
        """The part by torch; with ``rounded``, a seed, parameters and all results are rounded at random."""
        module = self.part.module().to(dtype)
        if rounded:
            with torch.no_grad():
                for x in module.parameters():
                    x.copy_(moved(x, self._coarse, rounded))
            for layer in module.modules():
                if next(layer.children(), None) is None:
                    layer.register_forward_hook(_rounding(self._coarse, rounded))
        return Alone(module, dtype)

    @cached_property
    def differences(self) -> dict[Place, Found]:
        """The results that differ at all points, as they differ at the recorded one."""
        return self._persistent(self._at(self.part.point), _SEEDS)

    @cached_property
    def confirmed(self) -> dict[Place, Found]:
        """Those of them that differ at more points, too."""
        return self._persistent(self.differences, _MORE_SEEDS)

    def _persistent(self, found: dict[Place, Found], seeds: Sequence[int]) -> dict[Place, Found]:
        for seed in seeds:
            if not found:
                break
            nearby = self._at(self.part.point.mapped(partial(moved, size=_NEARBY, seed=seed)))
            found = {
                place: replace(each, allowed=allowed)
                for place, each in found.items()
                # The effect of rounding is the largest at any point: a tie may be decided by it at another.
                if (allowed := max(each.allowed, self._allowed[place]))
                and each.beyond(allowed) & (nearby[place].beyond(allowed) if place in nearby else set())
            }
        return found

    def _at(self, point: Point) -> dict[Place, Found]:
        """The results of which one side is wrong at a point."""
        self._activation = max((x.abs().max().item() for x in point.floats() if x.numel()), default=0.0)
        native, other, exact = (self._run(by, point) for by in (self.native, self.program, self.exact))
        found: dict[Place, Found] = {}
        rounded: list[Results] = []
        # What is pure rounding, as the mean of centred values or the gradient of a bias before a normalisation, has no
        # scale of its own.
        floors = {True: floor_of(exact, self.dtype), False: torch.finfo(self.dtype).eps * self._activation}
        for place in native:
            a, b, true = filled(native[place], other.get(place), exact[place])
            if true is None:
                continue
            size = floors[is_gradient(place)]
            error, where = relative_error(b, a, size)
            if error <= self.tolerance and a.dtype == b.dtype:
                continue
            if not rounded:
                rounded = [
                    self._run(self._by_torch(torch.float64, rounded=seed), self._rounded(point, seed))
                    for seed in _SEEDS
                ]
            effect = max(relative_error(filled(each[place], true)[0], true, size)[0] for each in rounded)
            effect *= torch.finfo(self.dtype).eps / self._coarse
            largest = true.abs().max().item() if true.numel() else 0.0
            noise = size / max(largest, size) if size else 0.0
            allowed = max(self.tolerance, OWN_ROUNDING * max(effect, noise), self._allowed.get(place, 0.0))
            self._allowed[place] = allowed
            off = [relative_error(value, true, size)[0] for value in (a, b)]
            if a.dtype != b.dtype:
                off[1] = math.inf
            each = Found(error, where, allowed, size, *off)
            if each.beyond(allowed):
                found[place] = each
        return found

    def _measure(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._activation = max([self._activation, *(x.abs().max().item() for x in floats(output) if x.numel())])

    def _run(self, by: Alone, point: Point) -> Results:
        return by(point, backward=self.backward)

    @property
    def _coarse(self) -> float:
        """The size of rounding: no format is finer than float64, whose effect is float32's scaled down."""
        return torch.finfo(torch.float32 if self.dtype == torch.float64 else self.dtype).eps

    def _rounded(self, point: Point, seed: int) -> Point:
        return point.mapped(lambda x: moved(x.double(), self._coarse, seed))


class _Rounded(torch.autograd.Function):
    """The identity, with its value and its gradient rounded at random."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: float, seed: int) -> Tensor:
        ctx.rounding = (size, seed)
        return moved(x, size, seed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return moved(grads[0], *ctx.rounding), None, None


def _rounding(size: float, seed: int) -> Callable[..., Any]:
    return lambda module, arguments, output: tree_map(
        lambda x: _Rounded.apply(x, size, seed) if is_float(x) else x, output
    )
