"""The command of fit's ``again:`` line, run unchanged, gives the accuracy that fit printed."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import cnn_lightning.classifier.module
from cnn_lightning.callbacks.tables import read_rows
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.model import build_net

BRIEF = ["--trainer.enable_progress_bar", "false", "--pictures", "false"]
SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "8"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(text: str) -> dict[str, str]:
    """The last lines of fit."""
    wanted = ("val_acc", "test_acc", "run", "again")
    return dict(line.split(": ", 1) for line in text.splitlines() if line.split(": ")[0] in wanted)


def accuracy(run: Path) -> str:
    """The accuracy of the run's test, to all digits."""
    return next(row["test_acc"] for row in read_rows(run / "metrics.csv") if "test_acc" in row)


class NoValidation(Digits):
    """Nothing to validate with."""

    def val_dataloader(self) -> Any:
        return []


class NoTest(Digits):
    """Nothing to test with."""

    def test_dataloader(self) -> Any:
        return []


AVERAGED = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.95"]
STOCHASTIC = [
    *("--trainer.callbacks+=lightning.pytorch.callbacks.StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"),
    *(
        "--trainer.callbacks.swa_epoch_start=1",
        "--trainer.callbacks.device=null",
        "--trainer.max_epochs=3",
        "--model.schedule=none",
    ),
]
ENDS = {
    "best": SHORT,
    "steps": ["--trainer.max_steps", "7"],
    "steps alone": ["--trainer.max_epochs", "-1", "--trainer.max_steps", "7"],
    "no validation": [*SHORT, "--trainer.limit_val_batches", "0"],
    "seldom validated": [*SHORT, "--trainer.check_val_every_n_epoch", "5"],
    "no split to validate with": [*SHORT, "--data", "tests.test_again.NoValidation"],
    "a part of the test split": [*SHORT, "--trainer.limit_test_batches", "2"],
    "averaged weights": [*SHORT, *AVERAGED],
    "averaged weights, no validation": ["--trainer.max_steps", "7", *AVERAGED],
    "averaged at the end": [*SHORT, *STOCHASTIC],
}


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.parametrize("end", ENDS)
def test_again_gives_the_accuracy_that_fit_gave(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *BRIEF, *ENDS[end]]) == 0
    found = said(capsys.readouterr().out)
    command, *again = shlex.split(found["again"])
    assert command == "cnn-lightning"
    assert main(again) == 0
    out = capsys.readouterr().out
    run = Path(next(line for line in out.splitlines() if line.startswith("confusion: ")).split(", ")[1]).parent
    assert accuracy(run) == accuracy(Path(found["run"]))
    assert f"{float(accuracy(run)):.4f}" == found["test_acc"]


NOTHING_TO_SEE = {
    "tried out": ["--trainer.fast_dev_run", "true"],
    "not tested": [*SHORT, "--trainer.limit_test_batches", "0"],
    "no split to test with": [*SHORT, "--data", "tests.test_again.NoTest"],
    "not trained": ["--trainer.max_epochs", "0"],
    "no folder": [*SHORT, "--trainer.logger", "false"],
    "no checkpoint": [*SHORT, "--trainer.enable_checkpointing", "false"],
    "nothing but the training": ["--trainer.barebones", "true", "--trainer.max_steps", "3"],
}


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.parametrize("end", NOTHING_TO_SEE)
def test_where_nothing_can_be_seen_again_no_line_says_so(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *BRIEF, *NOTHING_TO_SEE[end]]) == 0
    found = said(capsys.readouterr().out)
    assert {"val_acc", "test_acc"} <= found.keys()
    assert "again" not in found


# ---- without a checkpoint


def test_random_weights_are_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    def error(command: str, *args: str) -> str:
        assert main([command, *BRIEF[:2], *args]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        start, _, remedy = line.partition("; ")
        says = f"ckpt_path: expected a checkpoint to {command}, got none, and the weights would be random"
        assert start == f"cnn-lightning: error: {says}"
        return remedy

    commands = ("test", "validate", "predict")
    for command in commands:
        assert error(command) == "there is no run in 'runs' yet: cnn-lightning fit trains one"
    for _ in range(2):
        assert main(["fit", *BRIEF, "--trainer.max_steps", "1"]) == 0
    capsys.readouterr()
    for command in commands:
        assert error(command) == "--ckpt_path last takes the newest run, runs/digits/version_1"
        assert error(command, "--config", "runs/digits/version_0/config.yaml") == error(command)
        assert main([command, *BRIEF[:2], "--trainer.fast_dev_run", "true"]) == 0


def test_pretrained_weights_need_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_download(net: str, **options: Any) -> Any:
        assert (net, options["weights"]) == ("resnet18", "DEFAULT")
        return build_net("simple_cnn", **options | {"weights": None})

    monkeypatch.setattr(cnn_lightning.classifier.module, "build_net", without_a_download)
    assert main(["test", *BRIEF[:2], "--model.net", "resnet18", "--model.weights", "DEFAULT"]) == 0
