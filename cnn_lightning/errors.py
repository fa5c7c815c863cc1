"""The exceptions that end a command with a few words for the user, and errors as one line."""

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake of the user that one line explains: what was expected, what came, and the remedy.

    The command line prints it without a traceback and exits with code 2.

    Args:
        head: The line.
        details: Short lines below it.
    """

    def __init__(self, head: str = "", details: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join((head, *details)))
        self.head, self.details = head, tuple(details)


class EverywhereError(UserError):
    """A mistake that all processes of a run raise together; the first process alone prints it."""


class Stopped(Exception):
    """A signal asked the training to stop; it wrote a checkpoint and stopped.

    Args:
        number: The number of the signal.
        text: The step after which it stopped, and how to resume.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = int(number)


def one_line(error: BaseException | str, most: int | None = None) -> str:
    """The text of an error on one line, at most ``most`` letters; the name of its type if it has no text.

    Of an `OSError` the system's reason alone: the messages name the file themselves.
    """
    reason = error.strerror if isinstance(error, OSError) else None
    text = " ".join((reason or str(error)).split())
    return text[:most] or ("" if isinstance(error, str) else type(error).__name__)
