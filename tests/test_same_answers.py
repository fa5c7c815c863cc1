"""Several processes write what one writes: every table and picture of predict, test and fit, byte for byte."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from cnn_lightning.callbacks.results import Predictions
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.errors import EverywhereError
from tests.processes import Run, noise, ranks

pytestmark = pytest.mark.ddp
PROCESSES = {"digits": (1, 3), "test": (1, 3), "folder": (1, 3), "predict, plain": (1, 2), "test, plain": (1, 2)}
CHECKPOINT = "runs/digits/version_0/checkpoints/best.ckpt"
NAMES = ("one", "two", "three", "four", "five", "six", "seven")


def _start(n: int, args: list[str], folder: Path) -> list[Run]:
    folder.mkdir(parents=True)
    return [Run(args, folder)] if n == 1 else ranks(n, args, folder)


def _end(runs: list[Run]) -> None:
    for run in runs:
        assert run.wait() == 0, run.text
        assert noise(run.text) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a folder of so many pictures that no number of processes divides them evenly."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]) == 0
    (folder / "unlabelled").mkdir()
    data = Digits()
    data.setup()
    images: Any = data._splits["test"][0]
    for index, name in enumerate(NAMES):
        pixels = images[index].numpy()[0]
        Image.fromarray(pixels).save(folder / "unlabelled" / f"{name}.png")
    return folder


class Plain(Digits):
    """Digits by torch's own loader, which Lightning gives a sampler that repeats pictures where they don't divide."""

    def _loader(self, split: str) -> Any:
        images, labels = self._splits[split]
        assert isinstance(images, torch.Tensor)
        return DataLoader(TensorDataset(images / 16 - 1, labels), batch_size=50)

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        return self._loader("test")


COMMANDS = {
    "digits": ["predict"],
    "folder": ["predict", "--data.predict_dir", "UNLABELLED", "--data.batch_size", "2"],
    "test": ["test"],
    "predict, plain": ["predict", "--data", "tests.test_same_answers.Plain"],
    "test, plain": ["test", "--data", "tests.test_same_answers.Plain"],
}
TESTED = (
    *("confusion.csv", "confusion.png", "results.csv", "classes.csv", "roc.csv", "precision_recall.csv"),
    *("calibration.csv", "scores.png", "metrics.csv"),
)
WRITTEN = {
    "digits": ("digits-predict", ("predictions.csv", "uncertain.png")),
    "folder": ("digits-predict", ("predictions.csv", "uncertain.png")),
    "test": ("digits-test", TESTED),
    "predict, plain": ("plain-predict", ("predictions.csv",)),
    "test, plain": ("plain-test", ("confusion.csv", "confusion.png", "metrics.csv")),
}


@pytest.fixture(scope="module")
def answers(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, bytes]]:
    """The files that each command leaves with each number of processes."""
    top = tmp_path_factory.mktemp("answers")
    started = []
    found = {}
    for name, command in COMMANDS.items():
        args = [str(trained / "unlabelled") if arg == "UNLABELLED" else arg for arg in command]
        args += ["--ckpt_path", str(trained / CHECKPOINT), "--trainer.enable_progress_bar", "false"]
        started += [(name, n, _start(n, args, top / f"{name}-{n}")) for n in PROCESSES[name]]
    for name, n, runs in started:
        _end(runs)
        kind, files = WRITTEN[name]
        folder = top / f"{name}-{n}" / "runs" / kind / "version_0"
        found[name, n] = {file: (folder / file).read_bytes() for file in files}
    return found


@pytest.mark.parametrize("name", ["digits", "folder", "test"])
def test_from_one_checkpoint_every_byte_is_the_same(name: str, answers: Any) -> None:
    for n in PROCESSES[name]:
        for file, content in answers[name, 1].items():
            assert answers[name, n][file] == content, (n, file)


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_each_answer_is_that_of_its_picture(name: str, trained: Path, answers: Any) -> None:
    model = from_checkpoint(trained / CHECKPOINT, layers="numpy").eval()
    data = Digits(predict_dir=str(trained / "unlabelled") if name == "folder" else None)
    data.setup()
    with torch.no_grad():
        classes = torch.cat([model(images).argmax(1) for images, _ in data.predict_dataloader()])
    rows = list(csv.reader(answers[name, 3]["predictions.csv"].decode().splitlines()))[1:]
    assert [row[1] for row in rows] == [str(int(each)) for each in classes]
    expected = [str(path) for path in data.predict_files()] or [str(index) for index in range(len(classes))]
    assert [row[0] for row in rows] == expected
    assert len(np.unique(classes)) > 2


def test_a_plain_loader_repeats_nothing_and_mixes_nothing_up(answers: Any) -> None:
    """Its batches are others with more processes, so that the last bits may differ."""
    tables = [answers["predict, plain", each]["predictions.csv"].decode().splitlines()[1:] for each in (1, 2)]
    assert len(tables[1]) == 359
    for row, expected in zip(*([line.split(",") for line in table] for table in tables), strict=True):
        assert row[:2] == expected[:2]
        assert float(row[2]) == pytest.approx(float(expected[2]), abs=1e-5)
    for file in ("confusion.csv", "confusion.png"):
        assert answers["test, plain", 2][file] == answers["test, plain", 1][file]


def test_a_loader_that_does_not_report_which_pictures_it_yields_needs_one_process() -> None:
    outputs = {"name": ["a", "b"], "confidence": torch.tensor([0.5, 0.25])}
    batch = torch.zeros(2, 1, 4, 4), torch.zeros(2)
    trainer: Any = SimpleNamespace(predict_dataloaders=[iter([])], world_size=1)
    predictions = Predictions()
    predictions.on_predict_start(trainer, Classifier())
    for index in range(2):
        predictions.on_predict_batch_end(trainer, Classifier(), outputs, batch, index)
    assert predictions.rows == {0: ("a", 0.5), 1: ("b", 0.25), 2: ("a", 0.5), 3: ("b", 0.25)}
    trainer.world_size = 2
    with pytest.raises(EverywhereError, match=r"data: expected a predict loader that gives .* got list_iterator"):
        predictions.on_predict_batch_end(trainer, Classifier(), outputs, batch, 2)


# ---- fit

FIT = [
    *("fit", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--trainer.precision", "64-true"),
    *("--trainer.callbacks+=cnn_lightning.callbacks.Statistics", "--trainer.callbacks.dead=1.0"),
]
OF_FIT = (
    *("metrics.csv", "statistics.csv", "curves.png", "confusion.csv", "confusion.png", "results.csv", "classes.csv"),
    *(f"pictures/{name}.png" for name in ("filters", "confusion", "mistakes")),
)


def test_fit_with_the_same_global_batches_leaves_the_same_tables_and_pictures(tmp_path: Path) -> None:
    """In float64: sums in another order differ by less than the digits that the tables show."""
    started = {n: _start(n, [*FIT, "--data.batch_size", str(300 // n)], tmp_path / str(n)) for n in (1, 2, 3)}
    for runs in started.values():
        _end(runs)
    for n in (2, 3):
        for file in OF_FIT:
            expected, found = (tmp_path / str(each) / "runs/digits/version_0" / file for each in (1, n))
            assert found.read_bytes() == expected.read_bytes(), (n, file)
