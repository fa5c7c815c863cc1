"""One trial, in a process of its own: a run of ``fit`` in the trial's folder.

A process for each trial gives back its memory, survives a trial that is killed for memory, and leaves no state of torch
for the next one, so that ``fit`` repeats a trial bit for bit. The processes are forked from one that has imported
everything. ``python -m cnn_lightning.tools.sweep.trial METRIC FOLDER ARGUMENTS`` is another process of the same trial,
which Lightning starts for a strategy such as ddp.
"""

import multiprocessing
import os
import signal
import sys
import threading
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cnn_lightning.callbacks.metrics import RunLogger
from cnn_lightning.errors import Stopped, UserError
from cnn_lightning.streams import print_line
from cnn_lightning.tools.sweep.folder import Sweep, keep_optuna_quiet
from cnn_lightning.tools.sweep.reports import Reports
from cnn_lightning.tools.sweep.settings import Settings
from cnn_lightning.train.failures import readable
from cnn_lightning.train.noise import keep_quiet
from cnn_lightning.train.run import CLI

SCREEN = "screen.txt"
"""The file, in the trial's folder, of what ``fit`` prints."""
HERE = "cnn_lightning.tools.sweep.trial"


class Trial(CLI):
    """``fit`` in a folder that is there and locked already.

    Args:
        args: The command line.
        folder: The folder.
        reports: The callback that reports to the sweep.
    """

    def __init__(self, args: list[str], folder: Path, reports: Reports) -> None:
        self._own, self._reports = folder, reports
        super().__init__(args)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """The Trainer with the callback, which no config shows."""
        if self.checkpoint is not None:
            self.resumed = self._own
        trainer = super().instantiate_trainer(**options)
        trainer.callbacks.insert(0, self._reports)  # type: ignore[attr-defined]  # before the one that writes checkpoints
        return trainer

    def _make_logger(self, root: Path) -> RunLogger:
        return RunLogger(self._own.parent.parent, self._own.parent.name, self._own.name)


def run_one(path: Path, settings: Settings, place: Path, taken: "Connection[Any, Any]") -> None:
    """The whole process: take a trial of the sweep, run it, and write its end into the journal.

    Args:
        path: The sweep's folder.
        settings: What is searched.
        place: The current folder of the command.
        taken: Gets the number of the trial and whether it is continued; None if there was none.
    """
    os.chdir(place)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_quiet()
    keep_optuna_quiet()
    sweep = Sweep(path, settings)
    found = sweep.take()
    taken.send(None if found is None else (found.number, found.resumed))
    if found is None:
        return
    screen = os.open(found.folder / SCREEN, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(screen, stream)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # Lightning starts other processes of the run by the command line of this one.
    sys.argv = ["cnn-lightning", settings.metric, str(found.folder), *found.args]
    sys.modules["__main__"].__spec__ = find_spec(HERE)
    reports = Reports(sweep, found.number, settings.metric)
    code, reason = outcome(found.args, found.folder, reports)
    if code == 0:
        sweep.end(found.number, reason)
    found.lock.leave(empty=False)
    sys.stdout.flush()
    sys.exit(code)


def outcome(args: list[str], folder: Path, reports: Reports) -> tuple[int, str]:
    """Run ``fit``.

    Returns:
        An exit code above 128 if the run was asked to stop and can be continued, else 0; and why it has failed, empty
        if it has not.
    """
    try:
        Trial(args, folder, reports)
    except Stopped as stop:
        return 128 + stop.number, ""
    except SIGTERMException:
        return 128 + signal.SIGTERM, ""
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, ""
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into exit code 1
            return 128 + signal.SIGINT, ""
        return 0, f"fit ended with exit code {stop.code}"
    except UserError as error:
        print_line(f"error: {error.head}", error.details)
        return 0, error.head
    except Exception as error:  # torch and user code raise anything; the next trial may run
        reason = readable(error) or type(error).__name__
        print_line(f"error: {reason}")
        return 0, reason
    return 0, ""


def _end_with_parent() -> None:
    """Ask this process to stop, with a checkpoint, when the command is killed: nobody would run the next trial."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Be another process of a trial."""
    keep_quiet()
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    metric, folder, *args = sys.argv[1:]
    return outcome(args, Path(folder), Reports(None, 0, metric))[0]


if __name__ == "__main__":
    sys.exit(main())
