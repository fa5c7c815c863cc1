"""Files that are whole or absent: written under a temporary name in the same folder, then renamed."""

import errno
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnn_lightning.errors import UserError, one_line

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""The suffixes of the formats that Matplotlib writes without further programs."""

_TEMPORARY = re.compile(r"\..+\.tmp(\.\w+)?")
"""The names of temporary files, of `whole` and of version 0.1."""


class NoFile(OSError):
    """A path names a pipe, a socket or a device."""


unwritten: dict[Path, str] = {}
"""The files of a training whose last write failed in `write_or_warn`: their absolute paths, and the reasons."""


# ---- writing


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; the file there replaces ``path`` if the block ends without an error.

    Until then, and after any error (a full disk, a killed process), ``path`` keeps its content. The temporary file has
    the suffix of ``path``, by which some writers choose the format. If ``path`` is a device or a pipe, the block gets
    ``path`` itself; if it is a link, its target is replaced.

    Raises:
        OSError: From the block or from the rename; the temporary file is removed first. A read-only file is not
            replaced.
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


@contextmanager
def whole_folder(root: Path, name: str) -> Iterator[Path]:
    """Give a temporary folder; its subfolder ``name`` becomes ``root/name`` if the block ends without an error.

    After any error no folder is left that did not exist before.

    Raises:
        OSError: From the block or from the rename.
    """
    target = root / name
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
            yield Path(temporary)
            os.replace(Path(temporary) / name, target)
    finally:
        for folder in made:
            with suppress(OSError):  # a folder with the result in it stays
                folder.rmdir()


def write_or_warn(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Write a `whole` file without which a training can continue: an error becomes a warning that names the file.

    The file stays in `unwritten` until a later write succeeds; the command reports what is left there at its end.

    Args:
        path: The file; its folder is made if it is missing.
        writer: Writes to the path that it is given.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole(place) as temporary:
            writer(temporary)
        unwritten.pop(place.resolve(), None)
    except OSError as error:
        reason = one_line(error)
        unwritten[place.resolve()] = reason
        kept = "; the one before stays" if place.is_file() else ""
        warnings.warn(f"{place}: not written: {reason}{kept}", stacklevel=2)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder and its subfolders.

    No other process may write there at the same time.
    """
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()


# ---- files that a flag names


def expect_writable(flag: str, path: str | Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Return if the file can be written; called before the work whose result the file takes.

    Args:
        flag: The name of the flag.
        path: Its value; None for no file.
        suffixes: The suffixes that the name may have; empty for any.

    Raises:
        UserError: What is wrong with the path.
    """
    if path is None:
        return
    place = Path(path)
    if "\0" in str(path):
        raise UserError(f"{flag}: expected a name that a file can have, got {str(path)!r}")
    if suffixes and place.suffix.lower() not in suffixes:
        raise UserError(f"{flag}: expected a name that ends in {' or '.join(suffixes)}, got {str(path)!r}")
    if place.is_dir():
        raise UserError(f"{flag}: expected a file, got the folder {str(path)!r}")
    if not place.resolve().parent.is_dir():
        raise UserError(f"{flag}: expected a file in a folder that exists, got {str(path)!r}")
    if place.exists():
        if not os.access(place, os.W_OK):
            raise UserError(f"{flag}: can't write to {path}: it is read-only")
        if not place.is_file():
            return  # a device or a pipe
    try:
        with tempfile.TemporaryFile(dir=place.resolve().parent):
            pass
    except OSError as error:
        raise UserError(f"{flag}: can't write to {path}: {one_line(error)}") from None


@contextmanager
def written(flag: str, path: str | Path) -> Iterator[Path]:
    """As `whole`, for a file that a flag names.

    Raises:
        UserError: The file can't be written; its old content stays.
    """
    try:
        with whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{flag}: can't write to {path}: {one_line(error)}") from error


# ---- reading


def ordinary(path: Path) -> Path:
    """The path of a file to read; to read a pipe, a socket or a device can take for ever.

    Raises:
        NoFile: The path names one of those.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise NoFile(errno.EINVAL, "it is a pipe, a socket or a device, no file")
    return path
