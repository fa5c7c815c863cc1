"""Whether a program observes torch's operators: compilers, recorders, dispatch modes, transforms of ``torch.func``.

Such a program does not see NumPy. The bridge gives it one operator in place of a call, or refuses it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cnn_lightning.layers.bridge.checks import Operation, label

PLAIN = {Tensor, torch.nn.Parameter}
"""Types of tensors that have data and no dispatch of their own."""


def needs_operator(tensor: Tensor | None) -> bool:
    """Whether it has no data (the meta device), or is of a class or wrapper that observes every operator."""
    return tensor is not None and (tensor.is_meta or has_own_dispatch(tensor) or torch._is_functional_tensor(tensor))


def has_own_dispatch(tensor: Tensor) -> bool:
    """Whether its class handles operators itself, as FakeTensor does."""
    return type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def has_dispatch_mode() -> bool:
    """Whether a dispatch mode is active, before autograd (``make_fx`` with pre_dispatch) or after it."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._dispatch_tls_is_dispatch_key_included(_BEFORE_AUTOGRAD)


_BEFORE_AUTOGRAD = torch._C.DispatchKey.PreDispatch
"""The key itself: a look-up by its name would take 2 us."""


def is_dual(value: Any) -> bool:
    """Whether it is a tensor with a tangent for forward-mode differentiation."""
    return (
        forward_ad._current_level >= 0
        and isinstance(value, Tensor)
        and forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]
    )


def refuse_recorders(op: Operation) -> None:
    """Refuse ``torch.jit.trace`` and the ONNX exporter: in their programs the results would be constants.

    Raises:
        RuntimeError: One of them records.
    """
    if torch._C._get_tracing_state() is None:
        return
    refuse_onnx(op)
    raise RuntimeError(
        f"{label(op)}: torch.jit.trace can't record NumPy layers; expected native ones: swap_layers(net, 'torch') "
        "first, or torch.export, which keeps NumPy"
    )


def refuse_onnx(op: Operation) -> None:
    """Refuse the exporter to ONNX.

    Raises:
        RuntimeError: It is at work.
    """
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            f"{label(op)}: ONNX has no NumPy layers; expected native ones: swap_layers(net, 'torch') first, as "
            "cnn-lightning export does"
        )
