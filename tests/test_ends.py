"""Every end of a run can be gone on from: the run that goes on equals, bit by bit, the one that was never stopped."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

import cnn_lightning.classifier.module
import cnn_lightning.train.trainer
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data.loader import Batches
from tests.processes import ranks
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
    monkeypatch.setattr(cnn_lightning.train.trainer, "Resumable", Often)
    monkeypatch.setattr(cnn_lightning.classifier.module, "build_net", build)


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

LIGHTNING = "lightning.pytorch.callbacks"


def _callback(name: str, **options: Any) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in options.items())]


SHAPES = {
    "plain": [*DIGITS, "--trainer.max_epochs", "2"],
    "cosine": [*DIGITS, "--trainer.max_epochs", "2", "--model.schedule", "cosine", "--model.optimizer", "sgd"],
    "accumulated": [*DIGITS, "--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "2"],
    "accumulated and often validated": [
        *DIGITS,
        *("--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "1"),
        *_callback(f"{LIGHTNING}.LearningRateMonitor"),
        *("--trainer.log_every_n_steps", "2"),
    ],
    "accumulated more and more": [
        *DIGITS,
        *("--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4"),
        *_callback(f"{LIGHTNING}.GradientAccumulationScheduler", scheduling=json.dumps({"1": 2})),
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
    "one step an epoch": [*DIGITS, "--trainer.max_epochs", "4", "--trainer.accumulate_grad_batches", "5"],
    "pictures": [*DIGITS, "--trainer.max_epochs", "2", "--pictures", "true"],
    "counted in steps": [*DIGITS, "--trainer.max_epochs", "-1", "--trainer.max_steps", "9"],
    "with a limit": [*DIGITS, "--trainer.max_epochs", "2", "--trainer.max_steps", "8"],
    "averaged": [*DIGITS, "--trainer.max_epochs", "2", *_callback(f"{LIGHTNING}.EMAWeightAveraging", decay=0.5)],
    "rate found": [
        *DIGITS,
        *("--trainer.max_epochs", "2", "--data.batch_size", "96"),
        *_callback(f"{LIGHTNING}.LearningRateFinder", num_training_steps=20),
    ],
    "size found": [
        *DIGITS,
        *("--trainer.max_epochs", "3", "--trainer.limit_train_batches", "3"),
        *_callback(f"{LIGHTNING}.BatchSizeFinder", init_val=64, max_trials=2, steps_per_trial=1),
    ],
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
    ("with a limit", _steps(3)),
    ("rate found", _steps(7)),
]
MORE_ENDS = [
    ("size found", _steps(4)),
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
    *(("averaged", _steps(n)) for n in (4, 5)),
    ("rate found", _wish("on_validation_end", 1)),
    ("with a limit", _steps(5)),
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


@pytest.mark.parametrize(
    ("shape", "kind", "key"), [("rate found", "LearningRateFinder", "lr"), ("size found", "BatchSizeFinder", None)]
)
def test_what_a_finder_found_holds_for_more_epochs(
    shape: str, kind: str, key: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *SHAPES[shape]]) == 0
    capsys.readouterr()
    first = left()["last.ckpt"]
    assert main([*SMALL, *SHAPES[shape], "--trainer.max_epochs", "4", "--ckpt_path", "last"]) == 0
    second = left()["last.ckpt"]
    notices = [line for line in capsys.readouterr().err.splitlines() if kind in line]
    if key is not None:
        found = first["hyper_parameters"][key]
        assert found not in (3e-3, 1e-8)
        assert second["hyper_parameters"][key] == found
        assert notices == [f"cnn-lightning: {kind}: not run again; model.lr stays {found:.3g}"]
    else:
        assert notices == [f"cnn-lightning: {kind}: not run again; data.batch_size stays 128"]
        assert second["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["pictures in a global batch"] == 128
    _annealed(second)


def _annealed(checkpoint: dict[str, Any]) -> None:
    """A run came to the end of its schedule, and not beyond."""
    (schedule,) = checkpoint["lr_schedulers"]
    assert schedule["last_epoch"] == schedule["total_steps"] == checkpoint["global_step"]


# ---- killed where an epoch has no middle


class Asked(Callback):
    """The system's wish that the run stops."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2 and trainer.current_epoch == 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("shape", ["one batch an epoch", "one step an epoch"])
def test_epochs_of_one_step_can_be_killed(shape: str, here: Path, undisturbed: Any) -> None:
    assert main([*SMALL, *SHAPES[shape], *_callback("tests.test_ends.Asked")]) == 128 + signal.SIGTERM
    assert left()["last.ckpt"]["global_step"] == 3
    assert main([*SMALL, *SHAPES[shape], "--ckpt_path", "last"]) == 0
    assert differences(undisturbed(shape), left()) == []


# ---- gone on with other limits


class Steps(Callback):
    """The learning rates that steps were made with."""

    rates: list[float] = []  # noqa: RUF012 -- jsonargparse makes the object

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The pictures that are trained with in each epoch."""
    found: dict[int, list[int]] = {}
    own = Batches._batch

    def batch(self: Batches, draw: Any) -> Any:
        if self.seed is not None:
            found.setdefault(self.epoch, []).extend(draw.indices.tolist())
        return own(self, draw)

    monkeypatch.setattr(Batches, "_batch", batch)
    monkeypatch.setattr(Steps, "rates", [])
    return found


RATES = _callback("tests.test_ends.Steps")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(["--trainer.max_epochs", "2"], [], id="at the end", marks=pytest.mark.slow),
        pytest.param(["--trainer.max_epochs", "2", *_steps(7)], [], id="inside an epoch"),
        pytest.param(["--trainer.max_epochs", "1", *_steps(3)], _steps(11), id="twice", marks=pytest.mark.slow),
    ],
)
def test_more_epochs_stretch_the_schedule(
    first: list[str], then: list[str], here: Path, seen: dict[int, list[int]]
) -> None:
    shape = [*SMALL, *DIGITS, *RATES]
    assert main([*shape, "--trainer.max_epochs", "4"]) == 0
    expected, Steps.rates[:] = list(Steps.rates), []
    whole = left()["metrics"].splitlines()
    (here / "runs").rename(here / "whole")
    seen.clear()
    assert main([*shape, *first]) == 0
    made = len(Steps.rates)
    assert 0 < made < len(expected) == 20
    for more in [then] if then else []:
        assert main([*shape, "--trainer.max_epochs", "4", *more, "--ckpt_path", "last"]) == 0
    assert main([*shape, "--trainer.max_epochs", "4", "--ckpt_path", "last"]) == 0
    assert Steps.rates[made:] == pytest.approx(expected[made:], rel=1e-12)
    pictures = sum(map(len, seen.values())) // 4
    assert sorted(seen) == list(range(4))
    assert all(sorted(found) == list(range(pictures)) for found in seen.values())  # each once
    assert len(left()["metrics"].splitlines()) == len(whole)  # validated as often
    _annealed(left()["last.ckpt"])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param([], ["--data.batch_size", "512"], id="larger batches"),
        pytest.param(_steps(3), ["--trainer.limit_train_batches", "4"], id="a shorter epoch", marks=pytest.mark.slow),
        pytest.param(["--trainer.limit_train_batches", "2"], [], id="longer epochs", marks=pytest.mark.slow),
        pytest.param(
            ["--trainer.limit_train_batches", "4", *_steps(2)], [], id="a longer epoch", marks=pytest.mark.slow
        ),
        pytest.param(_steps(3), ["--trainer.accumulate_grad_batches", "2"], id="accumulated"),
        pytest.param(
            ["--trainer.accumulate_grad_batches", "2", *_steps(2)],
            [],
            id="no longer accumulated",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--trainer.max_epochs", "-1", *_steps(4)],
            ["--trainer.max_epochs", "-1", *_steps(11)],
            id="counted in steps",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_limits_end_with_the_schedule(first: list[str], then: list[str], here: Path) -> None:
    assert main([*SMALL, *DIGITS, "--trainer.max_epochs", "2", *first]) == 0
    assert main([*SMALL, *DIGITS, "--trainer.max_epochs", "4", *then, "--ckpt_path", "last"]) == 0
    _annealed(left()["last.ckpt"])


def test_a_limit_that_the_epoch_has_passed_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = [*SMALL, *DIGITS, "--trainer.max_epochs", "2"]
    assert main([*shape, *_steps(3)]) == 0
    before = Path("runs/digits/version_0/checkpoints/last.ckpt").read_bytes()
    assert main([*shape, "--trainer.limit_train_batches", "3", "--ckpt_path", "last"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        "cnn-lightning: error: trainer.limit_train_batches: expected more than the 3 batches that the checkpoint has "
        "of its epoch, got 3"
    )
    assert Path("runs/digits/version_0/checkpoints/last.ckpt").read_bytes() == before


def test_a_training_without_end_has_no_schedule(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = [*SMALL, *DIGITS, "--trainer.max_epochs", "-1"]
    assert main(endless) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        "cnn-lightning: error: model.schedule: expected none where the end of training is unknown "
        "(set trainer.max_epochs or trainer.max_steps), got 'one_cycle'"
    )
    assert main([*endless, "--model.schedule", "none", *_wish("on_train_batch_end", 3)]) == 0
    assert read_checkpoint("runs/digits/version_1/checkpoints/last.ckpt")["global_step"] == 3


# ---- several processes


def often() -> None:
    """Checkpoints after every second step, and that network, in a process of its own."""
    patch = pytest.MonkeyPatch()
    patch.setattr(cnn_lightning.train.trainer, "Resumable", Often)
    patch.setattr(cnn_lightning.classifier.module, "build_net", build)


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("shape", "stop"),
    [
        ("accumulated and often validated", _wish("on_validation_end", 1)),
        pytest.param("plain", _steps(3), marks=pytest.mark.slow),
        pytest.param("often validated", _wish("on_train_batch_end", 3), marks=pytest.mark.slow),
    ],
)
def test_several_processes_go_on_as_the_undisturbed_ones(shape: str, stop: list[str], tmp_path: Path) -> None:
    args = [*SMALL, *SHAPES[shape], "--data.batch_size", "128"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    for folder, more in (("whole", []), ("stopped", stop), ("stopped", ["--ckpt_path", "last"])):
        runs = ranks(2, [*args, *more], tmp_path / folder, often)
        assert [run.wait() for run in runs] == [0, 0], "\n\n".join(run.text for run in runs)
    assert differences(left(tmp_path / "whole"), left(tmp_path / "stopped")) == []
