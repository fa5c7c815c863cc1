"""The command line from end to end: runs, their folders, and one clear line for every mistake."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnn_lightning.cli import main
from tests.stand_ins import write_cifar10, write_idx_set, write_pictures

FAST = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines() if line.split(": ")[0] in WANTED)


WANTED = ("val_acc", "test_acc", "run", "again")


def fit(*args: str, capsys: Any) -> dict[str, str]:
    assert main(["fit", *FAST, *args]) == 0
    return lines(capsys.readouterr().out)


def test_fit_leaves_a_folder_and_four_lines(capsys: pytest.CaptureFixture[str]) -> None:
    found = fit(capsys=capsys)
    assert tuple(found) == WANTED
    run = Path(found["run"])
    for name in ("config.yaml", "metrics.csv", "curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    again = found["again"].split()[1:]
    assert main([*again, *FAST[:2]]) == 0
    out = capsys.readouterr().out
    assert out.count(f"accuracy {found['test_acc']},") == 1
    assert "test_acc" not in out  # the table says it once
    assert main([*again, *FAST[:2], "--verbose", "true"]) == 0
    assert f"test_acc: {found['test_acc']}" in capsys.readouterr().out.splitlines()
    assert main(["validate", "--ckpt_path", "last", *FAST[:2]]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"val_acc: {found['val_acc']}"
    assert main(["validate", "--ckpt_path", "last", *FAST[:2], "--verbose", "false"]) == 0
    assert "val_acc" not in capsys.readouterr().out
    assert fit(capsys=capsys)["run"] != found["run"]


def test_the_default_run_reaches_98_percent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--trainer.enable_progress_bar", "false"]) == 0
    assert float(lines(capsys.readouterr().out)["test_acc"]) >= 0.98


def test_a_checkpoint_gives_the_same_accuracy_whatever_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(capsys=capsys)["run"]
    answers = []
    for layers in ("numpy", "torch", '{"conv1": "numpy", "*": "torch"}'):
        checkpoint = f"{run}/checkpoints/best.ckpt"
        assert main(["predict", "--ckpt_path", checkpoint, "--model.layers", layers, *FAST[:2]]) == 0
        out = capsys.readouterr().out
        path = next(line.split(": ")[1] for line in out.splitlines() if line.startswith("predictions: "))
        answers.append(np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:])
    assert len(answers[0]) == 359
    for other in answers[1:]:
        assert np.array_equal(answers[0][:, 0], other[:, 0])
        assert np.allclose(answers[0][:, 1], other[:, 1], atol=1e-5)


def test_a_flag_wins_over_what_the_checkpoint_holds(capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("--model.lr", "0.002", "--model.channels", "[4]", capsys=capsys)["run"]
    checkpoint = f"{run}/checkpoints/last.ckpt"
    assert main(["fit", "--ckpt_path", checkpoint, "--model.lr", "0.004", "--model.layers", "torch", *FAST]) == 0
    config = (Path(lines(capsys.readouterr().out)["run"]) / "config.yaml").read_text()
    assert "lr: 0.004" in config
    assert "layers: torch" in config
    assert "channels:\n  - 4\n" in config.replace("    - 4", "  - 4")


@pytest.mark.ddp
def test_two_processes_share_every_batch() -> None:
    command = [sys.executable, "-m", "cnn_lightning", "fit", *FAST, "--config", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert tuple(lines(done.stdout)) == WANTED


MISTAKES = [
    (["fit", "--model.layers", "nunpy"], "model.layers: expected numpy, torch"),
    (["fit", "--model.layers", "3"], "model.layers: expected numpy, torch"),
    (["fit", "--model.layers", '{"conv9": "numpy"}'], "conv9"),
    (["fit", "--model.net", "resnet99"], "resnet99"),
    (["fit", "--data", "Digit"], "data: expected Digits"),
    (["fit", "--data", "ImageFolder", "--data.root", "nowhere"], "data.root: expected a folder"),
    (["fit", "--config", "nosuch"], "config: expected a file or one of"),
    (["fit", "--model.lrr", "3"], "--model.lrr"),
    (["fit", "--trainer.max_epochs", "x"], "trainer.max_epochs: expected"),
    (["fit", "--model.channels", "[1, 2, 3, 4]"], "image_size: expected at least 16"),
    (["fit", "--trainer.devices", "0"], "trainer: `Trainer(devices='0')` value is not a valid input"),
    (["fit", "--trainer.accelerator", "tpu"], "trainer: expected a package that is not here: Requirement 'torch_xla"),
    (["fit", "--trainer.strategy", "fsdp"], "The strategy `fsdp` requires a GPU"),
    (["fit", "--data.batch_size", "0"], "data.batch_size: expected at least 1, got 0"),
    (["fit", "--ckpt_path", "last"], "no readable checkpoint"),
    (["test", "--ckpt_path", "nofile.ckpt"], "found none at 'nofile.ckpt'"),
    (["bogus"], "command: expected one of"),
    (["fit", "--model.lr", "1e30", *FAST], "expected a finite loss, got nan; first seen in"),
]


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=[" ".join(args)[:50] for args, _ in MISTAKES])
def test_a_mistake_is_one_line(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in error if line.startswith("cnn-lightning: error: ")]
    assert words in line


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


def test_damaged_and_dangerous_checkpoints_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(fit(capsys=capsys)["run"])
    whole = (run / "checkpoints/best.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}, "code": Code()}, "code.ckpt")
    torch.save({"state_dict": {}}, "other.ckpt")
    for name, words in (("cut", "is damaged"), ("code", "holds code"), ("other", "is no checkpoint of cnn-lightning")):
        assert main(["test", "--ckpt_path", f"{name}.ckpt"]) == 2
        assert words in capsys.readouterr().err
    assert not Path("it-ran").exists()
    assert main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--model.net", "resnet18"]) == 2
    assert "model.net: expected 'simple_cnn', that of the checkpoint" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_an_unwritable_folder_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    Path("runs").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert main(["fit", *FAST]) == 2
    assert "can't write to" in capsys.readouterr().err


CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem == "gpu" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if path.stem == "ddp":
        pytest.skip("run by test_two_processes_share_every_batch")
    if path.stem == "sweep":
        pytest.skip("read by tests/test_sweep.py")
    write_idx_set(Path("data"), "MNIST")
    write_idx_set(Path("data"), "FashionMNIST")
    write_cifar10(Path("data"))
    write_pictures(Path("pictures"))
    args = ["fit", "--config", str(path), "--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    text = path.read_text()
    if "MNIST" in text or "CIFAR10" in text:
        args += ["--data.root", "data", "--data.batch_size", "4"]
    assert main(args) == 0
    assert "test_acc: " in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("fit", "test", "predict", "parity", "benchmark"):
        assert f"  {command}" in out
