"""Four ways to train the same network, each measured in a process of its own.

The module loads nothing but the standard library until a way is run (``python -m cnn_lightning.tools.compare.ways``),
so that what a process imports, remembers and waits for is the way's own doing.
"""

import ast
import inspect
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

PLAIN_NUMPY, PLAIN_TORCH = "plain NumPy", "plain torch"
LIGHTNING_TORCH, LIGHTNING_NUMPY = "Lightning, torch layers", "Lightning, NumPy layers"
WAYS = (PLAIN_NUMPY, PLAIN_TORCH, LIGHTNING_TORCH, LIGHTNING_NUMPY)
PROGRAMS = {
    PLAIN_NUMPY: "cnn_lightning/plain/train_numpy.py",
    PLAIN_TORCH: "cnn_lightning/plain/train_torch.py",
    LIGHTNING_TORCH: "cnn_lightning/classifier/module.py",
    LIGHTNING_NUMPY: "cnn_lightning/classifier/module.py",
}
"""The file of each way that one would read first."""

Tick = Callable[[str, int, int], None]
"""Told what runs next, how many runs are done, and how many there are."""


@dataclass(frozen=True)
class Setting:
    """What all four train, with Adam and from the same weights."""

    data: str = "digits"
    root: str = "data"
    epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0
    threads: int = 1
    weights: str = ""
    device: str = "cpu"
    watch: bool = False


@dataclass
class Run:
    """One process: when its first step was done, how long each epoch took, and what it left behind.

    ``functions`` has, for each of the package's files, the first lines of those functions that were called.
    """

    first_batch: float
    epochs: list[float]
    test_acc: float
    peak_bytes: int
    packages: list[str]
    functions: dict[str, list[int]]
    backward: str
    gpu: str


@dataclass
class Measured:
    """The runs of one way, its lines of code by file, and what became of the attempt to use a GPU.

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
        """The most memory that the process had, the median of the runs."""
        return statistics.median(run.peak_bytes for run in self.runs)

    def ratio(self, other: "Measured") -> float:
        """How many times an epoch of the other: the median over the runs that took turns."""
        return statistics.median(
            statistics.median(a.epochs[1:] or a.epochs) / statistics.median(b.epochs[1:] or b.epochs)
            for a, b in zip(self.runs, other.runs, strict=True)
        )


class RunError(RuntimeError):
    """A process ended before it had measured anything; the message is its last line."""


def measure(setting: Setting, rounds: int, tick: Tick | None = None, ways: Sequence[str] = WAYS) -> dict[str, Measured]:
    """Every way ``rounds`` times, taking turns; then once to see which functions work, and once on the GPU.

    Raises:
        RunError: A way that can't be run.
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
                path = _package().parent / name
                found[way].lines[name], found[way].called[name] = count_lines(path), count_lines(path, starts)
            next_run(way, "GPU")
            found[way].gpu = _try_gpu(way, replace(setting, epochs=2, device="cuda"))
    return found


def _try_gpu(way: str, setting: Setting) -> str:
    try:
        run = _spawn(way, setting)
    except RunError as error:
        if way == PLAIN_NUMPY:
            return "no"  # its refusal is about NumPy, whatever the machine has
        return f"no: {error}" if _sees_gpu() else "not tried: this machine has none"
    return f"yes, {run.epochs[-1]:.3g} s per epoch{run.gpu}"


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _spawn(way: str, setting: Setting) -> Run:
    """Run a way in a process of its own; the empty way only writes the first weights."""
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


# ---- inside the process


class _Witness:
    """Notes when steps and epochs end and, if asked to, which of the package's functions work."""

    def __init__(self, watch: bool) -> None:
        self.watch = watch
        self.first_batch = 0.0
        self.epochs: list[float] = []
        self.codes: set[CodeType] = set()
        self._begin = 0.0

    def __enter__(self) -> None:
        if self.watch:
            threading.setprofile(self._note)
            sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        # Only functions have optimized code: what a module or a class runs while it is imported is not its work.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            self.codes.add(frame.f_code)

    def epoch_begins(self) -> None:
        self._begin = time.perf_counter()

    def step_ends(self) -> None:
        self.first_batch = self.first_batch or time.time()

    def epoch_ends(self) -> None:
        self.epochs.append(time.perf_counter() - self._begin)

    def ours(self) -> dict[str, list[int]]:
        """The package's files of which functions were called, and the first lines of those."""
        home, me = _package(), Path(__file__).resolve()
        found: dict[str, list[int]] = {}
        for code in self.codes:
            path = Path(code.co_filename).resolve()
            if path.is_relative_to(home) and path != me:
                found.setdefault(str(path.relative_to(home.parent)), []).append(code.co_firstlineno)
        return {name: sorted(found[name]) for name in sorted(found)}


def _run(way: str, setting: Setting, start: float) -> Run:
    witness = _Witness(setting.watch)
    run = _plain if way in (PLAIN_NUMPY, PLAIN_TORCH) else _lightning
    test_acc, backward, gpu = run(way, setting, witness)
    return Run(
        first_batch=witness.first_batch - start,
        epochs=witness.epochs,
        test_acc=test_acc,
        peak_bytes=_peak_bytes(),
        packages=_packages(),
        functions=witness.ours(),
        backward=backward,
        gpu=gpu,
    )


def _plain(way: str, setting: Setting, witness: _Witness) -> tuple[float, str, str]:
    from cnn_lightning.plain import images

    program = import_module(f"cnn_lightning.plain.train_{'numpy' if way == PLAIN_NUMPY else 'torch'}")
    batches = images.Batches.__iter__

    def timed(self: images.Batches) -> Iterator[images.Pictures]:
        witness.epoch_begins()
        for index, batch in enumerate(batches(self)):
            if index == 1:
                witness.step_ends()
            yield batch
        witness.step_ends()
        witness.epoch_ends()

    options = {name: getattr(setting, name) for name in ("root", "epochs", "batch_size", "lr", "seed", "weights")}
    args = [f"--data={setting.data.lower()}", f"--device={setting.device}"]
    args += [f"--{name}={value}" for name, value in options.items()]
    screen = io.StringIO()
    with patch.object(images.Batches, "__iter__", timed), redirect_stdout(screen), witness:
        program.train(args)
    accuracy = float(screen.getvalue().rpartition("test_acc: ")[2])
    return accuracy, "manual" if hasattr(program.SimpleCNN, "backward") else "automatic", ""


def _lightning(way: str, setting: Setting, witness: _Witness) -> tuple[float, str, str]:
    import numpy as np
    import torch
    from lightning.pytorch import Callback, Trainer

    from cnn_lightning.classifier import Classifier
    from cnn_lightning.data import MNIST, Digits
    from cnn_lightning.data.base import InMemory

    class Times(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            witness.epoch_begins()

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            witness.step_ends()
            if trainer.is_last_batch:  # the validation that follows is none of the epoch's training
                witness.epoch_ends()

    data: InMemory = Digits() if setting.data == "digits" else MNIST(setting.root)
    data.batch_size, data.seed, data.augment = setting.batch_size, setting.seed, False
    model = Classifier(
        layers="numpy" if way == LIGHTNING_NUMPY else "torch",
        image_size=data.image_size,
        optimizer="adam",
        lr=setting.lr,
        weight_decay=0.0,
        schedule="none",
    )
    model.net.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(setting.weights).items()})
    trainer = Trainer(
        max_epochs=setting.epochs,
        accelerator="gpu" if setting.device == "cuda" else "cpu",
        devices=1,
        callbacks=[Times()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with witness:
        trainer.fit(model, data)
        (found,) = trainer.test(model, data, verbose=False)
    backward = "manual, called by autograd" if model.report.swapped else "automatic"
    return found["test_acc"], backward, _where_numpy_ran() if model.report.swapped else ""


def _where_numpy_ran() -> str:
    from cnn_lightning.layers.bridge import cuda

    return " (CuPy)" if cuda.available() else " (NumPy on the host)"


def _write_weights(setting: Setting) -> None:
    from cnn_lightning.plain import images, train_numpy, weights

    data = images.read(setting.data, setting.root, "float32")
    model = train_numpy.SimpleCNN(data.in_channels, data.image_size, data.num_classes, setting.seed)
    weights.save(Path(setting.weights), model.state_dict())


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count the parent's memory too, which a new process on Linux starts with.
        return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_AT_START = frozenset(sys.modules)
"""What the interpreter itself, or a development install, loads in any process."""


def _packages() -> list[str]:
    """The installed packages that anything was imported from, other than this one."""
    from importlib.metadata import packages_distributions

    homes = packages_distributions()
    loaded = {name.partition(".")[0] for name in sys.modules if name not in _AT_START}
    loaded -= {name.partition(".")[0] for name in _AT_START}
    return sorted({home.lower() for name in loaded for home in homes.get(name, ())} - {"cnn-lightning"})


# ---- lines of code


def count_lines(path: Path, functions: Collection[int] | None = None) -> int:
    """Lines of a Python file with code on them: no blank lines, comments or docstrings.

    Args:
        path: The file.
        functions: Only lines of the functions that begin on these lines, with their decorators.
    """
    source = path.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    if functions is not None:
        lines &= {line for first, last in _functions(tree) if first in functions for line in range(first, last + 1)}
    return len(lines)


def _functions(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """The first and last line of each function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield first, node.end_lineno or first


def _package() -> Path:
    return Path(__file__).resolve().parents[2]


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    wanted = Setting(**order["setting"])
    try:
        if order["way"]:
            print(json.dumps(asdict(_run(order["way"], wanted, order["start"]))))
        else:
            _write_weights(wanted)
    except Exception as error:
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
