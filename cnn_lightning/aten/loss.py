"""Losses. torch names reductions by numbers: 0 none, 1 mean, 2 sum."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.aten.kernels import operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import loss

_REDUCTIONS = ("none", "mean", "sum")


def _nll_loss(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Any:
    """The loss and the total weight of the targets, by which a mean divides."""
    options: dict[str, Any] = {"reduction": _REDUCTIONS[reduction], "ignore_index": ignore_index}
    found = bridge.compute(loss.nll_loss, x, target, weight, **options)
    if reduction == 0:
        return found, x.new_zeros(())
    counted = target[target != ignore_index]
    total = x.new_tensor(counted.numel()) if weight is None else weight[counted].sum()
    return found, total


def _nll_loss_backward(
    grad_y: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Any:
    options: dict[str, Any] = {"reduction": _REDUCTIONS[reduction], "ignore_index": ignore_index}
    return bridge.compute(loss.nll_loss_backward, grad_y, x, target, weight, **options)


for _axes in ("", "2d"):
    operator(f"nll_loss{_axes}_forward", indices=True)(_nll_loss)
    operator(f"nll_loss{_axes}_backward", indices=True)(_nll_loss_backward)


@operator("mse_loss")
def mse_loss(x: Tensor, target: Tensor, reduction: int = 1) -> Any:
    """Squared differences."""
    pair = _of_one_shape(x, target)
    return bridge.compute(loss.mse_loss, *pair, reduction=_REDUCTIONS[reduction])


@operator("mse_loss_backward")
def mse_loss_backward(grad_y: Tensor, x: Tensor, target: Tensor, reduction: int) -> Any:
    """The gradient of the first argument."""
    pair = _of_one_shape(x, target)
    return bridge.compute(loss.mse_loss_backward, grad_y, *pair, reduction=_REDUCTIONS[reduction])


def _of_one_shape(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(x.shape, target.shape)
    return x.expand(shape), target.expand(shape)
