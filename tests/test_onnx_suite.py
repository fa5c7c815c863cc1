"""ONNX's own node cases, with the numbers of its specification, for each layer whose definition is the same.

What ONNX defines otherwise (padding on one side only for averages, a hard sigmoid with another slope, masks from
NumPy's generator) is left out by `Elsewhere`, with the reason.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cnn_lightning import layers

onnx = pytest.importorskip("onnx")

Inputs = list[Tensor]
Attributes = dict[str, Any]
Outputs = list[Tensor | None]
"""None for an output of ONNX that the layer does not have."""


class Elsewhere(Exception):
    """A case that means something else in torch, or nothing."""


def cases(operator: str) -> list[Any]:
    """The operator's own cases: ONNX makes them while it imports the files whose name begins the operator's name."""
    from onnx.backend.test.case import node

    for info in pkgutil.iter_modules(node.__path__):
        if operator.lower().startswith(info.name.replace("_", "")):
            importlib.import_module(f"{node.__name__}.{info.name}")
    return [case for case in node._NodeTestCases if [n.op_type for n in case.model.graph.node] == [operator]]


def attributes(node: Any) -> Attributes:
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


# ---- one function for each operator: attributes and inputs of ONNX in, outputs of our layer out


def plane(x: Tensor, *, most: int = 2) -> int:
    """The number of spatial axes, if there is a layer for it."""
    axes = x.dim() - 2
    if not 1 <= axes <= most:
        raise Elsewhere(f"{axes} spatial axes")
    return axes


def padded(
    x: Tensor, a: Attributes, kernel: list[int], fill: float | None, pool: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """The input and a padding that torch allows; any other is put around the input, where ``fill`` is given."""
    axes = len(kernel)
    strides, spread = a.get("strides", [1] * axes), a.get("dilations", [1] * axes)
    pads = list(a.get("pads", [0] * 2 * axes))
    mode = a.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        for i, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, spread, strict=True)):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            low = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[i], pads[i + axes] = low, total - low
    even = pads[:axes] == pads[axes:]
    if even and (not pool or all(2 * p <= k for p, k in zip(pads, kernel, strict=False))):
        return x, tuple(pads[:axes])
    if fill is None:
        raise Elsewhere("padding that differs from side to side, or of more than half a pool's window")
    around = [width for i in reversed(range(axes)) for width in (pads[i], pads[i + axes])]
    return torch.nn.functional.pad(x, around, value=fill), (0,) * axes


def loaded(layer: torch.nn.Module, **parameters: Tensor | None) -> torch.nn.Module:
    for name, value in parameters.items():
        if value is not None:
            assert getattr(layer, name).shape == value.shape
        setattr(layer, name, None if value is None else torch.nn.Parameter(value))
    return layer


def conv(a: Attributes, given: Inputs) -> Outputs:
    x, weight, *bias = given
    kind: Any = (layers.Conv1d, layers.Conv2d, layers.Conv3d)[plane(x, most=3) - 1]
    x, padding = padded(x, a, list(weight.shape[2:]), 0)
    group = a.get("group", 1)
    layer = kind(
        weight.shape[1] * group,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(a.get("strides", [1] * len(padding))),
        padding=padding,
        dilation=tuple(a.get("dilations", [1] * len(padding))),
        groups=group,
        bias=bool(bias),
    )
    return [loaded(layer, weight=weight, bias=bias[0] if bias else None)(x)]


def conv_transpose(a: Attributes, given: Inputs) -> Outputs:
    x, weight, *bias = given
    axes = plane(x, most=3)
    if "auto_pad" in a:
        raise Elsewhere("a padding that follows from the output's shape")
    x, padding = padded(x, a, list(weight.shape[2:]), None)
    group = a.get("group", 1)
    kind: Any = (layers.ConvTranspose1d, layers.ConvTranspose2d, layers.ConvTranspose3d)[axes - 1]
    layer = kind(
        weight.shape[0],
        weight.shape[1] * group,
        tuple(weight.shape[2:]),
        stride=tuple(a.get("strides", [1] * axes)),
        padding=padding,
        output_padding=tuple(a.get("output_padding", [0] * axes)),
        dilation=tuple(a.get("dilations", [1] * axes)),
        groups=group,
        bias=bool(bias),
    )
    return [loaded(layer, weight=weight, bias=bias[0] if bias else None)(x, a.get("output_shape"))]


def max_pool(a: Attributes, given: Inputs) -> Outputs:
    (x,) = given
    axes = plane(x)
    if a.get("storage_order"):
        raise Elsewhere("indices by columns")
    y, padding = padded(x, a, a["kernel_shape"], -np.inf if x.is_floating_point() else None, pool=True)
    layer = (layers.MaxPool1d, layers.MaxPool2d)[axes - 1](
        tuple(a["kernel_shape"]),
        stride=tuple(a.get("strides", [1] * axes)),
        padding=padding,
        dilation=tuple(a.get("dilations", [1] * axes)),
        ceil_mode=bool(a.get("ceil_mode", 0)),
        return_indices=True,
    )
    largest, indices = layer(y)
    if y is not x:
        return [largest, None]
    # ONNX counts through the batch.
    start = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * axes) * x[0, 0].numel()
    return [largest, indices + start]


def average_pool(a: Attributes, given: Inputs) -> Outputs:
    (x,) = given
    axes = plane(x)
    if any(d != 1 for d in a.get("dilations", [1])):
        raise Elsewhere("an average with dilation")
    fill = 0 if a.get("count_include_pad") and not a.get("ceil_mode") else None
    x, padding = padded(x, a, a["kernel_shape"], fill, pool=True)
    kind: Any = (layers.AvgPool1d, layers.AvgPool2d)[axes - 1]
    layer = kind(
        tuple(a["kernel_shape"]),
        stride=tuple(a.get("strides", [1] * axes)),
        padding=padding,
        ceil_mode=bool(a.get("ceil_mode", 0)),
        count_include_pad=bool(a.get("count_include_pad", 0)),
    )
    return [layer(x)]


def batch_norm(a: Attributes, given: Inputs) -> Outputs:
    x, weight, bias, mean, var = given
    keep, count = a.get("momentum", 0.9), x.numel() // x.shape[1]
    layer = layers.BatchNorm2d(x.shape[1], eps=a.get("epsilon", 1e-5), momentum=1 - keep)
    loaded(layer, weight=weight, bias=bias)
    layer.running_mean, layer.running_var = mean.clone(), var.clone()
    if not a.get("training_mode"):
        return [layer.eval()(x)]
    y = layer(x)
    # ONNX keeps the variance of the batch, torch that of the population it was drawn from.
    kept = keep * var + (layer.running_var - keep * var) * (count - 1) / count
    return [y, layer.running_mean, kept]


def layer_norm(a: Attributes, given: Inputs) -> Outputs:
    x, weight, *bias = given
    layer = layers.LayerNorm(x.shape[a.get("axis", -1) :], eps=a.get("epsilon", 1e-5), bias=bool(bias))
    return [loaded(layer, weight=weight, bias=bias[0] if bias else None)(x), None, None]


def rms_norm(a: Attributes, given: Inputs) -> Outputs:
    x, weight = given
    layer = layers.RMSNorm(x.shape[a.get("axis", -1) :], eps=a.get("epsilon", 1e-5))
    return [loaded(layer, weight=weight)(x)]


def group_norm(a: Attributes, given: Inputs) -> Outputs:
    x, weight, bias = given
    layer = layers.GroupNorm(a.get("num_groups", x.shape[1]), x.shape[1], eps=a.get("epsilon", 1e-5))
    return [loaded(layer, weight=weight, bias=bias)(x)]


def prelu(a: Attributes, given: Inputs) -> Outputs:
    x, slope = given
    if slope.dim() != 1:
        raise Elsewhere("a slope for every element")
    return [loaded(layers.PReLU(len(slope)), weight=slope)(x.movedim(-1, 1)).movedim(1, -1)]


def swish(a: Attributes, given: Inputs) -> Outputs:
    if a.get("alpha", 1.0) != 1:
        raise Elsewhere("a sigmoid of other steepness")
    return [layers.SiLU()(*given)]


def cross_entropy(a: Attributes, given: Inputs) -> Outputs:
    scores, target, *weight = given
    options = {"ignore_index": a.get("ignore_index", -100), "reduction": a.get("reduction", "mean")}
    loss = layers.CrossEntropyLoss(weight=weight[0] if weight else None, **options)(scores, target.long())
    return [loss, layers.LogSoftmax(dim=1)(scores)]


def nll_loss(a: Attributes, given: Inputs) -> Outputs:
    scores, target, *weight = given
    options = {"ignore_index": a.get("ignore_index", -100), "reduction": a.get("reduction", "mean")}
    return [layers.NLLLoss(weight=weight[0] if weight else None, **options)(scores, target.long())]


def gemm(a: Attributes, given: Inputs) -> Outputs:
    x, weight, *bias = given
    x = x.T if a.get("transA") else x
    weight = (weight if a.get("transB") else weight.T) * a.get("alpha", 1.0)
    if bias and bias[0].numel() != len(weight):
        raise Elsewhere("a bias for every element")
    layer = layers.Linear(weight.shape[1], weight.shape[0], bias=bool(bias))
    shift = bias[0].flatten() * a.get("beta", 1.0) if bias else None
    return [loaded(layer, weight=weight, bias=shift)(x)]


def dropout(a: Attributes, given: Inputs) -> Outputs:
    x, *rest = given
    ratio = rest[0].item() if rest else 0.5
    training = len(rest) > 1 and bool(rest[1])
    if training and ratio:
        raise Elsewhere("a mask from NumPy's generator")
    return [layers.Dropout(ratio).train(training)(x), None]


def flatten(a: Attributes, given: Inputs) -> Outputs:
    axis = a.get("axis", 1) % given[0].dim()
    if axis == 0:
        raise Elsewhere("a leading axis of one")
    return [layers.Flatten(1)(layers.Flatten(0, axis - 1)(*given))]


def option(kind: str, **names: str) -> Callable[[Attributes, Inputs], Outputs]:
    """The layer with ONNX's attributes under torch's names."""

    def run(a: Attributes, given: Inputs) -> Outputs:
        if unknown := set(a) - set(names):
            raise AssertionError(f"attributes {unknown}")
        return [getattr(layers, kind)(**{names[name]: value for name, value in a.items()})(*given)]

    return run


def softmax(kind: str) -> Callable[[Attributes, Inputs], Outputs]:
    return lambda a, given: [getattr(layers, kind)(dim=a.get("axis", -1))(*given)]


OPERATORS: dict[str, Callable[[Attributes, Inputs], Outputs]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Dropout": dropout,
    "Elu": lambda a, given: [layers.ELU(a.get("alpha", 1.0))(*given)],
    "Flatten": flatten,
    "Gelu": option("GELU", approximate="approximate"),
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, given: [layers.AdaptiveAvgPool2d(1)(*given)],
    "GlobalMaxPool": lambda a, given: [layers.AdaptiveMaxPool2d(1)(*given)],
    "GroupNormalization": group_norm,
    "HardSwish": option("Hardswish"),
    "Identity": option("Identity"),
    "InstanceNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": option("LeakyReLU", alpha="negative_slope"),
    "LogSoftmax": softmax("LogSoftmax"),
    "MaxPool": max_pool,
    "Mish": option("Mish"),
    "NegativeLogLikelihoodLoss": nll_loss,
    "PRelu": prelu,
    "RMSNormalization": rms_norm,
    "Relu": option("ReLU"),
    "Sigmoid": option("Sigmoid"),
    "Softmax": softmax("Softmax"),
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "Softplus": option("Softplus"),
    "Swish": swish,
    "Tanh": option("Tanh"),
}


FOUR_DIGITS = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}
"""Cases whose numbers ONNX gives with four digits."""


@pytest.mark.parametrize("operator", OPERATORS)
def test_layer_gives_the_numbers_of_the_specification(operator: str) -> None:
    tried = 0
    for case in cases(operator):
        for given, expected in case.data_sets or []:
            if not all(isinstance(value, np.ndarray | np.generic) for value in (*given, *expected)):
                continue  # sequences and optional values
            tensors = [torch.from_numpy(np.array(value)) for value in given]
            try:
                found = OPERATORS[operator](attributes(case.model.graph.node[0]), tensors)
            except Elsewhere:
                continue
            tried += 1
            for ours, wanted in zip(found, expected, strict=False):
                if ours is None:
                    continue
                label, tolerance = f"{case.name}: ", 1e-3 if case.name in FOUR_DIGITS else 1e-5
                numbers = torch.from_numpy(np.array(wanted))
                assert ours.shape == numbers.shape, label
                torch.testing.assert_close(
                    ours.detach(), numbers, rtol=tolerance, atol=1e-6, msg=partial("{}{}".format, label)
                )
    assert tried, f"no case of {operator} was tried"
