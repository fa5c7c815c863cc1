"""One picture forward and backward through a network, layer by layer: results, times, torch's results, the lines run.

The network runs in evaluation mode, as on a new picture: dropout is off and batch normalisation uses its running
statistics. First the whole network runs once, to record the inputs and the upstream gradient of every layer. Then each
layer runs again alone, so that its NumPy operations, their time and their lines are separate from those of the others.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.aten import numpy_ops
from cnn_lightning.layers import bridge
from cnn_lightning.ops.fast import blocks
from cnn_lightning.swap import native_type, swap_layers
from cnn_lightning.tools.explain import source
from cnn_lightning.tools.explain.flops import flops

TIMED = 3
"""Repetitions of each layer; the fastest counts, because other programs slow the others."""


@dataclass
class Layer:
    """One call of a layer."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    y: Tensor
    grad_y: Tensor
    again: int = 1
    """1 for the first call of this module in the pass, 2 for the second."""
    grad_x: Tensor | None = None
    parameters: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Each parameter and its gradient."""
    details: "Details | None" = None

    @property
    def x(self) -> Tensor:
        """The input."""
        found: Tensor = self.arguments[0]
        return found

    @property
    def kind(self) -> str:
        """The name of the native type."""
        return native_type(self.module).__name__

    @property
    def label(self) -> str:
        """The layer's name, with the number of the call from the second on."""
        return self.name if self.again == 1 else f"{self.name} (call {self.again})"


@dataclass
class Details:
    """What is known about a layer besides its arrays."""

    forward: float
    backward: float
    difference: float | None
    """The largest difference from torch's layer, over output and gradients; None if torch itself ran."""
    flops: int
    forward_source: list[source.Listing]
    backward_source: list[source.Listing]


@dataclass
class Recording:
    """A whole forward and backward."""

    layers: list[Layer]
    logits: Tensor
    probabilities: Tensor
    loss: float
    grad_image: Tensor


def record(net: nn.Module, loss: nn.Module, image: Tensor, label: int, *, details: bool = False) -> Recording:
    """Run the picture (1, C, H, W) forward, and the gradient of its loss backward.

    Args:
        net: The network; it is put into ``eval`` mode, and its in-place layers are made to copy.
        loss: The loss of logits and classes.
        image: The normalised picture.
        label: Its class.
        details: Whether each layer is timed, compared and traced too.
    """
    net.eval()
    loss.eval()
    for module in net.modules():
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False  # the recorded inputs must not change
    layers: list[Layer] = []
    leaf = image.detach().clone().requires_grad_()
    with _watched(net, loss, layers):
        outputs = net(leaf)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        value: Tensor = loss(logits, torch.tensor([label]))
        value.backward()  # type: ignore[no-untyped-call]
    net.zero_grad()
    assert leaf.grad is not None
    for layer in layers:
        layer.grad_x, layer.parameters = _gradients(layer, layer.module)
        if details:
            with numpy_ops(False):  # it compares with torch
                layer.details = _details(layer)
    return Recording(layers, logits.detach()[0], logits.detach()[0].softmax(0), value.item(), leaf.grad)


@contextmanager
def _watched(net: nn.Module, loss: nn.Module, layers: list[Layer]) -> Iterator[None]:
    """Record the inputs, the output and the upstream gradient of every leaf module."""

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if not (arguments and isinstance(arguments[0], Tensor) and isinstance(output, Tensor)):
                return
            if not (arguments[0].is_floating_point() and output.requires_grad):
                return
            given = tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in arguments)
            again = 1 + sum(other.module is module for other in layers)
            layer = Layer(name, module, given, output.detach().clone(), torch.zeros_like(output), again)
            layers.append(layer)
            output.register_hook(lambda gradient: _set(layer.grad_y, gradient))  # type: ignore[no-untyped-call]

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in [*net.named_modules(), ("loss", loss)]
        if next(module.children(), None) is None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set(place: Tensor, gradient: Tensor) -> None:
    place.copy_(gradient)


def _gradients(layer: Layer, module: nn.Module) -> tuple[Tensor | None, dict[str, tuple[Tensor, Tensor]]]:
    """The layer's own backward, from the recorded upstream gradient."""
    forward, backward = _passes(layer, module)
    found = backward(forward())
    parameters = list(module.named_parameters(recurse=False))
    gradients = {
        name: (parameter.detach(), torch.zeros_like(parameter) if grad is None else grad)
        for (name, parameter), grad in zip(parameters, found[1:], strict=True)
    }
    return found[0], gradients


def _passes(layer: Layer, module: nn.Module) -> tuple[Callable[[], Tensor], Callable[[Tensor], tuple[Any, ...]]]:
    x = layer.x.clone().requires_grad_()
    wanted = [x, *(parameter for _, parameter in module.named_parameters(recurse=False))]

    def forward() -> Tensor:
        y: Tensor = module(x, *layer.arguments[1:])
        return y

    def backward(y: Tensor) -> tuple[Any, ...]:
        return torch.autograd.grad(y, wanted, layer.grad_y, allow_unused=True)

    return forward, backward


# ---- details of a layer


def _details(layer: Layer) -> Details:
    forward, backward = _passes(layer, layer.module)
    times: list[tuple[float, float]] = []
    with _one_thread():
        for _ in range(TIMED):
            with bridge.watch(_Seconds()) as first:
                y = forward()
            with bridge.watch(_Seconds()) as second:
                backward(y)
            times.append((first.sum, second.sum))
        y, forward_source = source.traced(forward)
        _, backward_source = source.traced(lambda: backward(y))
    return Details(
        min(first for first, _ in times),
        min(second for _, second in times),
        _difference(layer),
        flops(layer.module, layer.x, layer.y),
        forward_source,
        backward_source,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: the tracer sees only this one."""
    before = blocks.get_num_threads()
    blocks.set_num_threads(1)
    try:
        yield
    finally:
        blocks.set_num_threads(before)


class _Seconds(bridge.Listener):
    """Adds up the time of the NumPy operations that layers call, one after the other."""

    def __init__(self) -> None:
        self.sum = 0.0

    def begin(self, op: bridge.Operation, tensors: Any) -> None:
        self.start = time.perf_counter()

    def end(self, op: bridge.Operation) -> None:
        self.sum += time.perf_counter() - self.start


def _difference(layer: Layer) -> float | None:
    if native_type(layer.module) is type(layer.module):
        return None
    native = copy.deepcopy(layer.module)
    swap_layers(native, "torch")
    forward, _ = _passes(layer, native)
    with torch.no_grad():
        found = [(forward(), layer.y)]
    grad_x, parameters = _gradients(layer, native)
    if grad_x is not None and layer.grad_x is not None:
        found.append((grad_x, layer.grad_x))
    found += [(gradient, layer.parameters[name][1]) for name, (_, gradient) in parameters.items()]
    return max((a - b).detach().abs().max().item() if a.numel() else 0.0 for a, b in found)
