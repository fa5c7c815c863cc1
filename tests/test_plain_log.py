"""Lines of a training in a log: one an epoch, at once, of all processes, and no control codes."""

import csv
import os
import re
import selectors
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich.console import Console

from cnn_lightning.callbacks import plain_log
from cnn_lightning.callbacks.plain_log import PlainLog
from cnn_lightning.callbacks.progress import Progress
from cnn_lightning.cli import main
from cnn_lightning.train import trainer as parts
from tests.processes import Run, noise, ranks, until

FIT = ["fit", "--pictures", "false", "--data.batch_size", "256", "--trainer.max_epochs"]
TRAINED = 1258
"""Pictures of the digits' training split."""
LINE = re.compile(
    r"epoch (?P<epoch>\d+)/(?P<last>\d+)  train_loss (?P<train_loss>\d\.\d{4})  train_acc (?P<train_acc>\d\.\d{4})"
    r"(?:  val_loss (?P<val_loss>\d\.\d{4})  val_acc (?P<val_acc>\d\.\d{4}))?"
    r"  lr (?P<lr>\d\.\d\de-\d\d)  (?P<speed>[\d,]+) pictures/s  \d+:\d\d:\d\d left"
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes exactly one second, so that the pictures in a second are the pictures."""
    take_a_second(monkeypatch.setattr)


def take_a_second(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    replace(PlainLog, "_pause", lambda self, trainer: setattr(self, "_seconds", 1.0))


def epochs(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("epoch ")]


def fields(line: str) -> dict[str, Any]:
    found = LINE.fullmatch(line)
    assert found is not None, line
    return found.groupdict()


# ---- at once


GATE = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class Gate(Callback):
    def on_train_epoch_start(self, trainer, module):
        while trainer.current_epoch == 1 and not Path("go").exists():
            time.sleep(0.01)
"""


def into_a_pipe() -> None:
    """Buffered, as Python does it for a pipe unless PYTHONUNBUFFERED is set."""
    sys.stdout = os.fdopen(os.open("pipe", os.O_WRONLY), "w")
    sys.path.append("")


def read(descriptor: int, words: str, seconds: float) -> str:
    """What arrives in a pipe until it has the words, or until the time is over or the pipe is closed."""
    text, end = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while words.encode() not in text and selector.select(max(0.0, end - time.monotonic())):
            more = os.read(descriptor, 65536)
            if not more:
                break
            text += more
    return text.decode()


def test_a_line_is_in_the_pipe_while_the_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text(GATE)
    os.mkfifo("pipe")
    run = Run([*FIT, "2", "--trainer.callbacks+=gate.Gate"], tmp_path, into_a_pipe)
    descriptor = os.open("pipe", os.O_RDONLY)
    try:
        text = read(descriptor, "pictures/s", 20)
        assert epochs(text)[0].startswith("epoch 1/2  train_loss "), text
        assert run.process.is_alive()
        Path("go").touch()
        text += read(descriptor, "see: ", 20)
    finally:
        Path("go").touch()
        os.close(descriptor)
    assert run.wait() == 0
    assert [fields(line)["epoch"] for line in epochs(text)] == ["1", "2"]
    assert "\x1b" not in text + run.text
    assert "\r" not in text
    assert noise(run.text) == []


# ---- what a line says


def test_a_line_has_the_numbers_of_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "2"]) == 0
    lines = [fields(line) for line in epochs(capsys.readouterr().out)]
    assert [(line["epoch"], line["last"]) for line in lines] == [("1", "2"), ("2", "2")]
    found: dict[tuple[str, str], str] = {}
    with Path("runs/digits/version_0/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found |= {(row["epoch"], name): value for name, value in row.items() if value}
    for number, line in enumerate(lines):
        for name in ("train_loss", "train_acc", "val_loss", "val_acc"):
            assert float(line[name]) == pytest.approx(float(found[str(number), name]), abs=5.1e-5)


@pytest.mark.usefixtures("a_second")
def test_without_validation_or_with_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "1", "--trainer.limit_val_batches", "0"]) == 0
    (line,) = map(fields, epochs(capsys.readouterr().out))
    assert line["val_loss"] is None
    assert line["speed"] == f"{TRAINED:,}"
    assert main([*FIT, "3", "--trainer.check_val_every_n_epoch", "2"]) == 0
    lines = [fields(line) for line in epochs(capsys.readouterr().out)]
    assert [line["val_acc"] is not None for line in lines] == [False, True, False]


@pytest.mark.usefixtures("a_second")
def test_a_stop_inside_an_epoch_and_the_run_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "2", "--trainer.max_steps", "7"]) == 0
    first, stopped = epochs(capsys.readouterr().out)
    assert fields(first)["speed"] == f"{TRAINED:,}"
    assert stopped == "epoch 2/2  stopped  batch 2 of 5  step 7  512 pictures/s"
    assert main([*FIT, "2", "--ckpt_path", "last"]) == 0
    (rest,) = epochs(capsys.readouterr().out)
    assert fields(rest)["epoch"] == "2"
    assert fields(rest)["speed"] == f"{TRAINED - 512}"  # those before the stop are skipped
    assert main([*FIT, "2"]) == 0
    _, whole = epochs(capsys.readouterr().out)
    assert fields(whole) | {"speed": ""} == fields(rest) | {"speed": ""}


def test_the_clock_of_a_run_that_goes_on_inside_an_epoch_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "1", "--trainer.max_steps", "2"]) == 0
    assert main([*FIT, "1", "--ckpt_path", "last"]) == 0
    assert int(fields(epochs(capsys.readouterr().out)[-1])["speed"].replace(",", "")) > 0


def test_a_long_epoch_has_lines_inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(plain_log, "SECONDS", -1.0)
    assert main([*FIT, "1"]) == 0
    lines = epochs(capsys.readouterr().out)
    assert len(lines) == 6
    assert re.fullmatch(r"epoch 1/1  batch 2 of 5  step 2  0:00:\d\d left", lines[1])


def test_the_time_that_is_left() -> None:
    log = PlainLog()
    log._begin, log._first_step = time.monotonic() - 10, 100
    trainer: Any = SimpleNamespace(estimated_stepping_batches=300, global_step=200, callbacks=[])
    assert log._left(trainer) in (["0:00:10 left"], ["0:00:11 left"])
    trainer.callbacks = [parts_timer(3.0)]
    assert log._left(trainer) == ["0:00:03 left"]
    trainer.callbacks, trainer.estimated_stepping_batches = [], float("inf")
    assert log._left(trainer) == []
    trainer.estimated_stepping_batches = -1  # of a loader without a length
    assert log._left(trainer) == []


def parts_timer(seconds: float) -> Callback:
    timer = Timer(duration={"seconds": 60})
    timer.time_remaining = lambda *_: seconds  # type: ignore[method-assign]
    return timer


def test_a_gpu_is_waited_for_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    log, module = PlainLog(), SimpleNamespace()
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0), broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(strategy=strategy, global_step=0, is_global_zero=True)
    log.setup(trainer, module, "fit")  # type: ignore[arg-type]
    log.on_train_start(trainer, module)  # type: ignore[arg-type]
    for index in range(5):
        log.on_train_batch_end(trainer, module, None, (None, [0] * 3), index)  # type: ignore[arg-type]
    assert waits == []
    log.on_validation_start(trainer, module)  # type: ignore[arg-type]
    log._pause(trainer)
    assert len(waits) == 1
    assert log._pictures == 15


# ---- when there are lines


def test_a_quiet_run_and_a_bar_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "1", "--trainer.enable_progress_bar", "false"]) == 0
    text = capsys.readouterr().out
    assert epochs(text) == []
    assert "layers: 11 numpy" in text
    assert "test_acc: " in text
    own = parts.assemble("fit", {"trainer": {"callbacks": ProgressBar(), "logger": False}}, "", None)  # type: ignore[arg-type]
    assert not any(isinstance(each, ProgressBar) for each in own.callbacks)


@pytest.mark.parametrize(
    ("terminal", "variables", "first", "kind"),
    [
        (True, {"TERM": "xterm"}, True, Progress),
        (True, {"TERM": "dumb"}, True, PlainLog),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, True, PlainLog),
        (True, {"TERM": "xterm"}, False, PlainLog),
    ],
)
def test_a_bar_is_for_terminals(
    terminal: bool, variables: dict[str, str], first: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(parts, "is_first", lambda: first)
    found = parts.assemble("fit", {"trainer": {"logger": False}}, "", None)  # type: ignore[arg-type]
    assert [type(each) for each in found.callbacks if isinstance(each, ProgressBar)] == [kind]


def test_a_notebook_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr(parts, "Console", lambda: SimpleNamespace(is_jupyter=True, is_dumb_terminal=False))
    assert parts._moves_its_cursor()


def test_lightnings_finders_switch_the_lines_off(capsys: pytest.CaptureFixture[str]) -> None:
    log = PlainLog()
    log._prints = True
    trainer: Any = SimpleNamespace(is_global_zero=True, max_epochs=-1, current_epoch=4)
    log.disable()
    log._print(trainer, ["no"])
    log.enable()
    log._print(trainer, ["yes"])
    assert capsys.readouterr().out == "epoch 5  yes\n"


def test_the_other_commands_write_no_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "1"]) == 0
    for command in ("validate", "test", "predict"):
        capsys.readouterr()
        assert main([command, "--ckpt_path", "last"]) == 0
        text = capsys.readouterr().out
        assert text
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
        assert "━━━━━━━━━━━━━━━━ " not in text  # a bar


# ---- several processes


def as_terminal(rank: str) -> None:
    """In one process standard output is a terminal; and a second has the pictures of an epoch."""
    take_a_second()
    if os.environ["LOCAL_RANK"] == rank:
        sys.stdout.isatty = lambda: True  # type: ignore[method-assign]
        os.environ["TERM"] = "xterm"


def second_is_terminal() -> None:
    as_terminal("1")


def first_is_terminal() -> None:
    as_terminal("0")


@pytest.mark.ddp
def test_the_first_of_several_processes_prints_the_pictures_of_all(tmp_path: Path) -> None:
    both = ranks(2, [*FIT, "2"], tmp_path, second_is_terminal)
    assert [run.wait() for run in both] == [0, 0]
    lines = [fields(line) for line in epochs(both[0].text)]
    assert [line["speed"] for line in lines] == [f"{TRAINED:,}"] * 2
    assert epochs(both[1].text) == []
    assert both[0].text.count("layers: ") == 1
    assert "layers: " not in both[1].text


@pytest.mark.ddp
def test_a_bar_in_the_first_process_does_not_wait_for_the_others(tmp_path: Path) -> None:
    both = ranks(2, [*FIT, "1"], tmp_path, first_is_terminal)
    until(lambda: not any(run.process.is_alive() for run in both), 60)
    assert [run.wait() for run in both] == [0, 0]
    assert [line for run in both for line in run.text.splitlines() if LINE.search(line)] == []
