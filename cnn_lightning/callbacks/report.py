"""Prints, before training starts, which implementation runs which layer, and the memory format of the batches."""

import copy
import warnings
from collections import OrderedDict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cnn_lightning.classifier import Classifier
from cnn_lightning.swap import SwapReport, observed

PICTURES = 2
"""The made pictures of the run that the report is about."""


class LayerReport(Callback):
    """Prints the number of parameters, for each layer its name, type and implementation, and the memory format."""

    def __init__(self) -> None:
        self._printed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the report once, in the first process."""
        if stage != "fit" or not isinstance(pl_module, Classifier):
            return
        memory = pl_module.choose_memory()  # a collective call
        report = report_of(pl_module)  # in all processes, because synchronised layers make collective calls
        if trainer.is_global_zero:
            report = report.on(trainer.strategy.root_device)
            count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
            print(f"{pl_module.hparams['net']}: {count:,} parameters to train\n{report}\n{memory}", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first step, print what computed its operators, if that is not torch."""
        self._print_functions(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for a run without training."""
        self._print_functions(trainer, pl_module)

    on_predict_end = on_test_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for a run without training."""
        if trainer.state.fn == "validate":
            self._print_functions(trainer, pl_module)

    def _print_functions(self, trainer: Trainer, module: LightningModule) -> None:
        if isinstance(module, Classifier) and module.functions == "numpy" and not self._printed:
            self._printed = True
            if trainer.is_global_zero:
                print(module.computed, flush=True)


def report_of(module: Classifier) -> SwapReport:
    """The report by a run of made pictures through a copy of the network; that of the swap if the run fails."""
    channels, size = module.hparams["in_channels"], module.hparams["image_size"]
    weight = next(module.net.parameters())
    pictures = torch.randn(PICTURES, channels, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first batch gives them, too
            return observed(module.report, _copy(module.net), pictures.to(weight), beside={"loss": module.loss})
    except Exception:  # a network may raise anything, and does so again in the run
        return module.report


def _copy(net: nn.Module) -> nn.Module:
    """A copy with the same parameters, its own buffers, and without hooks, which would notice the run."""
    kinds = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    memo: dict[int, Any] = {id(vars(each)[kind]): OrderedDict() for each in net.modules() for kind in kinds}
    return copy.deepcopy(net, memo | {id(weight): weight for weight in net.parameters()})
