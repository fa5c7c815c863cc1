"""Runs that survive: killed, stopped, out of disk or damaged, they go on and end as if nothing had happened."""

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

import cnn_lightning.classifier
import cnn_lightning.commands.trainer
from cnn_lightning.callbacks.metrics import MetricsFile
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import WholeFiles, newest, read_checkpoint
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.model import SimpleCNN
from tests.processes import Run, noise, until

FIT = ["fit", "--data.batch_size", "256", "--trainer.enable_progress_bar", "false", "--pictures", "false"]
"""Five steps an epoch."""
LAST, BEST, METRICS = (
    Path("runs/digits/version_0") / name for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv")
)
STEPS_BETWEEN = 2


def build(*args: Any, **options: Any) -> SimpleCNN:
    """SimpleCNN with layers that draw random numbers and keep running statistics."""
    options.pop("weights")
    net = SimpleCNN(**options)
    net.conv1 = nn.Sequential(net.conv1, nn.BatchNorm2d(net.conv1.out_channels))  # type: ignore[assignment]
    net.linear2 = nn.Sequential(nn.Dropout(0.3), net.linear2)  # type: ignore[assignment]
    return net


def prepare(every_n_steps: int = STEPS_BETWEEN) -> None:
    """Checkpoints after every second step, and that network."""
    cnn_lightning.commands.trainer.Resumable = partial(Resumable, every_n_steps=every_n_steps)  # type: ignore
    cnn_lightning.classifier.build_net = build


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnn_lightning.commands.trainer, "Resumable", partial(Resumable, every_n_steps=STEPS_BETWEEN))
    monkeypatch.setattr(cnn_lightning.classifier, "build_net", build)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- when two runs are the same


def result(folder: Path = Path()) -> dict[str, Any]:
    """All that a run leaves behind, but for what names its folder."""
    last, best = (torch.load(folder / path, weights_only=True) for path in (LAST, BEST))
    for checkpoint in (last, best):
        for state in checkpoint["callbacks"].values():
            for key in [key for key in state if "path" in key or key in ("best_k_models", "dirpath")]:
                del state[key]
    return {"last": last, "best": best, "metrics": (folder / METRICS).read_text()}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nests of values differ by as much as a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        unshared = [f"{path}: {key}" for key in a.keys() ^ b.keys()]
        return unshared + [text for key in a.keys() & b.keys() for text in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [text for i, (x, y) in enumerate(zip(a, b, strict=True)) for text in differences(x, y, f"{path}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if a == b else [f"{path}: {a!r} {b!r}"]


def test_the_comparison_sees_one_bit() -> None:
    a = {"x": [torch.zeros(3), {"y": 1.0}]}
    assert differences(a, {"x": [torch.zeros(3), {"y": 1.0}]}) == []
    assert differences(a, {"x": [torch.tensor([0.0, 1e-45, 0.0]), {"y": 1.0}]}) == [".x[0]"]
    assert differences(a, {"x": [torch.zeros(3), {"y": 1.0 + 1e-16, "z": 0}]}) == [".x[1]: z"]


# ---- killed at any moment: what is on the disk then is all there is


class Moments:
    """Copies of the run's folder, made at every moment of it where something was just done or is about to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
        self.target = target
        self.names: list[str] = []
        for cls, name in (
            (Classifier, "training_step"),
            (Classifier, "validation_step"),
            (Classifier, "test_step"),
            (WholeFiles, "save_checkpoint"),
            (MetricsFile, "write"),
        ):
            monkeypatch.setattr(cls, name, self._watched(getattr(cls, name)))
        monkeypatch.setattr(os, "replace", self._watched(os.replace))

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            self._copy(f"before {function.__name__}")
            found = function(*args, **options)
            self._copy(f"after {function.__name__}")
            return found

        return watched

    def _copy(self, name: str) -> None:
        name = f"{len(self.names):03} {name}"
        shutil.copytree("runs", self.target / name)
        self.names.append(name)


OPTIONS = {
    "plain": ["--trainer.max_epochs", "3"],
    "often validated": ["--trainer.max_epochs", "2", "--trainer.val_check_interval", "2", "--early_stopping", "3"],
    "accumulated": [
        *("--trainer.max_epochs", "3", "--trainer.accumulate_grad_batches", "2", "--model.schedule", "cosine"),
        *("--trainer.val_check_interval", "1", "--model.optimizer", "sgd", "--data.augment", "true"),
    ],
    "cut short": ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "3", "--model.schedule", "none"],
    "stopped early": ["--trainer.max_epochs", "9", "--early_stopping", "1", "--model.lr", "1e-6"],
}


def _killed_at_moments(options: list[str], here: Path, step: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch, here / "moments")
        assert main([*FIT, *options]) == 0
    expected = result()
    assert differences(expected, result()) == []
    resumed = 0
    for name in random.Random(0).sample(moments.names, len(moments.names) // step):
        shutil.rmtree("runs")
        shutil.copytree(here / "moments" / name, "runs")
        code = main([*FIT, *options, "--ckpt_path", "last"])
        error = capsys.readouterr().err
        if not LAST.is_file():
            assert code == 2, name
            assert "found no readable checkpoint" in error
            continue
        assert code == 0, (name, error)
        assert differences(expected, result()) == [], name
        assert os.listdir("runs/digits") == ["version_0"]
        assert not list(Path("runs").rglob("*.tmp"))
        resumed += 1
    assert resumed


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["often validated"]], ids=["plain", "often validated"])
def test_killed_at_some_moments(options: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _killed_at_moments(options, here, 25, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_killed_at_many_moments(options: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _killed_at_moments(options, here, 3, capsys)


# ---- killed for real


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of three epochs leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run = Run(SHORT, folder, prepare)
    assert run.wait() == 0, run.text
    assert noise(run.text) == []
    return result(folder)


SHORT = [*FIT, *OPTIONS["plain"]]


def _killed(times: int, folder: Path, expected: dict[str, Any]) -> None:
    moment = random.Random(times)
    again: list[str] = []
    for _ in range(times):
        run = Run([*SHORT, *again], folder, prepare)
        until(lambda: (folder / LAST).is_file() or run.process.exitcode is not None)
        run.process.join(moment.uniform(0, 1) * (0.5 if again else 0.2))
        run.process.kill()
        run.process.join()
        again = ["--ckpt_path", "last"]
    run = Run([*SHORT, *again], folder, prepare)
    assert run.wait() == 0, run.text
    assert noise(run.text) == []
    assert "going on: runs/digits/version_0, after step " in run.text
    assert differences(expected, result(folder)) == []


def test_killed_three_times(here: Path, whole: dict[str, Any]) -> None:
    _killed(3, here, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times(here: Path, whole: dict[str, Any]) -> None:
    for times in (1, 2, 2, 3, 4, 8):
        shutil.rmtree("runs", ignore_errors=True)
        _killed(times, here, whole)


class Asked(Callback):
    """The system's wish that the run stops, before a batch of training or of validation."""

    def __init__(self, number: int, step: int, validating: bool, times: int = 1) -> None:
        self.number, self.step, self.validating, self.times = number, step, validating, times

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._ask(trainer, False)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._ask(trainer, True)

    def _ask(self, trainer: Trainer, validating: bool) -> None:
        if validating == self.validating and trainer.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(self.number)


def _with(callback: str, **options: Any) -> list[str]:
    flags = [f"--trainer.callbacks+=tests.test_resume.{callback}"]
    return [*flags, *(f"--trainer.callbacks.{key}={value}" for key, value in options.items())]


@pytest.mark.parametrize(
    ("number", "step", "validating", "after"),
    [(signal.SIGTERM, 6, False, 7), (signal.SIGINT, 10, True, 11), (signal.SIGINT, 14, False, 15)],
    ids=["SIGTERM in an epoch", "Ctrl-C in a validation", "Ctrl-C before the last step"],
)
def test_asked_to_stop(
    number: signal.Signals, step: int, validating: bool, after: int, here: Path, whole: Any, capsys: Any
) -> None:
    wish = _with("Asked", number=int(number), step=step, validating=str(validating).lower())
    assert main([*SHORT, *wish]) == 128 + number
    last = capsys.readouterr().err.strip().splitlines()[-1]
    again = "cnn-lightning fit --config runs/digits/version_0/config.yaml --ckpt_path last"
    assert last == f"cnn-lightning: stopped after step {after}; to go on: {again}"
    assert read_checkpoint(LAST)["global_step"] == after
    assert main([*SHORT, "--ckpt_path", "last"]) == 0
    assert differences(whole, result()) == []


def test_ctrl_c_twice_stops_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, *_with("Asked", number=int(signal.SIGINT), step=6, validating="false", times=2)]) == 130
    assert read_checkpoint(LAST)["global_step"] == 6
    assert "Traceback" not in capsys.readouterr().err
