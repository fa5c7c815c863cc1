"""The exercises: right solutions pass, mistakes are named, and what was written trains the digits."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.tools.learn import faces, grade, progress, training
from cnn_lightning.tools.learn.course import EXERCISES
from cnn_lightning.tools.learn.course.exercise import Exercise, Suspect, Task, Training
from cnn_lightning.tools.learn.function import Graded
from cnn_lightning.tools.learn.loading import module_of
from tests.mistakes import write
from tests.mistakes.mistakes import MISTAKES, Mistake
from tests.mistakes.solutions import SOLUTIONS

EVERY = tuple(EXERCISES)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    faces.learned.cache_clear()
    yield
    faces.learned.cache_clear()


def solve(*numbers: int) -> None:
    """Write right solutions into the current folder."""
    for number in numbers:
        write(Path(), number, SOLUTIONS[number])


def mistaken(mistake: Mistake, folder: Path) -> Path:
    """The file of a student who made a mistake."""
    return write(folder, mistake.number, f"{dedent(SOLUTIONS[mistake.number])}\n\n{dedent(mistake.code)}")


# ---- the exercises


def test_there_are_twelve_exercises_in_files_that_fit_a_terminal() -> None:
    assert tuple(range(1, 13)) == EVERY
    for exercise in EXERCISES.values():
        lines = exercise.template.read_text().splitlines()
        assert max(map(len, lines)) <= 80, exercise.stem
        assert lines[0].startswith(f'"""Exercise {exercise.number}: ')
        assert len(set(exercise.hints)) == 3


@pytest.mark.parametrize("number", EVERY)
def test_an_exercise_that_is_only_opened_is_not_written(number: int) -> None:
    exercise = EXERCISES[number]
    report = grade(number, exercise.template)
    assert not report.passed
    assert report.unwritten == exercise.write
    assert report.score == 0
    assert all(
        "is not written yet" in finding.wrong for finding in report.findings if finding.rule != "earlier exercises"
    )


@pytest.mark.parametrize("number", EVERY)
def test_a_right_solution_gets_no_finding(number: int) -> None:
    solve(number, *EXERCISES[number].uses)
    report = grade(number)
    assert report.passed, report
    assert report.score == 1
    assert all(grade.result == "passed" for grade in report.grades)


# ---- mistakes


def is_named(mistake: Mistake, folder: Path) -> bool:
    first = grade(mistake.number, mistaken(mistake, folder)).findings[:1]
    return any(found.rule == mistake.rule and all(word in found.wrong for word in mistake.words) for found in first)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.number} {mistake.name}")
def test_a_mistake_of_students_is_named_with_its_place(mistake: Mistake, tmp_path: Path) -> None:
    path = mistaken(mistake, tmp_path)
    report = grade(mistake.number, path)
    assert is_named(mistake, tmp_path), report
    assert f"({path.name}:" in report.findings[0].where
    assert report.findings[0].mend
    assert report.score < 1


def test_at_least_27_of_30_mistakes_are_named_in_every_choice_of_30(tmp_path: Path) -> None:
    named = [is_named(mistake, tmp_path) for mistake in MISTAKES]
    print(f"{sum(named)} of {len(named)} mistakes are named")
    assert len(named) >= 30
    assert {mistake.number for mistake in MISTAKES} == set(EVERY)
    assert len(named) - sum(named) <= 3


SUSPECTS = [
    (exercise, task, index)
    for exercise in EXERCISES.values()
    for task in exercise.tasks
    if task.call is None
    for index in range(len(task.suspects))
]


@pytest.mark.parametrize(
    ("exercise", "task", "index"), SUSPECTS, ids=[f"{e.number} {t.name} {i}" for e, t, i in SUSPECTS]
)
def test_every_suspect_is_the_one_named_if_it_is_the_mistake(exercise: Exercise, task: Task, index: int) -> None:
    suspect = task.suspects[index]
    module = ModuleType(exercise.stem)
    for each in exercise.tasks:
        setattr(module, each.name, each.formula)
    setattr(module, task.name, mistaken_function(task, suspect))
    with np.errstate(all="ignore"):
        grades = Graded(task, module, Path("mine.py")).grades()
    found = [finding.wrong for grade in grades for finding in grade.findings]
    assert found[0] == f"{task.gives[suspect.result]} {suspect.words}"


def mistaken_function(task: Task, suspect: Suspect) -> Any:
    """The formula with the mistake in one of its results."""

    def function(*arguments: Any, **options: Any) -> Any:
        wrong = suspect.wrong(*arguments, **options)
        right = task.formula(*arguments, **options)
        if len(task.gives) == 1:
            return np.asarray(wrong).astype(right.dtype)
        return tuple(wrong if place == suspect.result else value for place, value in enumerate(right))

    return function


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("return 0.999 * grad_y * (x > 0)", "is 0.999 times the right one"),
        ("return -grad_y * (x > 0)", "has the wrong sign"),
        ("return np.zeros_like(x)", "is missing (None or zeros)"),
        ("return None", "the function gives None"),
        ("return relu(x)", "does not change with grad_y"),
        ("return (grad_y * (x > 0))[:2]", "has the shape (2, 3, 5, 5), expected (4, 3, 5, 5)"),
        ("return grad_y * (x > 0) / (x > 5)", "is NaN or infinite"),
        (
            "return grad_y * (x > 0) * (np.arange(len(x)) < 1)[:, None, None, None]",
            "right at index 0 of its first axis",
        ),
        ("return grad_y * (x > 0) + 1", "is 1 too large everywhere"),
        ("return grad_y * (x > 0.5)", "is 0 at"),
        ("return grad_y * (x > -0.5)", "is not 0 at"),
        ("return grad_y * np.tanh(x)", "differs from numerical differences"),
        ("g = grad_y * (x > 0)\n    g[:, :, 0] *= 2\n    return g", "wrong at the border of the image alone"),
    ],
)
def test_what_no_student_was_known_to_write_is_described(code: str, words: str) -> None:
    report = grade(1, write(Path(), 1, f"def relu_backward(grad_y, x):\n    {code}"))
    assert words in report.findings[0].wrong


def test_an_error_of_a_hundred_thousandth_is_found() -> None:
    """The backward without eps: central differences would hardly see it."""
    code = dedent(SOLUTIONS[10]) + "\n\nright = batch_norm_backward\n"
    late = "def batch_norm_backward(*arguments, eps=1e-5):\n    return right(*arguments, eps=1.01e-5)"
    report = grade(10, write(Path(), 10, f"{code}\n\n{late}"))
    assert report.failed == ("gradient (batch_norm_backward)",)


def test_an_error_not_implemented_elsewhere_is_none_of_an_unwritten_function() -> None:
    solve(11)
    code = (
        dedent(SOLUTIONS[11])
        + "\n\ndef sgd_step(weights, gradients, lr):\n    return relu(weights['linear2.bias'] > 0)"
    )
    found = grade(11, write(Path(), 11, code)).findings[0]
    assert found.wrong.startswith("raised NotImplementedError")


def test_results_in_another_order_are_named() -> None:
    code = "def linear_backward(grad_y, x, weight):\n    return grad_y.T @ x, grad_y @ weight, grad_y.sum(axis=0)"
    found = grade(3, write(Path(), 3, code)).findings
    assert (
        found[0].wrong == "the gradient of input 'x' and the gradient of parameter 'weight' are in each other's place"
    )


def test_a_gradient_is_judged_by_the_forward_that_is_there() -> None:
    """A learner who changed the forward on purpose has the right gradient of it; the forward is said to differ."""
    changed = """
        def linear(x, weight, bias):
            return 2 * (x @ weight.T) + bias

        def linear_backward(grad_y, x, weight):
            return 2 * grad_y @ weight, 2 * grad_y.T @ x, grad_y.sum(axis=0)
    """
    report = grade(3, write(Path(), 3, changed))
    assert report.failed == ("values (linear)",)
    neither = changed.replace("2 * grad_y @ weight", "3 * grad_y @ weight")
    assert grade(3, write(Path(), 3, neither)).failed == ("values (linear)", "gradient (linear_backward)")


@pytest.mark.parametrize(
    ("code", "wrong", "where"),
    [
        ("def relu_backward(grad_y, x:", "raised SyntaxError", "ex01_relu.py:"),
        ("raise SystemExit('no')", "raised SystemExit: no", "(ex01_relu.py:"),
        ("del relu_backward", "raised AttributeError", "ex01_relu.py"),
        (
            "def relu_backward(grad_y, x):\n    return grad_y @ nothing",
            "raised NameError",
            "relu_backward (ex01_relu.py:",
        ),
        ("def relu_backward(x):\n    return x", "raised TypeError", "ex01_relu.py"),
    ],
)
def test_a_file_that_does_not_run_is_a_finding(code: str, wrong: str, where: str) -> None:
    found = grade(1, write(Path(), 1, code)).findings[0]
    assert found.wrong.startswith(wrong)
    assert where in found.where


def test_a_call_of_exit_fails_the_function_that_calls_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path(), 1, "def relu_backward(grad_y, x):\n    raise SystemExit(0)")
    report = grade(1)
    assert report.failed[0] == "gradient (relu_backward)"
    assert not any(rule.endswith("(relu)") for rule in report.failed)
    assert report.findings[0].wrong == "raised SystemExit: 0"
    assert run("1", "--check") == 1
    assert run("1", "--train") == 2
    error = capsys.readouterr().err
    assert "got a call of exit(0) in " in error
    assert "ex01_relu.py, line " in error


@pytest.mark.parametrize("number", [1, 11])
def test_a_file_that_exits_does_not_train(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path(), number, "raise SystemExit(0)")
    assert run(str(number), "--train") == 2
    assert "exit" in capsys.readouterr().err.lower()


def test_an_error_with_some_shapes_alone_is_a_finding() -> None:
    code = SOLUTIONS[3] + "\n        right = linear_backward\n"
    late = "def linear_backward(grad_y, x, weight):\n    assert len(x) == 4\n    return right(grad_y, x, weight)"
    found = grade(3, write(Path(), 3, f"{dedent(code)}\n\n{late}")).findings
    assert [each.wrong for each in found] == ["raised AssertionError: AssertionError"]


def test_an_edit_within_the_same_second_is_read() -> None:
    assert not grade(1, write(Path(), 1, "def relu_backward(grad_y, x):\n    return grad_y * (x < 0)")).passed
    assert grade(1, write(Path(), 1, "def relu_backward(grad_y, x):\n    return grad_y * (x > 0)")).passed


# ---- the whole network


def test_the_network_is_graded_without_earlier_files() -> None:
    solve(11)
    assert grade(11).passed


def test_the_network_runs_the_learners_own_earlier_files() -> None:
    solve(11, *EXERCISES[11].uses)
    write(Path(), 5, next(m.code for m in MISTAKES if m.name == "to the whole window"))
    report = grade(11)
    assert report.findings[0].wrong == "not passed yet: ex05_max_pool2d.py"
    assert [finding.rule for finding in report.findings] == ["earlier exercises", "values"]
    assert "parameter 'conv2.weight'" in report.findings[1].wrong


def test_an_earlier_file_that_does_not_run_is_named_with_its_line() -> None:
    solve(11)
    write(Path(), 5, "def (")
    found = next(finding for finding in grade(11).findings if finding.rule == "file")
    assert found.where.startswith("ex05_max_pool2d.py:")


def test_an_earlier_file_that_is_not_written_is_named() -> None:
    solve(11, 1, 3, 4, 8)
    (Path() / "ex05_max_pool2d.py").write_text(EXERCISES[5].template.read_text())
    found = grade(11).findings[1]
    assert found.wrong == "max_pool2d_backward is not written yet"
    assert "(ex05_max_pool2d.py:" in found.where


# ---- the command


def run(*args: str) -> int:
    return main(["learn", *args])


def out(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()), default=0) <= 80
    return text


def test_the_list_shows_how_far_the_learner_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "0 of 12 passed. Next: cnn-lightning learn 1" in out(capsys)
    solve(1, 2)
    assert run("1", "--check") == 0
    assert run("3") == 0
    write(Path(), 2, next(m.code for m in MISTAKES if m.number == 2))
    assert run("2", "--check") == 1
    capsys.readouterr()
    run()
    rows = out(capsys).splitlines()
    assert rows[0].endswith("passed")
    assert rows[1].endswith("of rules")
    assert rows[2].endswith("open")
    assert rows[3].endswith("-")
    assert rows[-1] == "1 of 12 passed. Next: cnn-lightning learn 2 --check"


def test_an_exercise_is_opened_once_and_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("5") == 0
    path = Path("ex05_max_pool2d.py")
    assert path.read_text() == EXERCISES[5].template.read_text()
    path.write_text("# my work")
    capsys.readouterr()
    assert run("5") == 0
    assert "is here already, and stays as it is" in out(capsys)
    assert path.read_text() == "# my work"


def test_hints_come_in_steps(capsys: pytest.CaptureFixture[str]) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.number == 7)
    mistaken(mistake, Path())
    texts = []
    for _ in range(4):
        assert run("7", "--check") == 1
        texts.append(out(capsys))
    assert ["hint 1 of 3" in texts[0], "hint 2 of 3" in texts[1], "hint 3 of 3" in texts[2]] == [True] * 3
    assert texts[3] == texts[2]
    assert "mend:" not in texts[0]
    assert "mend:" in texts[1]
    solve(7)
    assert run("7", "--check") == 0
    mistaken(mistake, Path())
    capsys.readouterr()
    run("7", "--check")
    assert "hint 1 of 3" in out(capsys)
    run("7", "--check", "--hint", "3")
    assert "hint 3 of 3" in out(capsys)
    assert run("7", "--hint", "2") == 0
    assert capsys.readouterr().out.strip() == EXERCISES[7].hints[1]


def test_a_file_that_is_not_written_costs_no_hint(capsys: pytest.CaptureFixture[str]) -> None:
    run("7")
    for _ in range(3):
        run("7", "--check")
    assert progress.read(Path())[7].failures == 0
    assert "hint" not in out(capsys)


@pytest.mark.parametrize("number", EVERY)
def test_the_solution_is_the_source_of_the_formulas(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(number), "--solution") == 0
    text = capsys.readouterr().out
    compile(text, "solution", "exec")
    assert text.count("\ndef ") >= len(EXERCISES[number].write)


def test_a_result_for_autograders_is_json_whatever_the_learner_prints(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path(), 1, "print('hello')\n\n\ndef relu_backward(grad_y, x):\n    print(x)\n    return grad_y * (x >= 0)")
    assert run("1", "--check", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["exercise"], found["passed"], found["score"], found["max_score"]) == (1, False, 3, 4)
    assert found["findings"][0]["rule"] == "ties"
    line = Path("ex01_relu.py").read_text().splitlines().index("def relu_backward(grad_y, x):", 25) + 1
    assert (found["findings"][0]["file"], found["findings"][0]["line"]) == ("ex01_relu.py", line)
    assert {test["status"] for test in found["tests"]} == {"passed", "failed"}
    assert run("1", "--check", "--json", "grade.json") == 1
    assert json.loads(Path("grade.json").read_text())["score"] == 3


def test_a_file_from_elsewhere_leaves_the_progress_alone(tmp_path: Path) -> None:
    (tmp_path / "alice").mkdir()
    path = write(tmp_path / "alice", 1, SOLUTIONS[1])
    assert run("1", "--check", "--file", str(path), "--json", "grade.json") == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["alice", "grade.json"]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["13"], "exercise: expected a number from 1 to 12, got 13"),
        (["five"], "exercise: expected a number, got 'five'"),
        (["--check"], "exercise: expected a number before --check, got nothing"),
        (["5", "--check"], "exercise 5: expected the file ex05_max_pool2d.py; cnn-lightning learn 5 makes it"),
        (["5", "--chek"], "learn: unrecognized arguments: --chek; did you mean --check?"),
        (["5", "--check", "--hint", "9"], "--hint: expected a number from 1 to 3, got '9'"),
        (["5", "--check", "--train"], "learn: expected one of --check and --train"),
        (["5", "--check", "--file", "no.py"], "--file: expected a file, got 'no.py'"),
        (["5", "--json"], "--json: expected --check beside it, got none"),
        (
            ["5", "--check", "--json", "no/such.json"],
            "--json: expected a file in a folder that exists, got 'no/such.json'",
        ),
        (["5", "--train"], "exercise 5: expected the file ex05_max_pool2d.py; cnn-lightning learn 5 makes it"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == 2
    assert capsys.readouterr().err == f"cnn-lightning: error: {line}\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"exercises": {"1": {}}}', '{"exercises": {"a": 1}}'])
def test_a_damaged_file_of_progress_is_said_and_kept(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(progress.NAME).write_text(text)
    assert run() == 2
    assert capsys.readouterr().err.startswith(
        f"cnn-lightning: error: {progress.NAME}: expected the grades of exercises"
    )
    assert Path(progress.NAME).read_text() == text


def test_a_grade_loads_no_torch() -> None:
    solve(7)
    learn = "from cnn_lightning.cli import main; main(['learn', '7', '--check'])"
    code = f"import sys; {learn}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_the_grade_is_a_test_of_pytest(tmp_path: Path) -> None:
    solve(5)
    text = """
        from cnn_lightning.tools.learn import grade


        def test_max_pooling():
            report = grade(5)
            assert report.passed, report
    """
    (tmp_path / "test_mine.py").write_text(dedent(text))
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", "/dev/null", "test_mine.py"]
    assert subprocess.run([sys.executable, "-m", "pytest", *options], check=False).returncode == 0


# ---- training


FACES = [
    (1, faces.ReLU, nn.ReLU(), (2, 3, 4, 4)),
    (3, faces.Linear, nn.Linear(3, 4), (5, 3)),
    (5, faces.MaxPool2d, nn.MaxPool2d(2), (2, 3, 4, 4)),
    (6, faces.Conv2dForward, nn.Conv2d(2, 3, 3, padding=1), (2, 2, 5, 5)),
    (7, faces.Conv2dBackward, nn.Conv2d(2, 3, 3, padding=1), (2, 2, 5, 5)),
    (8, faces.Conv2d, nn.Conv2d(2, 3, 3, padding=1, stride=2), (2, 2, 5, 5)),
    (10, faces.BatchNorm2d, nn.BatchNorm2d(3), (4, 3, 2, 2)),
    (12, faces.Conv2dBlocks, nn.Conv2d(2, 3, 3, padding=1), (35, 2, 5, 5)),
]


@pytest.mark.parametrize(("number", "face", "native", "shape"), FACES, ids=[face.__name__ for _, face, _, _ in FACES])
def test_a_face_gives_what_torchs_layer_gives(
    number: int, face: type[nn.Module], native: nn.Module, shape: tuple[int, ...]
) -> None:
    solve(number)
    native = deepcopy(native).double()
    mine = object.__new__(face)
    mine.__dict__ = dict(native.__dict__, _buffers={name: value.clone() for name, value in native.named_buffers()})
    results = []
    for module in (mine, native):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        y = module.train()(x)
        leaves = [x, *native.parameters()]
        results.append([y, *torch.autograd.grad((y * y.detach().cos()).sum(), leaves), module.eval()(x.detach())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


CHECKED = [exercise for exercise in EXERCISES.values() if exercise.training and exercise.training.check]


@pytest.mark.parametrize("exercise", CHECKED, ids=lambda exercise: exercise.stem)
def test_a_right_solution_passes_check_with_all_its_rules(
    exercise: Exercise, capsys: pytest.CaptureFixture[str]
) -> None:
    solve(exercise.number)
    run(str(exercise.number), "--check")
    command = out(capsys).partition("check: ")[2].partition("next: ")[0]
    assert main(shlex.split(command.replace("\\\n", ""))[1:]) == 0, capsys.readouterr().out


def test_a_loss_is_no_layer_that_check_takes(capsys: pytest.CaptureFixture[str]) -> None:
    solve(4)
    assert run("4", "--check") == 0
    assert "check:" not in out(capsys)


def test_faces_in_the_place_of_another_layer_give_what_torchs_layer_gives() -> None:
    solve(2, 4, 9)
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    torch.testing.assert_close(faces.Sigmoid()(x), x.sigmoid())
    torch.testing.assert_close(faces.AvgPool2d(2)(x), nn.AvgPool2d(2)(x))
    dropped = faces.Dropout()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x.flatten(1)[kept] / (1 - faces.DROPPED))
    torch.testing.assert_close(faces.Dropout().eval()(x), x.flatten(1))
    scores, labels = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 4, 2])
    losses = [loss(scores, labels) for loss in (faces.CrossEntropyLoss(), nn.CrossEntropyLoss())]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in losses))


def test_a_face_refuses_options_that_the_exercise_does_not_have() -> None:
    solve(5, 8)
    with pytest.raises(ValueError, match="padding: expected 0, as in the exercise, got 1"):
        faces.MaxPool2d(3, padding=1)(torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="stride: expected one number for rows and columns"):
        faces.Conv2d(1, 1, 3, stride=(1, 2))(torch.ones(1, 1, 4, 4))


def test_a_face_without_its_file_is_one_line() -> None:
    with pytest.raises(UserError, match=r"expected the file ex05_max_pool2d\.py in the current folder"):
        faces.MaxPool2d(2)(torch.ones(1, 1, 4, 4))
    write(Path(), 1, "nothing")
    with pytest.raises(UserError, match=r"ex01_relu\.py: raised NameError"):
        faces.learned(1)


def test_what_is_not_written_does_not_train(capsys: pytest.CaptureFixture[str]) -> None:
    run("1")
    assert run("1", "--train") == 2
    assert "exercise 1: not written yet: relu_backward" in capsys.readouterr().err


def test_every_exercise_has_a_training() -> None:
    for exercise in EXERCISES.values():
        if exercise.training is None:
            assert exercise.number == 11
            continue
        assert set(exercise.training.layers.values()) <= set(vars(faces))
        assert training.command(exercise)[0] == "fit"


def test_what_was_written_trains_the_digits_under_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    solve(1)
    short = Training({"relu*": "ReLU"}, ("--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false"))
    monkeypatch.setitem(EXERCISES, 1, replace(EXERCISES[1], training=short))
    assert run("1", "--train") == 0
    assert accuracy(capsys) > 0.9


def accuracy(capsys: pytest.CaptureFixture[str]) -> float:
    return float(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test_acc: "))[10:])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", EVERY)
def test_what_was_written_trains_the_digits_to_97_percent(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    solve(number, *EXERCISES[number].uses)
    assert run(str(number), "--train") == 0
    assert accuracy(capsys) >= 0.97


def test_a_module_is_run_from_its_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text("x = 1")
    assert module_of(path).x == 1
    assert not (tmp_path / "__pycache__").exists()
