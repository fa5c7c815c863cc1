"""The folder of a run: locked by one process at a time, and the files that the command itself writes there."""

import itertools
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from cnn_lightning.callbacks.folder import folder_to_write
from cnn_lightning.checkpoints import shown
from cnn_lightning.digest import seal_text
from cnn_lightning.errors import EverywhereError, UserError, one_line
from cnn_lightning.files import remove_leftovers, unwritten, whole

RUNS = Path("runs")
"""The folder of all runs, unless ``--trainer.default_root_dir`` names another."""
LOCK, OWNER = ".lock", ".owner"
"""The system releases the lock when its process ends, however it ends; the other file names the process."""


class RunFolder:
    """The folder that this process alone writes to, from `make` or `take` to `leave`, or to the end of the process.

    ``refused`` is the line of an error if another process has locked the folder, and empty otherwise.
    """

    def __init__(self) -> None:
        self.refused = ""
        self._new: Path | None = None
        self._path: Path | None = None
        self._lock: BaseFileLock | None = None

    def make(self, root: Path, name: str) -> int:
        """Make the folder of a new run and lock it.

        Args:
            root: The folder of all runs.
            name: The name of the data.

        Returns:
            The number of the run.

        Raises:
            UserError: The folder can't be made.
        """
        for number in itertools.count():
            path = root / name / f"version_{number}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not (root / name).is_dir():
                    raise UserError(f"trainer.default_root_dir: expected a folder, got {root / name}") from None
            except OSError as error:
                raise UserError(f"trainer.default_root_dir: can't write to {root / name}: {one_line(error)}") from None
            else:
                self._new = path
                self.take(path)
                return number
        raise AssertionError

    def take(self, path: Path) -> None:
        """Lock the folder of a run, and remove the temporary files of a process that was killed.

        Raises:
            UserError: The folder can't be written to.
        """
        lock = FileLock(path / LOCK, timeout=0)
        try:
            lock.acquire()
            with whole(path / OWNER) as temporary:
                temporary.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except Timeout:
            self.refused = f"trainer: expected a run that no other process writes to, got {shown(path)}, which "
            self.refused += f"{_owner(path)} writes to; wait for its end or stop it"
        except OSError as error:
            lock.release()
            raise UserError(f"trainer: can't write to {shown(path)}: {one_line(error)}") from None
        else:
            self._path, self._lock = path, lock
            remove_leftovers(path)

    def leave(self, empty: bool) -> None:
        """Unlock the folder.

        Args:
            empty: Also remove it, if this process made it and it contains nothing.
        """
        if self._path is None or self._lock is None:
            return
        with suppress(OSError):
            (self._path / OWNER).unlink()
        with suppress(OSError):  # a folder that is not empty stays
            if empty and self._new is not None and os.listdir(self._new) == [LOCK]:
                (self._new / LOCK).unlink()
                for folder in (self._new, *self._new.parents[:2]):
                    folder.rmdir()
        self._lock.release()
        self._path = self._lock = None


def _owner(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return (path / OWNER).read_text().strip() or "another process"
    return "another process"


class OneWriter(Callback):
    """Ends all processes of a run together if the first process may not write to the folder.

    Args:
        refused: `RunFolder.refused` of this process; the first process's decides.

    Raises:
        EverywhereError: In `setup`, if the first process's is not empty.
    """

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the first process's answer. A collective call."""
        refused = trainer.strategy.broadcast(self.refused)
        if refused:
            raise EverywhereError(refused)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` whole, and into a run folder only: Lightning's own also writes into the current folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once.

        Raises:
            UserError: It can't be written; no work is lost yet.
        """
        if self.already_saved:
            return
        self.already_saved = True
        folder = folder_to_write(trainer)
        if folder is None:
            return
        path = folder / self.config_filename
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole(path) as temporary:
                self.parser.save(self.config, temporary, skip_none=False, overwrite=True, multifile=self.multifile)
                seal_text(temporary)
        except OSError as error:
            raise UserError(f"{shown(path)}: not written: {one_line(error)}") from error


def expect_written() -> None:
    """Return if every file of the run was written.

    Raises:
        UserError: Names the files that were not written, and the reason.
    """
    if not unwritten:
        return
    paths = sorted(unwritten, key=lambda path: (path.suffix != ".ckpt", path))
    text = f"{', '.join(map(shown, paths))}: not written: {unwritten[paths[0]]}"
    if paths[0].suffix == ".ckpt":
        text += "; the numbers above are right, but the run can't be resumed"
    raise UserError(text)
