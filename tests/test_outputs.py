"""A file that a flag names is looked at before the work, and memory that is not there is told in a line."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.files import PICTURES, expect_writable
from cnn_lightning.plain import weights
from cnn_lightning.tools.benchmark import command as benchmark
from cnn_lightning.tools.compare import command as compare
from cnn_lightning.tools.parity import command as parity


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a-file").touch()


@pytest.mark.parametrize("command", ["parity", "benchmark", "compare"])
@pytest.mark.parametrize(
    ("flag", "path", "words"),
    [
        ("--png", "out.txt", "--png: expected a name that ends in .png or "),
        ("--png", "out", "--png: expected a name that ends in .png or "),
        ("--png", "folder.png", "--png: expected a file, got the folder 'folder.png'"),
        ("--json", "nowhere/out.json", "--json: expected a file in a folder that exists, got 'nowhere/out.json'"),
        ("--json", "a-file/out.json", "--json: expected a file in a folder that exists, got 'a-file/out.json'"),
    ],
)
def test_before_the_work(
    command: str, flag: str, path: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def work(*args: Any, **options: Any) -> None:
        raise AssertionError("the work had begun")

    monkeypatch.setattr(parity, "compare", work)
    monkeypatch.setattr(compare, "measure", work)
    monkeypatch.setattr(benchmark, "_measure", work)
    assert main([command, flag, path]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_place_that_can_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_writable("--png", None, PICTURES)
    expect_writable("--png", "A.PNG", PICTURES)
    expect_writable("--json", "/dev/null")
    (tmp_path / "read-only").touch()
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *args: False)  # root may write anywhere
        with pytest.raises(UserError, match="can't write to read-only: it is read-only"):
            expect_writable("--json", "read-only")

    def refused(**options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(UserError, match=r"--json: can't write to new\.json: Permission denied"):
        expect_writable("--json", "new.json")


def test_a_header_of_petabytes() -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1125899906842624,), }"
    header = header.ljust(118 - 1) + b"\n"
    with zipfile.ZipFile("huge.npz", "w") as file:
        file.writestr("conv1.weight.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(UserError, match=r"--weights: .*huge\.npz"):
        weights.load(Path("huge.npz"), {"conv1.weight": (1125899906842624,)})


def test_memory_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def greedy(*args: Any) -> Any:
        return np.empty(1 << 55)

    monkeypatch.setattr(Classifier, "training_step", greedy)
    assert main(["fit", "--trainer.enable_progress_bar", "false"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cnn-lightning: error: memory: Unable to allocate 256. PiB")
    assert line.endswith("; a smaller --data.batch_size takes less")
