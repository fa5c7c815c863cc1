"""Operators with products inside that NumPy can't replace by parts: torch computes them, and the report counts them."""

from math import prod
from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import Native, operator


def _of_rnn(_: Any, x: Tensor, of_input: Tensor, of_state: Tensor, *__: Any) -> int:
    """Each weight is used once for every step of every sequence."""
    return 2 * (of_input.numel() + of_state.numel()) * prod(x.shape[:-1])


@operator("mkldnn_rnn_layer", flops=_of_rnn)
def rnn(*_: Any) -> Any:
    """A layer of LSTM, all steps in one kernel."""
    raise Native("all steps of an LSTM in one kernel")


@operator("mkldnn_rnn_layer_backward", flops=lambda *args: 2 * _of_rnn(*args), indices=True)
def rnn_backward(*_: Any) -> Any:
    """Its gradients."""
    raise Native("all steps of an LSTM in one kernel")


def _of_attention(_: Any, query: Tensor, key: Tensor, *__: Any) -> int:
    """Scores of each query with each key, and as many products with the values."""
    return 4 * query.numel() * key.shape[-2]


@operator("_scaled_dot_product_flash_attention_for_cpu", flops=_of_attention)
def attention(*_: Any, **__: Any) -> Any:
    """Attention in one kernel; a `numpy_ops` block takes it only where a program names it."""
    raise Native("attention in one kernel")
