"""What a layer costs however small its input is: the time of tiny layers, and of the bridge in a call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnn_lightning.layers import bridge
from cnn_lightning.layers.memory import arranged
from cnn_lightning.ops import activation
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.benchmark.steps import Setting
from cnn_lightning.tools.benchmark.timing import Timing, interleave

SHAPE = 2, 4, 4, 4
BRIDGE = "bridge and block runner"


def measure_fixed(setting: Setting, rounds: int) -> dict[str, dict[str, Timing]]:
    """Seconds of forward and backward of layers on a tiny input, ``{layer: {"numpy": Timing, "torch": Timing}}``.

    `BRIDGE` is a call of ReLU from tensor to tensor, without NumPy's ``maximum`` of an equal array.
    """
    made: dict[str, Callable[[], nn.Module]] = {
        "ReLU": nn.ReLU,
        "BatchNorm2d": lambda: nn.BatchNorm2d(4),
        "Conv2d": lambda: nn.Conv2d(4, 4, 3, padding=1),
    }
    x = torch.randn(SHAPE, device=setting.device)
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, make in made.items():
        ours = make()
        swap_layers(ours, "numpy")
        works[name, "numpy"] = _passes(ours, arranged(x, setting.memory_format))
        works[name, "torch"] = _passes(make(), x)
    array, zeros = x.cpu().numpy(), np.zeros(SHAPE, np.float32)
    works[BRIDGE, "call"] = torch.no_grad()(lambda: bridge.call(activation.relu, x))
    works[BRIDGE, "array"] = lambda: np.maximum(array, zeros)
    times = interleave(
        works, rounds, cuda=setting.is_cuda, cpu=setting.counts_cpu, burst=BURST_SECONDS, calls=MOST_CALLS
    )
    found = {name: {way: times[name, way] for way in ("numpy", "torch")} for name in made}
    call, array_alone = times[BRIDGE, "call"], times[BRIDGE, "array"]
    return {**found, BRIDGE: {"numpy": call.minus(array_alone)}}


BURST_SECONDS = 0.01
MOST_CALLS = 1000


def _passes(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    leaf = x.clone().requires_grad_()
    module.to(x.device)
    wanted, upstream = [leaf, *module.parameters()], torch.ones_like(leaf)
    return lambda: torch.autograd.grad(module(leaf), wanted, upstream)
