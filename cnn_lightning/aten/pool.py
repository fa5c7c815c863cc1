"""Pooling of images and volumes, with or without a batch axis."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import pool

Sizes = Sequence[int]


def _batched(axes: int, compute: Callable[..., Any], *tensors: Tensor) -> Any:
    """``compute`` of tensors (N, C, ...); without a batch axis they count as a batch of one."""
    if tensors[0].dim() == axes + 2:
        return compute(*tensors)
    results = compute(*(tensor.unsqueeze(0) for tensor in tensors))
    return tuple(each.squeeze(0) for each in results) if isinstance(results, tuple) else results.squeeze(0)


def _windows(kernel_size: Sizes, stride: Sizes, padding: Sizes) -> dict[str, Any]:
    return {"kernel_size": tuple(kernel_size), "stride": tuple(stride) or None, "padding": tuple(padding)}


def _enter(axes: int) -> None:
    """The operators of pooling along ``axes`` axes."""

    def call(op: str, *tensors: Tensor, **options: Any) -> Any:
        return _batched(axes, lambda *given: bridge.compute(getattr(pool, op), *given, **options), *tensors)

    ones: tuple[int, ...] = (1,)
    zeros: tuple[int, ...] = (0,)

    @operator(f"max_pool{axes}d_with_indices")
    def max_pool(
        x: Tensor,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = zeros,
        dilation: Sizes = ones,
        ceil_mode: bool = False,
    ) -> Any:
        options = _windows(kernel_size, stride, padding) | {"dilation": tuple(dilation), "ceil_mode": ceil_mode}
        return call(f"max_pool{axes}d_with_indices", x, **options)

    @operator(f"max_pool{axes}d_with_indices_backward", indices=True)
    def max_pool_backward(
        grad_y: Tensor,
        x: Tensor,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        ceil_mode: bool,
        indices: Tensor,
    ) -> Any:
        # By the places that won: in forward mode, ``x`` is a tangent.
        return call("add_at", grad_y, x, indices)

    @operator(f"avg_pool{axes}d")
    def avg_pool(
        x: Tensor,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = zeros,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        counted = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        return call(f"avg_pool{axes}d", x, **_windows(kernel_size, stride, padding), ceil_mode=ceil_mode, **counted)

    @operator(f"avg_pool{axes}d_backward")
    def avg_pool_backward(
        grad_y: Tensor,
        x: Tensor,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Any:
        counted = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        options = _windows(kernel_size, stride, padding) | {"ceil_mode": ceil_mode} | counted
        return call(f"avg_pool{axes}d_backward", grad_y, x, **options)

    @operator(f"_adaptive_avg_pool{axes}d")
    def adaptive_avg_pool(x: Tensor, output_size: Sizes) -> Any:
        return call(f"adaptive_avg_pool{axes}d", x, output_size=tuple(output_size))

    @operator(f"_adaptive_avg_pool{axes}d_backward")
    def adaptive_avg_pool_backward(grad_y: Tensor, x: Tensor) -> Any:
        return call(f"adaptive_avg_pool{axes}d_backward", grad_y, x, output_size=tuple(grad_y.shape[-axes:]))

    @operator(f"adaptive_max_pool{axes}d")
    def adaptive_max_pool(x: Tensor, output_size: Sizes) -> Any:
        return call(f"adaptive_max_pool{axes}d", x, output_size=tuple(output_size))

    @operator(f"adaptive_max_pool{axes}d_backward", indices=True)
    def adaptive_max_pool_backward(grad_y: Tensor, x: Tensor, indices: Tensor) -> Any:
        return call("add_at", grad_y, x, indices)


for _axes in (2, 3):
    _enter(_axes)
