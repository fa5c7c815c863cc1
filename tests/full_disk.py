"""A disk that seems full to this process: a file has a limit of a few bytes, and the next byte is an error."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback

ROOM = 64
"""Bytes that a file still takes, so that one written in place is left half."""


@contextmanager
def full_disk() -> Iterator[None]:
    """Python ignores the signal that the system sends with it, so that a write raises an `OSError`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillsUp(Callback):
    """From the first step on there is no space left; the test gives it back."""

    def on_train_start(self, *args: Any) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, most))

    on_test_start = on_predict_start = on_train_start  # type: ignore[assignment]
