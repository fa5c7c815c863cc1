"""Runs every way several times, in turns, each run in its own process; and the medians of the runs."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cnn_lightning.tools.compare.lines import count_lines
from cnn_lightning.tools.compare.ways import PACKAGE, PLAIN_NUMPY, WAYS, Run, Setting

Tick = Callable[[str, int, int], None]
"""Called with what runs next, the number of runs done, and the number of all runs."""


@dataclass
class Measured:
    """The runs of one way, its lines of code by file, and the result of the attempt to use a GPU.

    ``lines`` counts whole files, ``called`` only the functions in them that were called.
    """

    runs: list[Run] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    called: dict[str, int] = field(default_factory=dict)
    gpu: str = ""

    @property
    def epoch(self) -> float:
        """Seconds of an epoch: the median over all but each run's first."""
        return statistics.median(second for run in self.runs for second in run.epochs[1:] or run.epochs)

    @property
    def first_batch(self) -> float:
        """Seconds from the start of the process to the end of the first step, the median of the runs."""
        return statistics.median(run.first_batch for run in self.runs)

    @property
    def peak_bytes(self) -> float:
        """The peak memory of the process, the median of the runs."""
        return statistics.median(run.peak_bytes for run in self.runs)

    def ratio(self, other: "Measured") -> float:
        """The time of an epoch divided by the other's: the median over the runs that took turns."""
        return statistics.median(
            statistics.median(a.epochs[1:] or a.epochs) / statistics.median(b.epochs[1:] or b.epochs)
            for a, b in zip(self.runs, other.runs, strict=True)
        )


class RunError(RuntimeError):
    """A process ended before it measured anything; the message is its last line."""


def measure(setting: Setting, rounds: int, tick: Tick | None = None, ways: Sequence[str] = WAYS) -> dict[str, Measured]:
    """Run every way ``rounds`` times, in turns; then once to see which functions are called, and once on the GPU.

    Raises:
        RunError: A way can't be run.
    """
    found = {way: Measured() for way in ways}
    total, done = len(ways) * (rounds + 2), 0

    def next_run(way: str, what: str) -> None:
        nonlocal done
        if tick:
            tick(f"{way}: {what}", done, total)
        done += 1

    with tempfile.TemporaryDirectory() as folder:
        setting = replace(setting, weights=str(Path(folder) / "init.npz"))
        _spawn("", setting)
        for index in range(rounds):
            for way in ways:
                next_run(way, f"run {index + 1}")
                found[way].runs.append(_spawn(way, setting))
        for way in ways:
            next_run(way, "lines of code")
            functions = _spawn(way, replace(setting, epochs=1, watch=True)).functions
            for name, starts in functions.items():
                path = PACKAGE.parent / name
                found[way].lines[name], found[way].called[name] = count_lines(path), count_lines(path, starts)
            next_run(way, "GPU")
            found[way].gpu = _try_gpu(way, replace(setting, epochs=2, device="cuda"))
    return found


def _try_gpu(way: str, setting: Setting) -> str:
    try:
        run = _spawn(way, setting)
    except RunError as error:
        if way == PLAIN_NUMPY:
            return "no"  # NumPy refuses a GPU on any machine
        return f"no: {error}" if _sees_gpu() else "not tried: this machine has none"
    return f"yes, {run.epochs[-1]:.3g} s per epoch{run.gpu}"


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _spawn(way: str, setting: Setting) -> Run:
    """Run a way in its own process; the empty way only writes the first weights."""
    text = json.dumps({"way": way, "setting": asdict(setting), "start": time.time()})
    n = str(setting.threads)
    threads = {"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "MKL_NUM_THREADS": n, "CNN_LIGHTNING_NUM_THREADS": n}
    done = subprocess.run(
        [sys.executable, "-m", "cnn_lightning.tools.compare.ways", text],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **threads},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(lines[-1])
    return Run(**json.loads(done.stdout.splitlines()[-1])) if way else Run(0, [], 0, 0, [], {}, "", "")
