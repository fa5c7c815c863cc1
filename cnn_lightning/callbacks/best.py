"""``checkpoints/best.ckpt``: the weights of the validation with the highest accuracy."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestModelCheckpoint(ModelCheckpoint):
    """Writes ``best.ckpt``; the user may add a `ModelCheckpoint`, also with the same options.

    Args:
        folder: The folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            "best",
            monitor="val_acc",
            mode="max",
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the state also under the name of the base class, where version 0.1 put it."""
        checkpoint["callbacks"].setdefault(self.state_key, self.state_in(checkpoint))

    def state_in(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """This callback's state in a checkpoint; empty if there is none."""
        states: dict[str, dict[str, Any]] = checkpoint["callbacks"]
        before = self.state_key.replace(type(self).__name__, ModelCheckpoint.__name__, 1)
        return states.get(self.state_key) or states.get(before) or {}
