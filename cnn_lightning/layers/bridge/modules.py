"""Functions for ``Module.forward``: autocast, in-place writing, and the checks of its input."""

from typing import Any, Literal

import torch
from torch import Tensor

from cnn_lightning.layers.bridge import host, tracers
from cnn_lightning.layers.bridge.checks import no_tensor
from cnn_lightning.ops.fast import blocks


def autocast(policy: Literal["lower", "float32"], *tensors: Tensor | None) -> Any:
    """Cast as ``torch.autocast`` would for a native layer: to its lower precision, or up to float32.

    Call it in ``Module.forward``, before ``Function.apply``, so that gradients flow back through the casts. Outside
    autocast, and for float64, it changes nothing. Returns one tensor for one argument, otherwise a tuple.

    Raises:
        TypeError: The first argument is not a tensor.
    """
    first = expect_tensor(tensors[0])
    if not torch._C._is_any_autocast_enabled():
        return tensors if len(tensors) > 1 else first
    kind = first.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind) if policy == "lower" else torch.float32
        tensors = tuple(
            tensor.to(dtype)
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
            else tensor
            for tensor in tensors
        )
    return tensors if len(tensors) > 1 else tensors[0]


def expect_tensor(value: Any, name: str = "input") -> Tensor:
    """Return ``value``; the first line of a ``Module.forward``, so that a list or None gives a clear error.

    Raises:
        TypeError: ``value`` is not a tensor. It may be the proxy that ``torch.fx`` records with.
        RuntimeError: A transform of ``torch.func`` is active, which hand-written gradients do not support.
        NotImplementedError: ``value`` has a tangent for forward-mode differentiation, which they do not support.
    """
    if not isinstance(value, Tensor):
        raise TypeError(no_tensor(name, value))
    expect_no_transform(value, name)
    return value


def expect_no_transform(value: Any, name: str = "input") -> None:
    """`expect_tensor` for a ``Module.forward`` that gives the native layer's own error for what is not a tensor.

    Raises:
        TypeError: ``value`` is the proxy that ``torch.fx`` records with.
        RuntimeError: As for `expect_tensor`.
        NotImplementedError: As for `expect_tensor`.
    """
    if torch.compiler.is_compiling():
        return
    if type(value) not in tracers.PLAIN:
        expect_no_proxy(value, name)
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{name}: torch.func's transforms (grad, vmap, ...) can't see into NumPy layers; expected none of them "
            "(torch.autograd.grad and functional_call work), or native layers, which NumPy computes inside of "
            "numpy_ops(): swap_layers(net, 'torch') first"
        )
    if tracers.is_dual(value):
        raise NotImplementedError(
            f"{name}: NumPy layers have no derivative for forward mode AD; expected a tensor that is not dual, or "
            "native layers, which NumPy computes inside of numpy_ops(): swap_layers(net, 'torch') first"
        )


def expect_no_proxy(value: Any, name: str = "input") -> None:
    """`expect_no_transform` for a layer that may return its input unchanged, which every transform supports.

    Raises:
        TypeError: ``value`` is the proxy that ``torch.fx`` records with.
    """
    if isinstance(value, torch.fx.Proxy):
        raise TypeError(no_tensor(name, value))


def is_plain(*values: Any) -> bool:
    """Whether these are plain tensors, and no tracer, transform or dispatch mode observes operators on them."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or tracers.has_dispatch_mode()
        or torch._C._get_tracing_state() is not None
    ):
        return False
    return all(type(value) in tracers.PLAIN and not tracers.is_dual(value) for value in values)


def blank(x: Tensor) -> Tensor:
    """A tensor of the shape of ``x``, to save for a backward that needs only the shape and the memory format.

    It is zeros in the memory of one element; beside a batch-last ``x`` it is memory that nobody writes or reads.
    """
    if x.dim() == 4 and not x.is_contiguous() and x.permute(1, 2, 3, 0).is_contiguous():
        return torch.empty_like(x)
    return x.new_zeros(()).expand(x.shape)


def copy(x: Tensor) -> Tensor:
    """``x.clone()`` of a tensor without gradient, on the CPU in recycled memory: half the time for 3 MB."""
    if torch.compiler.is_compiling() or not is_plain(x):
        return x.clone()
    arrays = host.host_arrays((x,), mixed=False)
    if arrays is None or arrays[0] is None:
        return x.clone()
    result = blocks.empty_like(arrays[0])
    result[...] = arrays[0]
    return torch.from_numpy(result)


def write(x: Tensor, y: Tensor) -> Tensor:
    """Copy ``y`` into ``x`` and return ``x``: the last line of a forward with ``inplace=True``.

    The Function calls ``ctx.mark_dirty(x)``. After this it saves what backward needs.
    """
    x.copy_(y)
    return x  # the same object, which Dynamo requires


def overwrites(x: Tensor, inplace: bool) -> bool:
    """Return ``inplace``, which ``Module.forward`` passes on; refuse before the write what autograd refuses after it.

    Raises:
        TypeError: ``x`` is not a tensor.
        RuntimeError: ``x`` is a leaf that requires a gradient, or a view of one.
    """
    expect_tensor(x)
    if inplace and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        source = x._base if x._is_view() and x._base is not None else x
        if source.is_leaf and (source.requires_grad or x.requires_grad):  # a leaf may be a view, too
            raise RuntimeError("input: a leaf Variable that requires grad is being used in an in-place operation")
    return inplace
