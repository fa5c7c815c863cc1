"""Lightning's training loops, except that a stop inside an epoch does not end the epoch.

When ``max_steps`` is reached or a callback sets ``should_stop``, Lightning's own loops count the epoch as finished:
they validate, log its means and increase its number, although its last batches were not used. A run that is resumed
from there differs from one that was never stopped.
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
    """The loop over the batches of an epoch."""

    @property
    def done(self) -> bool:
        """Whether no batch follows; a stop waits for the optimizer step that uses the gradients accumulated so far."""
        if self.batch_progress.current.ready and self._should_accumulate():
            with _without_stop(self.trainer):
                return super().done
        return super().done

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        """Validate after the same batches as a run that is not stopped."""
        with _without_stop(self.trainer):
            return super()._should_check_val_fx(data_fetcher)


class FitLoop(_FitLoop):
    """The loop over the epochs of a run; calls ``after_epoch`` when an epoch is finished, counted and logged."""

    after_epoch: Callable[[], None]

    @property
    def restarting(self) -> bool:
        """Whether the checkpoint is inside the first epoch to come."""
        return self._restarting

    @restarting.setter
    def restarting(self, restarting: bool) -> None:
        """Decide by the checkpoint alone; with max_steps Lightning's own loop takes each one as inside an epoch."""
        count: Any = self.epoch_progress.current
        inside = count.ready != count.processed or count.started != count.processed
        self._restarting = self.epoch_loop.restarting = restarting and inside

    @property
    def is_stopped(self) -> bool:
        """Whether the run ends after the current batch, even inside an epoch."""
        asked = self.trainer.should_stop and self._can_stop_early
        return asked or _is_max_limit_reached(self.epoch_loop.global_step, self.max_steps)

    @property
    def is_inside_an_epoch(self) -> bool:
        """Whether an epoch has begun and is not finished."""
        return self.epoch_progress.current.ready != self.epoch_progress.current.completed

    def on_advance_end(self) -> None:
        """Finish the epoch, unless the run was stopped inside it."""
        if not self.is_stopped or self.epoch_loop._num_ready_batches_reached():
            super().on_advance_end()
            self.after_epoch()


class LoggerConnector(_LoggerConnector):
    """Decides whether the numbers of a step are logged."""

    @property
    def should_update_logs(self) -> bool:
        """Log after every ``log_every_n_steps`` steps, and not also because the run stops."""
        with _without_stop(self.trainer):
            return super().should_update_logs


def install(trainer: Trainer, after_epoch: Callable[[], None]) -> None:
    """Replace the loops of a Trainer by these, which keep the state."""
    loop: Any = trainer.fit_loop
    loop.__class__, loop.epoch_loop.__class__ = FitLoop, EpochLoop
    loop.after_epoch = after_epoch
    trainer._logger_connector.__class__ = LoggerConnector


def fit_loop(trainer: Trainer) -> FitLoop:
    """The loop of a Trainer after `install`."""
    assert isinstance(trainer.fit_loop, FitLoop)
    return trainer.fit_loop


@contextmanager
def _without_stop(trainer: Trainer) -> Iterator[None]:
    stops, trainer.should_stop = trainer.should_stop, False
    try:
        yield
    finally:
        trainer.should_stop |= stops
