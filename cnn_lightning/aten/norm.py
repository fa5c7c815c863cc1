"""Batch, layer and group normalisation.

torch keeps the statistics for the backward as mean and 1 / sqrt(var + eps), in the dtype of the parameters.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.aten.kernels import Native, operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import norm

_WIDE = torch.empty(0, dtype=torch.float64)


def _dtype(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """Of statistics: that of the parameters."""
    return next((other.dtype for other in others if other is not None), x.dtype)


def _kept(mean: Tensor, var: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Statistics as torch keeps them."""
    return mean.to(dtype), (var + eps).rsqrt_().to(dtype)


def _variance(invstd: Tensor) -> Tensor:
    """The variance that 1 / sqrt(var) stands for; the epsilon is part of it."""
    return invstd.double().pow(-2)


def _gradients(
    op: bridge.Operation, grad_y: Tensor, x: Tensor, weight: Tensor | None, *statistics: Any, mask: Any, **options: Any
) -> Any:
    like = (x, *(x if weight is None else weight,) * 2)
    return bridge.compute(op, grad_y, x, weight, *statistics, needs=tuple(mask), mixed=True, like=like, **options)


# ---- batch norm


@operator("native_batch_norm", wide=True)
def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """Output, mean and 1 / sqrt(var + eps) of the batch. In training the running statistics change in place."""
    dtype = _dtype(x, weight, running_mean)
    if not training:
        if running_mean is None or running_var is None:
            raise Native("no running statistics")
        y, *_ = _normalised(x, weight, bias, running_mean, running_var, eps)
        return y, x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
    if x.numel() == 0:
        raise Native("no values")
    y, mean, var = _normalised(x, weight, bias, None, None, eps)
    count = x.numel() // x.shape[1]
    for running, new, factor in (
        (running_mean, mean, 1.0),
        (running_var, var, count / (count - 1) if count > 1 else math.inf),
    ):
        if running is not None:
            running.copy_(running.double().mul_(1 - momentum).add_(new, alpha=momentum * factor))
    return y, *_kept(mean, var, eps, dtype)


def _normalised(x: Tensor, *arguments: Any) -> Any:
    *tensors, eps = arguments
    return bridge.compute(norm.batch_norm, x, *tensors, eps=eps, mixed=True, like=(x, _WIDE, _WIDE))


@operator("_native_batch_norm_legit", wide=True)
def batch_norm_legit(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """`batch_norm`."""
    return batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)


@operator("_native_batch_norm_legit.no_stats", wide=True)
def batch_norm_without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> Any:
    """`batch_norm` without running statistics."""
    return batch_norm(x, weight, bias, None, None, training, momentum, eps)


@operator("_native_batch_norm_legit_no_training", wide=True)
def batch_norm_in_evaluation(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Any:
    """`batch_norm` by the running statistics."""
    return batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps)


@operator("_batch_norm_with_update", wide=True)
def batch_norm_with_update(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Any:
    """`batch_norm` in training, and an empty tensor that cuDNN would use."""
    results = batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
    return *results, x.new_empty(0, dtype=torch.uint8)


@operator("native_batch_norm_backward", wide=True)
def batch_norm_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> Any:
    """The gradients of input, weight and bias."""
    if train and save_mean is not None and save_invstd is not None:
        statistics, eps = (save_mean, _variance(save_invstd)), 0.0
    elif not train and running_mean is not None and running_var is not None:
        statistics = running_mean, running_var.double()
    else:
        raise Native("no statistics")
    options = {"eps": eps, "training": train}
    return _gradients(norm.batch_norm_backward, grad_y, x, weight, *statistics, mask=output_mask, **options)


@operator("batch_norm_backward", indices=True, wide=True)
def batch_norm_with_update_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    update: bool,
    eps: float,
    output_mask: Sequence[bool],
    reserve: Tensor,
) -> Any:
    """The gradients of `batch_norm_with_update`."""
    statistics = running_mean, running_var, save_mean, save_invstd
    return batch_norm_backward(grad_y, x, weight, *statistics, update, eps, output_mask)


# ---- layer and group norm


@operator("native_layer_norm", wide=True)
def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    """Output, mean and 1 / sqrt(var + eps) of each sample."""
    options = {"axes": len(normalized_shape), "eps": eps}
    y, mean, var = bridge.compute(norm.layer_norm, x, weight, bias, mixed=True, like=(x, _WIDE, _WIDE), **options)
    return y, *_kept(mean, var, eps, _dtype(x, weight, bias))


@operator("native_layer_norm_backward", wide=True)
def layer_norm_backward(
    grad_y: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Any:
    """The gradients of input, weight and bias."""
    options = {"axes": len(normalized_shape), "eps": 0.0}
    statistics = mean.double(), _variance(rstd)
    return _gradients(norm.layer_norm_backward, grad_y, x, weight, *statistics, mask=output_mask, **options)


@operator("native_group_norm", wide=True)
def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, size: int, group: int, eps: float
) -> Any:
    """Output, mean and 1 / sqrt(var + eps) of each group of channels of each sample, (N, groups)."""
    y, mean, var = bridge.compute(
        norm.group_norm, x, weight, bias, mixed=True, like=(x, _WIDE, _WIDE), groups=group, eps=eps
    )
    return y, *_kept(mean.reshape(n, group), var.reshape(n, group), eps, _dtype(x, weight, bias))


@operator("native_group_norm_backward", wide=True)
def group_norm_backward(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    c: int,
    size: int,
    group: int,
    output_mask: Sequence[bool],
) -> Any:
    """The gradients of input, weight and bias."""
    statistics = mean.double().reshape(n, group, 1), _variance(rstd).reshape(n, group, 1)
    options = {"groups": group, "eps": 0.0}
    return _gradients(norm.group_norm_backward, grad_y, x, weight, *statistics, mask=output_mask, **options)
