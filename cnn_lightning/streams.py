"""Standard output and standard error: a closed pipe, a closed terminal or a full disk does not end the work."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LastingStream:
    """A text stream whose writes never fail; text that ``stream`` refuses is lost.

    Args:
        stream: The stream that is written to.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._errors: set[int | None] = set()

    @property
    def full(self) -> str:
        """The system's message for a full disk, if one was met; empty otherwise, also for a closed pipe."""
        found = [number for number in _FULL if number in self._errors]
        return os.strerror(found[0]) if found else ""

    def write(self, text: str) -> int:
        """Write the text, if possible."""
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, if possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, if possible."""
        with self._lasting():
            self._stream.flush()

    def close_if_lost(self) -> None:
        """Drop the text in the buffer: the interpreter's own flush at its end would fail, with exit code 120."""
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
    """Replace ``sys.stdout`` and ``sys.stderr`` in the block by a `LastingStream` each; gives those that are open."""
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


def print_line(text: str, details: Iterable[str] = ()) -> None:
    """Print ``cnn-lightning: text`` on standard error, as one line even if the name of a file has several.

    Each of ``details`` is one more line, indented.
    """
    lines = (f"cnn-lightning: {text}", *(f"  {line}" for line in details))
    print("\n".join(line.replace("\n", "\\n") for line in lines), file=sys.stderr, flush=True)


def exit_code(streams: list[LastingStream], code: int, ends: bool) -> int:
    """The exit code of a program: 2, and a line on standard error, if the disk was too full for its output.

    Args:
        streams: From `lasting_streams`.
        code: The exit code if all output was written.
        ends: Whether the process ends now.
    """
    for stream in streams:
        stream.flush()
    full = next((stream.full for stream in streams if stream.full), "")
    if full:
        with suppress(OSError):
            print_line(f"error: standard output: not written: {full}")
    for stream in streams if ends else []:
        stream.close_if_lost()
    return code or (2 if full else 0)
