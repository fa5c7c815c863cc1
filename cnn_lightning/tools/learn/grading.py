"""Grades the file of an exercise: its functions against the formulas of `ops` and against numerical differences."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnn_lightning.errors import UserError
from cnn_lightning.tools.check.report import CheckReport, Finding, Grade
from cnn_lightning.tools.learn.course import EXERCISES
from cnn_lightning.tools.learn.course.exercise import Exercise
from cnn_lightning.tools.learn.function import Graded, rules, skip
from cnn_lightning.tools.learn.loading import loaded, place_of, words_of


@dataclass(frozen=True)
class Report(CheckReport):
    """The grades of an exercise.

    Attributes:
        number: That of the exercise.
        path: The file.
        unwritten: The functions that are not written yet.
        score: How many of the rules for the functions to write pass, from 0 to 1.
    """

    number: int = 0
    path: Path = Path()
    unwritten: tuple[str, ...] = ()
    score: float = 0.0


def exercise_of(number: int) -> Exercise:
    """The exercise of a number.

    Raises:
        UserError: There is none.
    """
    if number not in EXERCISES:
        raise UserError(f"exercise: expected a number from 1 to {len(EXERCISES)}, got {number}")
    return EXERCISES[number]


def grade(number: int, path: str | Path | None = None) -> Report:
    """Grade the file of one exercise.

    In pytest, a test is ``report = grade(5); assert report.passed, report``.

    Args:
        number: That of the exercise.
        path: The file; None for that in the current folder.

    Returns:
        The report: ``passed``, ``findings``, ``score``; ``str(report)`` is the whole report.

    Raises:
        UserError: There is no such exercise, or no such file.
    """
    exercise = exercise_of(number)
    file = Path(path or f"{exercise.stem}.py").absolute()
    if not file.is_file():
        raise UserError(f"exercise {number}: expected the file {file.name}; cnn-lightning learn {number} makes it")
    with _quiet():
        grades, unwritten = _grades(exercise, file)
    written = tuple(f"({name})" for name in exercise.write)
    counted = [grade.result == "passed" for grade in grades if grade.rule.endswith(written)]
    score = sum(counted) / len(counted) if counted else 0.0
    return Report(exercise.stem, tuple(grades), number, file, unwritten, round(score, 4))


@contextmanager
def _quiet() -> Iterator[None]:
    """What the learner's code prints, and NumPy's warnings of an overflow, stay out of the report."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _grades(exercise: Exercise, file: Path) -> tuple[list[Grade], tuple[str, ...]]:
    """The grades of all functions, and the names of those that are not written yet."""
    try:
        with loaded(exercise, file) as module:
            functions = [Graded(task, module, file) for task in exercise.tasks]
            grades = [grade for function in functions for grade in function.grades()]
    except (Exception, SystemExit) as error:  # the learner's file may raise anything
        mend = f"the file must run by itself: python {file.name}"
        found = Finding("file", words_of(error), place_of(error, file), mend)
        every = [skip(task, rule, "the file does not run") for task in exercise.tasks for rule in rules(task)]
        return [Grade("file", (found,), asks="The file runs."), *every], ()
    before = [_earlier(exercise, file)] if exercise.uses else []
    return [*before, *grades], tuple(function.task.name for function in functions if function.unwritten)


def _earlier(exercise: Exercise, file: Path) -> Grade:
    """Whether the files of earlier exercises that this one uses pass, as far as they are there."""
    rule = "earlier exercises"
    beside = {number: file.parent / f"{EXERCISES[number].stem}.py" for number in exercise.uses}
    wrong = [number for number, path in beside.items() if path.is_file() and not grade(number, path).passed]
    asks = "The files that it imports pass."
    if not wrong:
        return Grade(rule, asks=asks)
    names = ", ".join(beside[number].name for number in wrong)
    mend = f"cnn-lightning learn {wrong[0]} --check; if a file is not there at all, formulas replace it"
    return Grade(
        rule, (Finding(rule, f"not passed yet: {names}", f"{file.name}, which imports them", mend),), asks=asks
    )
