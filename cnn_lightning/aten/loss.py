"""Losses. torch names reductions by numbers: 0 none, 1 mean, 2 sum."""

from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import broadcast, operator
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
    return bridge.compute(loss.mse_loss, *broadcast(x, target), reduction=_REDUCTIONS[reduction])


@operator("mse_loss_backward")
def mse_loss_backward(grad_y: Tensor, x: Tensor, target: Tensor, reduction: int) -> Any:
    """The gradient of the first argument."""
    pair = broadcast(x, target)
    return bridge.compute(loss.mse_loss_backward, grad_y, *pair, reduction=_REDUCTIONS[reduction])


@operator("smooth_l1_loss")
def smooth_l1_loss(x: Tensor, target: Tensor, reduction: int = 1, beta: float = 1.0) -> Any:
    """Differences, squared below ``beta``."""
    options: dict[str, Any] = {"reduction": _REDUCTIONS[reduction], "beta": beta}
    return bridge.compute(loss.smooth_l1_loss, *broadcast(x, target), **options)


@operator("smooth_l1_loss_backward")
def smooth_l1_loss_backward(grad_y: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float) -> Any:
    """The gradient of the first argument."""
    options: dict[str, Any] = {"reduction": _REDUCTIONS[reduction], "beta": beta}
    return bridge.compute(loss.smooth_l1_loss_backward, grad_y, *broadcast(x, target), **options)


@operator("binary_cross_entropy")
def binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Any:
    """The loss of probabilities."""
    options: dict[str, Any] = {"reduction": _REDUCTIONS[reduction]}
    return bridge.compute(loss.binary_cross_entropy, x, target, weight, **options)


@operator("binary_cross_entropy_backward")
def binary_cross_entropy_backward(
    grad_y: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1
) -> Any:
    """The gradient of the probabilities."""
    options: dict[str, Any] = {"reduction": _REDUCTIONS[reduction]}
    return bridge.compute(loss.binary_cross_entropy_backward, grad_y, x, target, weight, **options)
