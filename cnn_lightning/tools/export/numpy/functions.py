"""The nodes of functions and methods that a forward calls itself."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional
from torchvision.models import swin_transformer
from torchvision.ops import stochastic_depth

from cnn_lightning.tools.export.numpy import windows
from cnn_lightning.tools.export.numpy.lower import Lowering


def lower(nodes: Lowering, call: fx.Node) -> int | None:
    """The node of a call; None if it only names tensors that have nodes, or will have them when they are used.

    Raises:
        UserError: It has no formula.
    """
    for names, make in FUNCTIONS.items():
        if call.target in names:
            return make(nodes, call)
    if call.op == "call_function" and isinstance(call.target, type) and issubclass(call.target, tuple):
        return None  # the named tuple of a network with auxiliary heads
    name = getattr(call.target, "__name__", str(call.target))
    raise nodes.refused(f"the function {name}")


def arguments(call: fx.Node, *names: str, **defaults: Any) -> dict[str, Any]:
    """The arguments by name; those with defaults come after ``names``, in their order."""
    given = dict(zip((*names, *defaults), call.args, strict=False))
    return {**defaults, **given, **call.kwargs}


def _sum(nodes: Lowering, call: fx.Node) -> int:
    return _of_two(nodes, call, "add")


def _times(nodes: Lowering, call: fx.Node) -> int:
    return _of_two(nodes, call, "multiply")


def _of_two(nodes: Lowering, call: fx.Node, operation: str) -> int:
    """A sum or a product of two tensors, or of a tensor and a number."""
    if set(call.kwargs):
        raise nodes.refused(f"{operation} with {', '.join(call.kwargs)}")
    tensors = [given for given in call.args if nodes.recording.is_tensor(given)]
    numbers = [given for given in call.args if not nodes.recording.is_tensor(given)]
    if numbers and not isinstance(numbers[0], int | float):
        raise nodes.refused(f"{operation} with {numbers[0]}")
    options = {"number": numbers[0]} if numbers else {}
    return nodes.add(operation, [nodes.place(given) for given in tensors], options, of=call)


def _cat(nodes: Lowering, call: fx.Node) -> int:
    given = arguments(call, "tensors", dim=0)
    return nodes.add("concatenate", [nodes.place(each) for each in given["tensors"]], {"axis": given["dim"]}, of=call)


def _same_order(nodes: Lowering, call: fx.Node) -> int:
    """A new shape for the same numbers: that which the call gave."""
    return nodes.add("reshape", [nodes.place(call.args[0])], {"shape": nodes.recording.shape(call)}, of=call)


def _same(nodes: Lowering, call: fx.Node) -> int:
    return nodes.place(call.args[0])


def _permute(nodes: Lowering, call: fx.Node) -> int:
    x, *order = call.args
    axes: Any = order[0] if order and isinstance(order[0], list | tuple) else order or call.kwargs["dims"]
    return nodes.add("permute", [nodes.place(x)], {"order": list(axes)}, of=call)


def _transpose(nodes: Lowering, call: fx.Node) -> int:
    x, a, b = call.args
    order = list(range(len(nodes.recording.shape(call))))
    order[a], order[b] = order[b], order[a]  # type: ignore[index]
    return nodes.add("permute", [nodes.place(x)], {"order": order}, of=call)


def _expand(nodes: Lowering, call: fx.Node) -> int:
    shape = nodes.recording.shape(call)
    if not nodes.recording.text(call).startswith("N") or shape.count(-1) != 1:
        raise nodes.refused("expand")
    return nodes.add("expand", [nodes.place(call.args[0]), 0], {"shape": shape}, of=call)


def _mean(nodes: Lowering, call: fx.Node) -> int:
    given = arguments(call, "input", "dim", keepdim=False)
    axes = given["dim"] if isinstance(given["dim"], list | tuple) else [given["dim"]]
    return nodes.add("mean", [nodes.place(call.args[0])], {"axes": list(axes), "keepdims": given["keepdim"]}, of=call)


def _getitem(nodes: Lowering, call: fx.Node) -> int:
    source, at = call.args
    assert isinstance(source, fx.Node)
    if not nodes.recording.is_tensor(source):
        return _one_of_several(nodes, call, source, at)
    if isinstance(at, fx.Node):
        if at.op != "get_attr" or not nodes.recording.is_tensor(at):
            raise nodes.refused("an index that is computed")
        return nodes.add("gather", [nodes.place(source)], {}, {"index": str(at.target)}, of=call)
    index = nodes.recording.value(at if isinstance(at, tuple) else (at,))
    part = [each for each in index if each is not None]
    if not all(isinstance(each, int | slice) or each is Ellipsis for each in part):
        raise nodes.refused(f"the index {at}")
    if Ellipsis in part:
        middle = part.index(Ellipsis)
        count = len(nodes.recording.shape(source)) - len(part) + 1
        part[middle : middle + 1] = [slice(None)] * count
    plain = [[each.start, each.stop, each.step] if isinstance(each, slice) else each for each in part]
    found = nodes.add("part", [nodes.place(source)], {"at": plain}, of=call)
    if len(part) == len(index):
        return found
    return nodes.add("reshape", [found], {"shape": nodes.recording.shape(call)}, of=call)


def _one_of_several(nodes: Lowering, call: fx.Node, source: fx.Node, at: Any) -> int:
    """One of the pieces of ``chunk``; or the output of attention, which has its weights beside it."""
    if source.target not in CHUNK:
        if at != 0:
            raise nodes.refused(f"result {at} of {source}")
        return nodes.place(source)
    given = arguments(source, "input", "chunks", dim=0)
    pieces = nodes.recording.value(source)
    axis = given["dim"] % len(pieces[0])
    start = sum(piece[axis] for piece in pieces[:at])
    index = [[None, None, None]] * axis + [[start, start + pieces[at][axis], None]]
    return nodes.add("part", [nodes.place(source.args[0])], {"at": index}, of=call)


def _later(nodes: Lowering, call: fx.Node) -> None:
    """Pieces, which get a node each when they are taken."""


def _pool(operation: str, *names: str, **defaults: Any) -> Callable[[Lowering, fx.Node], int]:
    def make(nodes: Lowering, call: fx.Node) -> int:
        given = arguments(call, "input", *names, **defaults)
        x = nodes.place(given.pop("input"))
        if given.pop("return_indices", False):
            raise nodes.refused("return_indices")
        return nodes.add(operation, [x], given, of=call)

    return make


def _adaptive_avg_pool2d(nodes: Lowering, call: fx.Node) -> int:
    size = nodes.recording.shape(call)[2:]
    return nodes.add("adaptive_avg_pool2d", [nodes.place(call.args[0])], {"output_size": size}, of=call)


def _activation(name: str) -> Callable[[Lowering, fx.Node], int]:
    return lambda nodes, call: nodes.add("activation", [nodes.place(call.args[0])], {"function": name}, of=call)


def _layer_norm(nodes: Lowering, call: fx.Node) -> int:
    given = arguments(call, "input", "normalized_shape", weight=None, bias=None, eps=1e-5)
    own = {role: str(given[role].target) for role in ("weight", "bias") if given[role] is not None}
    options = {"axes": len(given["normalized_shape"]), "eps": given["eps"]}
    return nodes.add("layer_norm", [nodes.place(given["input"])], options, own, of=call)


def _softmax(nodes: Lowering, call: fx.Node) -> int:
    given = arguments(call, "input", "dim")
    return nodes.add("softmax", [nodes.place(given["input"])], {"dim": given["dim"]}, of=call)


def _dropout(nodes: Lowering, call: fx.Node) -> int:
    given = arguments(call, "input", p=0.5, training=True)
    options = {"p": given["p"], "along": "all"}
    return nodes.add("dropout", [nodes.place(given["input"])], options, of=call, frozen=not given["training"])


def _stochastic_depth(nodes: Lowering, call: fx.Node) -> int:
    given = arguments(call, "input", "p", "mode", training=True)
    options = {"p": given["p"], "along": {"row": "batch", "batch": "none"}[given["mode"]]}
    return nodes.add("dropout", [nodes.place(given["input"])], options, of=call, frozen=not given["training"])


def _einsum(nodes: Lowering, call: fx.Node) -> int:
    """A product of matrices ``... i k, ... k j -> ... i j``, or with ``... j k``; others are refused."""
    equation, a, b = call.args
    terms, result = str(equation).replace(" ", "").split("->")
    first, second = terms.split(",")
    batch, i, j = result[:-2], result[-2], result[-1]
    places = [nodes.place(a), nodes.place(b)]
    if first[:-1] != batch + i or second[:-2] != batch or set(second[-2:]) != {first[-1], j}:
        raise nodes.refused(f"einsum of {equation}")
    if second[-1] != j:
        axes = list(range(len(second)))
        places[1] = nodes.add("permute", [places[1]], {"order": [*axes[:-2], axes[-1], axes[-2]]})
    return nodes.add("product", places, of=call)


CHUNK = (torch.chunk, "chunk")
FUNCTIONS: dict[tuple[Any, ...], Callable[[Lowering, fx.Node], int | None]] = {
    (operator.add, operator.iadd, torch.add, "add", "add_"): _sum,
    (operator.mul, operator.imul, torch.mul, "mul", "mul_"): _times,
    (torch.cat, torch.concat): _cat,
    (torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze): _same_order,
    ("flatten", "reshape", "view", "unsqueeze", "squeeze"): _same_order,
    ("contiguous", "clone"): _same,
    (torch.permute, "permute"): _permute,
    (torch.transpose, torch.swapaxes, "transpose", "swapaxes"): _transpose,
    ("expand",): _expand,
    (torch.mean, "mean"): _mean,
    (operator.getitem,): _getitem,
    CHUNK: _later,
    (functional.max_pool2d,): _pool(
        "max_pool2d", "kernel_size", stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ),
    (functional.avg_pool2d,): _pool(
        "avg_pool2d",
        "kernel_size",
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ),
    (functional.adaptive_avg_pool2d,): _adaptive_avg_pool2d,
    (functional.relu, torch.relu, "relu", "relu_"): _activation("relu"),
    (torch.sigmoid, functional.sigmoid, "sigmoid"): _activation("sigmoid"),
    (torch.tanh, "tanh"): _activation("tanh"),
    (functional.layer_norm,): _layer_norm,
    (functional.softmax, torch.softmax): _softmax,
    (functional.dropout,): _dropout,
    (stochastic_depth,): _stochastic_depth,
    (torch.einsum,): _einsum,
    (swin_transformer._get_relative_position_bias,): windows.position_bias,
    (swin_transformer._patch_merging_pad,): windows.merged_patches,
    (swin_transformer.shifted_window_attention,): windows.attention,
}
"""What makes the node of each function and, by its name, of each method."""
