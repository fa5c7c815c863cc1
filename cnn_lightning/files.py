"""Files that are whole or not there: written under another name beside their place, then renamed."""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.tmp(\.\w+)?")
"""The names that `whole` gives, and those that version 0.1 gave."""


class NoFile(OSError):
    """What stands in the place of a file is none."""


unwritten: dict[Path, str] = {}
"""Files of a training that `write_or_warn` could not write since, by their absolute paths, with the reason."""


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; what stands there takes the place of ``path`` when the block ends without an error.

    Until then, and after any error (a full disk, a killed process), ``path`` holds what it held before. The temporary
    file has the suffix of ``path``, so that writers which choose a format by it choose the same. A device or a pipe in
    the place of ``path`` is written to directly, and a link keeps pointing where it points.

    Raises:
        OSError: What the writer raises, or the rename; the temporary file is removed first. A file that is marked as
            read-only is not replaced.
    """
    place = Path(path).resolve()
    if place.exists() and not place.is_file() and not place.is_dir():
        yield place
        return
    if place.is_file() and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
    temporary = place.with_name(f".{place.stem}.{os.getpid()}.tmp{place.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if place.exists():
            shutil.copymode(place, temporary)
        os.replace(temporary, place)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_or_warn(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Write a `whole` file without which a training can go on: an error becomes a warning that names the file.

    It is kept in `unwritten` until the same file is written: the command tells of it at its end.

    Args:
        path: The file; its folder is made where it is missing.
        writer: Writes to the path that it is given.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place) as temporary:
            writer(temporary)
        unwritten.pop(place.resolve(), None)
    except OSError as error:
        reason = error.strerror or str(error)
        unwritten[place.resolve()] = reason
        kept = "; the one before stays" if place.is_file() else ""
        warnings.warn(f"{place}: not written: {reason}{kept}", stacklevel=2)


def ordinary(path: Path) -> Path:
    """The path of a file to read; reading a pipe, a socket or a device can wait for ever.

    Raises:
        NoFile: One of those stands there.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise NoFile(errno.EINVAL, "it is a pipe, a socket or a device, no file")
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed inside `whole` left in a folder and those in it.

    Nobody else may write there meanwhile.
    """
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()
