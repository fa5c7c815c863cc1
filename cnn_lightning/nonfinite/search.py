"""Run a step again and find what made its first number that is not finite."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from cnn_lightning.nonfinite.finding import Finding, beginnings, finding_of
from cnn_lightning.nonfinite.recorder import Event, Kind, Leaf, Recorder, Source, first_bad, recording

PARTS = ("input", "labels")
"""The names of the tensors of a batch that is a sequence."""


def search(
    module: nn.Module,
    batch: Any,
    forward: Callable[[], Tensor],
    backward: Callable[[Tensor], Any] | None = None,
) -> Finding | None:
    """Run a step, and find what made the first number in its loss, or in its gradients, that is not finite.

    Args:
        module: All that has weights, buffers and layers. Layers of its attribute ``net`` are named as there.
        batch: What the step is about; its first tensor has one picture for each index of its first axis.
        forward: Returns the loss.
        backward: Adds the gradients of the loss to the parameters; None to look at the loss alone.

    Returns:
        What was found, or None if all is finite. Compiled modules run as they are written, since Dynamo leaves out what
        runs under a dispatch mode. The gradients of ``module`` are afterwards what they were before.
    """
    names = {layer: _short(name) for name, layer in module.named_modules() if name and _short(name)}
    leaves = [*_of_module(module), *_of_batch(batch)]
    n = next((len(leaf.tensor) for leaf in leaves if leaf.what == "batch" and leaf.tensor.dim()), 0)
    with _no_gradients(module), recording(module, leaves, names) as recorder, torch.enable_grad():
        loss = forward()
        bad = first_bad(loss.detach())
        found = {}
        if bad:
            what = f"a finite loss, got {loss.detach().flatten()[0].item()}"
            found = {"": (what, loss.detach())}
        elif backward is not None and loss.requires_grad:
            backward(loss)
            found = {
                name: ("finite gradients, got NaN or infinity", parameter.grad)
                for name, parameter in module.named_parameters()
                if parameter.grad is not None and first_bad(parameter.grad)
            }
    with torch.no_grad():
        return _first(recorder, found, n)


def _first(recorder: Recorder, found: Mapping[str, tuple[str, Tensor]], n: int) -> Finding | None:
    """The finding for the earliest beginning of the numbers in these tensors."""
    firsts: list[tuple[int, int, str, Source, Kind]] = []
    for what, tensor in found.values():
        kind: Kind = "nan" if "nan" in first_bad(tensor) else "inf"
        source = beginnings(recorder.source(tensor), kind)[0]
        order = source.order if isinstance(source, Event) else -1
        firsts.append((order, len(firsts), what, source, kind))
    if not firsts:
        return None
    _, _, what, source, kind = min(firsts, key=lambda each: each[:2])
    return finding_of(what, source, kind, n)


def _of_module(module: nn.Module) -> Iterator[Leaf]:
    for name, parameter in module.named_parameters():
        yield Leaf("weight", _short(name), parameter.detach())
    for name, buffer in module.named_buffers():
        yield Leaf("buffer", _short(name), buffer)


def _of_batch(batch: Any) -> Iterator[Leaf]:
    for path, value in tree_flatten_with_path(batch)[0]:
        if isinstance(value, Tensor):
            index = getattr(path[0], "idx", None) if path else 0
            named = (
                PARTS[index] if len(path) < 2 and index is not None and index < len(PARTS) else f"batch{_keys(path)}"
            )
            yield Leaf("batch", named, value)


def _keys(path: Any) -> str:
    return "".join(map(str, path))


def _short(name: str) -> str:
    """A name as `net_of` gives it: without the attribute of the network in a LightningModule."""
    return "" if name == "net" else name.removeprefix("net.")


@contextmanager
def _no_gradients(module: nn.Module) -> Iterator[None]:
    """Inside, the parameters begin without gradients; afterwards they have those of before."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
