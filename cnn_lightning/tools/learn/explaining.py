"""What is wrong with a result, in words: a usual mistake of the exercise, one of any gradient, or where it is wrong."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn_lightning.tools.check.diagnosis import DIFFERS, diagnosis
from cnn_lightning.tools.learn.course.exercise import Array, Case, Task

CLOSE = 1e-8
"""Rounding in float64, relative to the largest value; a wrong formula is off by far more."""


@dataclass(frozen=True)
class Answer:
    """One result of the learner's function.

    Attributes:
        case: The case.
        arguments: What the function was called with.
        got: The result; None if there is none.
        right: That of the formula.
    """

    case: Case
    arguments: tuple[Array, ...]
    got: Any
    right: Array

    @property
    def is_right(self) -> bool:
        """Whether the result equals that of the formula, but for rounding."""
        return is_close(self.got, self.right)


def is_close(got: Any, right: Array, close: float = CLOSE) -> bool:
    """Whether two arrays have one shape and, but for rounding, the same values; NaN equals NaN."""
    if got is None or np.shape(got) != np.shape(right):
        return False
    return not _apart(np.asarray(got), right, close).any()


def _apart(got: Array, right: Array, close: float = CLOSE) -> Array:
    """Where two arrays of one shape differ."""
    finite = np.abs(right[np.isfinite(right)])
    size = float(finite.max()) if finite.size else 0.0
    with np.errstate(invalid="ignore"):
        return ~np.isclose(got, right, rtol=0, atol=close * max(size, 1e-12), equal_nan=True)


def suspect(task: Task, index: int, answers: Sequence[Answer]) -> tuple[str, str] | None:
    """The usual mistake that gives a result in all cases of one rule, and its mend; None if none does."""
    for each in task.suspects:
        if each.result == index and _fits(each.wrong, answers):
            return f"{task.gives[index]} {each.words}", each.mend
    return None


def explain(
    task: Task, index: int, first: Answer, slopes: tuple[Sequence[Array], Sequence[float]] | None
) -> tuple[str, str]:
    """What is wrong with a result that no usual mistake of the exercise gives, and how that is usually mended.

    Args:
        task: The function.
        index: The place of the result.
        first: The result in the first case where it is wrong.
        slopes: Directions and numerical slopes there; None to take those of the right result.
    """
    what = task.gives[index]
    if first.got is None:
        return f"{what} is missing: the function gives None", f"return it: an array of the shape {first.right.shape}"
    got, right = np.asarray(first.got), first.right
    if got.shape != right.shape:
        return f"{what} has the shape {got.shape}, expected {right.shape}", _shape_mend(got, right)
    if not np.isfinite(got).all():
        count = int((~np.isfinite(got)).sum())
        return f"{what} is NaN or infinite at {count} of {got.size} places", "look for a division by 0 or an overflow"
    wrong, mend = diagnosis(what, got, *(slopes or _slopes(right)), _batch(first))
    if wrong.endswith(DIFFERS):
        ending = " from that of the formula" if slopes is None else f" {DIFFERS.removeprefix('differs ')}"
        wrong, mend = _where(what, got, right) or (f"{what} differs{ending}", mend)
    return wrong, mend


def _fits(wrong: Any, answers: Sequence[Answer]) -> bool:
    """Whether a mistake gives each of the answers; an error of its own means no."""
    for answer in answers:
        result = None
        with suppress(Exception):  # some mistakes can't be made with every shape
            result = wrong(*answer.arguments, **answer.case.options)
        if result is None or answer.got is None or not is_close(answer.got, np.asarray(result)):
            return False
    return True


def _batch(answer: Answer) -> int:
    first = next(iter(answer.case.point.values()))
    return int(first.shape[0]) if first.ndim else 1


def _slopes(right: Array) -> tuple[list[Array], list[float]]:
    """A few directions, and the slopes of a right gradient along them."""
    directions = directions_of(right)
    return directions, [float((right * direction).sum()) for direction in directions]


def directions_of(x: Array) -> list[Array]:
    """Four random directions."""
    generator = np.random.default_rng(13)
    return [generator.standard_normal(x.shape) for _ in range(4)]


def _shape_mend(got: Array, right: Array) -> str:
    if got.squeeze().shape == right.shape:
        return "there is an axis of size 1 too many: look for keepdims=True"
    if got.ndim == right.ndim and sorted(got.shape) == sorted(right.shape):
        return "two axes are swapped: look for a transpose that is missing, or one too many"
    if got.size > right.size:
        return "look for a sum over an axis that is missing: the batch, the positions or the channels"
    return "look for a sum over an axis that must stay, or for something that is cut off"


def _where(what: str, got: Array, right: Array) -> tuple[str, str] | None:
    """What the wrong places have in common."""
    apart = _apart(got, right)
    count = f"{int(apart.sum())} of {apart.size} places"
    if got.ndim > 1 and not apart.reshape(len(got), -1).any(1).all():
        good = np.flatnonzero(~apart.reshape(len(got), -1).any(1))
        names = ", ".join(map(str, good))
        return (
            f"{what} is right at index {names} of its first axis of {len(got)} alone",
            "look for an index that stays at one place, or for a loop that ends too early",
        )
    inner = apart[:, :, 1:-1, 1:-1] if got.ndim == 4 else apart[:0]
    if inner.size and not inner.any():
        return f"{what} is wrong at the border of the image alone", "look at what happens at the first and last pixels"
    if not got[apart].any():
        return (
            f"{what} is 0 at {count} where it must not be",
            "look for a mask that cuts too much, or a term that is left out",
        )
    if not right[apart].any():
        return f"{what} is not 0 at {count} where it must be", "look for a mask that is missing or cuts too little"
    difference = (got - right)[apart]
    if apart.all() and np.ptp(difference) <= CLOSE * np.abs(difference).max():
        return (
            f"{what} is {difference[0]:.6g} too large everywhere",
            "look for a constant: a term once too often or never",
        )
    return None


def worst(answer: Answer) -> str:
    """The number of wrong entries and the worst, for the place of a finding; empty if shapes differ."""
    got, right = np.asarray(answer.got), answer.right
    beside = f"; {answer.case.label}" if answer.case.label else ""
    if answer.got is None or got.shape != right.shape:
        return beside
    apart = _apart(got, right)
    if not right.ndim:
        return f"{beside}: got {got:.6g}, expected {right:.6g}"
    with np.errstate(invalid="ignore"):
        off = np.where(apart, np.nan_to_num(np.abs(got - right), nan=np.inf), -1)
    index = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    return (
        f"{beside}; {int(apart.sum())} of {apart.size} entries are wrong, the worst at {index}: "
        f"got {got[index]:.6g}, expected {right[index]:.6g}"
    )
