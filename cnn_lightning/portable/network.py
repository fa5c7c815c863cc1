"""A network by its plan: forward from node to node, and backward in the reverse order."""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers import table
from cnn_lightning.portable.plan import Plan


class Network:
    """The layers of a plan.

    Args:
        plan: The plan.
        arrays: Parameters and buffers, by name; training changes them in place.
    """

    def __init__(self, plan: Plan, arrays: dict[str, Array]) -> None:
        self.plan, self.arrays = plan, arrays
        self.layers = [
            table.make(node.operation, node.options, {role: arrays[name] for role, name in node.parameters.items()})
            for node in plan.nodes
        ]
        self._needed = self._ancestors(plan.outputs[0])
        self._last_use = {place: number for number, node in enumerate(plan.nodes, 1) for place in node.inputs}
        self._learns = self._nodes_with_gradients()

    def logits(self, pictures: Array) -> Array:
        """Logits (N, classes) of normalised pictures (N, C, H, W), in evaluation."""
        values = {0: pictures}
        for number, (node, layer) in enumerate(zip(self.plan.nodes, self.layers, strict=True), 1):
            if number not in self._needed:
                continue
            layer.training = False
            values[number] = layer.forward(*(values[place] for place in node.inputs))
            layer.saved = None
            for place in node.inputs:
                if self._last_use[place] == number:
                    values.pop(place, None)
        return values[self.plan.outputs[0]]

    def outputs(self, pictures: Array, random: np.random.Generator) -> list[Array]:
        """The logits of each head in training; ``random`` draws what dropout drops."""
        values = [pictures]
        for node, layer in zip(self.plan.nodes, self.layers, strict=True):
            layer.training, layer.random = not node.frozen, random
            values.append(layer.forward(*(values[place] for place in node.inputs)))
        return [values[place] for place in self.plan.outputs]

    def gradients(self, of_outputs: Sequence[Array]) -> dict[str, Array]:
        """The gradient of each trainable array after `outputs`, from those of the outputs.

        From the last node to the first: a node gives its gradient to the nodes before it, where gradients add up.
        """
        of_values: dict[int, Array] = dict(zip(self.plan.outputs, of_outputs, strict=True))
        of_arrays: dict[str, Array] = {}
        for number in range(len(self.layers), 0, -1):
            node, layer = self.plan.nodes[number - 1], self.layers[number - 1]
            grad = of_values.pop(number, None)
            if grad is not None and number in self._learns:
                for place, of_input in zip(node.inputs, layer.backward(grad), strict=False):
                    of_values[place] = of_values[place] + of_input if place in of_values else of_input
                for role, name in node.parameters.items():
                    own = layer.gradients.get(role)
                    if own is not None and name in self.plan.trainable:
                        of_arrays[name] = of_arrays[name] + own if name in of_arrays else own
            layer.saved, layer.gradients = None, {}
        return of_arrays

    def _ancestors(self, output: int) -> set[int]:
        """The nodes that an output needs."""
        found, todo = set(), [output]
        while todo:
            number = todo.pop()
            if number and number not in found:
                found.add(number)
                todo += self.plan.nodes[number - 1].inputs
        return found

    def _nodes_with_gradients(self) -> set[int]:
        """The nodes with a trainable array, and those after them."""
        trainable, found = set(self.plan.trainable), set[int]()
        for number, node in enumerate(self.plan.nodes, 1):
            if trainable.intersection(node.parameters.values()) or found.intersection(node.inputs):
                found.add(number)
        return found
