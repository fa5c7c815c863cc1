"""The exceptions that end a command with a few words for its reader."""

import shlex
from pathlib import Path


class UserError(ValueError):
    """A mistake of the caller that one line can explain: what was expected, what came, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """Training was asked by a signal to stop, and has, with a checkpoint.

    Args:
        number: Of the signal.
        step: Of the optimizer, after which it stopped.
        run: The run's folder.
    """

    def __init__(self, number: int, step: int, run: Path) -> None:
        again = f"cnn-lightning fit --config {shlex.quote(str(run / 'config.yaml'))} --ckpt_path last"
        super().__init__(f"stopped after step {step}; to go on: {again}")
        self.number = int(number)
