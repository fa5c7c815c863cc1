"""Layers that bring images to another size."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog, pool
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import upsample
from cnn_lightning.ops.expect import integers

__all__ = ["Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"]

Options = dict[str, Any]


class UpsampleNearestFunction(torch.autograd.Function):
    """`ops.upsample.upsample_nearest` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Sequence[int], options: Options) -> Tensor:
        """Copies of pixels."""
        ctx.size_x, ctx.options = tuple(x.shape[2:]), options
        return bridge.call(upsample.upsample_nearest, x, size=size, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, at the pixels that were copied."""
        return bridge.call(upsample.upsample_nearest_backward, grad_y, size_x=ctx.size_x, **ctx.options), None, None


class UpsampleLinearFunction(torch.autograd.Function):
    """`ops.upsample.upsample_linear` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Sequence[int], options: Options) -> Tensor:
        """Weighted means of two pixels along each axis."""
        ctx.size_x, ctx.options = tuple(x.shape[2:]), options
        return bridge.call(upsample.upsample_linear, x, size=size, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, with the same weights."""
        return bridge.call(upsample.upsample_linear_backward, grad_y, size_x=ctx.size_x, **ctx.options), None, None


class UpsampleCubicFunction(torch.autograd.Function):
    """`ops.upsample.upsample_cubic` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Sequence[int], options: Options) -> Tensor:
        """Weighted sums of four pixels along each axis."""
        ctx.size_x, ctx.options = tuple(x.shape[2:]), options
        return bridge.call(upsample.upsample_cubic, x, size=size, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, with the same weights."""
        return bridge.call(upsample.upsample_cubic_backward, grad_y, size_x=ctx.size_x, **ctx.options), None, None


MEMORY = {
    **catalog.channels_last(upsample_nearest=0, upsample_linear=0, upsample_cubic=0),
    **catalog.channels_last(upsample_nearest_backward=0, upsample_linear_backward=0, upsample_cubic_backward=0),
}
NEAREST = (
    r"y_{c,u} = x_{c,i} \text{, for each axis, with } i \text{ the place of } u \text{ in the input, rounded down}",
    r"\d{x_{c,i}} = \sum_{u : \text{copied from i}} g_{c,u}",
)
WEIGHTED = (
    r"y_{c,u} = \sum_{i} w_{u,i} x_{c,i} \text{, for each axis}",
    r"\d{x_{c,i}} = \sum_{u} w_{u,i} g_{c,u}",
)


@catalog.layer(
    native=torch.nn.Upsample,
    formulas="upsample",
    functions=("interpolate", "upsample"),
    kinks=(),
    choices=None,
    page=WEIGHTED,
    memory=MEMORY,
    flops=None,
)
class Upsample(Layer, torch.nn.Upsample):
    """``torch.nn.Upsample`` in NumPy, in each of its modes."""

    def forward(self, input: Tensor) -> Tensor:
        """Bring (N, C, L), (N, C, H, W) or (N, C, D, H, W) to ``size``, or ``scale_factor`` times its size."""
        return _resized(self, input)


@catalog.layer(
    native=torch.nn.UpsamplingNearest2d,
    formulas="upsample",
    functions=("upsample_nearest",),
    kinks=(),
    choices=None,
    page=NEAREST,
    memory=MEMORY,
    flops=None,
)
class UpsamplingNearest2d(Layer, torch.nn.UpsamplingNearest2d):
    """``torch.nn.UpsamplingNearest2d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """`Upsample` with mode "nearest"."""
        return _resized(self, input)


@catalog.layer(
    native=torch.nn.UpsamplingBilinear2d,
    formulas="upsample",
    functions=("upsample_bilinear",),
    kinks=(),
    choices=None,
    page=WEIGHTED,
    memory=MEMORY,
    flops=None,
)
class UpsamplingBilinear2d(Layer, torch.nn.UpsamplingBilinear2d):
    """``torch.nn.UpsamplingBilinear2d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """`Upsample` with mode "bilinear" and ``align_corners``."""
        return _resized(self, input)


_AREA = {1: pool.AdaptiveAvgPool1d, 2: pool.AdaptiveAvgPool2d, 3: pool.AdaptiveAvgPool3d}
"""The layer that computes mode "area", by the number of axes."""
_WEIGHTED = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}
"""The modes that take ``align_corners``, and their number of axes."""


def _resized(module: torch.nn.Upsample, input: Tensor) -> Tensor:
    """The input in the size that the module gives, by its mode."""
    bridge.expect_no_transform(input)
    kind, mode = type(module).__name__, module.mode
    if mode in ("nearest", "nearest-exact", "area") and module.align_corners is not None:
        raise ValueError(f"{kind}: align_corners: expected None for mode {mode!r}, got {module.align_corners}")
    axes = input.dim() - 2
    size, scales = _sizes(module, input, axes)
    y: Tensor
    if mode in ("nearest", "nearest-exact") and axes in (1, 2, 3):
        y = UpsampleNearestFunction.apply(input, size, {"scales": scales, "exact": mode == "nearest-exact"})
    elif mode == "area" and axes in _AREA:
        y = _AREA[axes](size)(input)
    elif mode in _WEIGHTED and axes == _WEIGHTED[mode]:
        function = UpsampleCubicFunction if mode == "bicubic" else UpsampleLinearFunction
        y = function.apply(input, size, {"align_corners": bool(module.align_corners), "scales": scales})
    elif mode == "lanczos" and axes == 2:
        raise ValueError(f"{kind}: mode: expected one without anti-aliasing, got {mode!r}")
    else:
        raise NotImplementedError(f"{kind}: input: expected other axes for mode {mode!r}, got {tuple(input.shape)}")
    return y


def _sizes(module: Any, input: Tensor, axes: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The size of the output, and the scales that give the places in the input: none if they follow from the sizes."""
    kind, size, scale = type(module).__name__, module.size, module.scale_factor
    recompute = module.recompute_scale_factor
    if (size is None) == (scale is None):
        raise ValueError(f"{kind}: size: expected either size or scale_factor, got {size} and {scale}")
    given = size if scale is None else scale
    if isinstance(given, tuple | list) and len(given) != axes:
        raise ValueError(f"{kind}: input: expected {len(given) + 2} axes for {given}, got shape {tuple(input.shape)}")
    if scale is None:
        if recompute:
            raise ValueError(f"{kind}: recompute_scale_factor: expected None with a size, got {recompute}")
        return integers(size, f"{kind}: size", axes), ()
    scales = tuple(given) if isinstance(given, tuple | list) else (given,) * axes
    if not all(map(math.isfinite, scales)):
        error = RuntimeError if not recompute else OverflowError if any(map(math.isinf, scales)) else ValueError
        raise error(f"{kind}: scale_factor: expected finite numbers, got {scale}")
    wanted = tuple(int(n * factor) for n, factor in zip(input.shape[2:], scales, strict=True))
    return wanted, () if recompute or module.mode == "area" else scales
