"""What a run of a network shows: the modules that were called, what computed, and which functions of torch."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.swap.arithmetic import is_without_arithmetic
from cnn_lightning.swap.based import AsBase
from cnn_lightning.swap.functional import is_computing
from cnn_lightning.swap.names import Named
from cnn_lightning.swap.native import LAYERS, is_ours_type, layer_base

_PRODUCTS = "matmul mm bmm addmm baddbmm mv addmv dot inner outer einsum tensordot bilinear conv_transpose3d conv3d"
_SUMS = "mean sum prod var std var_mean std_mean norm cumsum logsumexp amax amin max min nanmean nansum"
_CURVES = "exp expm1 log log1p log2 log10 sqrt rsqrt pow square erf sin cos clamp clamp_min clamp_max"
_NAMES = {
    *(_PRODUCTS.split() + _SUMS.split() + _CURVES.split()),
    *(name.removesuffix("_") for entry in catalog.entries().values() for name in entry.functions),
}
"""Functions of `torch` and methods of tensors that are arithmetic; ``+``, ``-``, ``*`` and ``/`` are not listed."""
_MOVES = {
    "channel_shuffle",
    "embedding",
    "fold",
    "has_torch_function",
    "one_hot",
    "pixel_shuffle",
    "pixel_unshuffle",
    "unfold",
}
"""Functions of `torch.nn.functional` that only move data; all others there are arithmetic."""
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""The largest difference of an output from torch's, relative to the largest number; 0.1 for half precision."""


@dataclass
class Seen:
    """What was seen, by the identities of modules.

    Attributes:
        inside: The modules of the network; others, such as the loss, are not part of the run.
        called: Those that were called.
        computed: Those in which a formula ran.
        calls: Names of the functions that are arithmetic and not computed by NumPy, which each called itself.
        uses: For parameters that another module used: the function, the name of that module, and what computed.
        trained: Whether modules without a call in evaluation had a chance in training.
    """

    inside: set[int] = field(default_factory=set)
    called: set[int] = field(default_factory=set)
    computed: set[int] = field(default_factory=set)
    calls: dict[int, dict[str, None]] = field(default_factory=dict)
    uses: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    trained: bool = True

    def not_called(self, named: Named) -> tuple[str, str]:
        """What computes with the weight of a module that is not called ("-" for nothing), and the words; or empty."""
        if named.identity in self.called or named.identity not in self.inside:
            return "", ""
        if named.identity in self.uses:
            function, place, implementation = self.uses[named.identity]
            by = f"by {function} in" if function else "in"
            return implementation, f"never called; its weight is used {by} {place or 'the network'}"
        return "-", "never called" if self.trained else "not called in evaluation"


def observe(net: nn.Module, found: Sequence[Named], sample: Any) -> tuple[Seen, Any]:
    """Run a network once in evaluation, and once in training if that left modules out.

    Parameters, buffers, modes and random numbers are afterwards what they were, and no gradient is computed.

    Args:
        net: The network.
        found: Its modules, and modules beside it.
        sample: Its input: a tensor, a tuple of arguments, or a dictionary of them.

    Returns:
        What was seen, and the output of the evaluation.
    """
    modules = list(net.modules())
    seen = Seen(inside=set(map(id, modules)))
    watcher = _Watcher(seen, found)
    with watcher.called(modules), bridge.watch(watcher), _Functions(watcher):
        output = run(net, sample, training=False)
        if any(named.is_layer and named.identity in seen.inside - seen.called for named in found):
            seen.trained = False
            with suppress(Exception):  # a network may have no loss of training for one picture, say
                run(net, sample, training=True)
                seen.trained = True
    return seen, output


def run(net: nn.Module, sample: Any, *, training: bool) -> Any:
    """The output of a network, which is afterwards what it was before; compiled parts run as they are written."""
    args, kwargs = _arguments(sample)
    with _restored(net), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        net.train(training)
        return net(*args, **kwargs)


def difference(output: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest number.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    largest = 0.0
    for a, b in zip(_pytree.tree_leaves(output), _pytree.tree_leaves(expected), strict=True):
        if not (isinstance(b, Tensor) and b.is_floating_point() and b.numel()):
            continue
        unequal = (a.double() - b.double()).abs()[~((a == b) | (a.isnan() & b.isnan()))]
        finite = b.double().abs()[b.isfinite()]
        scale = float(finite.max()) if len(finite) else 0.0
        found = float(unequal.max()) / (scale or 1.0) if len(unequal) else 0.0
        if not found <= _TOLERANCE.get(b.dtype, 0.1):
            raise RuntimeError(
                f"layers: expected outputs that equal torch's, got a difference of {found:.0e} of the largest number; "
                "cnn-lightning parity names the layer"
            )
        largest = max(largest, found)
    return largest


def _arguments(sample: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(sample, Mapping):
        return (), sample
    return (sample if isinstance(sample, tuple) else (sample,)), {}


@contextmanager
def _restored(net: nn.Module) -> Iterator[None]:
    """Modes, buffers and the state of random numbers are put back."""
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(module, name, value) for module in net.modules() for name, value in module._buffers.items()]
    values = [None if value is None else value.detach().clone() for _, _, value in buffers]
    cuda = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # a network may draw from it
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for (module, name, buffer), value in zip(buffers, values, strict=True):
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)


class _Watcher(bridge.Listener):
    """Adds to ``seen`` what happens, by the module whose forward runs."""

    def __init__(self, seen: Seen, found: Sequence[Named]) -> None:
        self.seen = seen
        self.names = {named.identity: named.name for named in found}
        self.quiet = {named.identity for named in found if named.is_layer and _speaks_for_itself(named.module)}
        self.owners = {id(p): named.module for named in found for p in named.module._parameters.values()}
        self.running: list[nn.Module] = []

    @contextmanager
    def called(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Note the calls of modules, also of their ``forward`` itself."""
        before = [(module, module.__dict__.get("forward")) for module in modules]
        try:
            for module in modules:
                if isinstance(module, torch.jit.ScriptModule):  # what it calls is not seen
                    self.seen.called.update(map(id, module.modules()))
                else:
                    module.__dict__["forward"] = self._noted(module)
            yield
        finally:
            for module, forward in before:
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.__dict__["forward"] = forward

    def _noted(self, module: nn.Module) -> Any:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.seen.called.add(id(module))
            self.running.append(module)
            try:
                return original(*args, **kwargs)
            finally:
                self.running.pop()

        return forward

    def begin(self, op: bridge.Operation, tensors: Sequence[Tensor | None]) -> None:
        """A formula runs."""
        if self.running:
            self.seen.computed.add(id(self.running[-1]))
            self._use(op.__name__, tensors, "numpy")

    def end(self, op: bridge.Operation) -> None:
        """It has run."""

    def function(self, function: Any, args: Any, kwargs: Any) -> None:
        """A function of torch is called."""
        if not self.running or is_computing():
            return
        name, top = arithmetic(function), self.running[-1]
        if name and id(top) not in self.quiet:
            self.seen.calls.setdefault(id(top), {})[name] = None
        self._use(name, [*args, *kwargs.values()], "torch")

    def _use(self, function: str, arguments: Sequence[Any], implementation: str) -> None:
        for argument in arguments:
            owner = self.owners.get(id(argument))
            if owner is not None and owner is not self.running[-1]:
                use = function, self.names.get(id(self.running[-1]), ""), implementation
                if function or id(owner) not in self.seen.uses:
                    self.seen.uses[id(owner)] = use


class _Functions(TorchFunctionMode):
    """Shows every call of a function of torch to a watcher."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function itself."""
        kwargs = kwargs or {}
        self.watcher.function(function, args, kwargs)
        return function(*args, **kwargs)


def _speaks_for_itself(module: nn.Module) -> bool:
    """Whether a module's row says already what its own functions are: a layer of torch or of ours."""
    kind = type(module)
    if isinstance(module, AsBase):
        return False
    ours = is_ours_type(kind) and layer_base(kind) is not None
    return ours or kind in LAYERS or kind.__module__.startswith("torch.nn.") or is_without_arithmetic(kind)


@cache
def arithmetic(function: Any) -> str:
    """The name of a function of torch that is more than a move of data or ``+ - * /``; empty for others."""
    if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        path = str(function).removesuffix(".default")
        return "" if path.startswith(("aten.", "prims.", "prim.")) else path
    home, _, written = (resolve_name(function) or "").rpartition(".")
    name = written.strip("_").removesuffix("_with_indices")
    if home == "torch.nn.functional":
        return "" if name in _MOVES else written
    if home.startswith(("torch.linalg", "torch.fft", "torch.special")):
        return f"{home.removeprefix('torch.')}.{written}"
    return written if name in _NAMES and home in ("torch", "torch.Tensor", "torch.functional") else ""
