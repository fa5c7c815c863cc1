"""Each layer alone, on the input that it gets inside the network, in NumPy and in torch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from cnn_lightning.layers.memory import arranged
from cnn_lightning.swap import LAYERS, swap_layers
from cnn_lightning.tools.benchmark import timing
from cnn_lightning.tools.benchmark.operations import kind_of
from cnn_lightning.tools.benchmark.steps import Setting
from cnn_lightning.tools.benchmark.timing import Tick, interleave

SECONDS = 60.0
"""All layers together take at most about this long: the bursts of a deep network are short."""


@dataclass
class LayerRow:
    """One layer alone on its own input: median seconds of both passes in both implementations, and its FLOPs.

    ``group`` is its type; for a convolution, also the size of its kernel.
    """

    name: str
    kind: str
    forward: float
    backward: float
    native_forward: float
    native_backward: float
    flops: int
    group: str = ""

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second over both passes, as torch counts them."""
        return self.flops / (self.forward + self.backward) / 1e9


def measure_layers(setting: Setting, rounds: int, tick: Tick | None = None) -> list[LayerRow]:
    """Time each layer alone, on the input that it gets inside the network; NumPy and native take turns.

    The input has the memory layout that it has in the network of NumPy layers, and in that of native layers.
    """
    images, _ = setting.batch()
    net = setting.network()
    native = {name: found for name, found in _seen(net, images).items() if type(found[0]) in LAYERS}
    first = next(name for name, module in net.named_modules() if not list(module.children()))
    swap_layers(net, "numpy")
    ours = _seen(net, arranged(images, setting.memory_format))
    burst = min(timing.BURST_SECONDS, SECONDS / max(1, len(native)) / rounds / 4)
    rows = []
    for index, name in enumerate(native):
        rows.append(_measure_layer(name, ours[name], native[name], setting, name == first, rounds, burst))
        if tick:
            tick("layers", index + 1, len(native))
    return rows


Seen = tuple[nn.Module, Tensor]
"""A layer as it was before its first call, and the input of that call."""


def _seen(net: nn.Module, images: Tensor) -> dict[str, Seen]:
    """The layers that the network calls, by name."""
    seen: dict[str, Seen] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if name not in seen:
            seen[name] = _copy(module), inputs[0].detach().clone()

    hooks = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in net.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return seen


def _copy(module: nn.Module) -> nn.Module:
    """A copy without hooks."""
    twin = copy.deepcopy(module)
    twin._forward_pre_hooks.clear()
    return twin


def _measure_layer(
    name: str, ours: Seen, native: Seen, setting: Setting, is_first: bool, rounds: int, burst: float
) -> LayerRow:
    def passes(module: nn.Module, x: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
        # The first layer's input is the picture, which needs no gradient. For the others, the product with 1 makes the
        # input a node of the graph, as inside the network, that an in-place layer may write to.
        leaf = x.clone().requires_grad_(not is_first)
        wanted = [leaf] * (not is_first) + list(module.parameters())

        def forward() -> Tensor:
            result: Tensor = module(leaf if is_first else leaf * 1)
            return result

        def both() -> None:
            y = forward()
            if y.requires_grad:
                torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

        return forward, both

    (forward, both), (native_forward, native_both) = passes(*ours), passes(*native)
    with FlopCounterMode(display=False) as counter:
        native_both()
    times = interleave(
        {"f": forward, "b": both, "nf": native_forward, "nb": native_both},
        rounds,
        cuda=setting.is_cuda,
        cpu=setting.counts_cpu,
        burst=burst,
    )
    medians = {key: timing.median for key, timing in times.items()}
    return LayerRow(
        name,
        type(native[0]).__name__,
        medians["f"],
        max(0.0, medians["b"] - medians["f"]),
        medians["nf"],
        max(0.0, medians["nb"] - medians["nf"]),
        int(counter.get_total_flops()),
        _group(native[0]),
    )


def _group(module: nn.Module) -> str:
    name = type(module).__name__
    return kind_of(name, module.weight.shape, module.groups) if isinstance(module, _ConvNd) else name
