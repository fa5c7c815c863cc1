"""Counters of operations count the same for NumPy layers as for native ones."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from lightning.fabric.utilities.throughput import measure_flops
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_summary.model_summary import ModelSummary
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_lightning import SimpleCNN, swap_layers

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "simple_cnn": (SimpleCNN, (2, 1, 28, 28)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (2, 3, 32, 32)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=3), (2, 3, 32, 32)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2, padding=1), (3, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, groups=2, stride=(1, 2, 1), padding=1), (3, 4, 5, 4, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2), (3, 4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (3, 4, 5, 6)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 6, 3, groups=2, stride=2), (3, 4, 2, 3, 4)),
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


class Summarised(LightningModule):
    """A module with an example, for which Lightning's summary counts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.example_input_array = torch.zeros(2, 1, 28, 28)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output."""
        return self.net(x)


def test_lightnings_summary_counts_each_numpy_layer_as_its_native_one() -> None:
    counts = []
    for layers in ("torch", "numpy"):
        net = SimpleCNN()
        swap_layers(net, layers)
        summary = ModelSummary(Summarised(net), max_depth=-1)
        counts.append({name: sum(found.values()) for name, found in summary.flop_counts.items()})
    assert counts[0]["net.conv2"] > 0
    assert counts[0] == counts[1]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_lightnings_throughput_monitor_measures_the_same(device: str) -> None:
    found = []
    for layers in ("torch", "numpy"):
        with torch.device(device):
            net, x = SimpleCNN(), torch.zeros(2, 1, 28, 28)
        swap_layers(net, layers)
        found.append(measure_flops(net, lambda net=net, x=x: net(x), lambda y: y.sum()))  # type: ignore[misc]
    assert found[0] == found[1] > 0
