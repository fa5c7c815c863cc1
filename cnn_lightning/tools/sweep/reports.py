"""What a trial tells the sweep after each validation, and how it is stopped."""

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from cnn_lightning.errors import EverywhereError

if TYPE_CHECKING:
    from cnn_lightning.tools.sweep.folder import Sweep

NO_METRIC = "sweep.metric:"
"""The beginning of the error of a metric that no trial will have."""


class Reports(Callback):
    """Reports the validation of each epoch; all processes stop together if the first one hears so.

    Args:
        sweep: Where to report to; the first process alone needs it.
        number: The number of the trial.
        metric: What is reported.
    """

    def __init__(self, sweep: "Sweep | None", number: int, metric: str) -> None:
        self.sweep, self.number, self.metric = sweep, number, metric

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop after this epoch if the trial is pruned. A collective call.

        Raises:
            EverywhereError: The validation has no such metric.
        """
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        value = trainer.callback_metrics.get(self.metric)
        if value is None:
            known = sorted(name for name in trainer.callback_metrics if name.startswith("val_"))
            raise EverywhereError(f"{NO_METRIC} expected {' or '.join(known)}, got {self.metric!r}")
        prune = False
        if trainer.is_global_zero and self.sweep is not None:
            prune = self.sweep.report(self.number, trainer.current_epoch, float(value))
        if trainer.strategy.broadcast(prune):
            trainer.should_stop = True
