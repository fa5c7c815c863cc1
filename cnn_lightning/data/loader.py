"""Batches from memory: uint8 pictures, transformed a batch at a time, in an order that any process can name.

Lightning needs no sampler of its own for it: each rank takes its slice of every global batch, nothing is padded and
nothing is seen twice. Without a seed the batches are those of a single process, dealt whole: a picture's answer then
has the same bits for any number of processes. The loader can say where it stands in an epoch (`Batches.state_dict`),
which makes a run that was stopped in the middle of one go on with the very next batch, and which pictures a batch
holds (`Batches.indices`).
"""

import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from cnn_lightning.data.order import permutation
from cnn_lightning.data.pictures import PictureFiles
from cnn_lightning.errors import UserError

SHIFT = 2
"""Augmented pictures are shifted by up to so many pixels in each direction."""


class Batches:
    """Normalised float32 images and int64 labels, batch after batch.

    Args:
        images: uint8 (N, C, H, W), or files that are read as they are needed.
        labels: int64 (N,).
        batch_size: Of one process; ``world_size`` of them make the global batch.
        mean: Of each channel, for values from 0 to 1.
        std: The standard deviation likewise.
        seed: Of the order and the augmentation; None keeps the images as they are and in their order.
        augment: Shift each picture a little, differently in every epoch (with a seed).
        flip: Also mirror every second picture, by chance.
        rank: Of this process.
        world_size: Number of processes.
        num_workers: Processes that read files ahead.
    """

    def __init__(
        self,
        images: Tensor | PictureFiles,
        labels: Tensor,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int | None = None,
        augment: bool = False,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.mean, self.std, self.seed = list(mean), list(std), seed
        self.augment, self.flip = augment and seed is not None, flip and augment and seed is not None
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers if isinstance(images, PictureFiles) else 0
        self.epoch = 0
        self._start = self._handed_out = 0
        self.sampler, self.batch_sampler = self, None  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return -(-len(self.labels) // (self.batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Take the order and the augmentation of this epoch from the next batch on."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch were handed out, and of which order."""
        return {"handed_out": self._handed_out, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches that were handed out already.

        Raises:
            UserError: They were of another order: some pictures of the epoch would be seen twice and others never.
        """
        now = self._order()
        then = {**now, **state}
        self._start = then["handed_out"] % max(1, -(-then["pictures"] // then["pictures in a global batch"]))
        for name, value in now.items():
            if self._start and then[name] != value:
                raise UserError(
                    f"data: expected {then[name]} {name}, as in the epoch that the checkpoint is in the middle of, "
                    f"got {value}"
                )

    def _order(self) -> dict[str, Any]:
        return {
            "pictures": len(self.labels),
            "pictures in a global batch": self.batch_size * self.world_size,
            "as seed": self.seed,
        }

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """From where `load_state_dict` left it, otherwise from the epoch's start.

        Epoch and place are looked up with the first batch, as Lightning makes the iterator before it says which epoch.
        """
        start, self._start = self._start, 0
        batches = self.indices()[start:]
        ahead: Iterable[tuple[Tensor, Tensor]] = map(self._batch, batches)
        if self.num_workers:
            # Workers make whole batches: the "samples" of this DataLoader are the indices of one batch each.
            options: dict[str, Any] = {"num_workers": self.num_workers, "worker_init_fn": _outlive}
            ahead = DataLoader(_Made(self, batches), batch_size=None, **options)
        for index, batch in enumerate(ahead, start + 1):
            self._handed_out = index
            yield batch

    def indices(self) -> list[NDArray[np.int64]]:
        """Which pictures each of this process's batches of the epoch holds."""
        n = len(self.labels)
        order = np.arange(n) if self.seed is None else permutation(n, self.seed, self.epoch)
        step = self.batch_size * self.world_size
        found = []
        for first in range(0, n, step):
            whole = order[first : first + step]
            mine = whole[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            if self.seed is not None and len(whole) < step:  # every process gets some of them to train on
                mine = np.array_split(whole, self.world_size)[self.rank]
            found.append(mine)
        return found

    def _batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        if isinstance(self.images, PictureFiles):
            images = torch.from_numpy(self.images[indices])
        else:
            images = self.images[torch.from_numpy(indices)]
        if self.augment and len(indices):
            images = self._augmented(images, indices)
        images = transforms.to_dtype(images, torch.float32, scale=True)
        return transforms.normalize(images, self.mean, self.std), self.labels[torch.from_numpy(indices)]

    def _augmented(self, images: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Chance is a function of seed, epoch and picture alone, so that it is the same for any number of ranks."""
        random = np.random.default_rng([self.seed or 0, self.epoch, 1])
        shifts = torch.from_numpy(random.integers(0, 2 * SHIFT + 1, (len(self.labels), 2))[indices])
        height, width = images.shape[2:]
        wide = torch.nn.functional.pad(images, [SHIFT] * 4)
        windows = wide.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(len(images)), :, shifts[:, 0], shifts[:, 1]]
        if self.flip:
            mirrored = torch.from_numpy(random.random(len(self.labels))[indices] < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images


def _outlive(worker: int) -> None:
    """Ignore Ctrl-C and a closed terminal, which reach all processes: the training still needs batches to stop well.

    A worker ends when the training's process does.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Made(Dataset[tuple[Tensor, Tensor]]):
    """Batches by number, for worker processes to make."""

    def __init__(self, batches: Batches, shares: list[NDArray[np.int64]]) -> None:
        self.batches, self.shares = batches, shares

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches._batch(self.shares[index])
