"""Which implementation runs which layer of a network.

A layer of `cnn_lightning.layers` adds computation to the native class and no state, so a swap is a change of the
object's class: parameters, optimizers, tied weights, hooks, training mode and names stay what they were.
"""

from collections.abc import Mapping

from torch import nn

from cnn_lightning.swap.names import Spec as Spec
from cnn_lightning.swap.names import choices_for, modules_of
from cnn_lightning.swap.native import LAYERS as LAYERS
from cnn_lightning.swap.native import formula_file as formula_file
from cnn_lightning.swap.native import native_type as native_type
from cnn_lightning.swap.plan import Change, apply, class_of_container, new_classes
from cnn_lightning.swap.report import Row as Row
from cnn_lightning.swap.report import SwapReport as SwapReport
from cnn_lightning.swap.report import chains_of, rows_of


def swap_layers(net: nn.Module, spec: Spec, *, beside: Mapping[str, nn.Module] | None = None) -> SwapReport:
    """Choose the implementation of the layers of ``net``, in place.

    Args:
        net: any network, also one in an optimizer, in DistributedDataParallel, compiled, or swapped before.
        spec: ``"numpy"`` or ``"torch"`` for every layer, or a mapping of patterns to implementations. A pattern is
            matched to dotted names as file names are to ``*.txt`` (`fnmatch`; the first match wins; what none matches
            stays as it is), or it is a native type such as ``torch.nn.ReLU``. An implementation is ``"numpy"``,
            ``"torch"``, a subclass of the layer's native type, or the import path of one.
        beside: modules outside the network that are chosen with it, by name: ``{"loss": CrossEntropyLoss()}``.

    Returns:
        What runs each layer now, and why where that is torch.

    Raises:
        ValueError: an unknown implementation, a pattern that matches no layer or none that can be swapped, or a
            network without a layer to swap.
        TypeError: a class that is no subclass of the native type of a layer it is meant for.

    Nothing has changed when an error is raised.
    """
    found = modules_of(net, beside or {})
    choices = choices_for(found, spec)
    plan = new_classes(found, choices)
    asked = {id(module) for module, _, _ in choices.values()}
    changes: list[Change] = []
    try:
        apply(plan, changes)
        of_layers = len(changes)
        apply([(named, class_of_container(named.module)) for named in found], changes)
        chains = chains_of(found)
        rows = [row for named in found for row in rows_of(named, named.identity in asked, chains)]
    except BaseException:  # whatever a class of the network's own may raise, or Ctrl-C
        for change in reversed(changes):
            change.undo()
        raise
    changed = {id(change.module) for change in changes[:of_layers]}
    return SwapReport(rows, [named.name for named in found if named.identity in changed])
