"""A whole training step: the network, its implementations, and the time of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from cnn_lightning import layers
from cnn_lightning.aten import Report, numpy_ops
from cnn_lightning.layers.memory import Memory, MemoryFormat, arranged
from cnn_lightning.model import build_net
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import swap_layers
from cnn_lightning.tools.benchmark.timing import Tick, Timing, interleave

IMPLEMENTATIONS = ("numpy", "numpy formulas", "numpy functions", "torch", "torch channels_last", "torch.compile")


@dataclass(frozen=True)
class Setting:
    """What is measured: a network as for `build_net`, a batch, and the number of threads of NumPy and torch.

    ``memory_format`` is that of the NumPy layers; ``auto`` counts as contiguous until it is `decided`. Without
    ``dropout``, dropout and stochastic depth do nothing.
    """

    net: str = "simple_cnn"
    batch_size: int = 64
    in_channels: int = 1
    image_size: int = 28
    num_classes: int = 10
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 128
    dropout: bool = True
    memory_format: MemoryFormat = "auto"
    threads: int = 1
    device: str = "cpu"

    @property
    def is_cuda(self) -> bool:
        """Whether the tensors are on a GPU."""
        return self.device.startswith("cuda")

    @property
    def counts_cpu(self) -> bool:
        """Whether times are CPU time of the process, which is possible with one thread."""
        return self.threads == 1 and not self.is_cuda

    def decided(self) -> tuple["Setting", Memory]:
        """The setting with the memory format that ``auto`` stands for, and the reason."""
        if self.memory_format != "auto":
            return self, Memory(self.memory_format)
        from cnn_lightning.classifier.memory import (
            chosen,  # it loads Lightning, which the processes of `memory` don't need
        )

        net = self.network()
        swap_layers(net, "numpy")
        shape = self.in_channels, self.image_size, self.image_size
        memory = chosen(net, torch.device(self.device), shape, compiled=False)
        return replace(self, memory_format=memory.format), memory

    def network(self) -> torch.nn.Module:
        """The network in training mode, with the same weights at every call."""
        torch.manual_seed(0)
        net = build_net(
            self.net,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            image_size=self.image_size,
            channels=self.channels,
            hidden=self.hidden,
        )
        net.train()
        for module in net.modules():
            if not self.dropout and isinstance(module, _DropoutNd | StochasticDepth):
                module.eval()
        return net.to(self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images and labels."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.in_channels, self.image_size, self.image_size)
        images = torch.randn(shape, generator=generator)
        labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        return images.to(self.device), labels.to(self.device)


@dataclass
class Contender:
    """One implementation of the network with its loss, optimizer and batch."""

    net: torch.nn.Module
    loss: torch.nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer
    memory_format: MemoryFormat = "contiguous"
    fast: bool = True
    functions: bool = False

    @classmethod
    def make(cls, implementation: str, setting: Setting) -> "Contender":
        """The network of ``setting`` in one of `IMPLEMENTATIONS`; formulas run in contiguous memory."""
        net, (images, labels) = setting.network(), setting.batch()
        memory_format: MemoryFormat = "contiguous"
        loss: torch.nn.Module = torch.nn.CrossEntropyLoss()
        if implementation in ("numpy", "numpy formulas"):
            swap_layers(net, "numpy")
            loss = layers.CrossEntropyLoss()
            memory_format = setting.memory_format if implementation == "numpy" else "contiguous"
        elif implementation == "torch channels_last":
            memory_format = "channels_last"
        elif implementation == "torch.compile":
            net.compile()
        elif implementation not in ("torch", "numpy functions"):
            raise ValueError(f"implementation: expected one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
        if memory_format == "channels_last":
            net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        fast, functions = implementation != "numpy formulas", implementation == "numpy functions"
        return cls(net, loss, images, labels, optimizer, memory_format, fast, functions)

    def step(self) -> None:
        """zero_grad, forward, loss, backward, SGD."""
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()

    def backward(self) -> Report:
        """Forward, loss and backward; the images are brought into the memory format, as in training.

        Returns:
            What computed torch's own operators, if NumPy did.
        """
        with chooser.fast(self.fast), numpy_ops(self.functions) as report:
            outputs = self.net(arranged(self.images, self.memory_format))
            # Networks with auxiliary heads return a named tuple whose first entry is the prediction.
            self.loss(outputs[0] if isinstance(outputs, tuple) else outputs, self.labels).backward()
        return report

    def forward(self) -> None:
        """The prediction alone, without an autograd graph."""
        with torch.no_grad(), chooser.fast(self.fast), numpy_ops(self.functions):
            self.net(arranged(self.images, self.memory_format))


def measure_steps(
    setting: Setting,
    implementations: Sequence[str],
    rounds: int,
    tick: Tick | None = None,
    kinds: Sequence[str] = ("step", "forward"),
    limit: float = math.inf,
) -> dict[str, dict[str, Timing]]:
    """Training step and forward of each implementation: ``{"step": {name: Timing}, "forward": {...}}``.

    After ``limit`` seconds of a kind no new round begins.
    """
    contenders = {name: Contender.make(name, setting) for name in implementations}
    return {
        kind: interleave(
            {name: getattr(contender, kind) for name, contender in contenders.items()},
            rounds,
            name=kind,
            tick=tick,
            cuda=setting.is_cuda,
            cpu=setting.counts_cpu,
            limit=limit,
        )
        for kind in kinds
    }
