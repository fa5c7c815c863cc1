"""Files that are whole or not there: written under another name beside their place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; what stands there takes the place of ``path`` when the block ends without an error.

    Until then, and after any error (a full disk, a killed process), ``path`` holds what it held before. The temporary
    file has the suffix of ``path``, so that writers which choose a format by it choose the same. A device or a pipe in
    the place of ``path`` is written to directly, and a link keeps pointing where it points.

    Raises:
        OSError: What the writer raises, or the rename; the temporary file is removed first.
    """
    place = Path(path).resolve()
    if place.exists() and not place.is_file() and not place.is_dir():
        yield place
        return
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
