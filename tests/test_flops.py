"""Counters of operations count the same for NumPy layers as for native ones."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_lightning import SimpleCNN, swap_layers

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "simple_cnn": (SimpleCNN, (2, 1, 28, 28)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (2, 3, 32, 32)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=3), (2, 3, 32, 32)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2, padding=1), (3, 4, 9)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (3, 4, 5, 6)),
    "linear of sequences": (lambda: nn.Linear(4, 5, bias=False), (2, 3, 4)),
}


def counted(net: nn.Module, x: torch.Tensor) -> list[int]:
    """Multiplications and additions of the forward, and of forward and backward."""
    found = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            y = net(x.clone().requires_grad_())
            if backward:
                y.sum().backward()
        found.append(counter.get_total_flops())
    return found


@pytest.mark.parametrize("name", NETS)
def test_torchs_counter_counts_numpy_layers_as_native_ones(name: str) -> None:
    make, shape = NETS[name]
    native = make().eval()
    ours = copy.deepcopy(native)
    swap_layers(ours, "numpy")
    x = torch.randn(shape)
    expected = counted(native, x)
    assert min(expected) > 0
    assert counted(ours, x) == expected
