"""Signals that stop a training, and handlers that are restored afterwards."""

import fcntl
import logging
import multiprocessing
import os
import pty
import signal
import sys
import termios
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

import cnn_lightning.data.pictures
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.signals import process_kept
from tests.processes import Run, until
from tests.stand_ins import write_pictures

FIT = ["fit", "--data.batch_size", "256", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "3"]
LAST = Path("runs/digits/version_0/checkpoints/last.ckpt")
WAITS = "--trainer.callbacks+=tests.test_signals.Waits"


class Sends(Callback):
    """A signal to this process, before a step."""

    def __init__(self, number: int, times: int = 1) -> None:
        self.number, self.times = number, times

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 6:
            for _ in range(self.times):
                signal.raise_signal(self.number)


class Waits(Callback):
    """Before a step, until the file ``go`` is there."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            Path("waiting").touch()
            until(Path("go").exists)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def state() -> dict[str, Any]:
    """What a command may change of its process."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    return {
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings": list(warnings.filters),
        "levels": {logger.name: logger.level for logger in loggers if isinstance(logger, logging.Logger)},
        "environment": dict(os.environ),
        "streams": (sys.stdout, sys.stderr),
    }


def sends(number: int, times: int = 1) -> list[str]:
    flags = ["--trainer.callbacks+=tests.test_signals.Sends"]
    return [*flags, f"--trainer.callbacks.number={int(number)}", f"--trainer.callbacks.times={times}"]


# ---- as it was


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], 0),
        (["--model.lr", "1e30"], 2),
        (["--model.lrr", "1"], 2),
        (sends(signal.SIGTERM), 128 + signal.SIGTERM),
        (sends(signal.SIGINT, 2), 130),
        (["--trainer.enable_checkpointing", "false", *sends(signal.SIGTERM)], 128 + signal.SIGTERM),
    ],
    ids=["to its end", "an error", "a mistake", "stopped", "stopped at once", "without checkpoints"],
)
def test_a_command_leaves_its_process_as_it_was(args: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    before = state()
    assert main([*FIT, "--pictures", "false", *args]) == code
    after = state()
    for name, value in before.items():
        if name == "levels":
            after[name] = {key: after[name][key] for key in value}
        assert after[name] == value, name


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_training_in_ones_own_program_leaves_the_handlers(number: int | None, tmp_path: Path) -> None:
    before = {each: signal.getsignal(each) for each in signal.valid_signals()}
    callbacks: list[Callback] = [Resumable(tmp_path / "checkpoints")]
    if number is not None:
        callbacks.append(Sends(number))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    torch.manual_seed(0)
    model = Classifier(image_size=8, channels=(4,), hidden=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if number is None:
            trainer.fit(model, Digits(batch_size=256))
        else:
            with pytest.raises(Exception, match="stopped after step 7"):
                trainer.fit(model, Digits(batch_size=256))
    assert {each: signal.getsignal(each) for each in signal.valid_signals()} == before


def test_everything_is_put_back_after_an_error() -> None:
    def change() -> None:
        with process_kept():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            warnings.simplefilter("ignore")
            logging.getLogger("lightning.pytorch").setLevel(1)
            os.environ["PATH"], os.environ["NEW"] = "", "1"
            raise KeyError

    before = state()
    with pytest.raises(KeyError):
        change()
    assert state() == before


def test_outside_the_main_thread_handlers_are_left_alone() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with process_kept():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


# ---- what stops a training


def test_a_closed_terminal_stops_as_a_system_does(tmp_path: Path) -> None:
    run = Run([*FIT, *sends(signal.SIGHUP)], tmp_path)
    assert run.wait() == 128 + signal.SIGHUP
    assert "stopped after step 7; to go on: " in run.text
    assert read_checkpoint(LAST)["global_step"] == 7


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert main([*FIT, *sends(signal.SIGHUP)]) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def own_session_and_readers() -> None:
    """Read pictures from their files, by processes of their own, as with a set too large for memory."""
    os.setsid()
    cnn_lightning.data.pictures.MEMORY = 0
    multiprocessing.set_start_method(os.environ["START"], force=True)


def terminal() -> None:
    """Have the terminal that the environment names for stdin, stdout and stderr, as the first of its session."""
    os.setsid()
    screen = os.open(os.environ["TERMINAL"], os.O_RDWR)
    fcntl.ioctl(screen, termios.TIOCSCTTY, 0)
    for target in (0, 1, 2):
        os.dup2(screen, target)
    os.close(screen)


def test_the_terminal_is_closed_for_real(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    bar = [arg for arg in FIT if arg not in ("--trainer.enable_progress_bar", "false")]
    run = Run([*bar, WAITS], tmp_path, terminal, {"TERMINAL": os.ttyname(theirs)})
    reader = threading.Thread(target=_read, args=(ours,), daemon=True)
    reader.start()
    until(Path("waiting").exists)
    os.close(theirs)
    (tmp_path / "stop").touch()
    reader.join(10)
    os.close(ours)
    Path("go").touch()
    assert run.wait() == 128 + signal.SIGHUP
    assert read_checkpoint(LAST)["global_step"] >= 2


def _read(descriptor: int) -> None:
    """Take what is written, so that the writer does not wait, until there is a file ``stop``."""
    os.set_blocking(descriptor, False)
    while not Path("stop").exists():
        try:
            os.read(descriptor, 4096)
        except BlockingIOError:
            threading.Event().wait(0.02)


@pytest.mark.parametrize(
    ("number", "start"),
    [
        (signal.SIGHUP, "fork"),
        (signal.SIGINT, "fork"),
        pytest.param(signal.SIGHUP, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_processes_that_read_data_live_until_the_step_is_done(number: int, start: str, tmp_path: Path) -> None:
    write_pictures(Path("pictures"))
    data = ["--data", "ImageFolder", "--data.root", "pictures", "--data.num_workers", "2", "--data.batch_size", "2"]
    args = ["fit", "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false", *data, WAITS]
    args += ["--trainer.accumulate_grad_batches", "4"]  # more pictures are needed after the signal
    run = Run(args, tmp_path, own_session_and_readers, {"START": start})
    until(Path("waiting").exists)
    assert run.process.pid is not None
    os.killpg(run.process.pid, number)
    Path("go").touch()
    assert run.wait() == 128 + number, run.text
    assert run.text.count("stopping after this step") == 1
    checkpoint = read_checkpoint(Path("runs/imagefolder/version_0/checkpoints/last.ckpt"))
    assert checkpoint["global_step"] in (2, 3), "the step that ends an epoch is no place to stop at"
