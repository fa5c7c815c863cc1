"""Surrogates: functions whose gradient a backward is meant to take in place of its own forward's.

A rounding or a spike has the derivative 0 almost everywhere. Its backward takes the gradient of another function, which
its author declares: for the straight-through estimator, the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.errors import one_line
from cnn_lightning.tools import judge
from cnn_lightning.tools.check.diagnosis import DIFFERS
from cnn_lightning.tools.check.subject import (
    Call,
    Subject,
    call,
    distance,
    is_float,
    kind_of,
    party,
    tensors,
    upstream_of,
)

# ---- usual ones


class Identity(torch.nn.Module):
    """The straight-through estimator: the gradient passes as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x.clone()


class Clipped(torch.nn.Module):
    """The clipped straight-through estimator: the gradient passes from ``low`` to ``high``, and is 0 outside.

    Args:
        low: The lower end.
        high: The upper end.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """``x`` within the ends."""
        return x.clamp(self.low, self.high)


class _Spike(torch.nn.Module):
    """A smooth step, for spikes where ``x`` is above ``threshold``; ``slope`` stretches it."""

    def __init__(self, slope: float, threshold: float = 0.0) -> None:
        super().__init__()
        self.slope, self.threshold = slope, threshold

    def forward(self, x: Tensor) -> Tensor:
        """A smooth step of any shape."""
        return self.step((x - self.threshold) * self.slope)

    def step(self, u: Tensor) -> Tensor:
        """The step of slope 1."""
        raise NotImplementedError


class Sigmoid(_Spike):
    """``sigmoid(slope (x - threshold))``, with the gradient ``slope s (1 - s)``."""

    def __init__(self, slope: float = 1.0, threshold: float = 0.0) -> None:
        super().__init__(slope, threshold)

    def step(self, u: Tensor) -> Tensor:
        """The logistic function."""
        return u.sigmoid()


class Arctan(_Spike):
    """``arctan(pi/2 slope (x - threshold)) / pi``, with the gradient ``slope/2 / (1 + (pi/2 slope (x - t))^2)``."""

    def __init__(self, slope: float = 2.0, threshold: float = 0.0) -> None:
        super().__init__(slope, threshold)

    def step(self, u: Tensor) -> Tensor:
        """The arc tangent, from -1/2 to 1/2."""
        return (u * (torch.pi / 2)).atan() / torch.pi


class FastSigmoid(_Spike):
    """``x / (1 + slope |x|)`` of ``x - threshold``, with the gradient ``1 / (1 + slope |x|)^2``."""

    def __init__(self, slope: float = 25.0, threshold: float = 0.0) -> None:
        super().__init__(slope, threshold)

    def step(self, u: Tensor) -> Tensor:
        """The softsign, divided by the slope: its gradient is 1 at 0."""
        return u / (1 + u.abs()) / self.slope


class Triangle(_Spike):
    """The integral of ``max(0, 1 - slope |x - threshold|)``, which is the gradient."""

    def __init__(self, slope: float = 1.0, threshold: float = 0.0) -> None:
        super().__init__(slope, threshold)

    def step(self, u: Tensor) -> Tensor:
        """Two parabolas."""
        inside = u.clamp(-1, 1)
        return (inside - 0.5 * inside * inside.abs()) / self.slope


NAMED: Mapping[str, type[torch.nn.Module]] = {
    "identity": Identity,
    "clipped": Clipped,
    "sigmoid": Sigmoid,
    "arctan": Arctan,
    "fast_sigmoid": FastSigmoid,
    "triangle": Triangle,
}
"""Surrogates that have a name, by which `check_layer` and ``--surrogate`` take them."""


# ---- whether it can be one


def named(surrogate: Call | str) -> Call:
    """A surrogate given by its name, or itself.

    Raises:
        TypeError: It is neither a name of `NAMED` nor a function.
    """
    if isinstance(surrogate, str) and surrogate in NAMED:
        return NAMED[surrogate]()
    if isinstance(surrogate, str) or not callable(surrogate) or isinstance(surrogate, type):
        got = repr(surrogate) if isinstance(surrogate, str) else kind_of(surrogate)
        raise TypeError(f"surrogate: expected a function, a module or one of {', '.join(NAMED)}, got {got}")
    return surrogate


def expect_surrogate(s: Subject) -> None:
    """Check that a surrogate gives outputs like the layer's, and has a gradient by one input at least.

    Raises:
        ValueError: It does not; the message says what it gives.
    """
    if s.surrogate is None:
        return
    module, inputs = s.copy(), s.inputs()
    try:
        outputs = call(module, inputs)
    except Exception:
        return  # the rule "forward" says so
    try:
        found = call(s.declared(module), inputs)
    except Exception as error:
        raise ValueError(f"surrogate: expected outputs, got {type(error).__name__}: {one_line(error)}") from error
    shapes, expected = ([tuple(y.shape) for y in each] for each in (found, outputs))
    if shapes != expected:
        raise ValueError(
            f"surrogate: expected outputs of the layer's shapes, {_listed(expected)}, got {_listed(shapes)}"
        )
    _expect_differentiable(party(s, module, inputs))


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "none"


def _expect_differentiable(declared: judge.Party) -> None:
    slopes = [judge.slope_along(declared, name, torch.ones_like(x)) for name, x in declared.point.items()]
    if not any(slope for slope, _ in slopes):
        raise ValueError(
            "surrogate: expected a differentiable function of the inputs, got one whose numerical differences are all "
            "0, as those of a step are"
        )
    if all(uncertainty > 1e-3 * max(abs(slope), 1e-3) for slope, uncertainty in slopes):
        raise ValueError(
            "surrogate: expected a differentiable function of the inputs, got one whose numerical differences depend "
            "on the step, as those of a jump or of noise do"
        )


# ---- what is wrong with a gradient that is not the surrogate's

_CLOSE = 1e-6
_SLOPES = torch.logspace(-5, 5, 81, base=2.0, dtype=torch.float64).tolist()


def diagnosis(
    s: Subject, module: torch.nn.Module, inputs: Sequence[Any], name: str, gradient: Tensor, usual: tuple[str, str]
) -> tuple[str, str]:
    """What is wrong and how to mend it, for a gradient of ``name``; ``usual`` is the answer for any layer."""
    wrong, mend = usual
    if not gradient.any():
        return wrong, f"{mend}; the derivative of a step is 0, so return that of the surrogate in its place"
    if not wrong.endswith(DIFFERS):
        return f"{wrong}, that of the surrogate", mend
    place = next((i for i, value in enumerate(inputs) if is_float(value) and s.name(i) == name), None)
    found = _suspect(s, module, inputs, place, gradient) if place is not None else None
    if found is None:
        return f"{wrong} of the surrogate", mend
    return f"the gradient of {name} is {found[0]}", found[1]


def _suspect(
    s: Subject, module: torch.nn.Module, inputs: Sequence[Any], place: int, gradient: Tensor
) -> tuple[str, str] | None:
    """The usual mistake of a surrogate that explains the gradient of an input exactly."""
    x = inputs[place]
    outputs = call(module, inputs)
    (upstream,) = upstream_of(outputs[:1])

    def at(point: Tensor) -> Tensor:
        """The surrogate's gradient for the input at another point, by autograd; NaN if it has none there."""
        leaf = point.detach().clone().requires_grad_()
        try:
            found = tensors(s.declared(module)(*inputs[:place], leaf, *inputs[place + 1 :]))
            return torch.autograd.grad(found, leaf, upstream_of(outputs))[0]
        except Exception:  # it has no graph, or fails at another point
            return torch.full_like(x, torch.nan)

    right = at(x)
    if _equal(right, gradient):
        return (
            "that of the surrogate's own backward, which is not the derivative of its forward",
            "declare a function whose forward has this derivative, with no backward of its own",
        )
    if _equal(upstream, gradient):
        return "the upstream gradient as it is", "multiply it by the surrogate's slope, or mask it where that is 0"
    if outputs[0].shape == x.shape and _equal(at(outputs[0]), gradient):
        return "the surrogate's at the layer's output, not at its input", "save the input for the backward"
    for shift in _attributes(s):
        if _equal(at(x + shift), gradient):
            return (
                f"the surrogate's at the input {'+' if shift > 0 else '-'} {abs(shift):g}",
                f"look for a threshold or a shift of {abs(shift):g} that only one of backward and surrogate has",
            )
    masked = _mask(x, gradient, right)
    if masked is not None:
        return masked
    steeper = _steeper(at, x, gradient, (0.0, *_attributes(s)))
    if steeper is None:
        return None
    return f"that of a surrogate {steeper:.4g} times as steep", "give the backward the surrogate's slope or width"


def _equal(a: Tensor, b: Tensor) -> bool:
    return distance(a, b) <= _CLOSE


def _attributes(s: Subject) -> list[float]:
    """The numbers other than 0 that layer and surrogate keep as attributes, and their negatives."""
    parts = [each for each in (s.module, s.surrogate) if isinstance(each, torch.nn.Module)]
    values = [value for part in parts for value in vars(part).values() if not isinstance(value, bool)]
    numbers = {float(value) for value in values if isinstance(value, int | float)}
    numbers |= {value.item() for part in parts for value in (*part.buffers(), *part.parameters()) if value.numel() == 1}
    return sorted({sign * number for number in numbers if number for sign in (1, -1)}, reverse=True)


def _steeper(at: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, centers: Sequence[float]) -> float | None:
    """The factor by which the surrogate must be stretched about one of ``centers`` for its gradient to be this one."""
    for center in centers:
        for power in (0, 1):  # with height 1 at the center for every slope, or with the same area below

            def off(slope: float, center: float = center, power: int = power) -> float:
                return distance(at(center + slope * (x - center)) * slope**power, gradient)

            best, width = min(_SLOPES, key=off), _SLOPES[1] / _SLOPES[0]
            while width > 1 + 1e-9:
                width **= 0.5
                best = min(best / width, best, best * width, key=off)
            if off(best) <= _CLOSE:
                return float(best)
    return None


def _mask(x: Tensor, gradient: Tensor, right: Tensor) -> tuple[str, str] | None:
    """Whether the gradient differs only where one of the two is 0."""
    extra, lost = (right == 0) & (gradient != 0), (right != 0) & (gradient == 0)
    both = ~(extra | lost)
    if both.all() or not _equal(gradient[both], right[both]):
        return None
    what, where = ("not 0", extra) if extra.any() else ("0", lost)
    lowest, highest = x[where].min(), x[where].max()
    return (
        f"{what} at {int(where.sum())} of {x.numel()} inputs ({lowest:.4g} and {highest:.4g} among them), where the "
        f"surrogate's is{'' if what == 'not 0' else ' not'}",
        "compare the ends of the backward's mask with the surrogate's",
    )
