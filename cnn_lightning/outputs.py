"""Files that a flag names: looked at before the work whose result they take, and written whole after it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnn_lightning.errors import UserError
from cnn_lightning.files import whole

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""The formats in which Matplotlib draws without further programs."""


def expect_writable(flag: str, path: str | Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Nothing for None or a file that can be written.

    Args:
        flag: The name of the argument.
        path: Its value.
        suffixes: One of which the name must end in; any where there are none.

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
        raise UserError(f"{flag}: can't write to {path}: {error.strerror or error}") from None


@contextmanager
def written(flag: str, path: str | Path) -> Iterator[Path]:
    """As `cnn_lightning.files.whole`, for a file that ``flag`` names.

    Raises:
        UserError: The file can't be written; what stood there stays.
    """
    try:
        with whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{flag}: can't write to {path}: {error.strerror or error}") from error
