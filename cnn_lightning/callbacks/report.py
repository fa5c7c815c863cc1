"""Prints, before training starts, which implementation runs which layer, and the memory format of the batches."""

import copy
import warnings
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cnn_lightning.classifier import Classifier
from cnn_lightning.swap import Row, SwapReport, observed
from cnn_lightning.swap.observe import run

PICTURES = 2
"""The made pictures of the run that the report is about."""


class LayerReport(Callback):
    """Prints the number of parameters, for each layer its name, type and implementation, and the memory format.

    Attributes:
        rows: The layers of the network that is trained.
        shapes: The shape of a layer's output for one picture, by its name; empty if the network could not be run.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._printed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the report once, in the first process."""
        if stage != "fit" or not isinstance(pl_module, Classifier):
            return
        memory = pl_module.choose_memory()  # a collective call
        report = report_of(pl_module)  # in all processes, because synchronised layers make collective calls
        self.shapes = shapes_of(pl_module)
        if trainer.is_global_zero:
            report = report.on(trainer.strategy.root_device)
            self.rows = report.rows
            count = trained_parameters(pl_module)
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
    pictures = _made(module, PICTURES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first batch gives them, too
            return observed(module.report, _copy(module.net), pictures, beside={"loss": module.loss})
    except Exception:  # a network may raise anything, and does so again in the run
        return module.report


def shapes_of(module: Classifier) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's output for one picture, in evaluation; empty if the run fails."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        net = _copy(module.net)
        for name, layer in net.named_modules(remove_duplicate=False):
            if next(layer.children(), None) is None:
                layer.register_forward_hook(partial(_note, shapes, name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(net, _made(module, 1), training=False)
    except Exception:  # as in `report_of`
        return {}
    return shapes


def _note(shapes: dict[str, tuple[int, ...]], name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, torch.Tensor):
        shapes[name] = tuple(output.shape[1:])


def trained_parameters(module: nn.Module) -> int:
    """The number of parameters that are not frozen."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _made(module: Classifier, n: int) -> torch.Tensor:
    """Made pictures of the size, the type and on the device of the network."""
    channels, size = module.hparams["in_channels"], module.hparams["image_size"]
    pictures = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    return pictures.to(next(module.net.parameters()))


def _copy(net: nn.Module) -> nn.Module:
    """A copy with the same parameters, its own buffers, and without hooks, which would notice the run."""
    kinds = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    memo: dict[int, Any] = {id(vars(each)[kind]): OrderedDict() for each in net.modules() for kind in kinds}
    return copy.deepcopy(net, memo | {id(weight): weight for weight in net.parameters()})
