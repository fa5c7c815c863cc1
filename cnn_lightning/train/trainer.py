"""What a command adds to Lightning's Trainer: callbacks, plugins, loggers, and the folder that they write to."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins import CheckpointIO, LayerSync
from rich.console import Console

from cnn_lightning.callbacks.best import BestModelCheckpoint
from cnn_lightning.callbacks.curves import LearningCurves
from cnn_lightning.callbacks.evaluation import Evaluation
from cnn_lightning.callbacks.metrics import RunLogger
from cnn_lightning.callbacks.pictures import Pictures
from cnn_lightning.callbacks.plain_log import PlainLog
from cnn_lightning.callbacks.progress import Progress
from cnn_lightning.callbacks.report import LayerReport
from cnn_lightning.callbacks.results import Predictions
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.callbacks.run_page.callback import RunPage
from cnn_lightning.callbacks.snapshots import Snapshots
from cnn_lightning.callbacks.sync import SyncBatchNorm
from cnn_lightning.checkpoints import WholeFiles
from cnn_lightning.processes import is_first
from cnn_lightning.train.noise import Quiet
from cnn_lightning.train.run_folder import RUNS, OneWriter

EPOCHS = 30
LOG_EVERY_N_STEPS = 10
DEFAULTS = {
    "max_epochs": EPOCHS,
    "devices": 1,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": LOG_EVERY_N_STEPS,
}
"""The defaults of the Trainer's options that differ from Lightning's."""
OWN_CHECKPOINTS = "own_checkpoints"
"""The folder, in the run's folder, of a `ModelCheckpoint` of the user's that names no folder."""


@dataclass
class Parts:
    """What is added to the Trainer that the user configured.

    Args:
        callbacks: Follow the user's own.
        options: Replace the user's.
        best: The callback that writes ``best.ckpt``; None if there is none.
        resumable: The callback that writes ``last.ckpt``; None if there is none.
    """

    callbacks: list[Callback]
    options: dict[str, Any] = field(default_factory=dict)
    best: BestModelCheckpoint | None = None
    resumable: Resumable | None = None


def assemble(command: str, config: Any, refused: str, make_logger: Callable[[Path], RunLogger]) -> Parts:
    """Choose the parts for a command and what the user configured.

    Args:
        command: fit, validate, test or predict.
        config: The command's options, with objects for classes.
        refused: Why this process may not write to the run's folder; empty if it may.
        make_logger: Makes the run's folder below the folder of all runs, and its logger.
    """
    trainer = config.get("trainer") or {}
    own = as_list(trainer.get("callbacks"))
    layers, evaluation = LayerReport(), Evaluation(pictures=bool(config.get("pictures")))
    parts = Parts([Quiet(), OneWriter(refused), layers, evaluation, Predictions()])
    if trainer.get("enable_progress_bar") is not False and not trainer.get("barebones") and not _has(own, ProgressBar):
        # In the first process alone a bar; the others print nothing, and do what the first one asks for.
        parts.callbacks.append(Progress() if is_first() and _moves_its_cursor() else PlainLog())
    if trainer.get("barebones") and trainer.get("log_every_n_steps") == LOG_EVERY_N_STEPS:
        parts.options["log_every_n_steps"] = None  # barebones refuses any number
    parts.options |= _plugins(trainer) | _loggers(trainer, make_logger)
    if command == "fit" and parts.options.get("logger"):
        _add_files_of_a_fit(parts, config, own, layers, evaluation)
    if config.get("early_stopping"):
        parts.callbacks.append(EarlyStopping("val_acc", mode="max", patience=config.get("early_stopping")))
    if trainer.get("enable_checkpointing") is None and parts.best is None and not _has(own, Checkpoint):
        parts.options["enable_checkpointing"] = False  # Lightning's own would write into the current folder
    return parts


def as_list(value: Any) -> list[Any]:
    """The items of a list or tuple; another value as a list of one; an empty list for None."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _moves_its_cursor() -> bool:
    """Whether standard output can show a progress bar: a terminal or a notebook, and no file, pipe or dumb terminal."""
    console = Console()
    is_terminal = sys.stdout is not None and sys.stdout.isatty() and not console.is_dumb_terminal
    return is_terminal or console.is_jupyter


def _has(objects: list[Any], kind: type) -> bool:
    return any(isinstance(each, kind) for each in objects)


def _plugins(trainer: Any) -> dict[str, Any]:
    """The option ``plugins`` with ours after the user's; ours are left out if the user has plugins of their type."""
    own = as_list(trainer.get("plugins"))
    ours: list[Any] = [] if _has(own, CheckpointIO) else [WholeFiles()]
    if trainer.get("sync_batchnorm") and not _has(own, LayerSync):
        ours.append(SyncBatchNorm())
    return {"plugins": [*own, *ours]} if ours else {}


def _loggers(trainer: Any, make_logger: Callable[[Path], RunLogger]) -> dict[str, Any]:
    """The option ``logger``; the run's own logger comes first, if the run writes a folder."""
    own = trainer.get("logger")
    if own is not False and not trainer.get("fast_dev_run") and not trainer.get("barebones"):
        logger = make_logger(Path(trainer.get("default_root_dir") or RUNS))
        return {"logger": [logger, *([] if own is True else as_list(own))]}
    # For true and None Lightning would use TensorBoard, if it is installed.
    return {"logger": False} if own is True or own is None else {}


def _add_files_of_a_fit(parts: Parts, config: Any, own: list[Any], layers: LayerReport, evaluation: Evaluation) -> None:
    """Add the callbacks that write curves, checkpoints, pictures and the page into the run's folder."""
    run = Path(parts.options["logger"][0].log_dir)
    parts.callbacks.append(LearningCurves())
    if config.get("trainer").get("enable_checkpointing") is not False:
        parts.best, parts.resumable = BestModelCheckpoint(run / "checkpoints"), Resumable(run / "checkpoints")
        parts.callbacks += [parts.best, parts.resumable]
        for callback in own:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((run / OWN_CHECKPOINTS).resolve())  # its files replace none of ours
    pictures = Pictures() if config.get("pictures") else None
    if pictures is not None:
        parts.callbacks += [pictures, Snapshots()]
    parts.callbacks.append(RunPage(layers, pictures, evaluation))
