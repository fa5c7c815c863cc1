"""The exceptions that end a command with a few words for its reader."""


class UserError(ValueError):
    """A mistake of the caller that one line can explain: what was expected, what came, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class EverywhereError(UserError):
    """One that all processes of a run raise together; the first of them tells it."""


class Stopped(Exception):
    """Training was asked by a signal to stop, and has, with a checkpoint.

    Args:
        number: Of the signal.
        text: After which step, and how to go on.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = int(number)
