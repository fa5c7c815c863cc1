"""Work continues when standard output is closed."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.streams import LastingStream, exit_code, lasting_streams
from tests.processes import Run

FIT = ["fit", "--data.batch_size", "256", "--trainer.max_epochs", "2"]
LAST = Path("runs/digits/version_0/checkpoints/last.ckpt")


class Broken(io.StringIO):
    """A stream that fails for a while."""

    number = errno.ENOSPC

    def write(self, text: str) -> int:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


def test_what_can_t_be_encoded_is_reported_and_all_else_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    target = Broken()
    stream = LastingStream(target)
    print("lost", file=stream)
    target.number = 0
    print("kept", file=stream)
    assert target.getvalue() == "kept\n"
    assert not stream.isatty()
    assert exit_code([stream], 0, ends=False) == 2
    assert exit_code([stream], 1, ends=False) == 1
    assert "standard output: not written: No space left on device" in capsys.readouterr().err


def test_a_reader_that_is_gone_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    target = Broken()
    target.number = errno.EPIPE
    stream = LastingStream(target)
    print("lost", file=stream, flush=True)
    assert exit_code([stream], 0, ends=False) == 0
    assert capsys.readouterr().err == ""


def test_the_streams_are_put_back_also_after_an_error() -> None:
    def work() -> None:
        with lasting_streams():
            assert sys.stdout is not before[0]
            raise ValueError("mine")

    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="mine"):
        work()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("args", [["--help"], ["-m", "cnn_lightning.plain.train_numpy", "--epochs", "1"]])
def test_the_program_ends_well_without_a_reader(args: list[str]) -> None:
    command = [sys.executable, *(args if "-m" in args else ["-m", "cnn_lightning", *args])]
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "timeout": 100, "env": buffered}
    done = subprocess.run(command, stdout=writer, check=False, **options)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    _screen(writer)


def full_disk() -> None:
    _screen(os.open("/dev/full", os.O_WRONLY))


def _screen(descriptor: int) -> None:
    os.environ["FORCE_COLOR"] = "1"  # the progress bar is drawn as on a terminal
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


@pytest.mark.parametrize(("before", "code"), [(closed_pipe, 0), (full_disk, 2)])
def test_training_goes_on_without_a_screen(before: Any, code: int, tmp_path: Path) -> None:
    if before is full_disk and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert Run(FIT, tmp_path, before).wait() == code
    assert read_checkpoint(tmp_path / LAST)["global_step"] == 10
    assert (tmp_path / LAST.parent.parent / "confusion.png").is_file(), "it was tested, too"
