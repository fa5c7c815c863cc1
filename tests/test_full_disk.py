"""A full disk at every file that a command writes: the old one stays whole and alone, and its name is told."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.plain import weights
from cnn_lightning.tools.benchmark.layers import LayerRow
from cnn_lightning.tools.benchmark.picture import draw
from cnn_lightning.tools.benchmark.steps import Setting
from cnn_lightning.tools.compare import command as compare
from cnn_lightning.tools.compare import ways
from tests.full_disk import full_disk

FIT = ["fit", "--data.batch_size", "256", "--trainer.enable_progress_bar", "false"]
STATISTICS = ["--trainer.callbacks+=cnn_lightning.callbacks.Statistics", "--trainer.callbacks.dead=1.0"]
RUN = Path("runs/digits/version_0")
CHECKPOINT = str(RUN / "checkpoints/best.ckpt")
REASON = os.strerror(errno.EFBIG)
OLD = b"what stood here before, longer than a file may be on the full disk, and whole" * 2


@pytest.fixture(scope="module", autouse=True)
def _a_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    assert main([*FIT, *STATISTICS, "--trainer.max_epochs", "1"]) == 0
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def _space_again() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- files that a flag names


def export(path: Path) -> int:
    return main(["export", "--ckpt_path", CHECKPOINT, "--format", "pt2", "--output", str(path)])


def parity(flag: str, path: Path) -> int:
    small = ["--model.channels", "[2]", "--data", "Digits", "--data.batch_size", "2", "--steps", "1"]
    return main(["parity", *small, flag, str(path)])


def explain(path: Path) -> int:
    return main(["explain", "--ckpt_path", CHECKPOINT, "--output", str(path)])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("net.pt2", export),
        ("parity.json", lambda path: parity("--json", path)),
        ("parity.png", lambda path: parity("--png", path)),
        ("explain.html", explain),
    ],
)
def test_a_file_that_a_flag_names(name: str, write: Callable[[Path], int], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(name.replace(".", "-"))
    folder.mkdir()
    path = folder / name
    path.write_bytes(OLD)
    with full_disk():
        assert write(path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(f"can't write to {path}: {REASON}")
    assert files(folder) == {str(path): OLD}
    assert write(path) == 0
    assert len(path.read_bytes()) > 200
    assert path.read_bytes() != OLD
    assert os.listdir(folder) == [name]


def _layers() -> Any:
    return [LayerRow("conv1", "Conv2d", 1.0, 1.0, 1.0, 1.0, 1)]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("weights.npz", lambda path: weights.save(path, {"a": np.arange(1000.0)})),
        ("benchmark.png", lambda path: draw(Setting(), _layers(), str(path))),
        ("compare.png", lambda path: compare._draw(ways.Setting(), {"plain torch": _measured()}, str(path))),
    ],
)
def test_a_file_of_a_command_that_measures(name: str, write: Callable[[Path], None]) -> None:
    folder = Path(name.replace(".", "-"))
    folder.mkdir()
    path = folder / name
    path.write_bytes(OLD)
    with full_disk(), pytest.raises(UserError, match=f"can't write to {path}: {REASON}"):
        write(path)
    assert files(folder) == {str(path): OLD}
    write(path)
    assert path.read_bytes() != OLD


def _measured() -> Any:
    from tests.test_compare import measured

    return measured(1.0, "")


# ---- files of a run


def test_a_training_goes_on_and_its_files_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = files(RUN)
    capsys.readouterr()
    more = ["--trainer.max_epochs", "2", "--trainer.callbacks+=tests.full_disk.FillsUp", "--ckpt_path", "last"]
    with pytest.warns(UserWarning, match=f": not written: {REASON}"):
        assert main([*FIT, *STATISTICS, *more]) == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    out, error = capsys.readouterr()
    assert "test_acc: " in out
    assert "val_acc: " in out
    assert f"run: {RUN}" in out
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"cnn-lightning: error: {RUN}/checkpoints/")
    assert f": not written: {REASON}; the numbers above are right, but the run can't be resumed" in last
    for name in (
        *("metrics.csv", "statistics.csv", "curves.png", "confusion.csv", "confusion.png", "pictures/mistakes.png"),
        *("checkpoints/last.ckpt", "snapshots/epoch_0002.pt"),
    ):
        assert f"{RUN}/{name}" in last, name
    after = files(RUN)
    # Written before the disk was full.
    named = {str(RUN / name) for name in ("config.yaml", "hparams.yaml", "metrics.csv")}
    events = {name for name in after if "tensorboard" in name}
    assert {name for name in after if after[name] != before.get(name)} <= named | events
    assert not list(Path().rglob(".*.tmp*"))
    assert main([*FIT, *STATISTICS, *more[:2], "--ckpt_path", "last"]) == 0


def test_a_run_that_can_not_keep_its_options_does_not_begin(capsys: pytest.CaptureFixture[str]) -> None:
    before = files(RUN)
    with pytest.warns(UserWarning, match="not written"), full_disk():
        assert main([*FIT, "--trainer.max_epochs", "3", "--ckpt_path", "last"]) == 2
    assert f"{RUN}/config.yaml: not written: {REASON}" in capsys.readouterr().err
    after = files(RUN)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("command", "names"),
    [("test", ["confusion.csv", "confusion.png"]), ("predict", ["predictions.csv", "uncertain.png"])],
)
def test_what_test_and_predict_can_not_write(command: str, names: list[str], capsys: Any) -> None:
    assert main([command, *FIT[1:], "--ckpt_path", CHECKPOINT]) == 0
    folder = Path(f"runs/digits-{command}/version_0")
    before = files(folder)
    capsys.readouterr()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnn_lightning.callbacks.results.folder_to_write", lambda trainer: folder)
        full = ["--trainer.callbacks+=tests.full_disk.FillsUp"]
        with pytest.warns(UserWarning, match="not written"):
            assert main([command, *FIT[1:], *full, "--ckpt_path", CHECKPOINT]) == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    error = capsys.readouterr().err
    for name in names:
        assert f"version_1/{name}" in error or f"version_0/{name}" in error
    assert {name: content for name, content in files(folder).items() if name in before} == before
    assert not list(folder.rglob(".*.tmp*"))
