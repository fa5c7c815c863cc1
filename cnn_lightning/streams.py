"""Standard output and error that may be lost: a closed pipe, a closed terminal or a full disk ends no work."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LastingStream:
    """A text stream that takes every text, also where ``stream`` does not take it any more.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._errors: set[int | None] = set()

    @property
    def full(self) -> str:
        """The system's words for a disk that was full; empty where it was not, and where a reader has gone away."""
        found = [number for number in _FULL if number in self._errors]
        return os.strerror(found[0]) if found else ""

    def write(self, text: str) -> int:
        """Write it where that is possible."""
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._lasting():
            self._stream.flush()

    def close_if_lost(self) -> None:
        """Send what is left nowhere: the interpreter's own flush at its end would fail, with exit code 120."""
        if self._errors:
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
                self._stream.flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._errors.add(error.errno)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[list[LastingStream]]:
    """Make ``sys.stdout`` and ``sys.stderr`` last, and give those of them that are open."""
    before = sys.stdout, sys.stderr
    lasting: Any = [None if stream is None else LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = lasting
    try:
        yield [stream for stream in lasting if stream is not None]
    finally:
        for stream in lasting:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def told(streams: list[LastingStream], code: int, ends: bool) -> int:
    """The exit code of a program: 2, and a line on standard error, where its output did not fit on the disk.

    Args:
        streams: Of `lasting_streams`.
        code: The exit code without that.
        ends: Whether the process ends now.
    """
    for stream in streams:
        stream.flush()
    full = next((stream.full for stream in streams if stream.full), "")
    if full:
        with suppress(OSError):
            print(f"cnn-lightning: error: standard output: not written: {full}", file=sys.stderr, flush=True)
    for stream in streams if ends else []:
        stream.close_if_lost()
    return code or (2 if full else 0)
