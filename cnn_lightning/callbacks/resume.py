"""Checkpoints to resume from, with every random state, written often and when a signal stops the training."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cnn_lightning.callbacks.best import BestModelCheckpoint
from cnn_lightning.callbacks.finders import without_finders
from cnn_lightning.callbacks.loops import fit_loop, install
from cnn_lightning.callbacks.metrics import RunLogger
from cnn_lightning.checkpoints import how_to_resume
from cnn_lightning.classifier.schedule import accumulated
from cnn_lightning.errors import Stopped, UserError
from cnn_lightning.processes import from_all, is_first, no_sum, sum_of_all
from cnn_lightning.signals import stop_signals

EVERY_N_STEPS = 500
EVERY_SECONDS = 60.0
"""The most steps, and the most time, between two checkpoints."""
NOT_STOPPED = EarlyStoppingReason.NOT_STOPPED.value


class Resumable(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after the first step of each epoch, and every 500 steps or 60 seconds.

    A checkpoint has each process's random states and the loader's position in the epoch, so that a run that is resumed
    from it ends with exactly the weights of a run that was never stopped. Every checkpoint but the last is made inside
    an epoch, after an optimizer step or after the validation that follows it, or between two epochs of one step each.
    So is the last checkpoint of a run that stops inside an epoch (``max_steps``, ``max_time``, early stopping between
    validations): the epoch is not finished, and nothing is validated or logged that a whole epoch would not validate
    or log. As a `Checkpoint` it comes after all other callbacks, whose states it saves.

    SIGTERM, Ctrl-C and a closed terminal stop the training after the current step or validation, with a checkpoint,
    closed files and `Stopped`. A second Ctrl-C stops it at once. Under SLURM Lightning handles the requeue signals.

    Args:
        folder: The folder of the checkpoints.
        every_n_steps: The most optimizer steps between two checkpoints.
        every_seconds: The most seconds between two checkpoints.
    """

    def __init__(self, folder: Path, every_n_steps: int = EVERY_N_STEPS, every_seconds: float = EVERY_SECONDS) -> None:
        self.folder, self.every_n_steps, self.every_seconds = folder, every_n_steps, every_seconds
        self._step, self._time, self._epoch = 0, time.monotonic(), -1
        self._seen, self._began, self._whole, self._is_there = 0, 0, False, False
        self._asked, self._process = 0, os.getpid()
        self._handlers: dict[int, Any] = {}
        self._states: list[dict[str, Any]] = []
        self._places: list[dict[str, Any]] = []
        self._with_finders: list[Callback] = []
        self._number_wanting: Callable[[], Tensor] = no_sum

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self.folder / "last.ckpt"

    # ---- when to save and to stop

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back the finders, which would have run by now."""
        found, self._with_finders = self._with_finders, []
        if found:
            trainer.callbacks = found  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the first process's folder: the others do not know its number."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        install(trainer, partial(self._after_epoch, trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the loader's position and install the signal handlers; a run that stopped early stays stopped."""
        places, self._places = self._places, []
        for place in places:
            # Lightning does so only if no schedule asked for the number of steps, which makes the loader before the
            # checkpoint is read.
            loader: Any = trainer.train_dataloader
            loader.load_state_dict(place)
        self._step = self._seen = self._began = trainer.global_step
        self._time = time.monotonic()
        for callback in _callbacks(trainer):
            if isinstance(callback, EarlyStopping):
                trainer.should_stop |= callback.wait_count >= callback.patience
        # Lightning sets it when an epoch begins, which may have been before the checkpoint.
        trainer.accumulate_grad_batches = accumulated(trainer, trainer.current_epoch)
        self._check_limit(trainer)
        environment = trainer._accelerator_connector.cluster_environment
        if threading.current_thread() is threading.main_thread() and not isinstance(environment, SLURMEnvironment):
            self._handlers = {number: signal.signal(number, self._ask) for number in stop_signals()}

    def _check_limit(self, trainer: Trainer) -> None:
        loop = fit_loop(trainer)
        had = loop.epoch_loop.batch_progress.current.ready
        if loop.restarting and had >= trainer.num_training_batches and not trainer.is_last_batch:
            raise UserError(
                f"trainer.limit_train_batches: expected more than the {had} batches that the checkpoint has of its "
                f"epoch, got {trainer.num_training_batches}"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due, or if the run is asked to stop; then stop."""
        # A checkpoint has no accumulated gradients, and no means of an epoch that has ended.
        self._whole, self._seen = trainer.global_step != self._seen, trainer.global_step
        self._whole &= not trainer.is_last_batch
        if self._whole and not _is_validation_next(trainer):
            self._save_or_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation inside an epoch: a checkpoint before it would make the resumed run skip it."""
        if self._whole and trainer.state.fn == TrainerFn.FITTING:
            self._save_or_stop(trainer)

    def _after_epoch(self, trainer: Trainer) -> None:
        """Save between two epochs of a single step, which have no point inside."""
        began, self._began = self._began, trainer.global_step
        if self._step <= began and not fit_loop(trainer).is_stopped and trainer.current_epoch != trainer.max_epochs:
            self._save_or_stop(trainer)

    def _save_or_stop(self, trainer: Trainer) -> None:
        due = trainer.global_step - self._step >= self.every_n_steps or trainer.current_epoch != self._epoch
        due |= fit_loop(trainer).is_stopped
        if due or (self._wants() if trainer.world_size == 1 else self._number_wanting()):
            self.save(trainer)
            self._stop_if_asked(trainer)

    def _wants(self) -> bool:
        return bool(self._asked) or time.monotonic() - self._time >= self.every_seconds

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if sum_of_all(bool(self._asked), trainer.strategy.root_device)():
            text = f"stopped after step {trainer.global_step}; {how_to_resume(self.folder.parent)}"
            raise Stopped(self._asked or signal.SIGTERM, text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished run, unless the checkpoint has it already or the run stopped inside an epoch."""
        if not self._is_there and not fit_loop(trainer).is_inside_an_epoch:
            self.save(trainer)
        self._stop_if_asked(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def save(self, trainer: Trainer) -> None:
        """Write the rows of metrics, then the checkpoint: a resumed run lacks no row."""
        self._step, self._time, self._epoch = trainer.global_step, time.monotonic(), trainer.current_epoch
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add a digest of the metrics so far, by which a resumed run checks its file of them."""
        if trainer.is_global_zero and isinstance(trainer.logger, RunLogger):
            checkpoint["metrics"] = trainer.logger.digest(trainer.global_step)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker, forked from this process: it must work until this process ends
        if self._asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number
        if is_first():
            with suppress(OSError, RuntimeError):  # the terminal may be closed, or the step inside print
                print("\nstopping after this step", file=sys.stderr, flush=True)

    def _restore_handlers(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            # After a training without an error Lightning has restored the handlers from before its own.
            if signal.getsignal(number) == self._ask:
                signal.signal(number, handler)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the loader's position until there is a loader; apply this run's options; allow a moved folder."""
        loops = checkpoint["loops"]["fit_loop"]
        self._places = loops["state_dict"].get("combined_loader", [])[:1]
        if loops["epoch_loop.batch_progress"]["is_last_batch"]:
            for place in self._places:  # trainer.limit_train_batches can end an epoch before the loader's end
                place["handed_out"] = 0
        if trainer.ckpt_path is None:  # the checkpoint of a finder, from before the training
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._with_finders = _callbacks(trainer)
            place = self._places[0] if self._places else {}
            trainer.callbacks = without_finders(trainer, pl_module, checkpoint, place)  # type: ignore[attr-defined]
        loaded = Path(str(trainer.ckpt_path)).resolve()
        self._is_there = loaded == self.path.resolve()
        for callback in _callbacks(trainer):
            state = checkpoint["callbacks"].get(callback.state_key)
            if state and isinstance(callback, EarlyStopping):
                state["patience"] = callback.patience
                if state["wait_count"] < callback.patience:  # it stopped the run then, and would not stop it now
                    state.update(stopped_epoch=0, stopping_reason=NOT_STOPPED, stopping_reason_message=None)
            elif state and isinstance(callback, ModelCheckpoint):
                beside = loaded.parent.parent / Path(state["dirpath"]).name
                if isinstance(callback, BestModelCheckpoint):
                    _move(state, loaded.parent)
                elif beside.is_dir():  # a callback of the user's, with files in the run's folder
                    _move(state, beside)
        if trainer.state.fn == TrainerFn.TESTING:
            # A callback whose training is not finished (`WeightAveraging`) has put back the weights of the training:
            # the test needs the file's.
            trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)

    # ---- random states

    def state_dict(self) -> dict[str, Any]:
        """The states of torch, Python and NumPy, of every process. A collective call."""
        return {"random": from_all(self._own_states())}

    @staticmethod
    def _own_states() -> dict[str, Any]:
        version, numbers, gauss = random.getstate()
        state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 -- user code may draw from it
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": (version, numbers, gauss),
            "numpy": (state[0], torch.from_numpy(state[1].astype(np.int64)), *state[2:]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, since code before it may draw; fail here if they can't be set."""
        own = self._own_states()
        try:
            for states in state_dict["random"]:
                self._set_states(states)
        finally:
            self._set_states(own)
        self._states = state_dict["random"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to ask all processes whether to save, and set the random states before a resumed run's first batch."""
        self._is_there = False
        # All save and stop together, or none. The answer has arrived when the batch is finished.
        self._number_wanting = sum_of_all(self._wants(), trainer.strategy.root_device)
        of_all, self._states = self._states, []
        if of_all:
            self._set_states(of_all[trainer.global_rank % len(of_all)])

    @staticmethod
    def _set_states(states: dict[str, Any]) -> None:
        torch.set_rng_state(states["torch"].cpu())
        if len(states["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, place, has_gauss, cached = states["numpy"]
        np.random.set_state(  # noqa: NPY002
            (name, keys.numpy().astype(np.uint32), place, has_gauss, cached)
        )


def _callbacks(trainer: Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _is_validation_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _move(state: dict[str, Any], folder: Path) -> None:
    """Set the folder in the state of a `ModelCheckpoint`, and in all its paths."""
    state["dirpath"] = str(folder)
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = state[key] and str(folder / Path(state[key]).name)
    state["best_k_models"] = {str(folder / Path(path).name): score for path, score in state["best_k_models"].items()}
