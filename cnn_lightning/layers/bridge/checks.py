"""Operations, their names in messages, and the checks of the tensors that `call` gives to them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Operation = Callable[..., Any]
"""Takes arrays (or None) and keyword options; returns an array, or a tuple of arrays and Nones."""


def check(op: Operation, tensors: Sequence[Tensor | None], mixed: bool) -> torch.device:
    """Return the common device of the tensors.

    Raises:
        NotImplementedError: A tensor is sparse or complex.
        RuntimeError: Two devices, two floating dtypes (unless ``mixed``), or no tensor at all.
    """
    first: Tensor | None = None
    floating: Tensor | None = None
    for index, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if tensor.layout != torch.strided:
            raise NotImplementedError(f"{argument(op, index)}: expected a dense tensor, got {tensor.layout}")
        if first is None:
            first = tensor
        elif tensor.device != first.device:
            raise RuntimeError(
                f"{argument(op, index)}: expected the device of the others, {first.device}, got {tensor.device}"
            )
        if tensor.is_floating_point():
            if floating is None:
                floating = tensor
            elif tensor.dtype != floating.dtype and not mixed:
                raise RuntimeError(
                    f"{argument(op, index)}: expected the dtype of the others, {floating.dtype}, got {tensor.dtype}"
                )
        elif tensor.is_complex():
            raise NotImplementedError(f"{argument(op, index)}: expected a real dtype, got {tensor.dtype}")
    if first is None:
        raise RuntimeError(f"{label(op)}: expected at least one tensor, got none")
    return first.device


def label(op: Operation) -> str:
    """Name of the operation in messages."""
    return getattr(op, "__name__", type(op).__name__)


def argument(op: Operation, index: int) -> str:
    """Name of the operation and of its argument ``index`` in messages."""
    names = list(inspect.signature(op).parameters)
    return f"{label(op)}: {names[index] if index < len(names) else f'argument {index}'}"


def no_tensor(name: str, value: Any) -> str:
    """Message for a ``value`` that is not a tensor."""
    if isinstance(value, torch.fx.Proxy):
        return (
            f"{name}: torch.fx can't see into NumPy layers; expected native ones while it traces: swap_layers(net, "
            "'torch') first, and swap_layers(traced, 'numpy') afterwards"
        )
    return f"{name}: expected a tensor, got {type(value).__name__}"
