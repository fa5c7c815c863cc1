"""The words of ``cnn-lightning learn`` on a terminal, and its results for programs."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from cnn_lightning.tools.check.report import Finding, Grade
from cnn_lightning.tools.learn.course import EXERCISES
from cnn_lightning.tools.learn.course.exercise import Exercise
from cnn_lightning.tools.learn.grading import Report
from cnn_lightning.tools.learn.progress import Last

FACES = "cnn_lightning.tools.learn.faces"
STEPS = 3
"""How many hints an exercise has."""


def course(folder: Path, last: Mapping[int, Last]) -> str:
    """The table of exercises: number, title, and how far the learner is."""
    rows = [f"{each.number:3}  {each.title:56} {_state(each, folder, last)}" for each in EXERCISES.values()]
    passed = [number for number, grade in last.items() if grade.passed and number in EXERCISES]
    following = next((number for number in EXERCISES if number not in passed), None)
    end = f"{len(passed)} of {len(EXERCISES)} passed."
    if following is not None:
        is_open = (folder / f"{EXERCISES[following].stem}.py").exists()
        end += f" Next: cnn-lightning learn {following}{' --check' if is_open else ''}"
    return "\n".join([*rows, "", end])


def _state(exercise: Exercise, folder: Path, last: Mapping[int, Last]) -> str:
    if not (folder / f"{exercise.stem}.py").exists():
        return "-"
    grade = last.get(exercise.number)
    if grade is None:
        return "open"
    return "passed" if grade.passed else f"{grade.score:.0%} of rules"


def graded(report: Report, step: int) -> str:
    """The grades, what is wrong, a hint, and the command to go on with.

    Args:
        report: The grades.
        step: The hint to give, from 1 to `STEPS`. The usual mend of a mistake is said from the second on.
    """
    lines = [f"{report.path.name}: {EXERCISES[report.number].title}"]
    lines += [f"  {grade.result:8}{grade.rule}" for grade in report.grades if grade.result != "skipped"]
    for finding in report.findings:
        lines += ["", *_found(finding, step)]
    if report.findings and not report.unwritten and not all(map(_is_plain, report.findings)):
        lines += ["", *_wrapped(f"hint {step} of {STEPS}: ", EXERCISES[report.number].hints[step - 1])]
    return "\n".join([*lines, "", *_verdict(report)])


def _verdict(report: Report) -> list[str]:
    number = report.number
    if not report.passed:
        usual = report.path == Path.cwd() / f"{EXERCISES[number].stem}.py"
        file = "" if usual else f" --file {quote(str(report.path))}"
        return [f"{report.score:.0%} of the rules pass.", f"again:   cnn-lightning learn {number} --check{file}"]
    lines = ["passed", f"train:   cnn-lightning learn {number} --train"]
    training = EXERCISES[number].training
    if training is not None and training.check:
        face = f"{FACES}.{next(iter(training.layers.values()))}"
        lines += [f"check:   cnn-lightning check {face} \\", f"         {training.check}"]
    return lines + ([f"next:    cnn-lightning learn {number + 1}"] if number + 1 in EXERCISES else [])


def _found(finding: Finding, step: int) -> list[str]:
    lines = _wrapped(f"{finding.rule}: ", finding.wrong) + _wrapped("  where: ", finding.where)
    return lines if step == 1 and not _is_plain(finding) else lines + _wrapped("  mend:  ", finding.mend)


def _is_plain(finding: Finding) -> bool:
    """Whether the mend tells nothing of the solution."""
    return finding.rule in ("file", "dtype", "inputs unwritten", "earlier exercises") or "raised" in finding.wrong


def _wrapped(head: str, text: str) -> list[str]:
    """Text in lines as wide as the terminal; those after the first are indented."""
    width = max(shutil.get_terminal_size().columns, 40)
    return textwrap.wrap(head + text, width, subsequent_indent=" " * 9, break_long_words=False, drop_whitespace=True)


def opened(exercise: Exercise, path: Path, is_new: bool) -> str:
    """What to do with a file."""
    state = "is new" if is_new else "is here already, and stays as it is"
    lines = [*_wrapped("", f"{path.name} {state}: {exercise.title}"), *_wrapped("write:   ", ", ".join(exercise.write))]
    files = [f"{EXERCISES[number].stem}.py" for number in exercise.uses]
    missing = [name for name in files if not (path.parent / name).exists()]
    if missing:
        lines += _wrapped("missing: ", f"{', '.join(missing)}, which it imports; while they are, formulas replace them")
    return "\n".join([*lines, f"grade:   cnn-lightning learn {exercise.number} --check"])


def solution(exercise: Exercise) -> str:
    """The formulas of the functions to write, as they stand in the source."""
    parts = []
    for task in exercise.tasks:
        if task.name in exercise.write:
            formula = task.formula.func if isinstance(task.formula, partial) else task.formula
            place = Path(inspect.getsourcefile(formula) or "").parts[-2:]
            parts.append(f"# {'/'.join(place)}\n" + "\n\n".join(map(inspect.getsource, _with_helpers(formula))))
    return "\n\n".join(parts)


def _with_helpers(function: Any) -> list[Any]:
    """A function, and the private ones of its file that it calls."""
    found, todo = [], [function]
    while todo:
        each = todo.pop(0)
        found.append(each)
        called = [each.__globals__.get(name) for name in each.__code__.co_names if name.startswith("_")]
        todo += [helper for helper in called if inspect.isfunction(helper) and helper not in found + todo]
    return found


def as_json(report: Report, step: int) -> dict[str, Any]:
    """The result for a program that grades: a test for each rule, with the scores that graders add up."""
    exercise = EXERCISES[report.number]
    tests = [_test(grade, exercise) for grade in report.grades]
    return {
        "exercise": report.number,
        "name": exercise.stem,
        "file": str(report.path),
        "passed": report.passed,
        "score": sum(test["score"] for test in tests),
        "max_score": sum(test["max_score"] for test in tests),
        "tests": tests,
        "findings": [_as_json(finding) for finding in report.findings],
        "unwritten": list(report.unwritten),
        "hint": "" if report.passed else exercise.hints[step - 1],
        "output": report.verdict,
    }


def _test(grade: Grade, exercise: Exercise) -> dict[str, Any]:
    """A rule; those for functions that are given have no score."""
    counts = int(grade.rule.endswith(tuple(f"({name})" for name in exercise.write)))
    passed = grade.result == "passed"
    output = "\n".join(map(str, grade.findings)) or (f"skipped: {grade.skipped}" if grade.skipped else grade.asks)
    return {
        "name": grade.rule,
        "status": "passed" if passed else "failed",
        "score": counts * passed,
        "max_score": counts,
        "output": output,
    }


def _as_json(finding: Finding) -> dict[str, Any]:
    place = re.search(r"(\w+\.py):(\d+)", finding.where)
    return {
        "rule": finding.rule,
        "wrong": finding.wrong,
        "where": finding.where,
        "file": place[1] if place else None,
        "line": int(place[2]) if place else None,
        "mend": finding.mend,
    }
