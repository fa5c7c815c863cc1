"""The numbers for the interactive parts of the page: a layer's input, weights and gradient for one picture."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from cnn_lightning.swap import native_type
from cnn_lightning.tools.explain.record import Layer

BUDGET = 300_000
"""About this many numbers are in a page, four bytes each."""
FIRST = 200_000
"""The first layer may always use this many of them: it sees the picture."""


_PICKERS = {
    nn.Conv2d: ("conv", 4),
    nn.MaxPool2d: ("pool", 4),
    nn.Linear: ("linear", 2),
    nn.CrossEntropyLoss: ("softmax", 2),
}
"""The layers with an interactive part: the native type -> the picker, and the number of axes of the input."""


def numbers(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """The numbers with which the page recomputes a layer, by the layer's label, ready for JSON.

    Each layer may use an equal part of `BUDGET`. A larger layer has only its first output channels, or is left out.
    """
    pickable = [layer for layer in layers if _kind(layer) is not None]
    each = BUDGET // max(1, len(pickable))
    found: dict[str, dict[str, Any]] = {}
    for index, layer in enumerate(pickable):
        entry = _entry(layer, _kind(layer), max(each, FIRST) if index == 0 else each)
        if entry is not None:
            found[layer.label] = entry
    return found


def _kind(layer: Layer) -> str | None:
    module: Any = layer.module
    picker, axes = _PICKERS.get(native_type(layer.module), (None, 0))
    if layer.x.dim() != axes or (picker == "conv" and module.padding_mode != "zeros"):
        return None
    return picker


def _entry(layer: Layer, kind: str | None, budget: int) -> dict[str, Any] | None:
    module: Any = layer.module
    x, y, grad_y = layer.x[0], layer.y[0] if layer.y.dim() else layer.y, layer.grad_y
    if kind == "softmax":
        label = int(layer.arguments[1][0])
        return {"kind": kind, "x": _pack(x), "label": label, "smoothing": float(module.label_smoothing)}
    if kind == "pool":
        channels = _affordable(budget, 0, x[0].numel() + y[0].numel(), len(x))
        return channels and {
            "kind": kind,
            "x": _pack(x[:channels]),
            "grad": _pack(grad_y[0][:channels]),
            **_geometry(module, stride=module.stride or module.kernel_size),
        }
    weight: Tensor = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    used = y[0].numel() if kind == "conv" else 1
    channels = _affordable(budget, x.numel(), weight[0].numel() + used + 1, len(weight))
    return channels and {
        "kind": kind,
        "x": _pack(x),
        "weight": _pack(weight[:channels]),
        "bias": None if bias is None else _pack(bias[:channels]),
        "y": _pack(y[:channels]),
        "of": len(weight),
        **(_geometry(module, stride=module.stride, groups=module.groups) if kind == "conv" else {}),
    }


def _affordable(budget: int, once: int, each: int, n: int) -> Any:
    """The number of output channels within the budget; None for none."""
    return max(0, min(n, (budget - once) // each)) or None


def _geometry(module: nn.Module, *, stride: Any, groups: int = 1) -> dict[str, Any]:
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


def _pack(tensor: Tensor) -> dict[str, Any]:
    """Shape, and the float32 values in little-endian order as base64."""
    array = np.ascontiguousarray(tensor.detach().numpy(), "<f4")
    return {"shape": list(tensor.shape), "base64": base64.b64encode(array.tobytes()).decode()}
