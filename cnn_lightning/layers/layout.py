"""The memory layout that torch's own layers give to their results, for formulas, which don't think of memory."""

from typing import Any

import numpy as np

# Elementwise operations keep the layout of one argument (by its number), those on images channels_last memory. What is
# not listed is contiguous.
_SAME = {
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "prelu", "elu", "gelu", "silu", "mish", "softplus"), 0),
    **dict.fromkeys(("hardswish", "hardsigmoid", "sigmoid", "tanh", "dropout", "mse_loss", "pad"), 0),
    **dict.fromkeys(("relu6_backward", "elu_backward", "elu_backward_from_output", "silu_backward"), 0),
    **dict.fromkeys(("mish_backward", "softplus_backward", "hardsigmoid_backward", "sigmoid_backward"), 0),
    **dict.fromkeys(("tanh_backward", "dropout_backward"), 0),
    **dict.fromkeys(("relu_backward", "leaky_relu_backward", "prelu_backward", "gelu_backward"), 1),
    **dict.fromkeys(("hardswish_backward", "mse_loss_backward", "pad_backward", "max_pool2d_backward"), 1),
    **dict.fromkeys(("avg_pool2d_backward", "adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward"), 1),
    **dict.fromkeys(("cross_entropy_backward", "nll_loss_backward"), 1),
    **dict.fromkeys(
        ("hardtanh", "hardtanh_backward", "threshold", "selu", "selu_backward", "celu", "celu_backward"), 0
    ),
    **dict.fromkeys(("selu_backward_from_output", "celu_backward_from_output", "logsigmoid_backward"), 0),
    **dict.fromkeys(("softsign", "softsign_backward", "glu"), 0),
    **dict.fromkeys(("threshold_backward", "glu_backward"), 1),
    "cross_entropy_backward_target": 2,
}
_IMAGE = {
    **dict.fromkeys(("conv1d", "conv2d", "conv_transpose2d", "max_pool2d", "max_pool2d_with_indices"), 0),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "batch_norm", "group_norm"), 0),
    **dict.fromkeys(("conv_transpose2d_backward",), 0),
    **dict.fromkeys(("conv1d_backward", "conv2d_backward", "batch_norm_backward", "batch_norm_backward_part"), 1),
    **dict.fromkeys(("instance_norm",), 0),
    **dict.fromkeys(("group_norm_backward", "instance_norm_backward"), 1),
}
_WITH_INDICES = ("max_pool2d_with_indices", "adaptive_max_pool2d")


def as_torch(name: str, results: Any, arrays: Any) -> Any:
    """The results of the formula ``name`` for these arguments, in torch's layout."""
    many = results if isinstance(results, tuple) else (results,)
    laid = [
        _in_order(result, _order(name, arrays, result) if index == 0 or name in _WITH_INDICES else range(result.ndim))
        for index, result in enumerate(many)
    ]
    return tuple(laid) if isinstance(results, tuple) else laid[0]


def _order(name: str, arrays: Any, result: Any) -> Any:
    """The result's axes from the outermost in memory to the innermost."""
    axes = range(result.ndim)
    if name in _SAME and arrays[_SAME[name]].ndim == result.ndim > 0:
        source = arrays[_SAME[name]]
        return sorted(axes, key=lambda axis: (-abs(source.strides[axis]), axis))
    if name in _IMAGE and is_channels_last(arrays[_IMAGE[name]], name.startswith("conv")):
        return [0, *axes[2:], 1]
    return axes


def is_channels_last(x: Any, in_order: bool = False) -> bool:
    """Whether the channels of (N, C, ...) are neighbours in memory, and (``in_order``) images come one by one."""
    neighbours = x.ndim > 2 and x.shape[1] > 1 and x.strides[1] == x.itemsize < x.strides[-1]
    return bool(neighbours and (x.ndim < 4 or not in_order or x.strides[2] <= x.strides[0]))


def _in_order(result: Any, order: Any) -> Any:
    """``result``, or a copy, whose axes lie in memory in this order."""
    turned = result.transpose(order)
    if result.ndim == 0 or turned.flags.c_contiguous:
        return result
    places = sorted(range(len(order)), key=list(order).__getitem__)
    return np.ascontiguousarray(turned).transpose(places)
