"""Lightning's training loops, except that a stop inside an epoch does not end the epoch.

Where ``max_steps`` is reached or a callback sets ``should_stop``, Lightning's own loops count the epoch as over: they
validate, log its means and move on to the next number, although the rest of its batches was never seen. A run that
goes on from there can't be the run that was never stopped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector


class EpochLoop(_TrainingEpochLoop):
    """The batches of an epoch."""

    @property
    def done(self) -> bool:
        """Whether no batch follows; a wish to stop waits for the optimizer step that takes in the gradients so far."""
        if self.batch_progress.current.ready and self._should_accumulate():
            with _without_wish_to_stop(self.trainer):
                return super().done
        return super().done

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        """Validate where the undisturbed run does, and not because the run stops."""
        with _without_wish_to_stop(self.trainer):
            return super()._should_check_val_fx(data_fetcher)


class FitLoop(_FitLoop):
    """The epochs of a run; calls ``after_epoch`` when one is over, counted and logged."""

    after_epoch: Callable[[], None]

    @property
    def restarting(self) -> bool:
        """Whether the first epoch to come is one that the checkpoint is inside."""
        return self._restarting

    @restarting.setter
    def restarting(self, restarting: bool) -> None:
        """Look at the checkpoint alone; Lightning's own loop takes any checkpoint for one if max_steps is given."""
        count: Any = self.epoch_progress.current
        inside = count.ready != count.processed or count.started != count.processed
        self._restarting = self.epoch_loop.restarting = restarting and inside

    @property
    def is_stopped(self) -> bool:
        """Whether the run ends with the batch at work, whatever is left of the epoch."""
        wished = self.trainer.should_stop and self._can_stop_early
        return wished or _is_max_limit_reached(self.epoch_loop.global_step, self.max_steps)

    @property
    def is_inside_an_epoch(self) -> bool:
        """Whether an epoch was begun and is not over."""
        return self.epoch_progress.current.ready != self.epoch_progress.current.completed

    def on_advance_end(self) -> None:
        """End the epoch, unless the run was stopped inside it."""
        if not self.is_stopped or self.epoch_loop._num_ready_batches_reached():
            super().on_advance_end()
            self.after_epoch()


class LoggerConnector(_LoggerConnector):
    """What decides whether a step's numbers are logged."""

    @property
    def should_update_logs(self) -> bool:
        """Log every so many steps, and not the last one because the run stops."""
        with _without_wish_to_stop(self.trainer):
            return super().should_update_logs


def install(trainer: Trainer, after_epoch: Callable[[], None]) -> None:
    """Give a Trainer these loops, with the state that its own are in."""
    loop: Any = trainer.fit_loop
    loop.__class__, loop.epoch_loop.__class__ = FitLoop, EpochLoop
    loop.after_epoch = after_epoch
    trainer._logger_connector.__class__ = LoggerConnector


def fit_loop(trainer: Trainer) -> FitLoop:
    """The loop that was installed."""
    assert isinstance(trainer.fit_loop, FitLoop)
    return trainer.fit_loop


@contextmanager
def _without_wish_to_stop(trainer: Trainer) -> Iterator[None]:
    wished, trainer.should_stop = trainer.should_stop, False
    try:
        yield
    finally:
        trainer.should_stop |= wished
