"""Sees every operator of a step, and keeps those that give NaN or infinity: which layer ran them, from what.

A storage is the memory of a tensor and of its views. For each the recorder knows the last operator that wrote a number
into it that is not finite, so that `Event.made_of` leads from any such number back to where it began.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnn_lightning.layers import bridge
from cnn_lightning.ops.types import Array

Kind = Literal["nan", "inf"]
KINDS: tuple[Kind, ...] = ("nan", "inf")
Where = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The innermost module that ran: its dotted name, empty outside of all modules, and its type."""

    name: str = ""
    type: str = ""


@dataclass(frozen=True)
class Leaf:
    """A tensor that no operator of the step made: a ``weight``, a ``buffer``, part of the ``batch``, or a constant."""

    what: Literal["weight", "buffer", "batch", "constant"]
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Formula:
    """A call of the bridge: the operation, its arrays and its options."""

    op: bridge.Operation
    arrays: Sequence[Array | None]
    options: dict[str, Any]


@dataclass
class Event:
    """One run of an operator that gave NaN or infinity.

    Attributes:
        function: The operator.
        layer: The layer that ran it, or whose backward did.
        node: The node of the backward pass, such as ``SqrtBackward0``; empty in the forward.
        places: Of each kind of number, the index of the first one, and of the output that has it.
        made_of: Of each kind, what had made the inputs of that kind; first those that are read there. Empty where the
            operator itself made it.
        infinite: What had made the infinite inputs.
        values: The arguments by name; only kept where the operator itself made NaN or infinity.
        outputs: The outputs, likewise.
        formulas: The calls of the bridge in it, likewise.
        of_batch: The arguments that depend on the batch, likewise; the others are weights, buffers and constants.
        versions: The version counters of the arguments, likewise.
        order: The number of the operator in the step.
    """

    function: Any
    layer: Layer
    node: str
    places: dict[Kind, tuple[int, Where]]
    made_of: dict[Kind, list["Source"]]
    infinite: list["Source"]
    values: dict[str, Any] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    formulas: list[Formula] = field(default_factory=list)
    of_batch: list[Tensor] = field(default_factory=list)
    versions: list[tuple[Tensor, int]] = field(default_factory=list)
    order: int = 0

    @property
    def name(self) -> str:
        """The operator's name as in aten, or the formula's, without the mark of an in-place form."""
        if self.is_call and self.formulas:
            return str(getattr(self.formulas[0].op, "__name__", "call"))
        name = str(self.function._schema.name).partition("::")[2]
        return name.rstrip("_") or name

    @property
    def is_call(self) -> bool:
        """Whether it is the operator of a NumPy layer."""
        return bool(self.function._schema.name == "cnn_lightning::call")

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Values by name as the positional and keyword arguments of the operator."""
        known = [argument for argument in self.function._schema.arguments if argument.name in values]
        args = [values[argument.name] for argument in known if not argument.kwarg_only]
        return args, {argument.name: values[argument.name] for argument in known if argument.kwarg_only}

    @property
    def unchanged(self) -> bool:
        """Whether no later in-place operator has written into the arguments."""
        return all(tensor._version == version for tensor, version in self.versions)


Source = Event | Leaf


class Recorder(TorchDispatchMode, bridge.Listener):  # type: ignore[no-untyped-call]
    """Records while it is the active dispatch mode; see `recording`.

    Args:
        leaves: The tensors that exist before the step.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = [Layer()]
        self._leaves = {_storage(leaf.tensor): leaf for leaf in leaves}
        self._made: dict[int, Event] = {}
        self._of_batch = {_storage(leaf.tensor) for leaf in leaves if leaf.what == "batch"}
        self._of_node: dict[int, Layer] = {}
        self._formulas: list[Formula] = []
        self._copied: dict[int, Source] = {}
        self._count = 0

    def enter(self, op: bridge.Operation, arrays: Sequence[Array | None], options: dict[str, Any]) -> None:
        """Keep the formula that the operator runs."""
        self._formulas.append(Formula(op, arrays, options))

    def source(self, tensor: Tensor) -> Source:
        """What made the numbers of a tensor that are not finite."""
        if id(tensor) in self._copied:
            return self._copied[id(tensor)]
        key = _storage(tensor)
        return self._made.get(key) or self._leaves.get(key) or Leaf("constant", "", tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run the operator, and look at its results."""
        self._formulas = []
        layer, node = self._running()
        values = _named(func, args, kwargs or {})
        written = _written(func, values)
        for name in written:
            if isinstance(values[name], Tensor):
                copied = values[name].clone()
                self._copied[id(copied)], values[name] = self.source(values[name]), copied
        given = {_storage(tensor) for tensor in _tensors(args) + _tensors(kwargs)}
        result = func(*args, **(kwargs or {}))
        self._count += 1
        outputs = _tensors(result)
        if not written:
            outputs = [output for output in outputs if _storage(output) not in given]  # the others are views
        depends = any(key in self._of_batch for key in given)
        for output in outputs:
            if _storage(output) not in given:  # new, perhaps in the memory of an earlier tensor
                self._made.pop(_storage(output), None)
                self._of_batch.discard(_storage(output))
            if depends:
                self._of_batch.add(_storage(output))
        if not func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::resize")):
            self._look(func, layer, node, values, outputs)
        self._copied = {}
        return result

    def _running(self) -> tuple[Layer, str]:
        """The layer that runs now, and the node of the backward pass if that runs."""
        node = torch._C._current_autograd_node()
        if node is None or len(self.layers) > 1:  # in a backward pass, a forward that is computed again
            layer = self.layers[-1]
            number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]  # of the node just made
            self._of_node.setdefault(number, layer)
            return layer, ""
        number = node._sequence_nr()  # an in-place write to a view makes two nodes; the first one is known
        found = self._of_node.get(number) or self._of_node.get(number - 1)
        return found or Layer(), node.name()

    def _look(self, func: Any, layer: Layer, node: str, values: dict[str, Any], outputs: list[Tensor]) -> None:
        places: dict[Kind, tuple[int, Where]] = {}
        bad = []
        for index, output in enumerate(outputs):
            found = first_bad(output)
            if found:
                bad.append(output)
                places = {kind: (index, place) for kind, place in found.items()} | places
        if not bad:
            return
        inputs = [(tensor, first_bad(tensor)) for tensor in _tensors(_read(func, values))]
        made_of: dict[Kind, list[Source]] = {}
        for kind, (index, place) in places.items():
            having = [tensor for tensor, found in inputs if kind in found]
            there = [tensor for tensor in having if not _is_fine_at(tensor, place, outputs[index].shape)]
            begins = torch.Tag.pointwise in func.tags and not there
            made_of[kind] = [] if begins else [self.source(tensor) for tensor in sorted(having, key=_not_in(there))]
        infinite = [self.source(tensor) for tensor, found in inputs if "inf" in found]
        event = Event(func, layer, node, places, made_of, infinite, order=self._count)
        if not all(made_of.values()):
            event.values, event.outputs, event.formulas = values, outputs, self._formulas
            event.of_batch = [tensor for tensor in _tensors(values) if _storage(tensor) in self._of_batch]
            event.versions = [(tensor, tensor._version) for tensor in _tensors(values) if not tensor.is_inference()]
        for output in bad:
            self._made[_storage(output)] = event


@contextmanager
def recording(net: nn.Module, leaves: Sequence[Leaf], names: Mapping[nn.Module, str]) -> Iterator[Recorder]:
    """Record what runs inside, also in a backward pass.

    Args:
        net: The network; hooks on its modules tell which layer runs, and are removed at the end.
        leaves: The tensors that exist before the step.
        names: The modules to name, by their names in messages.
    """
    recorder = Recorder(leaves)
    with ExitStack() as stack:
        for module in net.modules():
            if module in names:
                layer = Layer(names[module], type(module).__name__)
                enter = module.register_forward_pre_hook(lambda *_, layer=layer: recorder.layers.append(layer))
                stack.callback(enter.remove)
                leave = module.register_forward_hook(lambda *_: _drop_last(recorder.layers), always_call=True)
                stack.callback(leave.remove)
        stack.enter_context(bridge.watch(recorder))
        stack.enter_context(recorder)
        yield recorder


def _drop_last(layers: list[Layer]) -> None:
    layers.pop()


# ---- tensors


def first_bad(tensor: Tensor) -> dict[Kind, Where]:
    """The index of the first NaN and of the first infinity; without those that there are none of."""
    if not (tensor.is_floating_point() and tensor.layout is torch.strided) or tensor.is_meta or not tensor.numel():
        return {}
    if math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all()):  # the sum takes a fifth of the time
        return {}
    found = {"nan": tensor.isnan(), "inf": tensor.isinf()}
    return {kind: index_of(found[kind]) for kind in KINDS if bool(found[kind].any())}


def index_of(mask: Tensor) -> Where:
    """The index of the first true element."""
    flat = int(mask.flatten().to(torch.uint8).argmax())
    return tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), mask.shape))


def at(tensor: Tensor, place: Where, shape: Sequence[int]) -> Tensor | None:
    """The element that an elementwise operator reads for a place of its output; None if the shapes don't allow it."""
    try:
        return tensor.expand(tuple(shape))[place]
    except (RuntimeError, IndexError):
        return None


def _is_fine_at(tensor: Tensor, place: Where, shape: Sequence[int]) -> bool:
    value = at(tensor, place, shape)
    return value is not None and bool(value.isfinite().all())


def _not_in(tensors: list[Tensor]) -> Callable[[Tensor], bool]:
    known = {id(tensor) for tensor in tensors}
    return lambda tensor: id(tensor) not in known


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return id(tensor)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _written(func: Any, values: Mapping[str, Any]) -> list[str]:
    """The names of the arguments that an in-place operator writes."""
    return [
        argument.name
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in values
    ]


def _read(func: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the result depends on: in training, batch norm only updates its running statistics.

    An operator that copies over its argument does not read it.
    """
    name = func._schema.name
    unread: set[str] = set()
    if values.get("training", values.get("train", "no_training" not in name)):
        unread = {"running_mean", "running_var"}
    if name in ("aten::copy_", "aten::fill_", "aten::zero_"):
        unread.add("self")
    return {key: value for key, value in values.items() if key not in unread}
