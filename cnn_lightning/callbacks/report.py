"""Which implementation runs which layer, on the screen before training starts."""

from lightning.pytorch import Callback, LightningModule, Trainer

from cnn_lightning.classifier import Classifier


class LayerReport(Callback):
    """Prints a line for each layer: its name, type and implementation, and the number of parameters."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print it once, on the first process."""
        if stage == "fit" and trainer.is_global_zero and isinstance(pl_module, Classifier):
            count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
            print(f"{pl_module.hparams['net']}: {count:,} parameters to train\n{pl_module.report}", flush=True)
