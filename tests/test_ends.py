"""Every end of a run can be gone on from: the run that goes on equals, bit by bit, the one that was never stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

import cnn_lightning.classifier
import cnn_lightning.commands.trainer
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.cli import main
from tests.stand_ins import write_pictures
from tests.test_resume import build, differences

SMALL = [
    *("fit", "--trainer.enable_progress_bar", "false", "--pictures", "false", "--trainer.limit_val_batches", "1"),
    *("--model.layers", "torch", "--model.channels", "[2,2]", "--model.hidden", "8"),
    *("--trainer.limit_test_batches", "1"),
]
DIGITS = ["--data", "Digits", "--data.batch_size", "256"]
"""Five batches an epoch."""


class Often(Resumable):
    """Checkpoints after every second step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, every_n_steps=2)


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those checkpoints, and a network with batch normalisation and dropout."""
    monkeypatch.setattr(cnn_lightning.commands.trainer, "Resumable", Often)
    monkeypatch.setattr(cnn_lightning.classifier, "build_net", build)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


NOT_COMPARED = ("best_k_models", "dirpath", "current_score", "patience")


def left(folder: Path = Path()) -> dict[str, Any]:
    """All that a run leaves behind, but for its folder, the clock, the patience given and a score never put back."""
    (run,) = folder.glob("runs/*/*")
    found: dict[str, Any] = {"metrics": (run / "metrics.csv").read_text()}
    for path in sorted([*run.glob("checkpoints/*.ckpt"), *run.glob("snapshots/*.pt")]):
        found[path.name] = torch.load(path, weights_only=True)
        states = found[path.name].get("callbacks", {})
        states.pop("Timer", None)
        for state in states.values():
            for key in [key for key in state if "path" in key or key in NOT_COMPARED]:
                del state[key]
    return found


# ---- how a run is shaped


def _callback(name: str, **options: Any) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in options.items())]


SHAPES = {
    "plain": [*DIGITS, "--trainer.max_epochs", "2"],
    "cosine": [*DIGITS, "--trainer.max_epochs", "2", "--model.schedule", "cosine", "--model.optimizer", "sgd"],
    "accumulated": [*DIGITS, "--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "2"],
    "accumulated and often validated": [
        *DIGITS,
        *("--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "1"),
        *_callback("lightning.pytorch.callbacks.LearningRateMonitor"),
        *("--trainer.log_every_n_steps", "2"),
    ],
    "accumulated more and more": [
        *DIGITS,
        *("--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4"),
        *_callback("lightning.pytorch.callbacks.GradientAccumulationScheduler", scheduling=json.dumps({"1": 2})),
    ],
    "cut short": [
        *DIGITS,
        *("--trainer.max_epochs", "3", "--trainer.limit_train_batches", "3", "--model.schedule", "none"),
    ],
    "often validated": [*DIGITS, "--trainer.max_epochs", "2", "--trainer.val_check_interval", "2"],
    "rarely validated": [*DIGITS, "--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2"],
    "never validated": [*DIGITS, "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0"],
    "validated by steps": [
        *DIGITS,
        *("--trainer.max_epochs", "3", "--trainer.val_check_interval", "4"),
        *("--trainer.check_val_every_n_epoch", "null"),
    ],
    "one batch an epoch": [*DIGITS, "--trainer.max_epochs", "4", "--data.batch_size", "2048"],
    "pictures": [*DIGITS, "--trainer.max_epochs", "2", "--pictures", "true"],
    "counted in steps": [*DIGITS, "--trainer.max_epochs", "-1", "--trainer.max_steps", "9"],
    "workers": [
        *("--trainer.max_epochs", "2", "--data", "ImageFolder", "--data.root", "cats", "--data.image_size", "16"),
        *("--data.batch_size", "4", "--data.num_workers", "1", "--data.augment", "true"),
    ],
    "stopped early": [
        *DIGITS,
        *("--trainer.max_epochs", "3", "--trainer.val_check_interval", "2", "--model.lr", "1e-12"),
        *("--early_stopping", "9"),
    ],
}


# ---- how it stops


class Wish(Callback):
    """Asks the run to stop, the ``n``-th time it comes to a hook."""

    def __init__(self, hook: str, n: int) -> None:
        self.left = n
        setattr(self, hook, self.count)

    def count(self, trainer: Trainer, *args: Any) -> None:
        self.left -= 1
        trainer.should_stop |= self.left == 0


def _wish(hook: str, n: int) -> list[str]:
    return _callback("tests.test_ends.Wish", hook=hook, n=n)


def _steps(n: int) -> list[str]:
    return ["--trainer.max_steps", str(n)]


class SlowTimer(Timer):
    """Time passes by one second a batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = 0

    def time_elapsed(self, *args: Any) -> float:
        return self.seconds

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seconds += 1
        super().on_train_batch_end(trainer)


TIME = ["--trainer.max_time", "00:00:00:02"]

ENDS = [
    ("plain", _steps(3)),
    ("plain", TIME),
    ("plain", _wish("on_validation_end", 1)),  # at an epoch's end
    ("accumulated", _wish("on_train_batch_end", 1)),
    ("accumulated more and more", _steps(5)),
    ("accumulated and often validated", _wish("on_validation_end", 1)),
    ("cut short", _steps(3)),  # at an epoch's end
    ("often validated", _steps(2)),
    ("rarely validated", _wish("on_train_batch_end", 7)),
    ("one batch an epoch", _steps(3)),
    ("workers", _steps(2)),
    ("stopped early", ["--early_stopping", "1"]),
]
MORE_ENDS = [
    *(("plain", _steps(n)) for n in (1, 5, 8)),
    *(("plain", _wish("on_train_batch_end", n)) for n in (2, 5)),
    ("plain", _wish("on_train_batch_start", 7)),
    ("plain", _wish("on_before_optimizer_step", 7)),
    ("plain", [*_wish("on_train_batch_end", 1), "--trainer.min_epochs", "1"]),
    ("plain", [*_wish("on_train_batch_end", 1), "--trainer.min_steps", "7"]),
    ("cosine", _steps(7)),
    *(("accumulated", _steps(n)) for n in (2, 3, 5)),
    *(("accumulated", _wish("on_train_batch_end", n)) for n in (2, 5)),
    ("accumulated", TIME),
    ("accumulated more and more", _steps(4)),
    ("accumulated more and more", _wish("on_train_batch_end", 5)),
    ("accumulated and often validated", _steps(1)),
    *(("accumulated and often validated", _wish("on_validation_end", n)) for n in (3, 4)),
    *(("accumulated and often validated", _wish("on_train_batch_start", n)) for n in (3, 5)),
    *(("accumulated and often validated", _wish("on_train_batch_end", n)) for n in (4, 8)),
    *(("cut short", _steps(n)) for n in (1, 4)),
    *(("often validated", _steps(n)) for n in (3, 5, 9)),
    *(("often validated", _wish("on_train_batch_end", n)) for n in (2, 3, 5)),
    ("often validated", _wish("on_validation_end", 1)),
    ("often validated", _wish("on_validation_batch_start", 3)),
    *(("rarely validated", _wish("on_train_batch_end", n)) for n in (3, 5)),
    ("never validated", _steps(7)),
    *(("validated by steps", _steps(n)) for n in (4, 7)),
    *(("validated by steps", _wish("on_train_batch_end", n)) for n in (3, 5, 10)),
    ("one batch an epoch", _steps(1)),
    ("one batch an epoch", _wish("on_train_batch_end", 2)),
    ("pictures", _steps(7)),
    ("counted in steps", _wish("on_train_batch_end", 7)),
    ("workers", _wish("on_train_batch_end", 5)),
    ("stopped early", ["--early_stopping", "2"]),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a run of each shape leaves that is never stopped."""
    known: dict[str, dict[str, Any]] = {}

    def find(shape: str) -> dict[str, Any]:
        if shape not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp("undisturbed"))
                write_pictures(Path("cats"), n=14)
                assert main([*SMALL, *SHAPES[shape]]) == 0
                known[shape] = left()
        return known[shape]

    return find


def _name(shape: str, stop: list[str]) -> str:
    words = [word.partition("=")[2] if word.startswith("--trainer.callbacks") else word.strip("-") for word in stop]
    return f"{shape}: {' '.join(words)}"


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize(
    ("shape", "stop"),
    [
        *(pytest.param(*end, id=_name(*end)) for end in ENDS),
        *(pytest.param(*end, id=_name(*end), marks=pytest.mark.slow) for end in MORE_ENDS),
    ],
)
def test_a_run_that_is_gone_on_with_is_the_undisturbed_one(
    shape: str, stop: list[str], here: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.callback_connector.Timer", SlowTimer)
    write_pictures(Path("cats"), n=14)
    assert main([*SMALL, *SHAPES[shape], *stop]) == 0
    (last,) = Path().glob("runs/*/*/checkpoints/last.ckpt")
    stopped = read_checkpoint(last)["global_step"]
    assert main([*SMALL, *SHAPES[shape], "--ckpt_path", "last"]) == 0
    assert differences(undisturbed(shape), left()) == []
    assert 0 < stopped < read_checkpoint(last)["global_step"]
