"""What an exercise is: a file with functions to write, cases to call them with, and the mistakes that are usual."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[..., Any]

FOLDER = Path(__file__).parents[1] / "exercises"

OUTPUTS = ("y", "mean", "var")
"""The names of what a forward gives, for its backward."""

X, WEIGHT, BIAS = "the gradient of input 'x'", "the gradient of parameter 'weight'", "the gradient of parameter 'bias'"


@dataclass(frozen=True)
class Case:
    """The arguments of one call.

    Attributes:
        point: The arguments of the function, or of the forward if the function is a backward, by name.
        options: Keyword arguments of both.
        rule: The rule that uses the case; "" for the one about values.
        label: The case in words, for the finding.
    """

    point: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""
    label: str = ""


@dataclass(frozen=True)
class Suspect:
    """A usual mistake.

    Attributes:
        result: The place of the result that it makes wrong.
        words: What is wrong, after the name of the result: "lacks the factor grad_y".
        mend: How the mistake is usually mended.
        wrong: From the arguments of the function to the wrong result.
    """

    result: int
    words: str
    mend: str
    wrong: Call


def mean_over_batch(result: int, wrong: Call) -> Suspect:
    """The gradient of a parameter that is a mean where it must be a sum."""
    words = "is the mean over the batch: it is divided by N, and must be the sum"
    return Suspect(result, words, "add over the batch; only a loss that is a mean has the 1/N", wrong)


@dataclass(frozen=True)
class Task:
    """A function that is graded.

    Attributes:
        name: Its name in the file.
        formula: What it should equal: a function of the same arguments.
        gives: Its results in words.
        cases: The calls that it is graded by.
        suspects: The usual mistakes.
        forward: The name of the forward whose gradient it gives; "" if it is no backward.
        forward_formula: The formula of the forward.
        saved: What a backward gets after ``grad_y``: names of the point, or of the forward's `OUTPUTS`.
        call: Calls the function of a module with given arguments, if that is not ``module.name(*arguments)``.
        is_chain: Whether a wrong result makes those after it wrong, too: then the first alone is reported.
        most_bytes: The memory that a call may take at its peak, for its arguments; None if it is not measured.
    """

    name: str
    formula: Call
    gives: tuple[str, ...]
    cases: Sequence[Case]
    suspects: Sequence[Suspect] = ()
    forward: str = ""
    forward_formula: Call | None = None
    saved: tuple[str, ...] = ()
    call: Callable[..., Any] | None = None
    is_chain: bool = False
    most_bytes: Callable[..., int] | None = None

    def function(self, module: ModuleType) -> Call:
        """The learner's function as a function of the arguments of the formula."""
        if self.call is None:
            found: Call = getattr(module, self.name)
            return found
        call = self.call
        return lambda *arguments, **options: call(module, *arguments, **options)


@dataclass(frozen=True)
class Training:
    """How ``fit`` trains with the learner's functions.

    Attributes:
        layers: The layers of the network, and the classes of `cnn_lightning.tools.learn.faces` that run them.
        flags: Further flags of ``fit``.
        check: The arguments of ``cnn-lightning check`` that grade the first of these classes; "" if it can't be.
    """

    layers: Mapping[str, str]
    flags: tuple[str, ...] = ()
    check: str = ""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        number: From 1 on.
        stem: The name of its file without ``.py``.
        title: A few words.
        write: The functions that the learner writes.
        tasks: The functions that are graded, those that are given included.
        hints: Three, from a small one to almost the solution.
        training: How ``fit`` trains with it; None if the exercise has a training of its own.
        uses: The numbers of the exercises whose files it imports.
    """

    number: int
    stem: str
    title: str
    write: tuple[str, ...]
    tasks: tuple[Task, ...]
    hints: tuple[str, str, str]
    training: Training | None = None
    uses: tuple[int, ...] = ()

    @property
    def template(self) -> Path:
        """The file that the learner gets."""
        return FOLDER / f"{self.stem}.py"


def random(seed: int, *shape: int) -> Array:
    """Normal numbers in float64, the same at every call."""
    return np.random.default_rng(seed).standard_normal(shape)


def whole(seed: int, low: int, high: int, *shape: int) -> Array:
    """Whole numbers from ``low`` to ``high`` in float64: many are equal."""
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.float64)
