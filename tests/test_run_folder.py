"""A run folder has one writer, and nothing is written elsewhere that no flag names."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.cli import main
from cnn_lightning.train.run_folder import RunFolder
from tests.processes import Run, ranks, until

FIT = ["fit", "--data.batch_size", "256", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]
RUN = Path("runs/digits/version_0")
LAST = RUN / "checkpoints/last.ckpt"


class Waits(Callback):
    """In the second epoch, until the file ``go`` is there."""

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1:
            Path("waiting").touch()
            until(Path("go").exists)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*FIT, "--trainer.max_epochs", "1"]) == 0
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- one writer


def test_a_second_writer_is_refused_until_the_first_is_gone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Run([*FIT, "--ckpt_path", "last", "--trainer.callbacks+=tests.test_run_folder.Waits"], here)
    until(Path("waiting").exists)
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    assert main([*FIT, "--ckpt_path", "last"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"cnn-lightning: error: trainer: expected a run that no other process writes to, got {RUN}, "
    )
    assert f"process {first.process.pid} on " in line
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
    first.process.kill()
    first.process.join()
    assert (RUN / ".owner").is_file(), "the killed owner could not remove it"
    leftovers = [LAST.with_name(".last.4711.tmp.ckpt"), RUN / ".metrics.csv.tmp", RUN / "pictures/.filters.1.tmp.png"]
    for path in leftovers:
        path.write_text("half")
    assert main([*FIT, "--ckpt_path", "last"]) == 0
    assert not any(path.exists() for path in leftovers)
    assert not (RUN / ".owner").exists()


def test_a_child_of_a_killed_owner_keeps_no_lock(here: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from cnn_lightning.train.run_folder import RunFolder
folder = RunFolder()
folder.take(Path(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", program, str(RUN)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        second = RunFolder()
        second.take(RUN)
        assert f"process {owner.pid} on " in second.refused
        owner.kill()
        owner.wait()
        os.kill(child, 0)
        third = RunFolder()
        third.take(RUN)
        assert third.refused == ""
        third.leave(empty=False)
    finally:
        os.kill(child, signal.SIGKILL)
        owner.kill()
        owner.stdout.close()
        owner.wait()


@pytest.mark.ddp
def test_all_processes_of_a_refused_run_end(here: Path) -> None:
    folder = RunFolder()
    folder.take(RUN)
    before = LAST.read_bytes(), (RUN / "metrics.csv").read_bytes()
    runs = ranks(2, [*FIT, "--ckpt_path", "last"], here)
    assert [run.wait(100) for run in runs] == [2, 2]
    text = "".join(run.text for run in runs)
    assert text.count("expected a run that no other process writes to") == 1
    assert (LAST.read_bytes(), (RUN / "metrics.csv").read_bytes()) == before
    folder.leave(empty=False)


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--trainer.strategy", "fsdp"]) == 2
    assert os.listdir() == []


# ---- nothing else is written


@pytest.mark.parametrize(
    "args",
    [
        [*FIT, "--trainer.logger", "false"],
        ["test", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--ckpt_path", "CKPT"],
        ["predict", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--ckpt_path", "CKPT"],
        [*FIT, "--trainer.fast_dev_run", "true"],
        [*FIT, "--trainer.barebones", "true"],
    ],
    ids=["fit", "test", "predict", "fast_dev_run", "barebones"],
)
def test_without_a_logger_nothing_is_written(args: list[str], here: Path, capsys: Any) -> None:
    shutil.move(RUN / "checkpoints/best.ckpt", here / "best.ckpt")
    shutil.rmtree("runs")
    mine = ("config.yaml", "confusion.csv", "confusion.png", "predictions.csv", "uncertain.png", "metrics.csv")
    for name in mine:
        Path(name).write_text("mine")
    args = [arg.replace("CKPT", "best.ckpt") for arg in args if "barebones" not in "".join(args) or arg != "false"]
    if "--trainer.barebones" in args:
        args.remove("--trainer.enable_progress_bar")
    assert main(args) == 0
    assert sorted(os.listdir()) == sorted([*mine, "best.ckpt"])
    assert all(Path(name).read_text() == "mine" for name in mine)
    out = capsys.readouterr().out
    assert "run: " not in out
    if args[0] == "predict":
        assert "predictions: not written" in out


# ---- what is valid in Lightning works


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"],
        ["--trainer.barebones", "true"],
        ["--trainer.callbacks+=TQDMProgressBar"],
        ["--trainer.callbacks+=RichProgressBar"],
    ],
    ids=lambda options: options[0].partition("+=")[2] or options[0],
)
def test_other_trainers_work(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--data.batch_size", "256", "--trainer.max_epochs", "1", *options]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert 0 <= float(lines["test_acc"]) <= 1
    keeps = "callbacks" in options[0]
    assert LAST.is_file() == keeps
    assert ("again" in lines) == keeps


def test_a_model_checkpoint_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.rmtree("runs")
    monkeypatch.setattr("cnn_lightning.train.trainer.Resumable", Resumable)
    options = {"monitor": "val_acc", "mode": "max", "save_last": "true", "save_top_k": "1"}
    own = ["--trainer.callbacks+=ModelCheckpoint", *(f"--trainer.callbacks.{key}={options[key]}" for key in options)]
    assert main([*FIT, *own, "--trainer.max_epochs", "1"]) == 0
    ours = sorted(os.listdir(RUN / "checkpoints"))
    assert ours == ["best.ckpt", "last.ckpt"]
    (first,) = set(os.listdir(RUN / "own_checkpoints")) - {"last.ckpt"}
    assert main([*FIT, *own, "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert sorted(os.listdir(RUN / "checkpoints")) == ours
    kept = set(os.listdir(RUN / "own_checkpoints")) - {"last.ckpt"}
    assert len(kept) == 1, "the one of the first run gave way to a better one"
    assert first not in kept
    elsewhere = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={here}/elsewhere"]
    assert main([*FIT, *elsewhere]) == 0
    assert list(Path("elsewhere").glob("*.ckpt"))
