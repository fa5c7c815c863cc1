"""Prints, before training starts, which implementation runs which layer."""

from lightning.pytorch import Callback, LightningModule, Trainer

from cnn_lightning.classifier import Classifier


class LayerReport(Callback):
    """Prints the number of parameters, and for each layer its name, type and implementation."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the report once, in the first process."""
        if stage == "fit" and trainer.is_global_zero and isinstance(pl_module, Classifier):
            count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
            print(f"{pl_module.hparams['net']}: {count:,} parameters to train\n{pl_module.report}", flush=True)
