"""The file of a network, or the folder it was unpacked to: its members, the plan and the weights."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cnn_lightning import digest
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import written
from cnn_lightning.ops.types import Array
from cnn_lightning.portable import plan as plans
from cnn_lightning.portable.plan import Plan

PLAN, WEIGHTS = "plan.json", "weights/"
OURS = ("__main__.py", "README.txt", "LICENSE", PLAN, "cnn_lightning/", WEIGHTS)
"""What an archive holds; other files in a folder that it was unpacked to are not taken."""
_DATE = (1980, 1, 1, 0, 0, 0)


def members(root: Path) -> dict[str, bytes]:
    """The files of an archive or a folder, by their path in it.

    Raises:
        UserError: The archive is damaged, or a file can't be read.
    """
    try:
        if root.is_dir():
            paths = (path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
            names = {path.relative_to(root).as_posix(): path for path in paths}
            return {name: path.read_bytes() for name, path in names.items() if name.startswith(OURS)}
        with zipfile.ZipFile(root) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise UserError(f"{root}: expected a network of this program, but it is damaged: {one_line(error)}") from None


def load(root: Path) -> tuple[Plan, dict[str, Array], dict[str, bytes]]:
    """The plan, the weights and buffers by name, and the other files.

    Nothing in the plan or the weights is run, and no array of Python's objects is read.

    Raises:
        UserError: Something is missing or damaged.
    """
    files = members(root)
    try:
        plan = plans.read(files.pop(PLAN).decode())
        names = [name for name in files if name.startswith(WEIGHTS)]
        arrays = {
            name.removeprefix(WEIGHTS).removesuffix(".npy"): np.lib.format.read_array(
                io.BytesIO(files.pop(name)), allow_pickle=False
            )
            for name in names
        }
        wanted = {name for node in plan.nodes for name in node.parameters.values()} | set(plan.trainable)
        if missing := sorted(wanted - arrays.keys()):
            raise ValueError(f"expected the array {missing[0]}, found none")
    except (KeyError, ValueError) as error:
        raise UserError(f"{root}: expected a network of this program, but it is damaged: {one_line(error)}") from None
    return plan, arrays, files


def write(flag: str, path: Path, files: Mapping[str, bytes], plan: Plan, arrays: Mapping[str, Array]) -> None:
    """Write an archive, whole or not at all.

    Args:
        flag: The flag that names the path.
        path: The archive; an existing one is replaced when the new one is complete.
        files: The programs and texts.
        plan: The plan.
        arrays: The weights and buffers.

    Raises:
        UserError: It can't be written; a file that was there stays.
    """
    with written(flag, path) as temporary:
        fill(temporary, files, plan, arrays)


def fill(path: Path, files: Mapping[str, bytes], plan: Plan, arrays: Mapping[str, Array]) -> None:
    """Write an archive to a path; the digest of all its bytes is at its end."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (*files.items(), (PLAN, plan.text().encode())):
            archive.writestr(_member(name, zipfile.ZIP_DEFLATED), content)
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
            archive.writestr(_member(f"{WEIGHTS}{name}.npy", zipfile.ZIP_STORED), stream.getvalue())
    with path.open("rb+") as file:
        digest.seal(file)


def _member(name: str, compression: int) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name, _DATE)  # the same bytes whenever it is written
    found.compress_type = compression
    found.external_attr = 0o644 << 16
    return found
