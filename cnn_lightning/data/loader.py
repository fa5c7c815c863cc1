"""Batches from memory: uint8 pictures, transformed batch by batch, in an order that every process can compute.

Lightning adds no sampler: each rank takes its slice of every global batch, without padding and without repeated
pictures. Without a seed each rank takes whole batches, the same as a single process would make: the result for a
picture then has the same bits for any number of processes. `Batches.state_dict` is the position in an epoch, from
which a stopped run continues with the next batch. `Batches.indices` are the pictures of each batch.
"""

import signal
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from cnn_lightning.data.mixing import Mixing, mixed
from cnn_lightning.data.order import balanced, permutation
from cnn_lightning.data.pictures import PictureFiles
from cnn_lightning.errors import UserError

SHIFT = 2
"""The largest shift of augmented pictures, in pixels, in each direction."""
Augment = Literal["shift", "rand", "trivial"]
"""How training pictures are augmented: shifted, or also by RandAugment (Cubuk et al., https://arxiv.org/abs/1909.13719)
or TrivialAugment (Müller and Hutter, https://arxiv.org/abs/2103.10158)."""
POLICIES = {"rand": v2.RandAugment, "trivial": v2.TrivialAugmentWide}
Sampler = Literal["shuffled", "balanced"]
"""Which pictures an epoch has, and their order: each once, or every class equally often on average."""


class Draw(NamedTuple):
    """The pictures of one batch of one process.

    Args:
        number: Of the batch in the epoch.
        indices: Of the pictures in the set.
        keys: The numbers, below that of the pictures of the set, by which random numbers are chosen: a picture that is
            drawn twice in an epoch is augmented in two ways.
        before: How many of the first pictures are no part of the batch, but the partner of its first one: 1 or 0.
    """

    number: int
    indices: NDArray[np.int64]
    keys: NDArray[np.int64]
    before: int = 0


class Batches:
    """Normalised float32 images and int64 labels, batch after batch.

    Args:
        images: uint8 (N, C, H, W), or files that are read for each batch.
        labels: int64 (N,).
        batch_size: Pictures in a batch of one process; the global batch has ``world_size`` times as many.
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        seed: Seed of the order and the augmentation; None for no augmentation and the order of the images.
        augment: With a seed, change each picture at random, differently in every epoch; true is "shift".
        flip: With ``augment``, also mirror half of the pictures at random.
        sampler: With a seed, "shuffled" for every picture once, or "balanced" for as many pictures drawn with
            replacement, every class equally likely.
        mixing: With a seed, mix the pictures of each global batch; the labels are then float32 probabilities
            (N, num_classes). Random numbers depend on seed, epoch and batch alone.
        num_classes: Needed to mix.
        rank: Number of this process.
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
        augment: bool | Augment = False,
        flip: bool = False,
        sampler: Sampler = "shuffled",
        mixing: Mixing | None = None,
        num_classes: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.mean, self.std, self.seed = list(mean), list(std), seed
        self.augment = bool(augment) and seed is not None
        self.flip = flip and self.augment
        self.policy = POLICIES[str(augment)]() if self.augment and augment in POLICIES else None
        if self.policy is not None and isinstance(images, Tensor) and images.shape[1] not in (1, 3):
            raise UserError(f"data.augment: expected pictures of 1 or 3 channels for {augment}, got {images.shape[1]}")
        self.balanced = sampler == "balanced" and seed is not None
        self.mixing, self.num_classes = (mixing or None) if seed is not None else None, num_classes
        self.rank, self.world_size = rank, world_size
        self.num_workers = num_workers if isinstance(images, PictureFiles) else 0
        self.epoch = 0
        self._start = self._handed_out = 0
        self.sampler, self.batch_sampler = self, None  # Lightning calls their set_epoch

    def __len__(self) -> int:
        return -(-len(self.labels) // (self.batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Use the order and the augmentation of this epoch from the next batch on."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The number of batches of the epoch that were given out, and what their order depends on."""
        return {"handed_out": self._handed_out, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next epoch after the batches that were given out.

        Raises:
            UserError: They had another order: some pictures of the epoch would be used twice and others never.
        """
        now = self._order()
        then = {**now, "as sampler": "shuffled", **state}  # version 0.1 names no sampler
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
            "as sampler": "balanced" if self.balanced else "shuffled",
        }

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from the position of `load_state_dict`, otherwise from the beginning of the epoch.

        The first batch fixes epoch and position, because Lightning makes the iterator before it sets the epoch.
        """
        start, self._start = self._start, 0
        batches = self._draws()[start:]
        ahead: Iterable[tuple[Tensor, Tensor]] = map(self._batch, batches)
        if self.num_workers:
            # Workers make whole batches: a "sample" of this DataLoader is one batch.
            options: dict[str, Any] = {"num_workers": self.num_workers, "worker_init_fn": _ignore_stop_signals}
            ahead = DataLoader(_Made(self, batches), batch_size=None, **options)
        for index, batch in enumerate(ahead, start + 1):
            self._handed_out = index
            yield batch

    def indices(self) -> list[NDArray[np.int64]]:
        """The indices of the pictures in each of this process's batches of the epoch."""
        return [draw.indices[draw.before :] for draw in self._draws()]

    def _draws(self) -> list[Draw]:
        n = len(self.labels)
        if self.seed is None:
            order = keys = np.arange(n)
        elif self.balanced:
            order, keys = balanced(self.labels.numpy(), self.seed, self.epoch), np.arange(n)
        else:
            order = keys = permutation(n, self.seed, self.epoch)
        step = self.batch_size * self.world_size
        found = []
        for number, first in enumerate(range(0, n, step)):
            whole = np.arange(first, min(first + step, n))
            mine = whole[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            if self.seed is not None and len(whole) < step:  # split the last batch, so that every process trains
                mine = np.array_split(whole, self.world_size)[self.rank]
            before = whole[mine[:1] - first - 1] if self.mixing else mine[:0]  # the last one is before the first
            mine = np.concatenate([before, mine])
            found.append(Draw(number, order[mine], keys[mine], len(before)))
        return found

    def _batch(self, draw: Draw) -> tuple[Tensor, Tensor]:
        indices = torch.from_numpy(draw.indices)
        if isinstance(self.images, PictureFiles):
            images = torch.from_numpy(self.images[draw.indices])
        else:
            images = self.images[indices]
        if self.augment and len(indices):
            images = self._augmented(images, draw.keys)
        images = transforms.to_dtype(images, torch.float32, scale=True)
        images, labels = transforms.normalize(images, self.mean, self.std), self.labels[indices]
        return (images, labels) if self.mixing is None else self._mixed(self.mixing, images, labels, draw)

    def _mixed(self, mixing: Mixing, images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if not draw.before:
            return images, images.new_zeros(0, self.num_classes)
        random = np.random.default_rng([self.seed or 0, self.epoch, 3, draw.number])
        return mixed(images, labels, self.num_classes, mixing.draw(random, *images.shape[2:]))

    def _augmented(self, images: Tensor, keys: NDArray[np.int64]) -> Tensor:
        """Shift, mirror and change by a policy; random numbers depend on seed, epoch and key, not on the ranks."""
        random = np.random.default_rng([self.seed or 0, self.epoch, 1])
        shifts = torch.from_numpy(random.integers(0, 2 * SHIFT + 1, (len(self.labels), 2))[keys])
        height, width = images.shape[2:]
        wide = torch.nn.functional.pad(images, [SHIFT] * 4)
        windows = wide.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(len(images)), :, shifts[:, 0], shifts[:, 1]]
        if self.flip:
            mirrored = torch.from_numpy(random.random(len(self.labels))[keys] < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.policy is not None:
            images = self._by_policy(self.policy, images, keys)
        return images

    def _by_policy(self, policy: v2.Transform, images: Tensor, keys: NDArray[np.int64]) -> Tensor:
        """Apply the policy to each picture with a seed of its own; the state of torch's random numbers stays."""
        random = np.random.default_rng([self.seed or 0, self.epoch, 4])
        seeds = random.integers(2**63, size=len(self.labels))[keys]
        found = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
                found.append(policy(image))
        return torch.stack(found)


def checked_augment(given: Any) -> bool | Augment:
    """The option ``augment``.

    Raises:
        UserError: No truth value and no known name.
    """
    if isinstance(given, bool) or given in get_args(Augment):
        return given  # type: ignore[no-any-return]
    *names, last = get_args(Augment)
    raise UserError(f"data.augment: expected true, false, {', '.join(names)} or {last}, got {given!r}")


def _ignore_stop_signals(worker: int) -> None:
    """Ignore Ctrl-C and a closed terminal, which signal all processes: to stop, the training needs more batches.

    A worker ends when the training's process ends.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Made(Dataset[tuple[Tensor, Tensor]]):
    """Batches by number, which worker processes make."""

    def __init__(self, batches: Batches, draws: list[Draw]) -> None:
        self.batches, self.draws = batches, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches._batch(self.draws[index])
