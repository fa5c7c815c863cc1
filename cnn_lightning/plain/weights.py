"""Weights in a .npz file, by the names of torch's ``state_dict``; both plain programs read and write them."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cnn_lightning import digest, filetypes
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import ordinary, written


def load(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Read the arrays that ``shapes`` names.

    Raises:
        UserError: A file that is missing, damaged or of another network.
    """
    try:
        with ordinary(path).open("rb") as opened:
            _check(opened)
            file = np.load(opened, allow_pickle=False)
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"--weights: expected an .npz file of weights, got {path}: {one_line(error)}") from error
    for name in [*shapes, *found]:
        if name not in shapes or name not in found:
            raise UserError(f"--weights: expected {', '.join(shapes)} in {path}, got {', '.join(found) or 'nothing'}")
        if found[name].shape != shapes[name] or found[name].dtype.kind != "f":
            kind = f"{found[name].dtype} {found[name].shape}"
            raise UserError(f"--weights: expected floating {shapes[name]} for {name} in {path}, got {kind}")
    return found


def _check(file: IO[bytes]) -> None:
    """Raise ValueError unless this is an undamaged .npz file."""
    try:
        names = digest.check(file)
    except digest.Foreign as error:
        raise ValueError(f"it is {error}") from None
    except digest.Damaged as error:
        raise ValueError(f"it is damaged: {error}") from None
    if not all(name.endswith(".npy") for name in names):
        raise ValueError(f"it is {filetypes.of_archive(names)}")


def save(path: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays.

    Raises:
        UserError: The file can't be written.
    """
    content = io.BytesIO()
    np.savez(content, **dict(weights))  # type: ignore[arg-type]
    digest.seal(content)
    with written("--save", path) as temporary:
        temporary.write_bytes(content.getbuffer())
