"""Pooling layers. Those along one axis pool images of one row, those along three pool the frames of a volume."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import pool
from cnn_lightning.ops.expect import integers

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]

Options = dict[str, Any]


class MaxPool2dFunction(torch.autograd.Function):
    """`ops.pool.max_pool2d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options) -> Tensor:
        """The largest value of each window."""
        ctx.save_for_backward(x)
        ctx.options = options
        return bridge.call(pool.max_pool2d, x, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient, at the pixel that won each window."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.max_pool2d_backward, grad_y, x, **ctx.options), None


class MaxPool2dWithIndicesFunction(torch.autograd.Function):
    """`ops.pool.max_pool2d_with_indices`; the gradient is that of `max_pool2d`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        """The largest value of each window, and its place."""
        y, indices = bridge.call(pool.max_pool2d_with_indices, x, **options)
        ctx.save_for_backward(x, indices)  # the indices too, as in torch, so that autograd refuses their change
        ctx.options = options
        ctx.mark_non_differentiable(indices)
        return y, indices

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor, None]:
        """The gradient, at the pixel that won each window."""
        x, _ = ctx.saved_tensors
        return bridge.call(pool.max_pool2d_backward, grad_y, x, **ctx.options), None


class AvgPool2dFunction(torch.autograd.Function):
    """`ops.pool.avg_pool2d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options) -> Tensor:
        """The mean of each window."""
        ctx.save_for_backward(x)
        ctx.options = options
        return bridge.call(pool.avg_pool2d, x, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient of each window, divided among its pixels."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.avg_pool2d_backward, grad_y, x, **ctx.options), None


class AdaptiveAvgPool2dFunction(torch.autograd.Function):
    """`ops.pool.adaptive_avg_pool2d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """The mean of each window."""
        ctx.save_for_backward(bridge.blank(x) if size == (1, 1) else x)  # as in torch: only the shape is needed
        ctx.size = size
        return bridge.call(pool.adaptive_avg_pool2d, x, output_size=size)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient of each window, divided among its pixels."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.adaptive_avg_pool2d_backward, grad_y, x, output_size=ctx.size), None


class AdaptiveMaxPool2dFunction(torch.autograd.Function):
    """`ops.pool.adaptive_max_pool2d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The largest value of each window, and its place."""
        y, indices = bridge.call(pool.adaptive_max_pool2d, x, output_size=size)
        ctx.save_for_backward(x, indices)
        ctx.size = size
        ctx.mark_non_differentiable(indices)
        return y, indices

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor, None]:
        """The gradient, at the pixel that won each window."""
        return bridge.call(pool.adaptive_max_pool2d_backward, grad_y, *ctx.saved_tensors, output_size=ctx.size), None


class MaxPool3dFunction(torch.autograd.Function):
    """`ops.pool.max_pool3d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options) -> Tensor:
        """The largest value of each window."""
        ctx.save_for_backward(x)
        ctx.options = options
        return bridge.call(pool.max_pool3d, x, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient, at the pixel that won each window."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.max_pool3d_backward, grad_y, x, **ctx.options), None


class MaxPool3dWithIndicesFunction(torch.autograd.Function):
    """`ops.pool.max_pool3d_with_indices`; the gradient is that of `max_pool3d`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        """The largest value of each window, and its place."""
        y, indices = bridge.call(pool.max_pool3d_with_indices, x, **options)
        ctx.save_for_backward(x, indices)  # the indices too, as in torch, so that autograd refuses their change
        ctx.options = options
        ctx.mark_non_differentiable(indices)
        return y, indices

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor, None]:
        """The gradient, at the pixel that won each window."""
        x, _ = ctx.saved_tensors
        return bridge.call(pool.max_pool3d_backward, grad_y, x, **ctx.options), None


class AvgPool3dFunction(torch.autograd.Function):
    """`ops.pool.avg_pool3d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options) -> Tensor:
        """The mean of each window."""
        ctx.save_for_backward(x)
        ctx.options = options
        return bridge.call(pool.avg_pool3d, x, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient of each window, divided among its pixels."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.avg_pool3d_backward, grad_y, x, **ctx.options), None


class AdaptiveAvgPool3dFunction(torch.autograd.Function):
    """`ops.pool.adaptive_avg_pool3d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """The mean of each window."""
        ctx.save_for_backward(bridge.blank(x) if size == (1, 1, 1) else x)  # as in torch: only the shape is needed
        ctx.size = size
        return bridge.call(pool.adaptive_avg_pool3d, x, output_size=size)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient of each window, divided among its pixels."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.adaptive_avg_pool3d_backward, grad_y, x, output_size=ctx.size), None


class AdaptiveMaxPool3dFunction(torch.autograd.Function):
    """`ops.pool.adaptive_max_pool3d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The largest value of each window, and its place."""
        y, indices = bridge.call(pool.adaptive_max_pool3d, x, output_size=size)
        ctx.save_for_backward(x, indices)
        ctx.size = size
        ctx.mark_non_differentiable(indices)
        return y, indices

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor, None]:
        """The gradient, at the pixel that won each window."""
        return bridge.call(pool.adaptive_max_pool3d_backward, grad_y, *ctx.saved_tensors, output_size=ctx.size), None


MAX_POOL = {
    **catalog.channels_last(max_pool2d=0),
    **catalog.channels_last(max_pool2d_with_indices=0, results=2),
    **catalog.same_order(max_pool2d_backward=1),
    **catalog.channels_last(add_at=1, image_by_image=True),
}
MAX_POOL_3D = {
    **catalog.channels_last(max_pool3d=0, max_pool3d_backward=1),
    **catalog.channels_last(max_pool3d_with_indices=0, results=2),
}
AVG_POOL = catalog.channels_last(avg_pool2d=0) | catalog.same_order(avg_pool2d_backward=1)
ADAPTIVE_AVG_POOL = catalog.channels_last(adaptive_avg_pool2d=0) | catalog.same_order(adaptive_avg_pool2d_backward=1)
ADAPTIVE_MAX_POOL = {
    **catalog.channels_last(adaptive_max_pool2d=0, results=2),
    **catalog.same_order(adaptive_max_pool2d_backward=1),
}


@catalog.layer(
    native=torch.nn.MaxPool2d,
    formulas="pool",
    functions=("max_pool2d",),
    kinks=(),
    choices=catalog.places(torch.nn.functional.max_pool2d),
    page=(
        r"y_{c,u,v} = \max_{i,j} x_{c,ROW,COLUMN}",
        r"\d{x_{c,r,s}} = \sum_{u,v : \text{(r,s) won window (u,v)}} g_{c,u,v}",
    ),
    memory=MAX_POOL,
    flops=None,
)
class MaxPool2d(Layer, torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, H, W) or (C, H, W)."""
        _check_axes(self, input, (3, 4))
        options = _options(self, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        function = MaxPool2dWithIndicesFunction if self.return_indices else MaxPool2dFunction
        return _batched(input, 4, lambda x: function.apply(x, options))


@catalog.layer(
    native=torch.nn.MaxPool1d,
    formulas="pool",
    functions=("max_pool1d",),
    kinks=(),
    choices=catalog.places(torch.nn.functional.max_pool1d),
    page=(
        r"y_{c,u} = \max_{i} x_{c,ROW}",
        r"\d{x_{c,r}} = \sum_{u : \text{r won window u}} g_{c,u}",
    ),
    memory=MAX_POOL,
    flops=None,
)
class MaxPool1d(Layer, torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, L) or (C, L)."""
        _check_axes(self, input, (2, 3))
        options = _rows(_options(self, "kernel_size", "stride", "padding", "dilation", "ceil_mode"))
        function = MaxPool2dWithIndicesFunction if self.return_indices else MaxPool2dFunction
        return _along_rows(input, lambda x: function.apply(x, options))


@catalog.layer(
    native=torch.nn.AvgPool2d,
    formulas="pool",
    functions=("avg_pool2d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{c,u,v} = \frac{1}{k} \sum_{i,j} x_{c,ROW,COLUMN}",
        r"\d{x_{c,r,s}} = \frac{1}{k} \sum_{u,i,v,j : ROW = r, COLUMN = s} g_{c,u,v}",
    ),
    memory=AVG_POOL,
    flops=None,
)
class AvgPool2d(Layer, torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, H, W) or (C, H, W)."""
        _check_axes(self, input, (3, 4), too_few=IndexError)
        options = _options(self, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        options["divisor_override"] = self.divisor_override
        return _batched(input, 4, lambda x: AvgPool2dFunction.apply(x, options))


@catalog.layer(
    native=torch.nn.AvgPool1d,
    formulas="pool",
    functions=("avg_pool1d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{c,u} = \frac{1}{k} \sum_{i} x_{c,ROW}",
        r"\d{x_{c,r}} = \frac{1}{k} \sum_{u,i : ROW = r} g_{c,u}",
    ),
    memory=AVG_POOL,
    flops=None,
)
class AvgPool1d(Layer, torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, L) or (C, L)."""
        _check_axes(self, input, (2, 3))
        options = _rows(_options(self, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"))
        return _along_rows(input, lambda x: AvgPool2dFunction.apply(x, options))


@catalog.layer(
    native=torch.nn.AdaptiveAvgPool2d,
    formulas="pool",
    functions=("adaptive_avg_pool2d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{c,u,v} = \frac{1}{k} \sum_{(r,s) \text{ in window } (u,v)} x_{c,r,s}",
        r"\d{x_{c,r,s}} = \sum_{(u,v) \text{ over } (r,s)} \frac{1}{k} g_{c,u,v}",
    ),
    memory=ADAPTIVE_AVG_POOL,
    flops=None,
)
class AdaptiveAvgPool2d(Layer, torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, H, W) or (C, H, W) to ``output_size``."""
        size = _size(self, input, 2)
        _check_axes(self, input, (3, 4), filled=0 if size == (1, 1) else 2)  # the mean of no pixels is NaN
        return _batched(input, 4, lambda x: AdaptiveAvgPool2dFunction.apply(x, size))


@catalog.layer(
    native=torch.nn.AdaptiveAvgPool1d,
    formulas="pool",
    functions=("adaptive_avg_pool1d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{c,u} = \frac{1}{k} \sum_{r \text{ in window } u} x_{c,r}",
        r"\d{x_{c,r}} = \sum_{u \text{ over } r} \frac{1}{k} g_{c,u}",
    ),
    memory=ADAPTIVE_AVG_POOL,
    flops=None,
)
class AdaptiveAvgPool1d(Layer, torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, L) or (C, L) to ``output_size``."""
        _check_axes(self, input, (2, 3), filled=0)
        (length,) = _not_negative(self, integers(self.output_size, "AdaptiveAvgPool1d: output_size", 1))
        _check_axes(self, input, (2, 3), filled=0 if length == 1 else 1)
        return _along_rows(input, lambda x: AdaptiveAvgPool2dFunction.apply(x, (1, length)))


@catalog.layer(
    native=torch.nn.AdaptiveMaxPool2d,
    formulas="pool",
    functions=("adaptive_max_pool2d",),
    kinks=(),
    choices=catalog.adaptive_places(torch.nn.functional.adaptive_max_pool2d),
    page=(
        r"y_{c,u,v} = \max_{(r,s) \text{ in window } (u,v)} x_{c,r,s}",
        r"\d{x_{c,r,s}} = \sum_{(u,v) \text{ won by } (r,s)} g_{c,u,v}",
    ),
    memory=ADAPTIVE_MAX_POOL,
    flops=None,
)
class AdaptiveMaxPool2d(Layer, torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, H, W) or (C, H, W) to ``output_size``."""
        size = _size(self, input, 2)
        _check_axes(self, input, (3, 4), filled=input.dim() - 1)
        y, indices = _batched(input, 4, lambda x: AdaptiveMaxPool2dFunction.apply(x, size))
        return (y, indices) if self.return_indices else y


@catalog.layer(
    native=torch.nn.AdaptiveMaxPool1d,
    formulas="pool",
    functions=("adaptive_max_pool1d",),
    kinks=(),
    choices=catalog.adaptive_places(torch.nn.functional.adaptive_max_pool1d),
    page=(
        r"y_{c,u} = \max_{r \text{ in window } u} x_{c,r}",
        r"\d{x_{c,r}} = \sum_{u \text{ won by } r} g_{c,u}",
    ),
    memory=ADAPTIVE_MAX_POOL,
    flops=None,
)
class AdaptiveMaxPool1d(Layer, torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, L) or (C, L) to ``output_size``."""
        _check_axes(self, input, (2, 3), filled=0)
        (length,) = _not_negative(self, integers(self.output_size, "AdaptiveMaxPool1d: output_size", 1))
        _check_axes(self, input, (2, 3), filled=input.dim() - 1)
        y, indices = _along_rows(input, lambda x: AdaptiveMaxPool2dFunction.apply(x, (1, length)))
        return (y, indices) if self.return_indices else y


@catalog.layer(
    native=torch.nn.MaxPool3d,
    formulas="pool",
    functions=("max_pool3d",),
    kinks=(),
    choices=catalog.places(torch.nn.functional.max_pool3d),
    page=(
        r"y_{c,w} = \max_{v \text{ in window } w} x_{c,v}",
        r"\d{x_{c,v}} = \sum_{w : \text{v won window w}} g_{c,w}",
    ),
    memory=MAX_POOL_3D,
    flops=None,
)
class MaxPool3d(Layer, torch.nn.MaxPool3d):
    """``torch.nn.MaxPool3d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, D, H, W) or (C, D, H, W)."""
        _check_axes(self, input, (4, 5))
        options = _options(self, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        function = MaxPool3dWithIndicesFunction if self.return_indices else MaxPool3dFunction
        return _batched(_autocast(input), 5, lambda x: function.apply(x, options))


@catalog.layer(
    native=torch.nn.AvgPool3d,
    formulas="pool",
    functions=("avg_pool3d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{c,w} = \frac{1}{k} \sum_{v \text{ in window } w} x_{c,v}",
        r"\d{x_{c,v}} = \frac{1}{k} \sum_{w \text{ over } v} g_{c,w}",
    ),
    memory={},
    flops=None,
)
class AvgPool3d(Layer, torch.nn.AvgPool3d):
    """``torch.nn.AvgPool3d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, D, H, W) or (C, D, H, W)."""
        _check_axes(self, input, (4, 5))
        options = _options(self, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        options["divisor_override"] = self.divisor_override
        return _batched(_autocast(input), 5, lambda x: AvgPool3dFunction.apply(x, options))


@catalog.layer(
    native=torch.nn.AdaptiveAvgPool3d,
    formulas="pool",
    functions=("adaptive_avg_pool3d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{c,w} = \frac{1}{k} \sum_{v \text{ in window } w} x_{c,v}",
        r"\d{x_{c,v}} = \sum_{w \text{ over } v} \frac{1}{k} g_{c,w}",
    ),
    memory={},
    flops=None,
)
class AdaptiveAvgPool3d(Layer, torch.nn.AdaptiveAvgPool3d):
    """``torch.nn.AdaptiveAvgPool3d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, D, H, W) or (C, D, H, W) to ``output_size``."""
        size = _size(self, input, 3)
        _check_axes(self, input, (4, 5), filled=input.dim() - 1)
        return _batched(_autocast(input), 5, lambda x: AdaptiveAvgPool3dFunction.apply(x, size))


@catalog.layer(
    native=torch.nn.AdaptiveMaxPool3d,
    formulas="pool",
    functions=("adaptive_max_pool3d",),
    kinks=(),
    choices=catalog.adaptive_places(torch.nn.functional.adaptive_max_pool3d),
    page=(
        r"y_{c,w} = \max_{v \text{ in window } w} x_{c,v}",
        r"\d{x_{c,v}} = \sum_{w \text{ won by } v} g_{c,w}",
    ),
    memory={},
    flops=None,
)
class AdaptiveMaxPool3d(Layer, torch.nn.AdaptiveMaxPool3d):
    """``torch.nn.AdaptiveMaxPool3d`` in NumPy."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, D, H, W) or (C, D, H, W) to ``output_size``."""
        size = _size(self, input, 3)
        _check_axes(self, input, (4, 5), filled=input.dim() - 1)
        y, indices = _batched(_autocast(input), 5, lambda x: AdaptiveMaxPool3dFunction.apply(x, size))
        return (y, indices) if self.return_indices else y


def _autocast(x: Tensor) -> Tensor:
    """Cast to float32 as torch.autocast casts volumes: on the CPU, but not on GPUs."""
    cast: Tensor = bridge.autocast("float32", x) if x.device.type == "cpu" else x
    return cast


def _options(module: torch.nn.Module, *names: str) -> Options:
    return {name: getattr(module, name) for name in names}


def _rows(options: Options) -> Options:
    """Options of pooling along one axis, as options of pooling images of one row."""
    idle = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    pairs = {}
    for name, value in options.items():
        if name in idle:
            value = None if value is None or value == () else (idle[name], *integers(value, name, 1))
        pairs[name] = value
    return pairs


def _size(module: Any, input: Tensor, axes: int) -> tuple[int, ...]:
    """``output_size``, with the size of the input for None."""
    bridge.expect_no_transform(input)
    wanted, name = module.output_size, f"{type(module).__name__}: output_size"
    there = input.size()
    if isinstance(wanted, tuple | list):
        if len(there) <= len(wanted):
            raise ValueError(f"input: expected at least {len(wanted) + 1} axes, got shape {tuple(there)}")
        if len(wanted) != axes:
            raise RuntimeError(f"{name}: expected one number or {axes}, got {wanted}")
        wanted = tuple(n if size is None else size for size, n in zip(wanted, there[-axes:], strict=True))
    return _not_negative(module, integers(wanted, name, axes))


def _not_negative(module: torch.nn.Module, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if min(sizes) < 0:
        raise RuntimeError(f"{type(module).__name__}: output_size: expected none below 0, got {sizes}")
    return sizes


def _batched(input: Tensor, axes: int, function: Any) -> Any:
    """The function on a batch; channels are the batch if ``input`` has no batch axis, since torch allows 0 of them."""
    if input.dim() == axes:
        return function(input)
    results = function(input.unsqueeze(1))
    return tuple(map(_only, results)) if isinstance(results, tuple) else _only(results)


def _only(tensor: Tensor) -> Tensor:
    """The results for a single image, contiguous as torch's: channels as the batch may be the last axis in memory."""
    return tensor.squeeze(1).contiguous()


def _along_rows(input: Tensor, function: Any) -> Any:
    """The function on images (N, C, 1, L), and its results without their row axis."""

    def rows(x: Tensor) -> Any:
        results = function(x.unsqueeze(2))
        return tuple(y.squeeze(2) for y in results) if isinstance(results, tuple) else results.squeeze(2)

    return _batched(input, 3, rows)


def _check_axes(
    module: torch.nn.Module,
    input: Tensor,
    axes: tuple[int, int],
    too_few: type[Exception] = RuntimeError,
    filled: int | None = None,
) -> None:
    """Raise for a wrong number of axes, an empty axis or an integer dtype.

    ``filled`` is the number of last axes that may not be empty, by default all but the batch.
    """
    kind = type(module).__name__
    if bridge.expect_tensor(input).dim() not in axes:
        error = too_few if input.dim() < axes[0] else RuntimeError
        raise error(f"{kind}: input: expected {axes[0]} or {axes[1]} axes, got shape {tuple(input.shape)}")
    filled = axes[0] if filled is None else filled
    if 0 in input.shape[input.dim() - filled :]:
        raise RuntimeError(f"{kind}: input: expected the last {filled} axes not empty, got shape {tuple(input.shape)}")
    kinds = torch.nn.MaxPool1d | torch.nn.MaxPool2d | torch.nn.MaxPool3d
    whole = isinstance(module, kinds) and (axes[0] > 2 or module.return_indices)
    if not input.is_floating_point() and not whole:
        raise NotImplementedError(f"{kind}: input: expected a floating dtype, got {input.dtype}")
