"""The graph of a run: every call of a layer, every operation of torch outside the layers, and which feeds which.

A copy of the network runs once. Hooks on its modules see the calls; a `TorchFunctionMode` sees the operations of torch
between them. A tensor is known by its identity; where an operation writes into a tensor, that tensor and all others in
the same memory come from this operation from then on.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from cnn_lightning.swap.native import layer_base, native_type

Shape = tuple[int, ...]
Scope = tuple[str, int]
"""A call of a module: its dotted name, and the index of the call from 0."""

SIGNS = {
    "add": "+",
    "radd": "+",
    "iadd": "+",
    "sub": "−",
    "rsub": "−",
    "isub": "−",
    "mul": "×",
    "rmul": "×",
    "imul": "×",
    "div": "÷",
    "truediv": "÷",
    "rtruediv": "÷",
    "itruediv": "÷",
    "matmul": "@",
    "rmatmul": "@",
    "concat": "cat",
    "concatenate": "cat",
    "getitem": "[ ]",
    "setitem": "[ ] =",
}
"""What an operation is called in the graph, where that is not torch's name."""


@dataclass(frozen=True)
class Node:
    """A call of a layer or of an operation of torch.

    Attributes:
        kind: ``module`` for a layer, ``function`` for an operation.
        name: The layer's dotted name, or the operation's plain name.
        type: The class of the layer by torch's name; empty for others.
        call: The index of the call of this layer, from 0; of an operation 0.
        shapes: The shape of each tensor that it returns.
        scopes: The calls of the modules around it, the outermost first; the network itself is left out.
    """

    kind: Literal["input", "module", "function", "output"]
    name: str
    type: str
    call: int
    shapes: tuple[Shape, ...]
    scopes: tuple[Scope, ...]


@dataclass(frozen=True)
class Graph:
    """The nodes in the order of computation, and the edges as pairs of their indices."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    types: dict[str, str]
    """The class of each module that has modules in it, by its dotted name."""


def graph_of(net: nn.Module, *inputs: Any, functions: bool = True) -> Graph:
    """Run a copy of a network once, without gradients, in the mode that it is in.

    The network, its buffers, and torch's random state stay as they are. Operations on parameters or constants alone are
    left out: they depend on no input.

    Args:
        net: Any network.
        inputs: The arguments of its call.
        functions: Whether torch's operations outside the layers are nodes; if not, edges pass through them.
    """
    twin = copy.deepcopy(net)
    devices = {value.device for value in chain(twin.parameters(), twin.buffers(), _tensors(inputs)) if value.is_cuda}
    recorder = _Recorder(twin, functions)
    with torch.random.fork_rng(list(devices)), torch.no_grad():
        recorder.begin(inputs)
        with recorder:
            outputs = twin(*inputs)
        recorder.end(outputs)
    return Graph(tuple(recorder.nodes), tuple(sorted(recorder.edges)), recorder.types)


class _Recorder(TorchFunctionMode):
    def __init__(self, net: nn.Module, functions: bool) -> None:
        super().__init__()
        self.functions = functions
        self.nodes: list[Node] = []
        self.edges: set[tuple[int, int]] = set()
        self.types: dict[str, str] = {}
        self.calls: dict[str, int] = {}
        self.scopes: list[Scope] = []
        self.before: list[tuple[list[Tensor], list[int]]] = []
        """Of each layer that runs: its arguments, and how often each had been written to."""
        self.sources: dict[int, tuple[int, ...]] = {}
        """The nodes that a tensor comes from, by its id."""
        self.seen: dict[int, list[Tensor]] = {}
        """The tensors of `sources` by their memory; it also keeps them alive, so that no id is given twice."""
        self.state = {id(value) for value in chain(net.parameters(), net.buffers())}
        self.watch(net)

    # -- from where

    def begin(self, inputs: Any) -> None:
        """A node for each input tensor."""
        for index, value in enumerate(given := _tensors(inputs)):
            name = "input" if len(given) == 1 else f"input {index + 1}"
            self._come_from([value], (self._node("input", name, "", [value]),))

    def end(self, outputs: Any) -> None:
        """The node of the output."""
        values = _tensors(outputs)
        self._link(values, self._node("output", "output", "", values))

    def _node(self, kind: Any, name: str, type_name: str, values: list[Tensor], call: int = 0) -> int:
        shapes = tuple(tuple(value.shape) for value in values)
        self.nodes.append(Node(kind, name, type_name, call, shapes, tuple(self.scopes)))
        return len(self.nodes) - 1

    def _link(self, values: list[Tensor], node: int) -> None:
        self.edges |= {(source, node) for value in values for source in self.sources.get(id(value), ())}

    def _come_from(self, values: list[Tensor], nodes: tuple[int, ...]) -> None:
        for value in values:
            if id(value) not in self.sources:
                self.seen.setdefault(_memory(value), []).append(value)
            self.sources[id(value)] = nodes

    def _written(self, values: list[Tensor], versions: list[int]) -> list[Tensor]:
        """The tensors that were written to, and all others in their memory; no parameters or buffers."""
        changed = [value for value, version in zip(values, versions, strict=True) if value._version != version]
        changed = [value for value in changed if id(value) not in self.state]
        return changed + [other for value in changed for other in self.seen.get(_memory(value), ())]

    # -- operations

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.before:  # inside a layer
            return function(*args, **kwargs)
        given = _tensors((args, kwargs))
        versions = [value._version for value in given]
        result = function(*args, **kwargs)
        given_ids = {id(value) for value in given}
        made = [value for value in _tensors(result) if id(value) not in given_ids]
        written = self._written(given, versions)
        sources = tuple(dict.fromkeys(node for value in given for node in self.sources.get(id(value), ())))
        if (made or written) and sources and not _is_empty(function):
            if self.functions:
                node = self._node("function", _plain(function), "", made or written[:1])
                self._link(given, node)
                sources = (node,)
            self._come_from(made + written, sources)
        return result

    # -- modules

    def watch(self, net: nn.Module) -> None:
        """Put hooks on all modules but the network itself and those inside layers."""
        within = ""
        for name, module in net.named_modules():
            if not name or (within and name.startswith(within)):
                continue
            if _is_layer(module):
                within = f"{name}."
                module.register_forward_pre_hook(self._enter_layer, with_kwargs=True)
                module.register_forward_hook(self._leave_layer(name), with_kwargs=True)
            else:
                self.types[name] = type(module).__name__
                module.register_forward_pre_hook(self._enter_block(name))
                module.register_forward_hook(self._leave_block)

    def _enter_block(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.scopes.append((name, self._next_call(name)))

        return hook

    def _leave_block(self, module: nn.Module, args: Any, result: Any) -> None:
        self.scopes.pop()

    def _enter_layer(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = _tensors((args, kwargs))
        self.before.append((given, [value._version for value in given]))

    def _leave_layer(self, name: str) -> Callable[..., Any]:
        """A hook after a layer: a result that is an argument, unchanged, becomes a tensor of its own."""

        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            given, versions = self.before[-1]
            written = self._written(given, versions)
            same = {id(value) for value in given} - {id(value) for value in written}
            if isinstance(result, Tensor) and id(result) in same:
                result = result.view_as(result)
            made = _tensors(result)
            node = self._node("module", name, native_type(module).__name__, made, self._next_call(name))
            self._link(given, node)
            self._come_from(made + written, (node,))
            self.before.pop()
            return result

        return hook

    def _next_call(self, name: str) -> int:
        self.calls[name] = self.calls.get(name, -1) + 1
        return self.calls[name]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one node: it has no modules in it, or is of a type that this package has in NumPy."""
    return next(module.children(), None) is None or layer_base(native_type(module)) is not None


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in arguments or results, however deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif not isinstance(value, (tuple, list)):
        value = tuple(vars(value).values()) if is_dataclass(value) else ()
    return [tensor for each in value for tensor in _tensors(each)]


def _memory(value: Tensor) -> int:
    """What tensors in the same memory have in common."""
    return value.untyped_storage()._cdata if value.layout is torch.strided else id(value)


def _is_empty(function: Any) -> bool:
    """Whether an operation makes a tensor like its argument, but not from the numbers in it."""
    return str(function.__name__).startswith("new_") or str(function.__name__).endswith("_like")


def _plain(function: Any) -> str:
    """The name of an operation, as one would say it: ``+``, ``cat``, ``relu``."""
    parts = str(resolve_name(function) or function.__name__).split(".")
    name = (parts[-2] if parts[-1] in ("__get__", "__set__") else parts[-1]).strip("_")
    return SIGNS.get(name, name)
