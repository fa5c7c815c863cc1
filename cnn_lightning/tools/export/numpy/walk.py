"""All calls of a network, one after the other, to the nodes of a plan."""

from typing import Any

from torch import fx, nn

from cnn_lightning.tools.export.numpy import functions, modules
from cnn_lightning.tools.export.numpy.lower import Lowering
from cnn_lightning.tools.export.numpy.record import Recording


def walk(net: nn.Module, recording: Recording) -> tuple[Lowering, list[int]]:
    """The nodes, and the numbers of those that give the logits of each head, the main one first.

    Raises:
        UserError: A layer or a function has no formula.
    """
    nodes, outputs = Lowering(recording), []
    for call in recording.calls:
        if call.op == "placeholder":
            nodes.places[call] = 0
        elif call.op == "output":
            outputs = [nodes.place(head) for head in _heads(call.args[0], nodes)]
        elif call.op == "call_module":
            nodes.name = str(call.target)
            nodes.places[call] = modules.lower(nodes, call, net.get_submodule(nodes.name))
        elif call.op != "get_attr" and recording.has_tensors(call):
            nodes.name = list(call.meta.get("nn_module_stack") or {"": None})[-1]
            place = functions.lower(nodes, call)
            if place is not None:
                nodes.places[call] = place
    return nodes, outputs


def _heads(found: Any, nodes: Lowering) -> list[Any]:
    """The tensors of the forward's result: one, or those of a named tuple, whose constructor is a call."""
    if isinstance(found, fx.Node) and found in nodes.places:
        return [found]
    heads = found.args if isinstance(found, fx.Node) else found if isinstance(found, tuple) else (found,)
    return [head for head in heads if head is not None]
