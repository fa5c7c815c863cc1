"""Many processes: equal to one on the same global batches, and none waits for one that is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

import cnn_lightning.classifier.module
import cnn_lightning.train.trainer
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.callbacks.tables import read_rows
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.data import Digits
from cnn_lightning.data.readers import ImageSet, Split, read_digits
from cnn_lightning.model import SimpleCNN
from tests.processes import Run, noise, ranks, until
from tests.test_resume import differences, result

pytestmark = pytest.mark.ddp
FIT = [
    *("fit", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--pictures", "false"),
    *("--trainer.precision", "64-true"),
]
RUN = Path("runs/digits/version_0")
LAST = RUN / "checkpoints/last.ckpt"
N = 1257
"""Training pictures: 1257 = 4 * 314 + 1, so that only one rank of four has a picture of the last batch of 628."""


def odd(self: Digits) -> ImageSet:
    """The digits, one of them left out."""
    found = read_digits()
    train = Split(found.train.images[:N], found.train.labels[:N])
    return ImageSet(train, found.val, found.test, found.class_names, found.mean, found.std)


def odd_digits() -> None:
    Digits.read = odd  # type: ignore[method-assign]


def build(*args: Any, **options: Any) -> SimpleCNN:
    """SimpleCNN that draws random numbers."""
    options.pop("weights")
    net = SimpleCNN(**options)
    net.linear2 = nn.Sequential(nn.Dropout(0.3), net.linear2)  # type: ignore[assignment]
    return net


def random_network() -> None:
    """That network, a checkpoint after every second step."""
    pytest.MonkeyPatch().setattr(cnn_lightning.classifier.module, "build_net", build)
    cnn_lightning.train.trainer.Resumable = partial(Resumable, every_n_steps=2)  # type: ignore


def _batch(size: int) -> list[str]:
    return ["--data.batch_size", str(size)]


def _end(runs: list[Run], code: int = 0) -> None:
    for run in runs:
        assert run.wait() == code, "\n\n".join(run.text for run in runs)
        assert noise(run.text) == []


def _alone(
    global_batch: int, folder: Path, flags: list[str] = FIT
) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    run = Run([*flags, *_batch(global_batch)], folder, odd_digits)
    _end([run])
    return _left(folder)


def _left(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    return read_checkpoint(folder / LAST)["state_dict"], read_rows(folder / RUN / "metrics.csv")


def _same(found: Any, expected: Any) -> None:
    (weights, rows), (expected_weights, expected_rows) = found, expected
    for name, value in expected_weights.items():
        assert value.dtype == torch.float64
        assert torch.allclose(weights[name], value, rtol=0, atol=1e-9), name
    assert len(rows) == len(expected_rows) == 5
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row.keys() == expected_row.keys()
        for name, text in expected_row.items():
            if name not in ("epoch", "step"):
                assert float(row[name]) == pytest.approx(float(text), abs=1e-6), name


@pytest.mark.parametrize(
    ("n", "size"),
    [
        pytest.param(1, 314, marks=pytest.mark.slow),
        pytest.param(2, 100, marks=pytest.mark.slow),
        (2, 314),
        (4, 157),
        pytest.param(4, 50, marks=pytest.mark.slow),
    ],
)
def test_many_processes_equal_one(n: int, size: int, tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    runs = ranks(n, [*FIT, *_batch(size)], together, odd_digits)
    expected = _alone(n * size, alone)
    _end(runs)
    _same(_left(together), expected)
    assert (together / RUN / "confusion.csv").read_text() == (alone / RUN / "confusion.csv").read_text()
    assert os.listdir(together / "runs/digits") == ["version_0"]
    assert all("val_acc: " not in run.text for run in runs[1:])


@pytest.mark.parametrize(
    "strategy", ["ddp_fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "ddp_spawn"))]
)
def test_processes_however_they_start(strategy: str, tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    flags = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", strategy]
    if strategy == "ddp_fork":
        run = Run([*FIT, *_batch(100), *flags], together, odd_digits)
        expected = _alone(200, alone)
        _end([run])
    else:
        (together / "start.py").write_text(START)  # which the other processes begin with, too
        command = [sys.executable, "start.py", *FIT, *_batch(100), *flags]
        done = subprocess.run(command, cwd=together, env=_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert noise(done.stderr) == []
        expected = _alone(200, alone)
    _same(_left(together), expected)
    assert (together / RUN / "confusion.csv").read_text() == (alone / RUN / "confusion.csv").read_text()


START = """
import sys
from cnn_lightning.cli import main
from tests.test_ddp import odd_digits
odd_digits()
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}


# ---- stopped, killed, and gone on with


class Event(Callback):
    """A signal that one of the processes gets at one step."""

    def __init__(self, number: int, step: int, rank: int) -> None:
        self.number, self.step, self.rank = number, step, rank

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            signal.raise_signal(self.number)


def _event(number: int, step: int, rank: int) -> list[str]:
    flags = {"number": number, "step": step, "rank": rank}
    return [
        "--trainer.callbacks+=tests.test_ddp.Event",
        *(f"--trainer.callbacks.{key}={value}" for key, value in flags.items()),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes leave that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    _end(ranks(2, [*FIT, *_batch(130)], folder, random_network))
    return result(folder)


def test_a_process_that_is_killed_stops_the_others_and_the_run_goes_on(tmp_path: Path, whole: dict[str, Any]) -> None:
    first, second = ranks(2, [*FIT, *_batch(130), *_event(signal.SIGKILL, 7, 1)], tmp_path, random_network)
    assert second.wait() == -signal.SIGKILL
    assert first.wait(60) == 2, first.text
    last = first.text.strip().splitlines()[-1]
    assert last.startswith("cnn-lightning: error: another process of this run has ended (")
    assert last.endswith("); to go on: cnn-lightning fit --config runs/digits/version_0/config.yaml --ckpt_path last")
    assert noise(first.text.replace("cnn-lightning: error:", "")) == []
    _end(ranks(2, [*FIT, *_batch(130), "--ckpt_path", "last"], tmp_path, random_network))
    assert differences(whole, result(tmp_path)) == []


def test_all_processes_stop_when_one_is_asked_to(tmp_path: Path, whole: dict[str, Any]) -> None:
    runs = ranks(2, [*FIT, *_batch(130), *_event(signal.SIGTERM, 6, 1)], tmp_path, random_network)
    _end(runs, 128 + signal.SIGTERM)
    assert "cnn-lightning: stopped after step 7; to go on: " in runs[0].text
    assert read_checkpoint(tmp_path / LAST)["global_step"] == 7
    _end(ranks(2, [*FIT, *_batch(130), "--ckpt_path", "last"], tmp_path, random_network))
    assert differences(whole, result(tmp_path)) == []


class Spoiled(Callback):
    """A picture of one process that is no number, at one step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, index: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (3, 1):
            batch[0][0, 0, 0, 0] = float("nan")


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_once(tmp_path: Path) -> None:
    runs = ranks(2, [*FIT, *_batch(130), "--trainer.callbacks+=tests.test_ddp.Spoiled"], tmp_path)
    _end(runs, 2)
    assert "step 3: expected a finite loss, got nan; first seen in the input\n" in runs[0].text
    assert "error" not in runs[1].text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_that_are_forked_stop_together(number: signal.Signals, tmp_path: Path) -> None:
    flags = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    run = Run([*FIT, *_batch(130), *flags, "--trainer.max_epochs", "500"], tmp_path, random_network)
    until((tmp_path / LAST).is_file)
    run.send(number)
    assert run.wait(60) == 128 + number, run.text
    last = run.text.strip().splitlines()[-1]
    assert last.startswith("cnn-lightning: stopped after step ")
    assert noise(run.text) == []
    assert read_checkpoint(tmp_path / LAST)["global_step"] == int(last.split("step ")[1].split(";")[0])


@pytest.mark.slow
def test_one_of_the_processes_that_are_forked_is_killed(tmp_path: Path) -> None:
    flags = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    run = Run([*FIT, *_batch(130), *flags, *_event(signal.SIGKILL, 7, 1)], tmp_path, random_network)
    assert run.wait(60) == 2, run.text
    assert run.text.strip().splitlines()[-1].startswith("cnn-lightning: error: another process of this run has ended (")
    assert noise(run.text.replace("cnn-lightning: error:", "")) == []


# ---- two nodes


@pytest.mark.slow
def test_two_nodes_equal_one_process(tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    (together / "start.py").write_text(START)
    flags = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "1"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{_free_port()}", "--local_addr", "127.0.0.1"),
        *("start.py", *FIT, *_batch(100), *flags, "--trainer.num_nodes", "2"),
    ]
    nodes = [
        subprocess.Popen(
            command, cwd=together, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    texts = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    assert sum("test_acc: " in text for text in texts) == 1
    assert os.listdir(together / "runs/digits") == ["version_0"]
    _same(_left(together), _alone(200, alone))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# ---- speed


class Clock(Callback):
    """Writes how many pictures a second this process trains on, from the fifth step on."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 5:
            self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        pictures = (trainer.global_step - 5) * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        rate = pictures / (time.perf_counter() - self.start)
        Path(f"rate-{trainer.global_rank}").write_text(str(rate))


def large(self: Digits) -> ImageSet:
    """Pictures of MNIST's size and number of classes: noise."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16384, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, 16384)
    few = Split(images[:64], labels[:64])
    return ImageSet(Split(images, labels), few, few, tuple("0123456789"), (0.5,), (0.3,))


def large_digits_on_one_core() -> None:
    Digits.read = large  # type: ignore[method-assign]
    Digits.image_size = 28
    os.environ["OMP_NUM_THREADS"] = "1"  # Lightning gives a single process all cores otherwise


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_train_on_more_pictures_a_second(tmp_path: Path) -> None:
    ratios = []
    for attempt in range(3):  # the best counts: other work on the machine takes from two processes first
        rates = []
        for n in (1, 2):
            folder = tmp_path / f"{attempt}-{n}"
            folder.mkdir()
            flags = ["--trainer.callbacks+=tests.test_ddp.Clock", "--trainer.precision", "32-true"]
            _end(ranks(n, [*FIT, *flags, *_batch(256)], folder, large_digits_on_one_core))
            rates.append(sum(float((folder / f"rate-{rank}").read_text()) for rank in range(n)))
        ratios.append(rates[1] / rates[0])
    assert max(ratios) >= 1.6, ratios
