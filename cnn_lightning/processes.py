"""The processes of one run: which of them this is, and what they compute or decide together."""

import atexit
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler


def are_several() -> bool:
    """Whether this process is in a process group; false before the Trainer has made one."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process in its run, from 0; known before there is a process group."""
    if are_several():
        return distributed.get_rank()
    from lightning.pytorch.utilities import rank_zero_only  # which has read the launcher's environment variables

    known: int = getattr(rank_zero_only, "rank", 0)
    return known


def is_first() -> bool:
    """Whether this is the first process of its run, or the only one."""
    return rank() == 0


def from_all(own: Any) -> list[Any]:
    """The values of all processes, by rank. A collective call."""
    if not are_several():
        return [own]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


def sum_of_all(own: float | Tensor, device: torch.device) -> Callable[[], Tensor]:
    """Begin to add up the values of all processes, and return at once. A collective call.

    To wait at once for so small a sum costs a step of some 50 ms about one millisecond, which a forward or a backward
    pass hides.

    Returns:
        A function that waits for the sum, a float64 scalar, which holds counts exactly.
    """
    total = torch.as_tensor(own).to(device, torch.float64, copy=True)
    work = distributed.all_reduce(total, async_op=True) if are_several() else None

    def result() -> Tensor:
        if work is not None:
            work.wait()
        return total

    return result


def no_sum() -> Tensor:
    """The result of a sum that was never begun: 0."""
    return torch.zeros(())


def unpadded(batch: tuple[Tensor, Tensor], index: int, loader: Any) -> tuple[Tensor, Tensor]:
    """The batch without the pictures that the sampler repeats.

    With several processes Lightning gives a ``DataLoader`` a sampler that starts again from the first picture until
    all processes have equally many. A test or a validation must not count those pictures twice.

    Args:
        batch: Images and labels.
        index: The number of the batch.
        loader: The loader of the batch.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or not getattr(loader, "batch_size", None):
        return batch
    n: int = len(sampler.dataset)  # type: ignore[arg-type]  # a Sized one, as the sampler requires
    own = len(range(sampler.rank, n, sampler.num_replicas)) - index * loader.batch_size
    images, labels = batch
    return images[: max(0, own)], labels[: max(0, own)]


def leave_at_exit() -> None:
    """End the process group before the interpreter ends; otherwise gloo's threads sometimes abort the process.

    Lightning ends the group with NCCL only.
    """
    if are_several():
        atexit.register(_leave)


def _leave() -> None:
    if are_several():
        distributed.destroy_process_group()
