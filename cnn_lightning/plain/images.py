"""Pictures for both plain programs: read, normalised, and batched in the order of the DataModules."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data import order, readers

Pictures = tuple[NDArray[Any], NDArray[np.int64]]
"""Pictures (N, C, H, W) and labels (N,)."""


class Images(NamedTuple):
    """The three splits, normalised."""

    train: Pictures
    val: Pictures
    test: Pictures
    num_classes: int

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.train[0].shape[1])

    @property
    def image_size(self) -> int:
        """Height and width."""
        return int(self.train[0].shape[2])


def read(data: str, root: str, dtype: str) -> Images:
    """``digits`` or ``mnist``, with zero mean and unit variance.

    Raises:
        UserError: A file that is missing or damaged.
    """
    found = readers.read_mnist(root) if data == "mnist" else readers.read_digits()
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (found.mean, found.std))

    def normalised(split: readers.Split) -> Pictures:
        # In float32 for every dtype, as in the DataModules, so that the values are bit-equal.
        values = split.images.astype(np.float32) * np.float32(1 / 255)
        return ((values - mean) / std).astype(dtype), split.labels

    return Images(normalised(found.train), normalised(found.val), normalised(found.test), len(found.class_names))


class Batches:
    """The batches of one epoch, pictures and labels; the last may be smaller."""

    def __init__(self, split: Pictures, batch_size: int, seed: int, epoch: int) -> None:
        self.images, self.labels = split
        self.batch_size = batch_size
        self.order = order.permutation(len(self.labels), seed, epoch)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[Pictures]:
        for start in range(0, len(self.labels), self.batch_size):
            batch = self.order[start : start + self.batch_size]
            yield self.images[batch], self.labels[batch]
