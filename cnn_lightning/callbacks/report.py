"""Prints, before training starts, which implementation runs which layer, and the memory format of the batches."""

from lightning.pytorch import Callback, LightningModule, Trainer

from cnn_lightning.classifier import Classifier


class LayerReport(Callback):
    """Prints the number of parameters, for each layer its name, type and implementation, and the memory format."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the report once, in the first process."""
        if stage != "fit" or not isinstance(pl_module, Classifier):
            return
        memory = pl_module.choose_memory()  # a collective call
        if trainer.is_global_zero:
            count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
            report = pl_module.report.on(trainer.strategy.root_device)
            print(f"{pl_module.hparams['net']}: {count:,} parameters to train\n{report}\n{memory}", flush=True)
