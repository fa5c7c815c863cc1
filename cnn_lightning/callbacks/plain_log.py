"""Lines of a training for a log: one an epoch, written at once, where the output is a file or a pipe."""

import math
import time
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.trainer.states import TrainerFn

from cnn_lightning.processes import from_all

SECONDS = 600.0
"""An epoch that takes longer than this has a line for every such time."""


class PlainLog(ProgressBar):
    """Stands in for a progress bar: prints a line after each epoch of ``fit``, in the first process.

    A line has the epoch, loss and accuracy of training and, if there was one in this epoch, of validation, the
    learning rate, the pictures of all processes that were trained in a second, and the time that is left. Time of
    validation and pictures that a resumed run skips don't count for the pictures in a second.

    The first process alone may have this class in place of a bar, because its output alone is a pipe. So it tells all
    processes in `setup` whether they count their pictures together.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prints, self._enabled = False, True
        self._pictures, self._seconds = 0, 0.0
        self._since: float | None = None
        self._validated = False
        self._begin = self._last_line = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Print nothing, while Lightning tries learning rates or sizes of batches."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the first process's answer. A collective call."""
        super().setup(trainer, pl_module, stage)
        self._prints = announce(trainer, True)

    # ---- time of training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; a run that goes on inside an epoch has no beginning of that epoch."""
        self._begin = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        self._begin_epoch()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from 0."""
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._pictures, self._seconds, self._validated = 0, 0.0, False
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the pictures; after a long time without a line, print one."""
        self._pictures += len(batch[1])
        if time.monotonic() - self._last_line > SECONDS:
            self._print(trainer, [*_place(trainer), *self._left(trainer)])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated = True
            self._since = time.monotonic()

    def _pause(self, trainer: Trainer) -> None:
        if self._since is not None:
            if trainer.strategy.root_device.type != "cpu":  # once an epoch: its last steps may still be computed
                torch.accelerator.synchronize(trainer.strategy.root_device)
            self._seconds += time.monotonic() - self._since
            self._since = None

    # ---- lines

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch."""
        self._pause(trainer)
        if not self._prints:
            return
        metrics = trainer.callback_metrics  # a collective call
        words = []
        for stage in ("train", "val"):
            if stage == "train" or self._validated:
                for metric in (f"{stage}_loss", f"{stage}_acc"):
                    words += [f"{metric} {float(metrics[metric]):.4f}"] if metric in metrics else []
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        words += [f"lr {rates[0]:.2e}"] if rates else []
        self._print(trainer, [*words, *self._speed(), *self._left(trainer)])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where a run ends that ends inside an epoch."""
        self._pause(trainer)
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if self._prints and epochs.ready != epochs.completed and self._pictures:
            self._print(trainer, ["stopped", *_place(trainer), *self._speed()])

    def _print(self, trainer: Trainer, words: list[str]) -> None:
        self._last_line = time.monotonic()
        if self._prints and self._enabled and trainer.is_global_zero:
            last = trainer.max_epochs
            number = str(trainer.current_epoch + 1)
            of_all = f"{number:>{len(str(last))}}/{last}" if last is not None and last > 0 else number
            print("  ".join([f"epoch {of_all}", *words]), flush=True)

    def _speed(self) -> list[str]:
        """The pictures of all processes in a second. A collective call."""
        pictures = sum(from_all(self._pictures))
        return [f"{pictures / self._seconds:,.0f} pictures/s"] if self._seconds > 0 else []

    def _left(self, trainer: Trainer) -> list[str]:
        """The time until the last step at the speed so far, and at most that of ``max_time``."""
        steps, done = trainer.estimated_stepping_batches, trainer.global_step - self._first_step
        times = []
        if done > 0 and 0 < steps < math.inf:
            elapsed = time.monotonic() - self._begin
            times.append(elapsed / done * max(0, steps - trainer.global_step))
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        times += [max(0.0, left) for left in (timer.time_remaining() for timer in timers) if left is not None]
        return [f"{timedelta(seconds=round(min(times)))} left"] if times else []


def announce(trainer: Trainer, prints: bool) -> bool:
    """Whether the first process prints lines. A collective call, which a bar in its place has to make, too."""
    return bool(trainer.strategy.broadcast(prints))


def _place(trainer: Trainer) -> list[str]:
    """Where in an epoch a run is."""
    batches = trainer.num_training_batches
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    of_all = f" of {batches:,}" if batches < math.inf else ""
    return [f"batch {progress.processed:,}{of_all}", f"step {trainer.global_step:,}"]
