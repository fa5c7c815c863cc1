"""The relative error between two tensors, and where in them it is largest."""

import math

import torch
from torch import Tensor

from cnn_lightning.tools.parity.layerwise.results import Where

_PIECE = 2**20
"""The number of values compared at a time: VGG has 100 million weights in one layer."""


def relative_error(found: Tensor, expected: Tensor, floor: float = 0.0) -> tuple[float, Where]:
    """The largest difference, relative to the largest finite number expected (or ``floor``), and its index.

    Two equal infinities or two NaN differ by 0; any other NaN or infinity differs by infinity.
    """
    if found.shape != expected.shape:
        return math.inf, ()
    if not found.numel():
        return 0.0, ()
    largest, place, size = _largest_difference(found, expected)
    scale = max(size, floor)
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), found.shape))
    return (largest / scale if scale else math.inf if largest else 0.0), where


def _largest_difference(found: Tensor, expected: Tensor) -> tuple[float, int, float]:
    """The largest difference, its flat index, and the largest finite number expected."""
    largest, place, size = -1.0, 0, 0.0
    pieces = zip(*(torch.split(x.detach().reshape(-1), _PIECE) for x in (found, expected)), strict=True)
    for number, (some, others) in enumerate(pieces):
        if not some.numel():
            return 0.0, 0, 0.0
        a, b = some.double(), others.double()
        difference = (a - b).abs_()
        most, index = difference.max(0)
        least, greatest = b.aminmax()
        reach = max(-least.item(), greatest.item())
        if not math.isfinite(most.item()) or not math.isfinite(reach):
            same = (a == b) | (a.isnan() & b.isnan())
            most, index = torch.where(same, 0.0, difference).nan_to_num(math.inf, math.inf).max(0)
            reach = b.abs().nan_to_num(0, 0, 0).max().item()
        size = max(size, reach)
        if most.item() > largest:
            largest, place = most.item(), number * _PIECE + int(index)
    return largest, place, size
