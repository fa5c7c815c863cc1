"""Kinks and ties of a layer that declares none: a scan of its slopes over numbers, and equal inputs.

For kinks all numbers of a picture are set to the same number ``t``, and the outputs are functions of ``t`` alone. For
ties the inputs that one output is chosen from are made equal.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.tools.check.answers import MANY, Function, Numbers, number
from cnn_lightning.tools.check.blame import as_class, base_of
from cnn_lightning.tools.check.kinks import Row, quiet, row_of
from cnn_lightning.tools.check.places import SPECIAL
from cnn_lightning.tools.check.subject import Subject, is_float, seeded, tensors

_RANGES = ((-10.0, 10.0), (0.0, 10.0), (0.0, 1.0))
"""The first that the layer takes is scanned; a probability is from 0 to 1, say."""
_FAR = 1e3
"""The largest attribute at which a kink is looked for."""
_INTERVALS = 2048
_MOST_KINKS = 12
LEGEND = (
    "All numbers of a picture are set to the one named, or to 0 but for those of a tie; of more kinks than "
    f"{_MOST_KINKS} the nearest to 0 are shown."
)
_CANDIDATES = 64
_HALVINGS = 10
"""Down to intervals of 1e-5, in which the steps of a slope still lie on one side."""
_HALVINGS_OF_A_JUMP = 40
_STEP = 1e-6
_LEAST = 1e-3
"""The smallest change of slope, and the smallest jump, that counts."""
_NICE = 1e-7
_MOST_TIED = 4
_AT_ONCE = 2**20
"""Numbers in one batch: 8 MB in float64."""

Of = Callable[[Tensor], Tensor]


def scan(module: torch.nn.Module, sample: tuple[Any, ...], reference: Any = None) -> list[Row]:
    """The rows of a layer: its kinks, ties and what is not finite, beside its reference or the class it is based on.

    Raises:
        UserError: The output for one picture depends on the others of its batch, the layer refuses the numbers, or it
            computes in float32.
    """
    with quiet():
        subject = Subject(module, sample, reference)
        ours = _filled(subject, lambda dtype: subject.copy(dtype))
        theirs = _native(subject)
        low, high = _range(ours)
        _expect_pictures_apart(ours, low, high)
        attributes = _attributes(module)
        grid = _grid(low, high, attributes)
        _expect_float64(ours, grid)
        rows = []
        for kink, focus in _kinks(ours, grid, attributes):
            zeros = (-0.0, 0.0) if kink == 0 else (kink,)
            rows += [_row(subject, (place,), ours, theirs, slice(focus, focus + 1)) for place in zeros]
        alone = _numbers_alone(subject, theirs)
        rows += [_row(subject, (value,), ours, [*theirs, *alone], slice(0, 1)) for value in SPECIAL]
        return rows + _ties(subject, low, high)


def _row(subject: Subject, place: Numbers, ours: Of, theirs: Sequence[Of], focus: slice, at: str | None = None) -> Row:
    def of(function: Of) -> Function:
        return lambda rows: function(rows)[:, focus]

    return row_of(type(subject.module).__name__, place, [of(ours)], [of(each) for each in theirs], at)


def _native(subject: Subject, lay: Of | None = None) -> list[Of]:
    """The reference, or torch's class that the layer subclasses, as a function like the layer's; empty without."""
    base = base_of(subject.module)
    if subject.reference is not None:
        return [_filled(subject, lambda dtype: subject.twin(subject.copy(dtype), dtype), lay)]
    return [_filled(subject, lambda dtype: as_class(base, subject.copy(dtype)), lay)] if base is not None else []


def _numbers_alone(subject: Subject, theirs: Sequence[Of]) -> list[Of]:
    """Torch's function of pictures of a single number, if it takes them: then its scalar kernels are asked, too."""
    axes = subject.raw[_place(subject)].dim() - 1
    alone = _native(subject, lambda rows: rows.reshape(len(rows), *[1] * axes))
    rows = _three(-2, 2)
    try:
        return [f for f, of_pictures in zip(alone, theirs, strict=True) if _equal(f(rows), of_pictures(rows))]
    except Exception:  # it needs more numbers, in any of many ways
        return []


def _equal(of_numbers: Tensor, of_pictures: Tensor) -> bool:
    return of_numbers.shape[1] == 1 and torch.allclose(of_numbers, of_pictures[:, :1], equal_nan=True)


def _place(subject: Subject) -> int:
    """The input that is changed: the first of floats."""
    return next(i for i, value in enumerate(subject.raw) if is_float(value))


def _filled(subject: Subject, make: Callable[[torch.dtype], Any], lay: Of | None = None) -> Of:
    """A layer as a function of numbers ``(pictures, numbers)``, each picture made by ``lay``, else of one number."""
    place = _place(subject)
    shape = subject.raw[place].shape[1:]

    def fill(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *[1] * len(shape)).expand(len(rows), *shape).contiguous()

    def function(rows: Tensor) -> Tensor:
        x = (lay or fill)(rows)
        given = [
            x if i == place else _first_picture(value, len(rows), rows.dtype) for i, value in enumerate(subject.raw)
        ]
        seeded(0, given)
        y = tensors(make(rows.dtype)(*given))[0]
        if not y.dim() or len(y) != len(rows):
            raise UserError(
                f"layer: expected an output for each of {len(rows)} pictures, got one of shape {tuple(y.shape)}; "
                "for a loss: --options reduction=none"
            )
        return y.reshape(len(rows), -1)

    return function


def _first_picture(value: Any, copies: int, dtype: torch.dtype) -> Any:
    """Another input of the layer: its first picture, as often as there are pictures."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    value = value.to(dtype) if value.is_floating_point() else value
    return value[:1].expand(copies, *value.shape[1:]).contiguous()


def _range(function: Of) -> tuple[float, float]:
    """The range of numbers that the layer takes."""
    refused: Exception | None = None
    for low, high in _RANGES:
        try:
            with torch.no_grad():
                function(_three(low, high))
        except UserError:
            raise
        except Exception as error:
            refused = refused or error
        else:
            return low, high
    assert refused is not None
    raise UserError(f"--shape: expected one that the layer takes, got {type(refused).__name__}: {one_line(refused)}")


def _three(low: float, high: float) -> Tensor:
    """Three numbers of a range, with nothing particular about them."""
    return low + (high - low) * torch.tensor([[0.4637], [0.5213], [0.8771]], dtype=torch.float64)


def _expect_pictures_apart(function: Of, low: float, high: float) -> None:
    rows = _three(low, high)
    with torch.no_grad():
        together, alone = function(rows), torch.cat([function(row[None]) for row in rows])
    if not torch.allclose(together, alone, rtol=1e-9, atol=1e-9, equal_nan=True):
        raise UserError(
            "layer: expected an output for each picture that does not depend on the others of its batch, got one that "
            "does; evaluation mode (--eval) may help"
        )


def _expect_float64(function: Of, grid: Tensor) -> None:
    """Check that results have more digits than float32 has; steps have few values, and none that are cut off."""
    y = _values(function, grid)
    if torch.equal(y.nan_to_num(), y.float().double().nan_to_num()) and len(torch.unique(y)) > len(grid) // 4:
        raise UserError("layer: expected results in float64 for an input in float64, got those of float32")


def _attributes(module: torch.nn.Module) -> list[float]:
    """The numbers that a module and its parts keep as attributes, and their negatives: where kinks may be."""
    found = {
        float(value)
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FAR
    }
    return sorted(found | {-value for value in found})


# ---- kinks


def _grid(low: float, high: float, attributes: Sequence[float]) -> Tensor:
    """The ends of the intervals that are searched: no round numbers, so that no kink lies between two of them."""
    inner = torch.linspace(low + 1.37e-4, high - 1.71e-4, _INTERVALS + 1, dtype=torch.float64)
    far = max([0.0, *(1.5 * abs(value) for value in attributes)])
    if low == 0 or far <= high:
        return inner
    outer = torch.linspace(high + 1.37e-4, far, _INTERVALS // 4, dtype=torch.float64)
    return torch.cat([-outer.flip(0), inner, outer])


def _kinks(function: Of, grid: Tensor, attributes: Sequence[float]) -> list[tuple[float, int]]:
    """The numbers at which a slope or a value jumps, and the output that jumps most; those nearest 0."""
    bend, jump = _changes(function, grid[:-1], grid[1:])
    smooth = (bend.roll(1, 0) + bend.roll(-1, 0)) / 2  # of the interval, if there is no kink in it
    peaks = ((bend - smooth).abs() + jump.abs()).amax(1).argsort(descending=True)[:_CANDIDATES]
    low, high, smooth = grid[:-1][peaks], grid[1:][peaks], smooth[peaks]
    for _ in range(_HALVINGS):
        middle, smooth = (low + high) / 2, smooth / 2
        of_left, of_right = (
            ((bend - smooth).abs() + jump.abs()).amax(1)
            for bend, jump in (_changes(function, low, middle), _changes(function, middle, high))
        )
        low, high = torch.where(of_left >= of_right, low, middle), torch.where(of_left >= of_right, middle, high)
    # A step of a slope beyond a middle may have crossed the kink, which then lies just outside.
    low, high = low - 2 * _STEP, high + 2 * _STEP
    bend, jump = _changes(function, low, high)
    last = bend.abs() + jump.abs()
    focus = last.argmax(1)
    places = _places(function, low, high, focus)
    found = [
        (_nice(place, attributes), index)
        for place, index, change in zip(places.tolist(), focus.tolist(), last.amax(1).tolist(), strict=True)
        if change > _LEAST
    ]
    nearest = sorted(sorted(found, key=lambda each: abs(each[0]))[:_MOST_KINKS])
    return [each for before, each in pairwise([(math.nan, 0), *nearest]) if each[0] != before[0]]


def _changes(function: Of, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """How slope and value jump from ``low`` to ``high``, relative to the slope: each ``(places, outputs)``."""
    before, at, end, after = (_values(function, t) for t in (low - _STEP, low, high, high + _STEP))
    slope, next_slope = (at - before) / _STEP, (after - end) / _STEP
    jump = end - at - slope * (high - low)[:, None]
    scale = slope.abs().nan_to_num(0).clamp(min=1)
    return (next_slope - slope).nan_to_num(0, 0, 0) / scale, jump.nan_to_num(0, 0, 0) / scale


def _places(function: Of, low: Tensor, high: Tensor, focus: Tensor) -> Tensor:
    """The exact places: where a value jumps by halving, elsewhere where the lines from both sides meet."""

    def at(t: Tensor) -> Tensor:
        return _values(function, t).gather(1, focus[:, None])[:, 0]

    left, right = at(low), at(high)
    slope, next_slope = (left - at(low - _STEP)) / _STEP, (at(high + _STEP) - right) / _STEP
    meeting = (right - left + slope * low - next_slope * high) / (slope - next_slope)
    width = high - low
    jumps = (right - left - slope * width).abs() > 2 * (next_slope - slope).abs() * width + _LEAST / 10
    for _ in range(_HALVINGS_OF_A_JUMP):
        middle = (low + high) / 2
        y = at(middle)
        before = (y - left).abs() >= (right - y).abs()
        low, high = torch.where(before, low, middle), torch.where(before, middle, high)
        left, right = torch.where(before, left, y), torch.where(before, y, right)
    return torch.where(jumps, (low + high) / 2, meeting)


def _values(function: Of, t: Tensor) -> Tensor:
    with torch.no_grad():
        size = max(1, function(t[:1, None]).numel())
        return torch.cat([function(piece[:, None]) for piece in torch.split(t, max(MANY, _AT_ONCE // size))])


def _nice(place: float, attributes: Sequence[float]) -> float:
    """An attribute or a number of few digits that is as good as equal."""
    for value in (*attributes, round(place, 6)):
        if abs(value - place) <= _NICE * max(1.0, abs(value)):
            return value + 0.0
    return place


# ---- ties


def _ties(subject: Subject, low: float, high: float) -> list[Row]:
    """What a layer whose first output is chosen from several inputs gives where those are equal or NaN."""
    shape = subject.raw[_place(subject)].shape[1:]
    chosen = _chosen(subject, shape, low, high)
    if len(chosen) < 2:
        return []

    def lay(rows: Tensor) -> Tensor:
        x = rows.new_zeros(len(rows), math.prod(shape))
        return x.index_copy(1, torch.tensor(chosen), rows).reshape(len(rows), *shape)

    ours, theirs = _filled(subject, lambda dtype: subject.copy(dtype), lay), _native(subject, lay)
    n, nan = len(chosen), math.nan
    equal: list[Numbers] = [(1.0,) * n, (-1.0,) * n, (nan, *[1.0] * (n - 1)), (1.0, *[nan] * (n - 1))]
    return [_row(subject, row, ours, theirs, slice(0, 1), " ".join(map(number, row))) for row in equal]


def _chosen(subject: Subject, shape: Sequence[int], low: float, high: float) -> list[int]:
    """The inputs of a picture that its first output is chosen from: at some points one, at others another."""
    generator = torch.Generator().manual_seed(29)
    x = torch.rand(32, *shape, generator=generator, dtype=torch.float64)
    x = (low + (high - low) * x).requires_grad_()
    function = _filled(subject, lambda dtype: subject.copy(dtype), lambda rows: rows)
    y = function(x)
    if not y.requires_grad:
        return []
    slopes = torch.autograd.grad(y[:, 0].sum(), x, allow_unused=True)[0]
    used = {frozenset(row.flatten().nonzero().flatten().tolist()) for row in slopes} if slopes is not None else set()
    used.discard(frozenset())
    return sorted(frozenset.union(*used))[:_MOST_TIED] if len(used) > 1 else []
