"""The plan of a network: its nodes in the order of the computation, and what belongs to its pictures and classes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnn_lightning.portable.layers.table import LAYERS

FORMAT = 1
"""The version of the format."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        name: Of the layer in the network.
        operation: One of `LAYERS`.
        inputs: The numbers of the nodes whose outputs it takes; 0 is the pictures, 1 the first node.
        parameters: The names of the arrays, by their role in the layer.
        options: The keyword arguments.
        shape: Of the output, as text for people: ``N x 16 x 28 x 28``.
        frozen: Whether the node computes in training what it computes in evaluation.
    """

    name: str
    operation: str
    inputs: tuple[int, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class Plan:
    """A network as data.

    Args:
        nodes: In the order of the computation.
        outputs: The nodes of the logits: the main head, and the auxiliary ones that training uses.
        weights: Of the loss of each output.
        trainable: The names of the arrays that training changes.
        net: The name of the network.
        class_names: In the order of the logits.
        mean: Of each channel, for values from 0 to 1.
        std: Likewise.
        in_channels: 1 for grey pictures, 3 for colour.
        image_size: Height and width.
        fit: What is done with pictures that are not square: squeeze or pad.
        value_range: Of pictures with more than 8 bits a value, or None.
        label_smoothing: Of the loss.
        class_weights: A factor for each class in the loss, or None.
        written_by: The program and its version.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    weights: tuple[float, ...]
    trainable: tuple[str, ...]
    net: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_channels: int
    image_size: int
    fit: str
    value_range: tuple[float, float] | None
    label_smoothing: float
    class_weights: tuple[float, ...] | None
    written_by: str

    def text(self) -> str:
        """As JSON, a line for each node."""
        plain = {name: value for name, value in vars(self).items() if name != "nodes"}
        head = json.dumps({"format": FORMAT, **plain}, ensure_ascii=False, indent=1)
        lines = ",\n".join(f"  {json.dumps(vars(node), ensure_ascii=False)}" for node in self.nodes)
        return f'{head[:-2]},\n "nodes": [\n{lines}\n ]\n}}\n'


def read(text: str) -> Plan:
    """The plan of a text.

    Raises:
        ValueError: What is wrong with it.
    """
    try:
        found = json.loads(text)
        if found.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        nodes = tuple(_node(number, given) for number, given in enumerate(found.pop("nodes"), 1))
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        plan = Plan(nodes, **known)
        if not plan.outputs or not all(1 <= output <= len(nodes) for output in plan.outputs):
            raise ValueError("expected outputs among the nodes")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return plan


def _node(number: int, given: dict[str, Any]) -> Node:
    node = Node(**{**given, "inputs": tuple(given["inputs"])})
    if node.operation not in LAYERS:
        raise ValueError(f"node {number} ({node.name}): expected a known operation, got {node.operation!r}")
    if not all(isinstance(place, int) and 0 <= place < number for place in node.inputs):
        raise ValueError(f"node {number} ({node.name}): expected inputs from nodes before it, got {node.inputs}")
    return node
