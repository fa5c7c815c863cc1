"""cnn-lightning learn: twelve exercises, from ReLU to a whole network, that you write in NumPy.

Without a number it lists them. With one it copies the exercise into the current folder. Nothing is loaded that takes
long, so that a grade takes less than a second; only --train loads torch.
"""

import json
import shutil
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import expect_writable, whole, written
from cnn_lightning.streams import print_line
from cnn_lightning.tools.learn import arguments, progress, showing
from cnn_lightning.tools.learn.course.exercise import Exercise
from cnn_lightning.tools.learn.grading import Report, exercise_of, grade


def main(args: list[str]) -> int:
    """List, open, grade, show or train; 1 if an exercise does not pass."""
    given = _parse(args)
    if given.exercise is None:
        print(showing.course(Path.cwd(), progress.read(Path.cwd())))
        return 0
    exercise = exercise_of(_number(given.exercise))
    if given.train:
        from cnn_lightning.tools.learn.training import train

        return train(exercise)
    if given.check:
        return _check(exercise, given)
    if given.solution:
        print(showing.solution(exercise))
    elif given.hint is not None:
        print(exercise.hints[_step(given.hint) - 1])
    else:
        _open(exercise)
    return 0


def _parse(args: list[str]) -> Namespace:
    given = arguments.parser().parse_args(args)
    chosen = [flag for flag in ("check", "solution", "train") if getattr(given, flag)]
    if len(chosen) > 1:
        raise UserError(f"learn: expected one of --{' and --'.join(chosen)}")
    if chosen and given.exercise is None:
        raise UserError(f"exercise: expected a number before --{chosen[0]}, got nothing")
    for flag in ("file", "json"):
        if getattr(given, flag) is not None and not given.check:
            raise UserError(f"--{flag}: expected --check beside it, got none")
    if given.json not in (None, "-"):
        expect_writable("--json", given.json)
    return given


def _number(text: str) -> int:
    with suppress(ValueError):
        return int(text)
    raise UserError(f"exercise: expected a number, got {text!r}")


def _step(text: str) -> int:
    if text not in map(str, range(1, showing.STEPS + 1)):
        raise UserError(f"--hint: expected a number from 1 to {showing.STEPS}, got {text!r}")
    return int(text)


def _open(exercise: Exercise) -> None:
    """Copy the file into the current folder, unless it is there."""
    path = Path.cwd() / f"{exercise.stem}.py"
    is_new = not path.exists()
    if is_new:
        try:
            with whole(path) as temporary:
                shutil.copyfile(exercise.template, temporary)
        except OSError as error:
            raise UserError(f"{path.name}: can't write it: {one_line(error)}") from None
    print(showing.opened(exercise, path, is_new))


def _check(exercise: Exercise, given: Namespace) -> int:
    step = None if given.hint is None else _step(given.hint)
    if given.file and not Path(given.file).is_file():
        raise UserError(f"--file: expected a file, got {given.file!r}")
    last = {} if given.file else progress.read(Path.cwd())
    report = grade(exercise.number, given.file)
    before = last.get(exercise.number)
    failures = 0 if report.passed or before is None else before.failures
    failures += not report.passed and not report.unwritten
    step = step or min(max(failures, 1), showing.STEPS)
    if not given.file:
        _keep(report, last, failures)
    if given.json is None:
        print(showing.graded(report, step))
    else:
        text = json.dumps(showing.as_json(report, step), indent=2)
        if given.json == "-":
            print(text)
        else:
            with written("--json", given.json) as path:
                path.write_text(text + "\n", encoding="utf-8")
    sys.stdout.flush()
    return 0 if report.passed else 1


def _keep(report: Report, last: dict[int, progress.Last], failures: int) -> None:
    """Write the grade into the file of the folder; a grade counts without it, too."""
    grades = last | {report.number: progress.Last(report.passed, report.score, failures)}
    try:
        progress.write(Path.cwd(), grades)
    except OSError as error:
        print_line(f"{progress.NAME}: not written: {one_line(error)}")
