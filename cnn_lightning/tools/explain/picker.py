"""The numbers for the interactive parts of the page: a layer's input, weights and gradient for one picture."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnn_lightning.swap import native_type
from cnn_lightning.tools.explain.record import Layer

BUDGET = 300_000
"""About this many numbers are in a page, four bytes each."""
FIRST = 200_000
"""The first layer may always use this many of them: it sees the picture."""
EXTRA = 200_000
"""About this many more are of layers that compute each number from one number: they make traces without gaps."""

_PICKERS = {
    nn.Conv2d: ("conv", (4,)),
    nn.MaxPool2d: ("pool", (4,)),
    nn.Linear: ("linear", (2,)),
    nn.CrossEntropyLoss: ("softmax", (2,)),
}
"""The layers with an interactive part: the native type -> the picker, and the numbers of axes its input may have."""
_EACH = {
    nn.ReLU: ("relu", (2, 4)),
    nn.BatchNorm2d: ("scale", (4,)),
    nn.Dropout: ("copy", (2, 4)),
    nn.Dropout2d: ("copy", (4,)),
    nn.Identity: ("copy", (2, 4)),
    nn.Flatten: ("flatten", (4,)),
}
"""The same for layers that compute each number from one number."""
_LARGE = {kind for kind, _ in _PICKERS.values()}
_SMALL = {kind for kind, _ in _EACH.values()}


def numbers(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """What the page knows of each layer, ready for JSON: label, native type, sizes, the layer before it, and arrays.

    Each layer may use an equal part of `BUDGET`. A larger layer has only its first output channels, or no arrays.
    """
    kinds = [_kind(layer) for layer in layers]
    each = BUDGET // max(1, sum(kind in _LARGE for kind in kinds))
    little = EXTRA // max(1, sum(kind in _SMALL for kind in kinds))
    first = next((index for index, kind in enumerate(kinds) if kind in _LARGE), None)
    found = []
    for index, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        budget = little if kind in _SMALL else max(each, FIRST) if index == first else each
        entry = _entry(layer, kind, budget) or {"picker": None, "arrays": {}}
        if index == 0 and entry["picker"] and layer.grad_x is not None:
            entry["arrays"]["grad_x"] = pack(layer.grad_x[0])
        place = {"from": _source(layers, index), "first": index == 0}
        sizes = {"in": list(layer.x.shape[1:]), "out": list(layer.y.shape[1:])}
        found.append({"label": layer.label, "type": layer.kind, **place, **sizes, **entry})
    return found


def _source(layers: Sequence[Layer], index: int) -> str | None:
    """The label of the layer whose output is the input of this one; None if it is not that of one layer."""
    x = layers[index].x
    for before in reversed(layers[:index]):
        if before.y.numel() == x.numel() and torch.equal(before.y.flatten(), x.flatten()):
            return before.label
    return None


def _kind(layer: Layer) -> str | None:
    module: Any = layer.module
    picker, axes = {**_PICKERS, **_EACH}.get(native_type(layer.module), (None, ()))
    if layer.x.dim() not in axes or (picker == "conv" and module.padding_mode != "zeros"):
        return None
    if picker == "flatten" and layer.y.dim() != 2:
        return None
    if picker == "scale" and module.running_var is None:
        return None
    return picker


def _entry(layer: Layer, kind: str | None, budget: int) -> dict[str, Any] | None:
    """The picker, the options and the arrays of a layer; None if it has no picker, or too large arrays."""
    if kind is None:
        return None
    if kind == "softmax":
        module: Any = layer.module
        return {"picker": kind, "smoothing": float(module.label_smoothing), "arrays": {"x": pack(layer.x[0])}}
    if kind in _SMALL:
        return _each(layer, kind, budget)
    return _pool(layer, budget) if kind == "pool" else _product(layer, kind, budget)


def _each(layer: Layer, kind: str, budget: int) -> dict[str, Any] | None:
    """Of a layer that computes each number from one number."""
    module: Any = layer.module
    x, y, grad_y = layer.x[0], layer.y[0], layer.grad_y[0]
    channels = _affordable(budget, 0, 3 * x[0].numel(), len(x))
    if not channels or (kind == "flatten" and channels < len(x)):
        return None
    more = {}
    if kind == "scale":
        scale = 1 / (module.running_var + module.eps).sqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        shift = -module.running_mean * scale
        shift = shift if module.bias is None else shift + module.bias.detach()
        more = {"scale": pack(scale[:channels]), "shift": pack(shift[:channels])}
    outputs = len(y) if kind == "flatten" else channels
    arrays = {"x": pack(x[:channels]), "y": pack(y[:outputs]), "grad_y": pack(grad_y[:outputs]), **more}
    return {"picker": kind, "of": len(y), "arrays": arrays}


def _pool(layer: Layer, budget: int) -> dict[str, Any] | None:
    module: Any = layer.module
    x, y, grad_y = layer.x[0], layer.y[0], layer.grad_y[0]
    channels = _affordable(budget, 0, x[0].numel() + 2 * y[0].numel(), len(x))
    return channels and {
        "picker": "pool",
        "of": len(y),
        **geometry(module, stride=module.stride or module.kernel_size),
        "arrays": {"x": pack(x[:channels]), "y": pack(y[:channels]), "grad_y": pack(grad_y[:channels])},
    }


def _product(layer: Layer, kind: str, budget: int) -> dict[str, Any] | None:
    """Of a convolution or a linear layer."""
    module: Any = layer.module
    x, y, grad_y = layer.x[0], layer.y[0], layer.grad_y[0]
    weight: Tensor = module.weight.detach()
    used = y[0].numel() if kind == "conv" else 1
    channels = _affordable(budget, x.numel(), weight[0].numel() + 2 * used + 1, len(weight))
    return channels and {
        "picker": kind,
        "of": len(weight),
        **(geometry(module, stride=module.stride, groups=module.groups) if kind == "conv" else {}),
        "arrays": {
            "x": pack(x),
            "weight": pack(weight[:channels]),
            **({} if module.bias is None else {"bias": pack(module.bias[:channels])}),
            "y": pack(y[:channels]),
            "grad_y": pack(grad_y[:channels]),
        },
    }


def _affordable(budget: int, once: int, each: int, n: int) -> Any:
    """The number of output channels within the budget; None for none."""
    return max(0, min(n, (budget - once) // each)) or None


def geometry(module: nn.Module, *, stride: Any, groups: int = 1) -> dict[str, Any]:
    """Kernel, stride, padding, dilation (a number for each axis) and groups, for the page's script."""
    options: Any = module
    kernel, dilation = _pair(options.kernel_size), _pair(options.dilation)
    padding = options.padding
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    elif padding == "valid":
        padding = 0
    pairs = {"kernel": kernel, "stride": _pair(stride), "padding": _pair(padding), "dilation": dilation}
    return pairs | {"groups": groups}


def _pair(value: int | Iterable[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(each) for each in value]


def pack(tensor: Tensor) -> dict[str, Any]:
    """Shape, and the float32 values in little-endian order as base64: ``unpack`` in core.js reads them."""
    array = np.ascontiguousarray(tensor.detach().numpy(), "<f4")
    return {"shape": list(tensor.shape), "base64": base64.b64encode(array.tobytes()).decode()}
