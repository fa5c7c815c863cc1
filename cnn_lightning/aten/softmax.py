"""Softmax and its logarithm."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.aten.kernels import Native, operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import softmax as formulas


@operator("_softmax")
def softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    """Probabilities along an axis."""
    return _forward(formulas.softmax, x, dim, half_to_float)


@operator("_log_softmax")
def log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    """Their logarithms."""
    return _forward(formulas.log_softmax, x, dim, half_to_float)


@operator("_softmax_backward_data")
def softmax_backward(grad_y: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    """The gradient of `softmax`, from its output."""
    return _backward(formulas.softmax_backward, grad_y, y, dim, input_dtype)


@operator("_log_softmax_backward_data")
def log_softmax_backward(grad_y: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    """The gradient of `log_softmax`, from its output."""
    return _backward(formulas.log_softmax_backward, grad_y, y, dim, input_dtype)


def _forward(op: bridge.Operation, x: Tensor, dim: int, half_to_float: bool) -> Any:
    if half_to_float:
        raise Native("half to float")
    return bridge.compute(op, x, dim=dim)


def _backward(op: bridge.Operation, grad_y: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    if input_dtype is not grad_y.dtype:
        raise Native("mixed dtypes")
    return bridge.compute(op, grad_y, y, dim=dim)
