"""What the forward of a network calls, by torch.fx, and the value of each call."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from cnn_lightning.errors import UserError, one_line

BATCHES = 2, 3
"""The sizes of the batches that are run: a length that differs between them depends on the batch."""


class Lengths(tuple[int, ...]):
    """The shape of a tensor, in place of the tensor: not a shape that the forward itself asks for."""


class Recording:
    """The calls of a network in training mode, and their values in evaluation.

    Args:
        net: With native layers.
        shape: Of a picture, (C, H, W).

    Attributes:
        calls: In their order.
        constants: Arrays that are no parameters or buffers, or that the forward computes of these alone, by the target
            of the call that gives them.

    Raises:
        UserError: Its forward depends on values, so that it can't be recorded.
    """

    def __init__(self, net: nn.Module, shape: Sequence[int]) -> None:
        try:
            graph = _Tracer().trace(net)
        except Exception as error:  # whatever a forward makes of the stand-ins for tensors
            raise UserError(f"--format: this network can't be exported: {one_line(error, 200)}") from error
        self.calls = list(graph.nodes)
        module = fx.GraphModule(net, graph)
        self.constants = _taken_constants(net, self.calls)
        training = {each: each.training for each in net.modules()}
        net.eval()
        try:
            self._values = [_values(module, (batch, *shape)) for batch in BATCHES]
        finally:
            for each, mode in training.items():
                each.training = mode

    def value(self, given: Any) -> Any:
        """What an argument is: itself, or the value of the call that gives it; -1 for a number that depends on N."""
        if isinstance(given, list | tuple):
            return type(given)(self.value(each) for each in given)
        if not isinstance(given, fx.Node):
            return given
        first, second = (values[given] for values in self._values)
        return _merged(first, second)

    def shape(self, call: fx.Node) -> list[int]:
        """The shape of a tensor, -1 for lengths that depend on N."""
        return list(self.value(call))

    def is_tensor(self, given: Any) -> bool:
        """Whether an argument or a call is a tensor."""
        return isinstance(given, fx.Node) and isinstance(self._values[0][given], Lengths)

    def has_tensors(self, call: fx.Node) -> bool:
        """Whether a call gives a tensor or several."""
        value = self._values[0][call]
        return isinstance(value, Lengths) or (isinstance(value, tuple) and any(isinstance(v, Lengths) for v in value))

    def text(self, call: fx.Node) -> str:
        """The shape of a tensor for people, such as ``N x 16 x 28 x 28``."""
        shapes = [values[call] for values in self._values]
        if not isinstance(shapes[0], Lengths):
            shapes = [shape[0] for shape in shapes]
        lengths = zip(*shapes, strict=True)
        return " x ".join(str(a) if a == b else "N" if b - a == 1 else f"{b - a}N" for a, b in lengths)


def _taken_constants(net: nn.Module, calls: Sequence[fx.Node]) -> dict[str, NDArray[Any]]:
    """The tensors that are no parameters or buffers, by name; those that torch.fx left in ``net`` are removed."""
    known = {name for name, _ in [*net.named_parameters(), *net.named_buffers()]}
    names = {str(call.target) for call in calls if call.op == "get_attr"} - known
    found = {name: attrgetter(name)(net).detach().numpy() for name in names}
    for name in names:
        if name.startswith("_tensor_constant"):
            delattr(net, name)
    return found


class _Tracer(fx.Tracer):
    """Records a layer of ``torch.nn`` as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one call."""
        return type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)


def _values(module: fx.GraphModule, shape: Sequence[int]) -> dict[fx.Node, Any]:
    """The value of each call for zeros of this shape, `Lengths` for tensors."""
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            found[n] = _described(result)
            return result

    with torch.no_grad():
        Recorder(module).run(torch.zeros(tuple(shape), dtype=next(module.parameters()).dtype))
    return found


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Lengths(value.shape)
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return value


def _merged(first: Any, second: Any) -> Any:
    if isinstance(first, tuple) and isinstance(second, tuple):
        return tuple(_merged(a, b) for a, b in zip(first, second, strict=True))
    return first if first == second else -1
