"""The number of additions and multiplications in the forward of a layer."""

from math import prod
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from cnn_lightning.tools.explain.formulas import entry_of

_NONE = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, Permute, StochasticDepth)
"""Layers that only copy or select values when they are evaluated."""
_ADAPTIVE = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_PER_VALUE = {
    nn.BatchNorm1d: 2,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 2,
    nn.LayerNorm: 7,
    nn.GroupNorm: 7,
    nn.InstanceNorm1d: 7,
    nn.InstanceNorm2d: 7,
    nn.InstanceNorm3d: 7,
    nn.RMSNorm: 4,
    nn.Softmax: 4,
}
"""Operations for each value of the output; 1 for any other layer."""


def flops(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Count the forward of ``module`` from ``x`` to ``y``, by its formula; products as the catalogue counts them."""
    entry, weight = entry_of(module), getattr(module, "weight", None)
    if entry is not None and entry.flops is not None and weight is not None:
        return entry.flops(x.shape, weight.shape, y.shape)
    if isinstance(module, _NONE):
        return 0
    if isinstance(module, _ADAPTIVE):
        return x.numel()
    if isinstance(module, _POOLS):
        return y.numel() * _window(module)
    if isinstance(module, nn.CrossEntropyLoss):
        return 4 * x.numel()
    return y.numel() * next((count for kind, count in _PER_VALUE.items() if isinstance(module, kind)), 1)


def _window(pool: Any) -> int:
    """The number of pixels in the window of a pooling."""
    size = pool.kernel_size
    if not isinstance(size, int):
        return prod(size)
    axes = (
        1
        if isinstance(pool, nn.MaxPool1d | nn.AvgPool1d)
        else 3
        if isinstance(pool, nn.MaxPool3d | nn.AvgPool3d)
        else 2
    )
    return int(size**axes)
