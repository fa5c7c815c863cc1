"""Prints, before training starts, which implementation runs which layer, and the memory format of the batches."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.callbacks.layer_sizes import Size, made_pictures, sizes_of, without_hooks
from cnn_lightning.callbacks.layer_table import lines_of, short
from cnn_lightning.checkpoints import shown
from cnn_lightning.classifier import Classifier
from cnn_lightning.files import write_or_warn
from cnn_lightning.swap import Row, SwapReport, observed

PICTURES = 2
"""The made pictures of the run that the report is about."""
FILE = "layers.txt"
"""The whole report in the run's folder."""


class LayerReport(Callback):
    """Prints the number of parameters and FLOPs, what runs the layers, in a few lines, and the memory format.

    The whole report, a line for each layer, is written to ``layers.txt`` in the run's folder.

    Attributes:
        rows: The layers of the network that is trained.
        sizes: The size of each module, by its name.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.sizes: dict[str, Size] = {}
        self._printed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the report once, in the first process."""
        if stage != "fit" or not isinstance(pl_module, Classifier):
            return
        memory = pl_module.choose_memory()  # a collective call
        report = report_of(pl_module)  # in all processes, because synchronised layers make collective calls
        self.sizes = sizes_of(pl_module)
        folder = folder_to_write(trainer)
        if not trainer.is_global_zero:
            return
        report = report.on(trainer.strategy.root_device)
        self.rows = report.rows
        lines = [_head(pl_module, self.sizes), *lines_of(report, pl_module.net, self.sizes)]
        if folder is not None:
            path = folder / FILE
            write_or_warn(path, partial(_write_text, f"{report}\n"))
            if len(lines) > 2:
                lines.append(f"all layers: {shown(path)}")
        print("\n".join([*lines, str(memory)]), flush=True)

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
    pictures = made_pictures(module, PICTURES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first batch gives them, too
            return observed(module.report, without_hooks(module.net), pictures, beside={"loss": module.loss})
    except Exception:  # a network may raise anything, and does so again in the run
        return module.report


def _head(module: Classifier, sizes: Mapping[str, Size]) -> str:
    """The network, its parameters, and its FLOPs if they are known."""
    flops = short(sizes[""].flops)
    of_a_picture = f", {flops} FLOPs for a picture" if flops else ""
    return f"{module.hparams['net']}: {trained_parameters(module):,} parameters to train{of_a_picture}"


def _write_text(text: str, path: Path) -> None:
    path.write_bytes(text.encode("utf-8", "replace"))  # the name of a layer can have half a character


def trained_parameters(module: nn.Module) -> int:
    """The number of parameters that are not frozen."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
