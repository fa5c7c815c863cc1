"""Resizing of signals, images and volumes: nearest, linear and cubic."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import upsample

Sizes = Sequence[int]


def _enter_nearest(name: str, *, exact: bool) -> None:
    @operator(name)
    def nearest(x: Tensor, output_size: Sizes, *scales: float | None) -> Any:
        return bridge.compute(upsample.upsample_nearest, x, size=tuple(output_size), scales=scales, exact=exact)

    @operator(f"{name}_backward")
    def nearest_backward(grad_y: Tensor, output_size: Sizes, input_size: Sizes, *scales: float | None) -> Any:
        options: dict[str, Any] = {"size_x": tuple(input_size)[2:], "scales": scales, "exact": exact}
        return bridge.compute(upsample.upsample_nearest_backward, grad_y, **options)


def _enter_smooth(name: str, op: str) -> None:
    @operator(name)
    def smooth(x: Tensor, output_size: Sizes, align_corners: bool, *scales: float | None) -> Any:
        options: dict[str, Any] = {"size": tuple(output_size), "align_corners": align_corners, "scales": scales}
        return bridge.compute(getattr(upsample, op), x, **options)

    @operator(f"{name}_backward")
    def smooth_backward(
        grad_y: Tensor, output_size: Sizes, input_size: Sizes, align_corners: bool, *scales: float | None
    ) -> Any:
        options: dict[str, Any] = {"size_x": tuple(input_size)[2:], "align_corners": align_corners, "scales": scales}
        return bridge.compute(getattr(upsample, f"{op}_backward"), grad_y, **options)


for _axes in (1, 2, 3):
    _enter_nearest(f"upsample_nearest{_axes}d", exact=False)
    _enter_nearest(f"_upsample_nearest_exact{_axes}d", exact=True)
for _name in ("linear1d", "bilinear2d", "trilinear3d"):
    _enter_smooth(f"upsample_{_name}", "upsample_linear")
_enter_smooth("upsample_bicubic2d", "upsample_cubic")
