"""The folder of a run: claimed by one process at a time, and what the command itself writes there."""

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
from cnn_lightning.errors import EverywhereError, UserError
from cnn_lightning.files import remove_leftovers, unwritten, whole

LOCK, OWNER = ".lock", ".owner"
"""The system forgets who holds the first when the process ends, however it ends; the second says who it is."""


class RunFolder:
    """The folder that this process alone writes to, until `leave` or its end.

    ``refused`` says, in one line, that another process has the folder; it is empty otherwise.
    """

    def __init__(self) -> None:
        self.refused = ""
        self._new: Path | None = None
        self._path: Path | None = None
        self._lock: BaseFileLock | None = None

    def make(self, root: Path, name: str) -> int:
        """Make the folder of a new run and take it.

        Args:
            root: The folder of all runs.
            name: Of the data.

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
                reason = error.strerror or error
                raise UserError(f"trainer.default_root_dir: can't write to {root / name}: {reason}") from None
            else:
                self._new = path
                self.take(path)
                return number
        raise AssertionError

    def take(self, path: Path) -> None:
        """Take the folder of a run, and remove what a process that was killed there left half written.

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
            raise UserError(f"trainer: can't write to {shown(path)}: {error.strerror or error}") from None
        else:
            self._path, self._lock = path, lock
            remove_leftovers(path)

    def leave(self, empty: bool) -> None:
        """Let others have the folder.

        Args:
            empty: Remove it, if this process made it and left nothing in it.
        """
        if self._path is None or self._lock is None:
            return
        with suppress(OSError):
            (self._path / OWNER).unlink()
        with suppress(OSError):  # a folder with something in it stays
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
    """Ends all processes of a run together where the first may not write to the folder.

    Args:
        refused: What `RunFolder` says; what the first process's says counts.

    Raises:
        EverywhereError: It says something.
    """

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the first process."""
        refused = trainer.strategy.broadcast(self.refused)
        if refused:
            raise EverywhereError(refused)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` whole, and into a run folder only: Lightning's own also writes into the current folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, once.

        Raises:
            UserError: It can't be written: nothing is lost yet.
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
            raise UserError(f"{shown(path)}: not written: {error.strerror or error}") from error


def expect_written() -> None:
    """Nothing, where every file of the run was written.

    Raises:
        UserError: The files that were not, and why.
    """
    if not unwritten:
        return
    paths = sorted(unwritten, key=lambda path: (path.suffix != ".ckpt", path))
    text = f"{', '.join(map(shown, paths))}: not written: {unwritten[paths[0]]}"
    if paths[0].suffix == ".ckpt":
        text += "; the numbers above are right, but can't be gone on from"
    raise UserError(text)
