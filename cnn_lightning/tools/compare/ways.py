"""Four ways to train the same network, and what one run of a way measures in its own process.

``python -m cnn_lightning.tools.compare.ways`` is that process. The module imports only the standard library until a way
is run, so that imports, memory and waiting time of the process are those of the way.
"""

import inspect
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

PACKAGE = Path(__file__).resolve().parents[2]
"""The folder of cnn_lightning."""

PLAIN_NUMPY, PLAIN_TORCH = "plain NumPy", "plain torch"
LIGHTNING_TORCH, LIGHTNING_NUMPY = "Lightning, torch layers", "Lightning, NumPy layers"
WAYS = (PLAIN_NUMPY, PLAIN_TORCH, LIGHTNING_TORCH, LIGHTNING_NUMPY)
PROGRAMS = {
    PLAIN_NUMPY: "cnn_lightning/plain/train_numpy.py",
    PLAIN_TORCH: "cnn_lightning/plain/train_torch.py",
    LIGHTNING_TORCH: "cnn_lightning/classifier/module.py",
    LIGHTNING_NUMPY: "cnn_lightning/classifier/module.py",
}
"""The main file of each way."""


@dataclass(frozen=True)
class Setting:
    """The training of all four ways, with Adam and from the same weights."""

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
    """One process: seconds to the end of its first step, seconds of each epoch, and its results.

    ``functions`` has, for each file of the package, the first lines of the functions that were called.
    """

    first_batch: float
    epochs: list[float]
    test_acc: float
    peak_bytes: int
    packages: list[str]
    functions: dict[str, list[int]]
    backward: str
    gpu: str


class _Witness:
    """Records when steps and epochs end and, with ``watch``, which of the package's functions are called."""

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
        # CO_OPTIMIZED leaves out the bodies of modules and classes, which run at import and are no part of the work.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            self.codes.add(frame.f_code)

    def epoch_begins(self) -> None:
        self._begin = time.perf_counter()

    def step_ends(self) -> None:
        self.first_batch = self.first_batch or time.time()

    def epoch_ends(self) -> None:
        self.epochs.append(time.perf_counter() - self._begin)

    def ours(self) -> dict[str, list[int]]:
        """The package's files whose functions were called, each with the first lines of those functions."""
        home, me = PACKAGE, Path(__file__).resolve()
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
            if trainer.is_last_batch:  # the validation after it is not part of the training
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
        # On Linux a new process starts with its parent's memory, which getrusage would count.
        return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_AT_START = frozenset(sys.modules)
"""The modules that the interpreter, or a development install, loads in every process."""


def _packages() -> list[str]:
    """The installed packages that modules were imported from, without this one."""
    from importlib.metadata import packages_distributions

    homes = packages_distributions()
    loaded = {name.partition(".")[0] for name in sys.modules if name not in _AT_START}
    loaded -= {name.partition(".")[0] for name in _AT_START}
    return sorted({home.lower() for name in loaded for home in homes.get(name, ())} - {"cnn-lightning"})


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
