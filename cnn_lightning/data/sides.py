"""The side of each picture, training, validation or test, in this run and in an earlier one. NumPy alone.

Runs recognise a picture by its key: 8 bytes, a hash of its path and size, or its index in an array.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from os import fsencode
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data.order import stratified
from cnn_lightning.errors import UserError, one_line

SIDES = ("train", "val", "test")

Keys = NDArray[np.int64]
Sides = Mapping[str, Keys]
"""The keys of the pictures on each side; empty if nothing is known."""

NOTHING: Sides = {}


def array_keys(name: str, n: int) -> Keys:
    """Keys of ``n`` pictures by their indices in the array of this name."""
    return np.array(crc32(name.encode()) << 32, np.uint64).view(np.int64) + np.arange(n)


def file_keys(files: Sequence[Path], folder: Path) -> Keys:
    """Keys of files by their size and their path below ``folder``, which may itself be moved.

    Raises:
        UserError: A file that does not exist any more.
    """
    keys = np.empty(len(files), np.int64)
    for index, path in enumerate(files):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: can't be read: {one_line(error)}") from None
        text = fsencode(path.relative_to(folder).as_posix()) + b"\0%d" % size
        keys[index] = int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
    return keys


def divide(
    labels: NDArray[np.int64], fractions: Mapping[str, float], seed: int, keys: Keys, known: Sides
) -> dict[str, NDArray[np.int64]]:
    """Divide ``0 ... len(labels) - 1`` into sides by ``fractions``, applied to every class.

    Known pictures keep their side; the fractions apply to the new ones. A picture that was trained with stays in
    training, and so does one whose side is not among ``fractions`` because that side has a folder of its own now.
    """
    names = list(fractions)
    side = np.full(len(labels), -1)
    for name in reversed(SIDES):
        if name in known:
            side[np.isin(keys, known[name])] = names.index(name) if name in names else names.index("train")
    new = np.flatnonzero(side < 0)
    for number, subset in enumerate(stratified(labels[new], tuple(fractions.values()), seed)):
        side[new[subset]] = number
    return {name: np.flatnonzero(side == number) for number, name in enumerate(names)}


def trained(keys: Keys, side: str, known: Sides) -> NDArray[np.bool_]:
    """Which pictures of this side were trained with in the earlier run, and were not on this side there."""
    if not known:
        return np.zeros(len(keys), bool)
    return np.isin(keys, known["train"]) & ~np.isin(keys, known[side])


def are_kept(now: Sides, known: Sides) -> bool:
    """Whether every picture is on the side on which the earlier run had it."""
    return all(name in known and bool(np.isin(keys, known[name]).all()) for name, keys in now.items())


def merged(now: Sides, known: Sides) -> Sides:
    """The sides that are known after a run: those of this run, of pictures that are missing now, and all trained ones.

    Sorted by key, also for a run that was not resumed.
    """
    if not now or not known:
        return {name: np.unique(keys) for name, keys in (now or known).items()}
    present = np.concatenate(list(now.values()))
    result = {name: np.union1d(keys[~np.isin(keys, present)], now[name]) for name, keys in known.items()}
    return result | {"train": np.union1d(now["train"], known["train"])}
