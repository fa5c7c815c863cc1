"""From the calls of a network to the nodes of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import fx

from cnn_lightning.errors import UserError
from cnn_lightning.portable.plan import Node
from cnn_lightning.tools.export.numpy.record import Recording


class Lowering:
    """The nodes of a plan, added one by one.

    Args:
        recording: The calls of the network.

    Attributes:
        nodes: So far.
        constants: Arrays that the network has no names for.
        places: The number of the node of each call that gives a tensor.
        name: Of the layer whose call gets nodes now.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.places: dict[fx.Node, int] = {}
        self.name = ""

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
            Node(self.name, operation, tuple(inputs), parameters or {}, options or {}, shape, frozen=frozen)
        )
        return len(self.nodes)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """The name of a new array that no training changes."""
        full = f"{self.name}.{name}"
        self.constants[full] = value
        return full

    def place(self, given: Any) -> int:
        """The number of the node that gives a tensor; a parameter gets a node of its own.

        Raises:
            UserError: The tensor comes from nowhere that is known.
        """
        if isinstance(given, fx.Node) and given.op == "get_attr" and given not in self.places:
            name = self.name
            self.name = str(given.target)
            self.places[given] = self.add("parameter", (), parameters={"weight": self.name}, of=given)
            self.name = name
        if not isinstance(given, fx.Node) or given not in self.places:
            raise self.refused(f"its use of {given}")
        return self.places[given]

    def refused(self, what: str) -> UserError:
        """The error for something without a formula."""
        return UserError(f"--format: numpy has no formula for {what} in {self.name or 'the forward'}")
