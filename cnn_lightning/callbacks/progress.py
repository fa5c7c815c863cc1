"""The progress bar, with loss and accuracy of the training so far and of the last validation."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.progress import BarColumn
from torch import Tensor

from cnn_lightning.callbacks.plain_log import announce
from cnn_lightning.classifier.metrics import classes_of

KEEP = 0.9
"""The weight of the previous value in the running means."""


class Progress(RichProgressBar):
    """Lightning's progress bar of rich, with running means of the batches' loss and accuracy."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._running: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell other processes, whose output may be a file, that no lines are printed. A collective call."""
        super().setup(trainer, pl_module, stage)
        announce(trainer, False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Update the running means."""
        if isinstance(outputs, dict) and "logits" in outputs and len(batch[1]):
            right = outputs["logits"].argmax(1) == classes_of(batch[1])
            # Tensors, so that only drawing the bar waits for a GPU.
            for name, value in (("loss", outputs["loss"].detach()), ("accuracy", right.float().mean())):
                self._running[name] = KEEP * self._running.get(name, value) + (1 - KEEP) * value
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The numbers of training and validation, then those that the user logs, short enough for 80 columns."""
        found: dict[str, Any] = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        found.pop("train_loss", None)
        found.pop("train_acc", None)
        val = {"loss": found.pop("val_loss", None), "accuracy": found.pop("val_acc", None)}
        lines: dict[str, Any] = {}
        for name, values in (("loss", self._running), ("val", val)):
            if None not in (values.get("loss"), values.get("accuracy")):
                lines[name] = f"{float(values['loss']):.3f} acc {float(values['accuracy']):.3f}"
        return {**lines, **found}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """The columns; on a narrow screen without times and speed, so that the numbers fit."""
        columns = super().configure_columns(trainer)
        if self._console is None or self._console.width >= 100:
            return columns
        description, _, completed, *_ = columns
        return [description, BarColumn(bar_width=16), completed]

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
