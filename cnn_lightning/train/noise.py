"""What Lightning, torch and Matplotlib print during a run and no user needs: filters that keep it off the screen."""

import logging
import warnings
from typing import Any

from lightning.pytorch import Callback

NOISE = (
    ".*Be aware that when using `ckpt_path`.*",
    ".*dirpath has changed from.*",
    ".*LightningCLI.s args parameter is intended to run from within Python.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*LeafSpec.*is deprecated.*",
    ".*Experiment logs directory.*exists and is not empty.*",
    ".*Checkpoint directory.*exists and is not empty.*",
    ".*Consider setting.*sync_dist.*",
    ".*trying to `self.log\\(\\)` but `Trainer\\(barebones=True\\)`.*",
    ".*`Trainer.fit_loop` was signaled to stop.*",
    ".*GPU available but not used.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    ".*using the WeightAveraging callback, but loading a checkpoint outside.*",  # the test uses the file's weights
    ".*ModelCheckpoint.monitor='val_acc'.* could not find the monitored key.*",  # the line `val_acc: nan` shows it
    ".*Using `DistributedSampler` with the dataloaders.*",  # repeated pictures are not counted
    ".*The ``compute`` method of metric .* was called before.*",  # a process without a picture of a small split
    ".*Glyph .* missing from .*font.*",  # Matplotlib draws a box; the tables beside the picture have the name
)
"""Warnings that are right for other programs than this one; all other warnings are shown."""


def keep_quiet() -> None:
    """Install the filters in this process."""
    for pattern in NOISE:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its message before the launcher ends the first process because another one ended.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    # It lists the processes that it ends; the command's own last line has the reason.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


class Quiet(Callback):
    """Installs the filters in spawned processes, too: unpickling it, which such a process does first, calls them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, ()


def _unpickled() -> Quiet:
    keep_quiet()
    return Quiet()
