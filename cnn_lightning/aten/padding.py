"""Padding by reflection and replication. torch pads by other modes with copies."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import padding


def _enter(kind: str, axes: int, mode: str) -> None:
    """The operators of one mode and number of axes; with or without a batch axis."""

    @operator(f"{kind}_pad{axes}d")
    def pad(x: Tensor, padding_: Sequence[int]) -> Any:
        return bridge.compute(padding.pad, x, pad=tuple(padding_), mode=mode)

    @operator(f"{kind}_pad{axes}d_backward")
    def pad_backward(grad_y: Tensor, x: Tensor, padding_: Sequence[int]) -> Any:
        return bridge.compute(padding.pad_backward, grad_y, x, pad=tuple(padding_), mode=mode)


for _axes in (1, 2, 3):
    _enter("reflection", _axes, "reflect")
    _enter("replication", _axes, "replicate")
