"""Errors that no parser met, of a class, of Lightning or of another process, as one line."""

import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException

from cnn_lightning.errors import Stopped, UserError, one_line
from cnn_lightning.train.messages import MARKED, Slip, marked, slip_in
from cnn_lightning.train.words import cut

UNION = "Does not validate against any of the Union subtypes"
"""The beginning of jsonargparse's error for a value that is of none of an option's types."""
NO_SENTENCE = ("KeyError", "AssertionError", "StopIteration")
"""Errors whose text alone explains nothing."""

LOST_KINDS = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
LOST = re.compile(r"gloo|NCCL|[Cc]onnection|[Bb]roken pipe|[Tt]imed out|recvValue|remote process")
"""Errors of gloo, NCCL and torch's store when another process has ended."""


def readable(error: BaseException) -> str:
    """One line of an error that no parser met."""
    slip = slip_in(str(error))
    if slip is not None:
        return slip.line()
    if str(error).startswith(UNION) and error.__cause__ is not None:
        cause = error.__cause__
        return readable(cause) if isinstance(cause, UserError) else f"data: {readable(cause)}"
    kind, text = original(error)
    line = f"{kind}: {one_line(text)}" if kind in NO_SENTENCE or not text else one_line(text)
    return line if isinstance(error, UserError) else cut(line)


def original(error: BaseException) -> tuple[str, str]:
    """Type and text of an error; if its text is the traceback of another process, of the error at the end of that."""
    _, found, last = str(error).rpartition("Traceback (most recent call last):\n")
    end = re.sub(r"\A(?:[ \t].*\n)+", "", last) if found else ""
    named = re.match(r"(?:[\w]+\.)*(\w+)(?:: (.*))?", end, re.DOTALL)
    return (named[1], (named[2] or "").strip()) if named else (type(error).__name__, str(error))


def lost_process(error: BaseException) -> str:
    """Why another process of the run is known to have ended; empty for an error of another kind."""
    kind, text = original(error)
    if isinstance(error, ProcessExitedException) or (kind in LOST_KINDS and LOST.search(text)):
        return one_line(re.sub(r"\[[^\]]*/[^\]]*\]", "", text), 160)  # without the name of gloo's own source file
    return ""


def call_of_exit(error: BaseException) -> str:
    """A call of ``exit`` by code of the user's, such as a layer, and its place; empty for another error.

    Lightning raises a `SystemExit` of its own after a signal.
    """
    signalled = isinstance(error, SIGTERMException) or isinstance(error.__context__, KeyboardInterrupt)
    if not isinstance(error, SystemExit) or signalled:
        return ""
    places = [each for each in traceback.extract_tb(error.__traceback__) if "_sitebuiltins" not in each.filename]
    code = "" if error.code is None else repr(error.code)
    return f"a call of exit({code}) in {places[-1].filename}, line {places[-1].lineno}"


def failed_logger(error: BaseException, loggers: Sequence[Logger]) -> Logger | None:
    """The logger in whose method an error was raised, by the traceback; None if there is none.

    Clients of servers have kinds of errors of their own, which no list of ours could name.
    """
    if not isinstance(error, Exception) or isinstance(error, UserError | Stopped):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found: Logger | None = next((logger for logger in loggers if frame.f_locals.get("self") is logger), None)
        if found is not None:
            return found
    return None


class Made:
    """An instantiator for jsonargparse: errors of the classes that options take name the option.

    Args:
        config: Holds the options.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, kind: type, *args: Any, **options: Any) -> Any:
        """The object.

        Raises:
            ValueError: The class raises, or needs a package that is not installed; `readable` makes a line of it.
        """
        try:
            return kind(*args, **options)
        except Exception as error:
            if isinstance(error, UserError) or MARKED.search(str(error)):
                raise
            key = next(_places(self.config, kind.__name__), kind.__name__)
            missing = isinstance(error, ImportError)
            expected = "a package that is not here" if missing else f"options that {kind.__name__} takes"
            raise ValueError(marked(Slip(key, f"{expected}: {readable(error)}"))) from error


def _places(value: Any, name: str, key: str = "") -> Iterator[str]:
    """The options whose value is or contains a class of the name."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _places(each, name, key)
    elif hasattr(value, "items"):
        if str(value.get("class_path", "")).rpartition(".")[2] == name:
            yield key
        for inner, each in vars(value).items() if not isinstance(value, dict) else value.items():
            yield from _places(each, name, key if inner == "init_args" else f"{key}.{inner}".lstrip("."))
