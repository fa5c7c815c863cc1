"""The loggers that a user adds to a run: numbers and pictures in each of them, and one line for one that fails."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.imports import RequirementCache
from PIL import Image

from cnn_lightning.callbacks.boards import Boards
from cnn_lightning.cli import main

FIT = ["fit", "--trainer.max_epochs", "2", "--data.batch_size", "256", "--trainer.logger"]
PICTURES = ("confusion", "filters", "mistakes")
LINES = ("val_acc: ", "test_acc: ", "run: runs/digits/version_0", "again: ", "see: ")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- each with its package


def fit(*args: str, **variables: str) -> str:
    """What a run prints, in a process of its own, which leaves no client of a server in this one."""
    command = [sys.executable, "-W", "ignore", "-m", "cnn_lightning", *FIT, *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(any(line.startswith(words) for line in done.stdout.splitlines()) for words in LINES), done.stdout
    run = Path("runs/digits/version_0")
    for name in ("metrics.csv", "index.html", "checkpoints/last.ckpt", *(f"pictures/{name}.png" for name in PICTURES)):
        assert (run / name).is_file(), name
    return done.stdout


@pytest.mark.parametrize("name", ["TensorBoardLogger", "lightning.pytorch.loggers.TensorBoardLogger"])
def test_tensorboard(name: str) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    fit(name, "--trainer.logger.save_dir", "board")
    (folder,) = {str(path.parent) for path in Path("board").rglob("events.*")}
    events = accumulator(folder).Reload()
    for picture in PICTURES:
        assert [event.step for event in events.Images(picture)] == [1, 2]
    assert {"train_loss", "train_acc", "val_loss", "val_acc", "test_acc"} <= set(events.Tags()["scalars"])
    assert not Path("runs/digits/version_0/tensorboard").exists()


@pytest.mark.parametrize("name", ["WandbLogger", "lightning.pytorch.loggers.WandbLogger"])
def test_wandb_without_a_network(name: str) -> None:
    if not RequirementCache("wandb", "wandb"):
        pytest.skip("needs wandb")
    fit(name, "--trainer.logger.offline", "true", "--trainer.logger.save_dir", ".", WANDB_SILENT="true")
    (run,) = Path("wandb").glob("offline-run-*")
    for picture in PICTURES:
        assert len(list((run / "files/media/images").glob(f"{picture}_*.png"))) == 2
    records = next(run.glob("*.wandb")).read_bytes()  # not compressed
    for key in (*PICTURES, "train_loss", "train_acc", "val_loss", "val_acc", "test_acc"):
        assert key.encode() in records, key


@pytest.mark.parametrize("name", ["MLFlowLogger", "lightning.pytorch.loggers.MLFlowLogger"])
def test_mlflow_in_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not RequirementCache("mlflow>=2.8", "mlflow"):
        pytest.skip("needs mlflow")
    fit(name, "--trainer.logger.tracking_uri", "file:./mlruns", MLFLOW_ALLOW_FILE_STORE="true")
    found = {str(path.relative_to("mlruns").relative_to(*path.parts[1:2])) for path in Path("mlruns").rglob("*")}
    run = Path(next(path for path in found if path.endswith("/metrics"))).parent
    for picture in PICTURES:
        for epoch in (1, 2):
            assert f"{run}/artifacts/pictures/{picture}/epoch_000{epoch}.png" in found
    for metric in ("train_loss", "train_acc", "val_loss", "val_acc", "test_acc"):
        assert f"{run}/metrics/{metric}" in found


# ---- the pictures, without any package


def a_logger(kind: Any, **attributes: Any) -> Any:
    return type(kind.__name__, (kind,), {"__init__": lambda self: None, **attributes})()


def test_each_kind_gets_a_picture_in_its_own_way() -> None:
    sent: list[Any] = []
    board = SimpleNamespace(add_image=lambda name, array, step, dataformats: sent.append((name, array.shape, step)))
    client = SimpleNamespace(log_image=lambda run, image, artifact_file: sent.append((run, artifact_file)))

    def log_image(self: Any, key: str, images: list[Any], step: int, **options: Any) -> None:
        sent.append((key, len(images), step, options))

    loggers = [
        a_logger(TensorBoardLogger, experiment=board),
        a_logger(WandbLogger, log_image=log_image),
        a_logger(MLFlowLogger, experiment=client, run_id="abc"),
        a_logger(Logger, name="", version="", log_metrics=None, log_hyperparams=None),
    ]
    trainer: Any = SimpleNamespace(loggers=loggers, global_step=40)
    Boards().add(trainer, "confusion", Image.new("L", (7, 5)), 3)
    assert sent == [
        ("confusion", (5, 7), 3),
        ("confusion", 1, 40, {"caption": ["epoch 3"]}),
        ("abc", "pictures/confusion/epoch_0003.png"),
    ]


def test_a_logger_that_takes_no_picture_is_told_once_and_ends_no_training() -> None:
    class OutOfReachError(Exception):
        pass

    sent: list[str] = []

    def log_image(self: Any, **options: Any) -> None:
        raise OutOfReachError("no answer\nfrom the server")

    client = SimpleNamespace(log_image=lambda run, image, artifact_file: sent.append(artifact_file))
    loggers = [a_logger(WandbLogger, log_image=log_image), a_logger(MLFlowLogger, experiment=client, run_id="abc")]
    trainer: Any = SimpleNamespace(loggers=loggers, global_step=40)
    boards = Boards()
    with pytest.warns(UserWarning, match="^WandbLogger: the pictures of this run are not logged: .*no answer"):
        boards.add(trainer, "confusion", Image.new("L", (7, 5)), 1)
    boards.add(trainer, "confusion", Image.new("L", (7, 5)), 2)  # a second warning would be an error
    assert len(sent) == 2


# ---- a logger that fails


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cnn-lightning: ")]
    return line


@pytest.mark.parametrize(
    ("name", "module", "flags"),
    [
        ("TensorBoardLogger", "lightning.fabric.loggers.tensorboard", ["--trainer.logger.save_dir", "board"]),
        ("WandbLogger", "lightning.pytorch.loggers.wandb", ["--trainer.logger.offline", "true"]),
        ("MLFlowLogger", "lightning.pytorch.loggers.mlflow", ["--trainer.logger.tracking_uri", "file:./mlruns"]),
    ],
)
def test_a_missing_package_is_one_line(
    name: str, module: str, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = importlib.import_module(module)
    for variable in (name for name in vars(home) if name.endswith("_AVAILABLE")):
        monkeypatch.setattr(home, variable, RequirementCache("no-such-package>=1"))
    assert main([*FIT, name, *flags]) == 2
    line = the_line(capsys)
    assert line.startswith("cnn-lightning: error: trainer.logger: expected a package that is not here: ")
    assert "no-such-package" in line
    assert not Path("runs").exists()


def test_a_missing_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "TensorBoardLogger"]) == 2
    assert "trainer.logger.save_dir: expected text or Path" in the_line(capsys)
    assert main([*FIT, "TensorBordLogger"]) == 2
    assert "trainer.logger: " in the_line(capsys)


LOGGER = """
from lightning.pytorch.loggers import Logger


class OutOfReachError(Exception):
    pass


class Broken(Logger):
    name = version = "broken"

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def log_hyperparams(self, params, *args, **kwargs):
        self.fail("hyperparams")

    def log_metrics(self, metrics, step=None):
        self.fail("metrics")

    def fail(self, where):
        if where == self.where:
            raise OutOfReachError("no answer\\nfrom the server")
"""


@pytest.mark.parametrize("where", ["hyperparams", "metrics"])
def test_an_error_of_a_loggers_own_kind_is_one_line(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken_logger.py").write_text(LOGGER)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(sys.modules, "broken_logger", raising=False)
    flags = ["broken_logger.Broken", "--trainer.logger.where", where, "--pictures", "false"]
    assert main([*FIT, *flags]) == 2
    line = the_line(capsys)
    assert line.startswith("cnn-lightning: error: trainer.logger: Broken: no answer")


def test_a_refused_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    Path("a-file").touch()
    assert main([*FIT, "TensorBoardLogger", "--trainer.logger.save_dir", "a-file"]) == 2
    line = the_line(capsys)
    assert line.startswith("cnn-lightning: error: trainer.logger: TensorBoardLogger: ")
    assert "a-file" in line
