"""How long a training step takes, per implementation and per layer, next to what the machine could do at best.

Everything compared is measured in one process, taking turns: a round is one burst of steps of each contender, the
first two of a burst untimed (the other's worker threads still spin then). Ratios are taken round by round, so that a
machine whose speed drifts shifts both sides alike.
"""

import copy
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cnn_lightning import layers
from cnn_lightning.layers import bridge
from cnn_lightning.model import build_net
from cnn_lightning.ops.fast import blocks, chooser
from cnn_lightning.swap import swap_layers

UNTIMED = 2
BURST_SECONDS = 0.1
"""About how long the timed part of a burst takes; a burst has at least one step and at most twenty."""

K = TypeVar("K", bound=Hashable)

Tick = Callable[[str, int, int], None]
"""Told the name of a measurement, the round and the number of rounds: progress for whoever watches."""


@dataclass(frozen=True)
class Setting:
    """What is measured: a network as `build_net` takes it, a batch, and the number of threads of both libraries."""

    net: str = "simple_cnn"
    batch_size: int = 64
    in_channels: int = 1
    image_size: int = 28
    num_classes: int = 10
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 128
    threads: int = 1
    device: str = "cpu"

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
        return net.train().to(self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images and labels."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.in_channels, self.image_size, self.image_size)
        images = torch.randn(shape, generator=generator)
        labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        return images.to(self.device), labels.to(self.device)


@dataclass
class Timing:
    """Seconds of one step, one figure a round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (self.median,) * 3
        return (high - low) / 2 / self.median

    def ratio(self, other: "Timing") -> float:
        """The median over the rounds of this time over the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


# ---- contenders


IMPLEMENTATIONS = ("numpy", "numpy formulas", "torch", "torch channels_last", "torch.compile")


@dataclass
class Contender:
    """One implementation of the network with its loss, optimizer and batch."""

    net: torch.nn.Module
    loss: torch.nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer
    fast: bool = True

    @classmethod
    def make(cls, implementation: str, setting: Setting) -> "Contender":
        """The network of ``setting`` in one of `IMPLEMENTATIONS`."""
        net, (images, labels) = setting.network(), setting.batch()
        loss: torch.nn.Module = torch.nn.CrossEntropyLoss()
        if implementation in ("numpy", "numpy formulas"):
            swap_layers(net, "numpy")
            loss = layers.CrossEntropyLoss()
        elif implementation == "torch channels_last":
            net = net.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        elif implementation == "torch.compile":
            net.compile()
        elif implementation != "torch":
            raise ValueError(f"implementation: expected one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        return cls(net, loss, images, labels, optimizer, fast=implementation != "numpy formulas")

    def step(self) -> None:
        """zero_grad, forward, loss, backward, SGD."""
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()

    def backward(self) -> None:
        """Forward, loss and backward."""
        with chooser.fast(self.fast):
            outputs = self.net(self.images)
            # Networks with auxiliary heads return a named tuple whose first entry is the prediction.
            self.loss(outputs[0] if isinstance(outputs, tuple) else outputs, self.labels).backward()

    def forward(self) -> None:
        """The prediction alone, without a graph."""
        with torch.no_grad(), chooser.fast(self.fast):
            self.net(self.images)


# ---- time


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Both libraries on ``n`` threads for a while."""
    before = torch.get_num_threads(), blocks.get_num_threads()
    torch.set_num_threads(n)
    blocks.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        blocks.set_num_threads(before[1])


def _seconds(function: Callable[[], Any], repeats: int, cuda: bool) -> float:
    """Mean seconds of a call; on a GPU between two events of its stream."""
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats
    start_s = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start_s) / repeats


def interleave(
    functions: Mapping[K, Callable[[], Any]],
    rounds: int,
    *,
    name: str = "",
    tick: Tick | None = None,
    cuda: bool = False,
    burst: float | None = None,
    limit: float = math.inf,
) -> dict[K, Timing]:
    """Time functions that take turns, a burst of each a round.

    A burst takes about ``burst`` seconds, `BURST_SECONDS` by default. After ``limit`` seconds no further round begins.
    """
    end, length = time.perf_counter() + limit, BURST_SECONDS if burst is None else burst
    timings = {key: Timing() for key in functions}
    repeats = {}
    for key, function in functions.items():
        _seconds(function, UNTIMED, cuda)
        repeats[key] = max(1, min(20, round(length / _seconds(function, 1, cuda))))
    for index in range(rounds):
        if index and time.perf_counter() > end:
            break
        for key, function in functions.items():
            _seconds(function, UNTIMED, cuda)
            timings[key].seconds.append(_seconds(function, repeats[key], cuda))
        if tick:
            tick(name, index + 1, rounds)
    return timings


def measure_steps(
    setting: Setting, implementations: Sequence[str], rounds: int, tick: Tick | None = None
) -> dict[str, dict[str, Timing]]:
    """Training step and forward of each implementation: ``{"step": {name: Timing}, "forward": {...}}``."""
    contenders = {name: Contender.make(name, setting) for name in implementations}
    cuda = setting.device.startswith("cuda")
    return {
        kind: interleave(
            {name: getattr(contender, kind) for name, contender in contenders.items()},
            rounds,
            name=kind,
            tick=tick,
            cuda=cuda,
        )
        for kind in ("step", "forward")
    }


# ---- layer by layer


@dataclass
class LayerRow:
    """One layer alone on its own input: median seconds of both passes in both implementations, and its work."""

    name: str
    kind: str
    forward: float
    backward: float
    native_forward: float
    native_backward: float
    flops: int

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second, both passes together (a backward is counted by torch)."""
        return self.flops / (self.forward + self.backward) / 1e9


def measure_layers(setting: Setting, rounds: int, tick: Tick | None = None) -> list[LayerRow]:
    """Each layer in isolation, on the input it gets inside the network, NumPy and native taking turns."""
    net = setting.network()
    images, _ = setting.batch()
    seen: dict[str, tuple[torch.nn.Module, Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: (
                seen.setdefault(name, (copy.deepcopy(module), inputs[0].detach().clone())) and None
            )
        )
        for name, module in net.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    rows = []
    for index, (name, (native, x)) in enumerate(seen.items()):
        ours = copy.deepcopy(native)
        if type(native) not in _swappable():
            continue
        swap_layers(ours, "numpy")
        rows.append(_measure_layer(name, ours, native, x, first=index == 0, rounds=rounds, cuda=x.is_cuda))
        if tick:
            tick("layers", index + 1, len(seen))
    return rows


def _swappable() -> set[type[torch.nn.Module]]:
    from cnn_lightning.swap import LAYERS

    return set(LAYERS)


def _measure_layer(
    name: str, ours: torch.nn.Module, native: torch.nn.Module, x: Tensor, *, first: bool, rounds: int, cuda: bool
) -> LayerRow:
    def passes(module: torch.nn.Module) -> tuple[Callable[[], Any], Callable[[], Any]]:
        # The first layer's input is the picture, which no gradient is asked for. Multiplying by one gives the others
        # a node of the graph, as inside the network, that an in-place layer may write to.
        leaf = x.clone().requires_grad_(not first)
        wanted = [leaf] * (not first) + list(module.parameters())

        def forward() -> Tensor:
            result: Tensor = module(leaf if first else leaf * 1)
            return result

        def both() -> None:
            y = forward()
            if y.requires_grad:
                torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

        return forward, both

    (forward, both), (native_forward, native_both) = passes(ours), passes(native)
    with FlopCounterMode(display=False) as counter:
        native_both()
    times = interleave({"f": forward, "b": both, "nf": native_forward, "nb": native_both}, rounds, cuda=cuda)
    medians = {key: timing.median for key, timing in times.items()}
    return LayerRow(
        name,
        type(native).__name__,
        medians["f"],
        max(0.0, medians["b"] - medians["f"]),
        medians["nf"],
        max(0.0, medians["nb"] - medians["nf"]),
        int(counter.get_total_flops()),
    )


# ---- the bridge, memory, and the floor


class _Spent(bridge.Listener):
    """Adds up the seconds inside calls, and inside the operations that they run, of one call after the other."""

    def __init__(self) -> None:
        self.layers = self.arrays = 0.0

    def begin(self, op: bridge.Operation, tensors: Any) -> None:
        self._begun = time.perf_counter()

    def enter(self, op: bridge.Operation, arrays: Any, options: Any) -> None:
        self._entered = time.perf_counter()

    def leave(self, op: bridge.Operation, arrays: Any, results: Any, dtypes: Any) -> None:
        self.arrays += time.perf_counter() - self._entered

    def end(self, op: bridge.Operation) -> None:
        self.layers += time.perf_counter() - self._begun


def measure_bridge(setting: Setting, rounds: int, tick: Tick | None = None) -> dict[str, Timing]:
    """Seconds of a step inside `bridge.call`, and inside the operations it calls: the difference is the bridge's own.

    Both are taken in the same steps, so that the state of the caches is the same for both.
    """
    contender = Contender.make("numpy", setting)
    timings = {"layers": Timing(), "arrays": Timing()}
    for index in range(rounds + 1):
        with bridge.watch(_Spent()) as spent:
            for _ in range(UNTIMED if index == 0 else _BRIDGE_STEPS):
                contender.step()
        if index == 0:
            continue
        timings["layers"].seconds.append(spent.layers / _BRIDGE_STEPS)
        timings["arrays"].seconds.append(spent.arrays / _BRIDGE_STEPS)
        if tick:
            tick("bridge", index, rounds)
    return timings


_BRIDGE_STEPS = 5


def measure_memory(setting: Setting, implementations: Sequence[str]) -> dict[str, int]:
    """Peak memory in bytes of five training steps above what imports take, each in a process of its own."""
    peaks = {}
    for name in implementations:
        text = json.dumps({"implementation": name, "setting": asdict(setting)})
        done = subprocess.run(
            [sys.executable, "-m", "cnn_lightning.tools.benchmark.measure", text],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[name] = int(done.stdout.split()[-1])
    return peaks


def _peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _memory_of_steps(implementation: str, setting: Setting) -> int:
    with threads(setting.threads):
        cuda = setting.device.startswith("cuda")
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as refs:
                refs.write("5")  # reset the peak, so that what importing took does not hide the steps
        before = 0 if cuda else _peak_bytes()
        contender = Contender.make(implementation, setting)
        for _ in range(5):
            contender.step()
        return torch.cuda.max_memory_allocated() if cuda else _peak_bytes() - before


@dataclass(frozen=True)
class Floor:
    """What a step costs at the least: its arithmetic at the matrix-product peak, its traffic at the copy bandwidth."""

    flops: int
    bytes: int
    peak_flops: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """The larger of both, were they to overlap perfectly."""
        return max(self.flops / self.peak_flops, self.bytes / self.bandwidth)


def measure_floor(setting: Setting) -> Floor:
    """FLOPs and bytes of a training step, and the peaks of this machine with NumPy on the setting's threads.

    Bytes: every layer's input, output and weights once forward, and twice backward (their values and gradients).
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
        product = min(_seconds(lambda: np.matmul(a, a, out=out), 3, cuda=False) for _ in range(5))
    copied = min(_seconds(lambda: np.copyto(other, wide), 3, cuda=False) for _ in range(5))
    return Floor(
        int(counter.get_total_flops()),
        traffic,
        2 * n**3 / product * setting.threads,
        2 * wide.nbytes / copied,
    )


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    order["setting"]["channels"] = tuple(order["setting"]["channels"])
    print(_memory_of_steps(order["implementation"], Setting(**order["setting"])))
