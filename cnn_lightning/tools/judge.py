"""Which of two implementations is wrong where they differ. Neither torch nor NumPy has priority.

A backward is judged by its own forward: central differences in float64 along random directions, and along the direction
in which the two gradients differ most. A forward is judged by three results in float64: those of the two
implementations, and torch's operators computed by elementary tensor operations (`elementary`). Two that agree win.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Point = Mapping[Hashable, Tensor]
"""The values at which a function is evaluated: its float arguments and parameters, by any names."""
Right = Literal["both", "first", "second", "neither", "unclear"]

_STEPS = (1e-4, 1e-6, 1e-8)
_NEARER = 10.0
"""Two results agree against a third if they are this many times nearer to each other than to the third."""
_CONSISTENT = 2e-5
"""The largest error of a gradient against central differences along a random direction, relative to its norm."""


@dataclass(frozen=True)
class Party:
    """One implementation of a function at a point, in float64.

    ``forward`` returns the outputs, the same for the same point. ``backward`` returns the gradients for ``upstream``: a
    gradient for each output, or None.
    """

    point: Point
    upstream: Sequence[Tensor | None]
    forward: Callable[[Point], Sequence[Tensor]]
    backward: Callable[[Point], Mapping[Hashable, Tensor | None]]


def of_forwards(first: Tensor, second: Tensor, third: Tensor) -> Right:
    """Which of two outputs agrees with a third result: ``first``, ``second``, or ``unclear``."""
    off = [_distance(value, third) for value in (first, second)]
    if _NEARER * off[0] < off[1]:
        return "first"
    return "second" if _NEARER * off[1] < off[0] else "unclear"


def of_backwards(first: Party, second: Party, name: Hashable) -> tuple[Right, bool]:
    """Whose gradient of ``name`` is that of its own forward; and whether this was decided at a point nearby.

    At a kink (inputs that are equal, or 0) central differences have no meaning. There both are evaluated at a point
    nearby, where their gradients must differ as well.
    """
    right = _at_the_point(first, second, name)
    if right in ("first", "second"):
        return right, False
    generator = torch.Generator().manual_seed(23)
    moved = {key: _moved(x, generator) for key, x in {**second.point, **first.point}.items()}
    parties = [Party(moved, party.upstream, party.forward, party.backward) for party in (first, second)]
    if _distance(*(party.backward(moved).get(name) for party in parties)) <= 1e-9:
        return "both", True
    nearby = _at_the_point(parties[0], parties[1], name)
    return (nearby, True) if nearby in ("first", "second") else (right, False)


def _at_the_point(first: Party, second: Party, name: Hashable) -> Right:
    a, b = (party.backward(party.point).get(name) for party in (first, second))
    one, other = is_gradient(first, name, a, b), is_gradient(second, name, b, a)
    if one is None or other is None:
        return "unclear"
    if one and other:
        return "both"
    return "first" if one else "second" if other else "neither"


def is_gradient(party: Party, name: Hashable, gradient: Tensor | None, rival: Tensor | None = None) -> bool | None:
    """Whether ``gradient`` is that of the party's forward by ``name``; None if central differences can't decide.

    ``rival`` is another candidate: the direction in which the two differ most shows best which is wrong.
    """
    x = party.point[name]
    g = torch.zeros_like(x) if gradient is None else gradient.to(x)
    if g.shape != x.shape or not torch.isfinite(g).all():
        return False if all(torch.isfinite(value).all() for value in party.point.values()) else None
    settled = 0
    for direction, gap in _directions(g, rival):
        slope, uncertainty = slope_along(party, name, direction)
        off = abs((g * direction).sum().item() - slope)
        allowed = gap / _NEARER if gap else _CONSISTENT * max(abs(slope), g.norm().item())
        if not uncertainty <= allowed:
            continue
        settled += 1
        if off > allowed + uncertainty:
            return False
    return True if settled else None


def _directions(gradient: Tensor, rival: Tensor | None) -> Iterator[tuple[Tensor, float]]:
    """Directions, each with the difference of the two gradients along it; 0 for a random direction."""
    if rival is not None and rival.shape == gradient.shape and torch.isfinite(rival).all():
        difference = rival.to(gradient) - gradient
        largest = difference.abs().max()
        if largest > 0:
            direction = difference / largest
            yield direction, (difference * direction).sum().item()
    generator = torch.Generator().manual_seed(13)
    for _ in range(3):
        yield torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype).to(gradient.device), 0.0


def slope_along(party: Party, name: Hashable, direction: Tensor) -> tuple[float, float]:
    """The slope of ``<upstream, forward>`` when ``name`` moves along ``direction``, and the uncertainty of the slope.

    Each step size gives two central differences; those that agree best are used.
    """
    x = party.point[name]
    unit = _scale(x)
    best, uncertainty = 0.0, float("inf")
    for step in _STEPS:
        coarse, fine = (central_difference(party, name, direction, h) for h in (step * unit, step * unit / 4))
        if abs(coarse - fine) < uncertainty:
            best, uncertainty = fine, abs(coarse - fine)
        if uncertainty <= 1e-8 * abs(best):
            break
    return best, uncertainty


def central_difference(party: Party, name: Hashable, direction: Tensor, step: float) -> float:
    """``<upstream, forward(x + step d) - forward(x - step d)> / (2 step)``."""
    x = party.point[name]
    with torch.no_grad():
        ahead, behind = (
            [y.clone() for y in party.forward({**party.point, name: x.detach().clone().add_(direction, alpha=h)})]
            for h in (step, -step)
        )
        # Subtract the outputs before the weighted sum: a difference of sums would lose more digits.
        return sum(
            ((p - m) * g).sum().item() / (2 * step)
            for p, m, g in zip(ahead, behind, party.upstream, strict=True)
            if g is not None
        )


def _scale(x: Tensor) -> float:
    """The standard deviation of a tensor's values, or else their largest size: the unit of a step."""
    deviation = x.std().item() if x.numel() > 1 else 0.0
    return deviation or x.abs().max().item() or 1.0


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """A copy with the same strides, moved by a thousandth; numbers that are not finite become finite."""
    moved = x.detach().clone().nan_to_num_(0.5, 0.5, -0.5)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    return moved.add_(noise, alpha=1e-3 * _scale(moved))


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    """The largest difference over the largest finite value; infinite if shapes or non-finite values differ."""
    if a is None or b is None:
        other = b if a is None else a
        return 0.0 if other is None or not other.any() else float("inf")
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double(), b.detach().double()
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not ((a == b) | (a.isnan() & b.isnan()) | finite).all():
        return float("inf")
    apart = (a - b)[finite].abs()
    size = torch.cat([a[finite], b[finite]]).abs()
    return (apart.max() / size.max().clamp(min=1e-300)).item() if len(apart) else 0.0
