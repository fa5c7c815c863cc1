"""The signals that stop a training, and the state of the process that a command must restore."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def stop_signals() -> list[int]:
    """The signals that ask a training to stop: SIGINT (Ctrl-C), SIGTERM, and SIGHUP of a closed terminal.

    Without those that this process was started to ignore, as by ``nohup``.
    """
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def process_kept() -> Iterator[None]:
    """Restore signal handlers, warning filters, logging levels and the environment, however the block ends."""
    handlers = _handlers()
    environment = dict(os.environ)
    levels = {logger: logger.level for logger in _loggers()}
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for number, handler in handlers.items():
                # None is a handler that Python did not set and can't set again.
                if handler is not None and signal.getsignal(number) != handler:
                    signal.signal(number, handler)
            for logger, level in levels.items():
                logger.setLevel(level)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python sets handlers in the main thread alone
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]
