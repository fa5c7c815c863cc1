"""Checkpoints to go on from: often enough, whole, and with every random state."""

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
NOT_STOPPED = EarlyStoppingReason.NOT_STOPPED.value


class Resumable(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` at most 500 steps or 60 seconds behind; each epoch's first step is saved, too.

    With each process's random states in it and the loader's place in the epoch, the run that goes on from it ends with
    the very weights of the run that was never stopped. Every checkpoint but the last is of a moment after an optimizer
    step, or of the validation that follows it, in the middle of an epoch, or between two epochs of a single step.
    A run that stops inside an epoch (``max_steps``, ``max_time``, early stopping between validations) keeps such a
    place, too: the epoch is not over, so that nothing is validated or logged that the whole epoch would not have.
    Being a `Checkpoint`, it comes after all other callbacks, whose states it keeps.

    SIGTERM and Ctrl-C are answered after the step or the validation at work: with a checkpoint, closed files and
    `Stopped`. Pressed twice, Ctrl-C stops at once. Under SLURM its requeue signals are left to Lightning.

    Args:
        folder: Of the checkpoints.
        every_n_steps: Optimizer steps between two checkpoints at most.
        every_seconds: Time between two checkpoints at most.
    """

    def __init__(self, folder: Path, every_n_steps: int = EVERY_N_STEPS, every_seconds: float = EVERY_SECONDS) -> None:
        self.folder, self.every_n_steps, self.every_seconds = folder, every_n_steps, every_seconds
        self._step, self._time, self._epoch = 0, time.monotonic(), -1
        self._seen, self._began, self._whole, self._is_there = 0, 0, False, False
        self._asked, self._process = 0, os.getpid()
        self._handlers: dict[int, Any] = {}
        self._states: list[dict[str, Any]] = []
        self._places: list[dict[str, Any]] = []
        self._everyone: list[Callback] = []
        self._number_wanting: Callable[[], Tensor] = no_sum

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / "last.ckpt"

    # ---- when

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finders would have had their turn: have them back."""
        everyone, self._everyone = self._everyone, []
        if everyone:
            trainer.callbacks = everyone  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the first process's folder: the others can't know its number."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        install(trainer, partial(self._after_epoch, trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the loader in its place, count from here, and listen; a run that was stopped early stays so."""
        places, self._places = self._places, []
        for place in places:
            # Lightning does so too, but not where a schedule asked for the number of steps: the loader is then made
            # before the checkpoint is read.
            loader: Any = trainer.train_dataloader
            loader.load_state_dict(place)
        self._step = self._seen = self._began = trainer.global_step
        self._time = time.monotonic()
        for callback in _callbacks(trainer):
            if isinstance(callback, EarlyStopping):
                trainer.should_stop |= callback.wait_count >= callback.patience
        trainer.accumulate_grad_batches = accumulated(trainer, trainer.current_epoch)  # this epoch's start may be past
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
        """Save when it is time to, or when the run is asked to stop; then stop."""
        # Gradients that still accumulate are not part of a checkpoint, nor are an epoch's means once it is over.
        self._whole, self._seen = trainer.global_step != self._seen, trainer.global_step
        self._whole &= not trainer.is_last_batch
        if self._whole and not _is_validation_next(trainer):
            self._save_or_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation in the middle of an epoch: one that is still to come would be left out."""
        if self._whole and trainer.state.fn == TrainerFn.FITTING:
            self._save_or_stop(trainer)

    def _after_epoch(self, trainer: Trainer) -> None:
        """Save between two epochs where an epoch is a single step and so has no middle."""
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
        """Save the finished run, unless it was finished in the checkpoint already or stopped inside an epoch."""
        if not self._is_there and not fit_loop(trainer).is_inside_an_epoch:
            self.save(trainer)
        self._stop_if_asked(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no longer."""
        self._deaf()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._deaf()

    def save(self, trainer: Trainer) -> None:
        """Write the rows of metrics and the checkpoint, in this order: none is missing when the run goes on."""
        self._step, self._time, self._epoch = trainer.global_step, time.monotonic(), trainer.current_epoch
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep a digest of the metrics so far, by which the run that goes on knows its file of them."""
        if trainer.is_global_zero and isinstance(trainer.logger, RunLogger):
            checkpoint["metrics"] = trainer.logger.digest(trainer.global_step)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a process that was forked from this one to read data goes on as long as this one does
        if self._asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number
        if is_first():
            with suppress(OSError, RuntimeError):  # the terminal may be closed, or this step just printing
                print("\nstopping after this step", file=sys.stderr, flush=True)

    def _deaf(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            # Where training went well Lightning has put back those of before its own, which ours replaced.
            if signal.getsignal(number) == self._ask:
                signal.signal(number, handler)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the loader's place in the epoch until there is a loader; let flags win, and a folder be moved."""
        loops = checkpoint["loops"]["fit_loop"]
        self._places = loops["state_dict"].get("combined_loader", [])[:1]
        if loops["epoch_loop.batch_progress"]["is_last_batch"]:
            for place in self._places:  # an epoch can be shorter than the loader: trainer.limit_train_batches
                place["handed_out"] = 0
        if trainer.ckpt_path is None:  # a finder's own, of the moment before training starts
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._everyone = _callbacks(trainer)
            place = self._places[0] if self._places else {}
            trainer.callbacks = without_finders(trainer, pl_module, checkpoint, place)  # type: ignore[attr-defined]
        loaded = Path(str(trainer.ckpt_path)).resolve()
        self._is_there = loaded == self.path.resolve()
        for callback in _callbacks(trainer):
            state = checkpoint["callbacks"].get(callback.state_key)
            if state and isinstance(callback, EarlyStopping):
                state["patience"] = callback.patience
                if state["wait_count"] < callback.patience:  # it stopped the run, and would not do so now
                    state.update(stopped_epoch=0, stopping_reason=NOT_STOPPED, stopping_reason_message=None)
            elif state and isinstance(callback, ModelCheckpoint):
                beside = loaded.parent.parent / Path(state["dirpath"]).name
                if isinstance(callback, BestModelCheckpoint):
                    _move(state, loaded.parent)
                elif beside.is_dir():  # one of one's own, whose files are in the run's folder
                    _move(state, beside)
        if trainer.state.fn == TrainerFn.TESTING:
            # A callback that is not done with its training yet (`WeightAveraging`) has put back the weights to go on
            # with: what is tested are the file's.
            trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)

    # ---- random states

    def state_dict(self) -> dict[str, Any]:
        """Torch's, Python's and NumPy's, of every process: all of them take part."""
        return {"random": from_all(self._own_states())}

    @staticmethod
    def _own_states() -> dict[str, Any]:
        version, numbers, gauss = random.getstate()
        state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 -- users may draw from it
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": (version, numbers, gauss),
            "numpy": (state[0], torch.from_numpy(state[1].astype(np.int64)), *state[2:]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until training starts: what comes before it may draw. Those that can't be put back fail here."""
        own = self._own_states()
        try:
            for states in state_dict["random"]:
                self._put_back(states)
        finally:
            self._put_back(own)
        self._states = state_dict["random"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask the other processes for their wishes, and put the random states back before a resumed run's first."""
        self._is_there = False
        # They save and stop together or not at all. The answer is there when the batch is done.
        self._number_wanting = sum_of_all(self._wants(), trainer.strategy.root_device)
        everybodys, self._states = self._states, []
        if not everybodys:
            return
        self._put_back(everybodys[trainer.global_rank % len(everybodys)])

    @staticmethod
    def _put_back(states: dict[str, Any]) -> None:
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
    """Let the state of a `ModelCheckpoint` name the folder where its files are now, and no other."""
    state["dirpath"] = str(folder)
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = state[key] and str(folder / Path(state[key]).name)
    state["best_k_models"] = {str(folder / Path(path).name): score for path, score in state["best_k_models"].items()}
