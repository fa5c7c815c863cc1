"""The folder for the files of a run."""

from pathlib import Path

from lightning.pytorch import Trainer


def folder_to_write(trainer: Trainer) -> Path | None:
    """The run's folder; None in every process but the first, and if no logger names a folder.

    Without a logger Lightning would answer the current folder, in which this program must replace no file. A
    collective call.
    """
    if not trainer.loggers:
        return None
    folder = trainer.log_dir
    return Path(folder) if folder and trainer.is_global_zero else None
