"""The storage of a sweep: Optuna's journal, in a file of JSON lines that is safe to kill at any moment.

Why not Optuna's other storages: SQLite refuses ("database is locked") when several processes write at once, and its
locks don't work on many network drives. Optuna's own journal file waits 30 seconds for the lock of a process that was
killed, and a line that was cut by a full disk makes the file unreadable for ever. Here the kernel releases a lock when
its process ends, a line that was cut is removed by the next write, and each line has a checksum. The lines are those of
Optuna's own `JournalFileBackend`, so that its other tools can read the file. JSON can't run code.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import BaseJournalBackend

from cnn_lightning.errors import UserError, one_line

SUM = "crc32"


class Journal(BaseJournalBackend):
    """A file with one JSON object a line.

    Args:
        path: The file; it is made at the first write. Beside it lies a lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._starts = [0]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The lines from a number on.

        Raises:
            UserError: A line is damaged.
        """
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._starts[log_number_from])
            for number, line in enumerate(file, log_number_from):
                if not line.endswith(b"\n"):
                    return  # it is being written, or was cut
                if number + 1 == len(self._starts):
                    self._starts.append(self._starts[number] + len(line))
                yield self._checked(line, number)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines after the last whole one.

        Raises:
            UserError: The disk refuses them.
        """
        lines = b"".join(_sealed(log) for log in logs)
        try:
            with self._lock, self.path.open("ab+") as file:
                size = file.tell()
                file.seek(max(0, size - 1))
                if size and file.read(1) != b"\n":
                    file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: not written: {one_line(error)}") from error

    def _checked(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
            if found.pop(SUM) != zlib.crc32(_text(found)):
                raise ValueError
        except (ValueError, AttributeError, KeyError, TypeError):
            raise UserError(
                f"{self.path}: line {number + 1} is damaged: put a copy of the file back, or begin another sweep by "
                "--folder"
            ) from None
        log: dict[str, Any] = found
        return log


def _text(log: dict[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode()


def _sealed(log: dict[str, Any]) -> bytes:
    return _text(log | {SUM: zlib.crc32(_text(log))}) + b"\n"
