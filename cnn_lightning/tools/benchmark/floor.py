"""The least cost of a training step on this machine: its arithmetic and its memory traffic at peak speed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cnn_lightning.ops.fast import blocks
from cnn_lightning.tools.benchmark.steps import Contender, Setting
from cnn_lightning.tools.benchmark.timing import seconds_of


@dataclass(frozen=True)
class Floor:
    """The least cost of a step: its arithmetic at the peak of matrix products, its traffic at the copy bandwidth."""

    flops: int
    bytes: int
    peak_flops: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """The larger of both, as if arithmetic and traffic overlapped perfectly."""
        return max(self.flops / self.peak_flops, self.bytes / self.bandwidth)


def measure_floor(setting: Setting) -> Floor:
    """FLOPs and bytes of a training step, and the peaks of this machine with NumPy on the setting's threads.

    Bytes: the input, output and weights of each layer, once forward and twice backward (values and gradients).
    """
    contender = Contender.make("torch", setting)
    traffic = 0

    def add(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        nonlocal traffic
        values = [*inputs, output, *module.parameters()]
        traffic += 3 * sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))

    for module in contender.net.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter:
        contender.backward()
    n = 1024
    a = torch.randn(n, n, device=setting.device).cpu().numpy()
    wide = np.zeros(16 * 2**20, np.float32)
    other = np.ones_like(wide)
    out = np.empty_like(a)
    with blocks.one_blas_thread():
        product = min(seconds_of(lambda: np.matmul(a, a, out=out), 3, cuda=False) for _ in range(5))
    copied = min(seconds_of(lambda: np.copyto(other, wide), 3, cuda=False) for _ in range(5))
    return Floor(
        int(counter.get_total_flops()),
        traffic,
        2 * n**3 / product * setting.threads,
        2 * wide.nbytes / copied,
    )
