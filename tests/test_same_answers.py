"""Several processes write what one writes: every table and picture of predict, test and fit, byte for byte."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_lightning.classifier import from_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from tests.processes import Run, noise, ranks

pytestmark = pytest.mark.ddp
PROCESSES = (1, 2, 3)
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
    """A checkpoint, and a folder of pictures that no number of processes divides."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "2"]) == 0
    (folder / "unlabelled").mkdir()
    data = Digits()
    data.setup()
    images, _ = data._splits["test"]
    for index, name in enumerate(NAMES):
        pixels = images[index].numpy()[0]
        Image.fromarray(pixels).save(folder / "unlabelled" / f"{name}.png")
    return folder


COMMANDS = {
    "digits": ["predict"],
    "folder": ["predict", "--data.predict_dir", "UNLABELLED", "--data.batch_size", "2"],
    "test": ["test"],
}
WRITTEN = {
    "digits": ("digits-predict", ("predictions.csv", "uncertain.png")),
    "folder": ("digits-predict", ("predictions.csv", "uncertain.png")),
    "test": ("digits-test", ("confusion.csv", "confusion.png", "metrics.csv")),
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
        started += [(name, n, _start(n, args, top / f"{name}-{n}")) for n in PROCESSES]
    for name, n, runs in started:
        _end(runs)
        kind, files = WRITTEN[name]
        folder = top / f"{name}-{n}" / "runs" / kind / "version_0"
        found[name, n] = {file: (folder / file).read_bytes() for file in files}
    return found


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("n", PROCESSES[1:])
def test_from_one_checkpoint_every_byte_is_the_same(name: str, n: int, answers: Any) -> None:
    for file, content in answers[name, 1].items():
        assert answers[name, n][file] == content, file


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
