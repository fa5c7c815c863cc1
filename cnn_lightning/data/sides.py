"""Which pictures are for training, validation and test, and which were so in an earlier run. NumPy alone.

A picture is known again by its key: 8 bytes made of its path and size, or of its place in an array.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from os import fsencode
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data.order import stratified
from cnn_lightning.errors import UserError

SIDES = ("train", "val", "test")

Keys = NDArray[np.int64]
Sides = Mapping[str, Keys]
"""The keys of the pictures on each side; empty where nothing is known."""

NOTHING: Sides = {}


def array_keys(name: str, n: int) -> Keys:
    """Keys of ``n`` pictures that are known by their place in the array of this name."""
    return np.array(crc32(name.encode()) << 32, np.uint64).view(np.int64) + np.arange(n)


def file_keys(files: Sequence[Path], folder: Path) -> Keys:
    """Keys of files that are known by their path below ``folder`` and their size, wherever that folder is.

    Raises:
        UserError: A file that is gone.
    """
    keys = np.empty(len(files), np.int64)
    for index, path in enumerate(files):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: can't be read: {error.strerror or error}") from None
        text = fsencode(path.relative_to(folder).as_posix()) + b"\0%d" % size
        keys[index] = int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
    return keys


def divide(
    labels: NDArray[np.int64], shares: Mapping[str, float], seed: int, keys: Keys, known: Sides
) -> dict[str, NDArray[np.int64]]:
    """Cut ``0 ... len(labels) - 1`` into sides of about these shares, each with its share of every class.

    Pictures that are known keep their side, and the others are divided among themselves. One that was trained with
    stays in training, and so does one whose side is not among ``shares`` (it has a folder of its own now).
    """
    names = list(shares)
    side = np.full(len(labels), -1)
    for name in reversed(SIDES):
        if name in known:
            side[np.isin(keys, known[name])] = names.index(name) if name in names else names.index("train")
    new = np.flatnonzero(side < 0)
    for number, part in enumerate(stratified(labels[new], tuple(shares.values()), seed)):
        side[new[part]] = number
    return {name: np.flatnonzero(side == number) for number, name in enumerate(names)}


def trained(keys: Keys, side: str, known: Sides) -> NDArray[np.bool_]:
    """Which of the pictures that stand on this side now are known to have been trained with, and not to be its own."""
    if not known:
        return np.zeros(len(keys), bool)
    return np.isin(keys, known["train"]) & ~np.isin(keys, known[side])


def are_kept(now: Sides, known: Sides) -> bool:
    """Whether every picture stands on the side that it is known to be on."""
    return all(name in known and bool(np.isin(keys, known[name]).all()) for name, keys in now.items())


def merged(now: Sides, known: Sides) -> Sides:
    """What is known after a run: the sides of now, those of pictures that are gone, and all that was trained with.

    In the order of the keys, whether the run was gone on with or not.
    """
    if not now or not known:
        return {name: np.unique(keys) for name, keys in (now or known).items()}
    present = np.concatenate(list(now.values()))
    result = {name: np.union1d(keys[~np.isin(keys, present)], now[name]) for name, keys in known.items()}
    return result | {"train": np.union1d(now["train"], known["train"])}
