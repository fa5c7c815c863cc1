"""Which implementation runs which layer of a network.

A layer of `cnn_lightning.layers` adds computation to the native class and no state, so a swap is a change of the
object's class: parameters, optimizers, tied weights, hooks, training mode and names stay what they were.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from cnn_lightning.swap.arithmetic import register_without_arithmetic as register_without_arithmetic
from cnn_lightning.swap.names import Named, choices_for, inner, modules_of
from cnn_lightning.swap.names import Spec as Spec
from cnn_lightning.swap.native import LAYERS as LAYERS
from cnn_lightning.swap.native import NATIVE
from cnn_lightning.swap.native import formula_file as formula_file
from cnn_lightning.swap.native import native_type as native_type
from cnn_lightning.swap.observe import Seen, difference, observe, run
from cnn_lightning.swap.plan import Change, apply, class_of_container, new_classes, obstacle
from cnn_lightning.swap.report import AS_ASKED, chains_of, rows_of
from cnn_lightning.swap.report import Row as Row
from cnn_lightning.swap.report import SwapReport as SwapReport


def swap_layers(
    net: nn.Module, spec: Spec, *, beside: Mapping[str, nn.Module] | None = None, verify: Any = None
) -> SwapReport:
    """Choose the implementation of the layers of ``net``, in place.

    Args:
        net: any network, also one in an optimizer, in DistributedDataParallel, compiled, or swapped before.
        spec: ``"numpy"`` or ``"torch"`` for every layer, or a mapping of patterns to implementations. A pattern is
            matched to dotted names as file names are to ``*.txt`` (`fnmatch`; the first match wins; what none matches
            stays as it is), or it is a type: a class such as ``torch.nn.ReLU`` or its import path. An implementation is
            ``"numpy"``, ``"torch"``, a subclass of the layer's native type, or the import path of one. A network's own
            subclass of a native type stays native; with ``"numpy"`` for its type or its full name, its forward runs as
            it is, and the functions of torch in it run in NumPy.
        beside: modules outside the network that are chosen with it, by name: ``{"loss": CrossEntropyLoss()}``.
        verify: an input of the network: a tensor, a tuple of arguments, or a dictionary of them. The network runs on it
            in evaluation, by the new layers and by torch's, and in training if that alone calls every layer. The report
            then says which layers never run and which functions stay native. Modes, buffers and random numbers are
            afterwards what they were.

    Returns:
        What runs each layer now, and why where that is torch.

    Raises:
        ValueError: an unknown implementation, a pattern that matches no layer or none that can be swapped, or a
            network without a layer to swap.
        TypeError: a class that is no subclass of the native type of a layer it is meant for.
        RuntimeError: with ``verify``, outputs that differ from torch's by more than rounding; and any error of the run.

    Nothing has changed when an error is raised.
    """
    found = modules_of(net, beside or {})
    choices = choices_for(found, spec)
    plan = new_classes(found, choices)
    changes: list[Change] = []
    seen, largest = None, None
    try:
        apply(plan, changes)
        of_layers = len(changes)
        apply([(named, class_of_container(named.module)) for named in found], changes)
        if verify is not None:
            seen, output = observe(inner(net), found, verify)
            with _in_torch(found):
                expected = run(inner(net), verify, training=False)
            largest = difference(output, expected)
        rows = _rows(found, {id(module) for module, _, _ in choices.values()}, seen)
    except BaseException:  # whatever a class of the network's own may raise, or Ctrl-C
        for change in reversed(changes):
            change.undo()
        raise
    changed = {id(change.module) for change in changes[:of_layers]}
    return SwapReport(rows, [named.name for named in found if named.identity in changed], largest)


def observed(
    report: SwapReport, net: nn.Module, sample: Any, *, beside: Mapping[str, nn.Module] | None = None
) -> SwapReport:
    """The report of a swap with what a run of the network shows; see ``verify`` of `swap_layers`."""
    found = modules_of(net, beside or {})
    seen, _ = observe(inner(net), found, sample)
    asked = {row.name for row in report.rows if row.reason == AS_ASKED}
    rows = _rows(found, {named.identity for named in found if named.name in asked}, seen)
    return SwapReport(rows, report.changed, report.difference)


def _rows(found: list[Named], asked: set[int], seen: Seen | None) -> list[Row]:
    chains = chains_of(found)
    return [row for named in found for row in rows_of(named, named.identity in asked, chains, seen)]


@contextmanager
def _in_torch(found: Sequence[Named]) -> Iterator[None]:
    """Inside, the NumPy layers of this package are native."""
    changes: list[Change] = []
    try:
        ours = [named for named in found if type(named.module) in NATIVE and not obstacle(named.module)]
        apply([(named, NATIVE[type(named.module)]) for named in ours], changes)
        yield
    finally:
        for change in reversed(changes):
            change.undo()
