"""Runs that survive: killed, stopped, out of disk or damaged, they go on and end as if nothing had happened."""

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

import cnn_lightning.classifier.module
import cnn_lightning.train.trainer
from cnn_lightning.callbacks.metrics import MetricsFile
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import WholeFiles, newest, read_checkpoint
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.model import SimpleCNN
from tests.processes import Run, noise, until

FIT = ["fit", "--data.batch_size", "256", "--trainer.enable_progress_bar", "false", "--pictures", "false"]
"""Five steps an epoch."""
LAST, BEST, METRICS = (
    Path("runs/digits/version_0") / name for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv")
)
STEPS_BETWEEN = 2


def build(*args: Any, **options: Any) -> Any:
    """SimpleCNN with layers that draw random numbers and keep running statistics."""
    options.pop("weights")
    net: Any = SimpleCNN(**options)
    net.conv1 = nn.Sequential(net.conv1, nn.BatchNorm2d(net.conv1.out_channels))
    net.linear2 = nn.Sequential(nn.Dropout(0.3), net.linear2)
    return net


def prepare(every_n_steps: int = STEPS_BETWEEN) -> None:
    """Checkpoints after every second step, and that network."""
    cnn_lightning.train.trainer.Resumable = partial(Resumable, every_n_steps=every_n_steps)  # type: ignore
    pytest.MonkeyPatch().setattr(cnn_lightning.classifier.module, "build_net", build)


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnn_lightning.train.trainer, "Resumable", partial(Resumable, every_n_steps=STEPS_BETWEEN))
    monkeypatch.setattr(cnn_lightning.classifier.module, "build_net", build)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- when two runs are the same


def result(folder: Path = Path()) -> dict[str, Any]:
    """All that a run leaves behind, but for what names its folder, and a score that Lightning never puts back."""
    last, best = (torch.load(folder / path, weights_only=True) for path in (LAST, BEST))
    for checkpoint in (last, best):
        for state in checkpoint["callbacks"].values():
            for key in [key for key in state if "path" in key or key in ("best_k_models", "dirpath", "current_score")]:
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
    "averaged": [
        *("--trainer.max_epochs", "2", "--trainer.val_check_interval", "2", "--model.ema", "0.8"),
        *("--model.class_weights", "auto", "--data.sampler", "balanced", "--data.augment", "trivial"),
        *("--data.mixup", "0.3", "--data.cutmix", "1", "--trainer.gradient_clip_val", "0.5"),
    ],
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
        assert "holds other rows" not in error, name
        assert differences(expected, result()) == [], name
        assert os.listdir("runs/digits") == ["version_0"]
        assert not list(Path("runs").rglob(".*.tmp*"))
        resumed += 1
    assert resumed


def test_killed_at_some_moments(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _killed_at_moments(OPTIONS["often validated"], here, 40, capsys)


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
        until((folder / LAST).is_file)
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
    [
        pytest.param(signal.SIGTERM, 6, False, 7, marks=pytest.mark.slow, id="SIGTERM in an epoch"),
        pytest.param(signal.SIGINT, 10, True, 11, id="Ctrl-C in a validation"),
        pytest.param(signal.SIGINT, 14, False, 15, marks=pytest.mark.slow, id="Ctrl-C before the last step"),
    ],
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


# ---- what is damaged, dangerous or missing


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its eighth step."""
    folder = tmp_path_factory.mktemp("stopped")
    run = Run([*SHORT, *_with("Asked", number=int(signal.SIGTERM), step=7, validating="false")], folder, prepare)
    assert run.wait() == 128 + signal.SIGTERM, run.text
    assert noise(run.text) == []
    return folder


@pytest.fixture
def stopped(kept: Path, here: Path) -> None:
    """That run, where the test works."""
    shutil.copytree(kept / "runs", here / "runs")


def test_a_finished_run_does_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SHORT) == 0
    expected = result()
    for name in ("curves.png", "confusion.png", "confusion.csv"):
        (METRICS.parent / name).unlink()
    capsys.readouterr()
    assert main([*SHORT, "--ckpt_path", "last"]) == 0
    out = capsys.readouterr().out
    assert "going on: runs/digits/version_0, after step 15\n" in out
    assert "test_acc: " in out
    assert differences(expected, result()) == []
    for name in ("curves.png", "confusion.png", "confusion.csv"):
        assert (METRICS.parent / name).is_file()
    assert "ckpt_path: null" in (METRICS.parent / "config.yaml").read_text()


@pytest.mark.usefixtures("stopped")
def test_a_damaged_checkpoint_is_passed_over(whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    LAST.write_bytes(LAST.read_bytes()[:5000])
    assert main([*SHORT, "--ckpt_path", str(LAST)]) == 2
    error = capsys.readouterr().err
    assert "last.ckpt is damaged" in error
    assert "best.ckpt is whole" in error
    assert main([*SHORT, "--ckpt_path", "last"]) == 0
    out, error = capsys.readouterr()
    assert "cnn-lightning: runs/digits/version_0/checkpoints/last.ckpt is damaged" in error
    assert "after step 5\n" in out
    assert differences(whole, result()) == []


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


def test_code_is_passed_over_and_not_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LAST.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "code": Code()}, LAST)
    assert main([*SHORT, "--ckpt_path", "last"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "holds code besides weights (posix.mkdir); it was refused and not run; passed over" in error[0]
    assert error[1].endswith("expected a run to go on with in 'runs/digits', found no readable checkpoint")
    assert not Path("it-ran").exists()


@pytest.mark.usefixtures("stopped")
def test_runs_on_other_data_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("runs/digits", "runs/mnist")
    assert main([*SHORT, "--ckpt_path", "last"]) == 2
    assert "in 'runs/digits', found no readable checkpoint" in capsys.readouterr().err
    assert newest(Path("runs")).parent.parent.parent.name == "mnist"


@pytest.mark.slow
def test_a_run_moves_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    assert main([*SHORT, *_with("Asked", number=int(signal.SIGTERM), step=12, validating="false")]) != 0
    score = _best_score()
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert main([*SHORT, "--ckpt_path", "last", "--model.lr", "1e-12"]) == 0
    assert _best_score() >= score
    state = next(state for name, state in read_checkpoint(LAST)["callbacks"].items() if "ModelCheckpoint" in name)
    assert state["best_model_path"] == str(BEST.resolve())


def _best_score() -> float:
    states = read_checkpoint(BEST)["callbacks"]
    return float(next(state["best_model_score"] for name, state in states.items() if "ModelCheckpoint" in name))


# ---- a disk that is full


class FullDisk:
    """No space from the ``first`` write to the disk on, until the ``last``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
        self.first, self.last, self.writes = first, last, 0
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.writes += 1
        if self.first <= self.writes < self.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_good_checkpoint(here: Path, whole: Any, capsys: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, 7, 1000)
        with pytest.warns(UserWarning, match=r": not written: No space left on device"):
            assert main(SHORT) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("cnn-lightning: error: runs/digits/version_0/checkpoints/")
    assert ": not written: No space left on device" in error[-1]
    assert 0 < read_checkpoint(LAST)["global_step"] < 15
    assert not list(Path("runs").rglob(".*.tmp*"))
    assert main([*SHORT, "--ckpt_path", "last"]) == 0
    assert differences(whole, result()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(here: Path, whole: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, 3, 6)
        with pytest.warns(UserWarning, match="No space left on device"):
            assert main(SHORT) == 0
    assert differences(whole, result()) == []


def test_metrics_are_kept_until_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(str(tmp_path))
    file.log_metrics({"x": 1.0}, 0)
    file.save()
    file.log_metrics({"x": 2.0}, 1)
    with monkeypatch.context() as patch:

        def full(*args: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match="metrics.csv: not written: No space left on device"):
            file.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,x\n0,1.0\n"
    file.log_metrics({"y": 3.0}, 2)
    file.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,x,y\n0,1.0,\n1,2.0,\n2,,3.0\n"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_folder_for_runs_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").write_text("a file")
    assert main(SHORT) == 2
    assert "trainer.default_root_dir: can't write to runs/digits: Not a directory" in capsys.readouterr().err


# ---- numbers that are none


class Spoiled(Callback):
    """A gradient that is infinite at one step."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 7:
            pl_module.net.linear1.weight.grad[0, 0] = float("inf")


def test_a_gradient_that_is_no_number_stops_the_run(here: Path, whole: Any, capsys: Any) -> None:
    assert main([*SHORT, *_with("Spoiled")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "cnn-lightning: error: step 7: expected finite gradients, got NaN or infinity; first seen in the gradient of "
        "layer 'linear1' (linear1.weight). A lower --model.lr or"
    )
    assert main([*SHORT, "--ckpt_path", "last"]) == 0
    assert differences(whole, result()) == []


# ---- gone on with other flags


class Rates(Callback):
    """The learning rate of every step that was made."""

    seen: list[float] = []  # noqa: RUF012 -- jsonargparse makes the object

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def _rates(*args: str) -> list[float]:
    Rates.seen = []
    assert main([*FIT, *_with("Rates"), *args]) == 0
    return Rates.seen


@pytest.mark.slow
def test_more_epochs_without_a_schedule_are_those_of_the_longer_run(here: Path) -> None:
    assert main([*FIT, "--model.schedule", "none", "--trainer.max_epochs", "3"]) == 0
    expected = result()
    shutil.rmtree("runs")
    assert main([*FIT, "--model.schedule", "none", "--trainer.max_epochs", "2"]) == 0
    assert main([*FIT, "--model.schedule", "none", "--trainer.max_epochs", "3", "--ckpt_path", "last"]) == 0
    assert differences(expected["last"]["state_dict"], result()["last"]["state_dict"]) == []
    assert expected["metrics"].splitlines()[-3:] == result()["metrics"].splitlines()[-3:]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_more_epochs_and_another_rate_go_on_in_the_new_schedule(schedule: str, here: Path) -> None:
    options = ["--model.schedule", schedule, "--model.lr", "0.002", "--trainer.max_epochs", "4"]
    expected = _rates(*options)
    shutil.rmtree("runs")
    assert len(_rates("--model.schedule", schedule, "--model.lr", "0.001", "--trainer.max_epochs", "2")) == 10
    found = _rates(*options, "--ckpt_path", "last")
    assert found == pytest.approx(expected[10:], rel=1e-12)


@pytest.mark.usefixtures("stopped")
def test_rate_and_decay_and_schedule_given_now_win() -> None:
    options = ["--model.schedule", "none", "--model.lr", "0.5", "--model.weight_decay", "0.25"]
    assert _rates(*options, "--trainer.max_epochs", "2", "--ckpt_path", "last") == [0.5, 0.5]
    group = read_checkpoint(LAST)["optimizer_states"][0]["param_groups"][0]
    assert group["weight_decay"] == 0.25
    assert group["betas"] == (0.9, 0.999)  # a cycle had changed the first


@pytest.mark.slow
def test_patience_given_now_wins(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stuck = ["--model.lr", "1e-12", "--trainer.max_epochs", "6", "--early_stopping"]
    assert main([*FIT, *stuck, "1"]) == 0
    assert read_checkpoint(LAST)["global_step"] == 10
    assert main([*FIT, *stuck, "1", "--ckpt_path", "last"]) == 0
    assert read_checkpoint(LAST)["global_step"] == 10
    assert main([*FIT, *stuck, "3", "--ckpt_path", "last"]) == 0
    assert read_checkpoint(LAST)["global_step"] == 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.batch_size", "100"], "data: expected 256 pictures in a global batch, as in the epoch that"),
        (["--model.optimizer", "sgd"], "model.optimizer: expected 'adamw', that of the checkpoint, got 'sgd'"),
        (["--model.freeze", "true"], "model.freeze: expected False, that of the checkpoint, got True"),
    ],
)
@pytest.mark.usefixtures("stopped")
def test_what_can_not_change_is_told(flags: list[str], words: str, capsys: Any) -> None:
    before = LAST.read_bytes()
    assert main([*SHORT, *flags, "--ckpt_path", "last"]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert LAST.read_bytes() == before


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_weights_and_optimizer_move_to_the_other_implementation(optimizer: str, here: Path) -> None:
    options = [*SHORT, "--trainer.precision", "64-true", "--model.optimizer", optimizer]
    assert main([*options, "--model.layers", "torch"]) == 0
    expected = result()["last"]
    shutil.rmtree("runs")
    stop = _with("Asked", number=int(signal.SIGTERM), step=7, validating="false")
    assert main([*options, *stop, "--model.layers", "numpy"]) != 0
    assert main([*options, "--model.layers", "torch", "--ckpt_path", "last"]) == 0
    _close(expected["state_dict"], result()["last"]["state_dict"])
    _close(expected["optimizer_states"], result()["last"]["optimizer_states"])


def _close(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype in (torch.float64, torch.int64, torch.float32)
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _close(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            _close(x, y)
