"""Each layer alone, on the input that it gets inside the network, in NumPy and in torch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cnn_lightning.swap import LAYERS, swap_layers
from cnn_lightning.tools.benchmark.steps import Setting
from cnn_lightning.tools.benchmark.timing import Tick, interleave


@dataclass
class LayerRow:
    """One layer alone on its own input: median seconds of both passes in both implementations, and its FLOPs."""

    name: str
    kind: str
    forward: float
    backward: float
    native_forward: float
    native_backward: float
    flops: int

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second over both passes, as torch counts them."""
        return self.flops / (self.forward + self.backward) / 1e9


def measure_layers(setting: Setting, rounds: int, tick: Tick | None = None) -> list[LayerRow]:
    """Time each layer alone, on the input that it gets inside the network; NumPy and native take turns."""
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
        if type(native) not in LAYERS:
            continue
        swap_layers(ours, "numpy")
        rows.append(_measure_layer(name, ours, native, x, first=index == 0, rounds=rounds, cuda=x.is_cuda))
        if tick:
            tick("layers", index + 1, len(seen))
    return rows


def _measure_layer(
    name: str, ours: torch.nn.Module, native: torch.nn.Module, x: Tensor, *, first: bool, rounds: int, cuda: bool
) -> LayerRow:
    def passes(module: torch.nn.Module) -> tuple[Callable[[], Any], Callable[[], Any]]:
        # The first layer's input is the picture, which needs no gradient. For the others, the product with 1 makes the
        # input a node of the graph, as inside the network, that an in-place layer may write to.
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
