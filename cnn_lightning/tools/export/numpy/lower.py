"""From the calls of a network to the nodes of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import fx, nn

from cnn_lightning.errors import UserError
from cnn_lightning.portable.plan import Node
from cnn_lightning.tools.export.numpy.record import Recording


class Lowering:
    """The nodes of a plan, added one by one.

    Args:
        net: The network.
        recording: Its calls.
    """

    def __init__(self, net: nn.Module, recording: Recording) -> None:
        self.net, self.recording = net, recording
        self.nodes: list[Node] = []
        self.outputs: list[int] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._places: dict[fx.Node, int] = {}
        self._name = ""

    def run(self) -> None:
        """All calls of the recording.

        Raises:
            UserError: A layer or a function has no formula.
        """
        from cnn_lightning.tools.export.numpy import functions, modules

        for call in self.recording.calls:
            if call.op == "placeholder":
                self._places[call] = 0
            elif call.op == "output":
                self.outputs = [self.place(head) for head in self._heads(call.args[0])]
            elif call.op == "call_module":
                self._name = str(call.target)
                self._places[call] = modules.lower(self, call, self.net.get_submodule(self._name))
            elif call.op != "get_attr" and self.recording.has_tensors(call):
                stack = list(call.meta.get("nn_module_stack") or {"": None})
                self._name = stack[-1]
                place = functions.lower(self, call)
                if place is not None:
                    self._places[call] = place

    def add(
        self,
        operation: str,
        inputs: Sequence[int],
        options: Mapping[str, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
        *,
        of: fx.Node | None = None,
        frozen: bool = False,
    ) -> int:
        """A new node; its number.

        Args:
            operation: One of `portable.layers.table.LAYERS`.
            inputs: Numbers of nodes.
            options: Of the operation.
            parameters: Names of arrays by role.
            of: The call whose output it has; None for a node on the way to one.
            frozen: Whether it computes in training as in evaluation.
        """
        shape = "" if of is None else self.recording.text(of)
        self.nodes.append(
            Node(self._name, operation, tuple(inputs), parameters or {}, options or {}, shape, frozen=frozen)
        )
        return len(self.nodes)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """The name of a new array that no training changes."""
        full = f"{self._name}.{name}"
        self.constants[full] = value
        return full

    def place(self, given: Any) -> int:
        """The number of the node that gives a tensor; a parameter gets a node of its own.

        Raises:
            UserError: The tensor comes from nowhere that is known.
        """
        if isinstance(given, fx.Node) and given.op == "get_attr" and given not in self._places:
            name = self._name
            self._name = str(given.target)
            self._places[given] = self.add("parameter", (), parameters={"weight": self._name}, of=given)
            self._name = name
        if not isinstance(given, fx.Node) or given not in self._places:
            raise self.refused(f"its use of {given}")
        return self._places[given]

    def refused(self, what: str) -> UserError:
        """The error for something without a formula."""
        return UserError(f"--format: numpy has no formula for {what} in {self._name or 'the forward'}")

    def _heads(self, found: Any) -> list[Any]:
        """The tensors of the forward's result: one, or those of a named tuple, whose constructor is a call."""
        if isinstance(found, fx.Node) and found in self._places:
            return [found]
        heads = found.args if isinstance(found, fx.Node) else found if isinstance(found, tuple) else (found,)
        return [head for head in heads if head is not None]
