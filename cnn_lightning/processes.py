"""What the processes of one run tell each other, and what each leaves to another."""

import atexit
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


def from_all(own: Any) -> list[Any]:
    """What each process has, in their order; all of them take part."""
    if not _are_many():
        return [own]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def sum_of_all(own: float | Tensor, device: torch.device) -> Callable[[], Tensor]:
    """Begin to add up what each process has; all of them take part, and go on with their work meanwhile.

    Waiting at once for so small a sum costs a step of some 50 ms about one millisecond, which a forward or a backward
    pass hides.

    Returns:
        Waits for the sum, a float64 scalar, which holds counts exactly.
    """
    total = torch.as_tensor(own).to(device, torch.float64, copy=True)
    work = torch.distributed.all_reduce(total, async_op=True) if _are_many() else None

    def result() -> Tensor:
        if work is not None:
            work.wait()
        return total

    return result


def unpadded(batch: tuple[Tensor, Tensor], index: int, loader: Any) -> tuple[Tensor, Tensor]:
    """The batch without the pictures that are in it for a second time.

    Where there are several processes Lightning gives a ``DataLoader`` a sampler that begins anew until all processes
    have equally many: the last pictures of some are repeated, which a test or a validation must not count.

    Args:
        batch: Images and labels.
        index: Of the batch.
        loader: Where it comes from.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or not getattr(loader, "batch_size", None):
        return batch
    n: int = len(sampler.dataset)  # type: ignore[arg-type]  # a Sized one, as the sampler asks of it
    own = len(range(sampler.rank, n, sampler.num_replicas)) - index * loader.batch_size
    images, labels = batch
    return images[: max(0, own)], labels[: max(0, own)]


def leave_at_exit() -> None:
    """Have the process group end before the interpreter does, whose end now and then aborts gloo's threads.

    Lightning does so with NCCL only.
    """
    if _are_many():
        atexit.register(_leave)


def _leave() -> None:
    if _are_many():
        torch.distributed.destroy_process_group()


def nothing() -> Tensor:
    """The sum before anything was asked."""
    return torch.zeros(())


def _are_many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
