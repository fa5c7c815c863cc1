"""Where the files of a run go."""

from pathlib import Path

from lightning.pytorch import Trainer


def folder_to_write(trainer: Trainer) -> Path | None:
    """The run's folder; None in every process but the first, and where no logger names a folder.

    Without a logger Lightning's own answer is the current folder, whose files are not ours to replace. This is a
    collective call: the first process tells the others.
    """
    if not trainer.loggers:
        return None
    folder = trainer.log_dir
    return Path(folder) if folder and trainer.is_global_zero else None
