"""`Sequential`, which computes convolution, ReLU and max-pooling as one chain if nothing observes them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as _module

from cnn_lightning.layers import bridge
from cnn_lightning.layers.activation import ReLU
from cnn_lightning.layers.conv import Conv2d
from cnn_lightning.layers.pool import MaxPool2d
from cnn_lightning.ops.fast import chooser, fused

__all__ = ["Sequential"]


class ConvReLUPoolFunction(torch.autograd.Function):
    """`ops.fast.fused.conv_relu_pool` and its backward."""

    @staticmethod
    def forward(ctx: Any, paddings: Sequence[int], keep: bool, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The last stage's output (N, O, h, w); ``parameters`` are each stage's weight and bias."""
        results = bridge.call(fused.conv_relu_pool, x, *parameters, paddings=paddings, keep=keep)
        if not keep:
            return results  # type: ignore[no-any-return]
        y, *kept = results
        without_biases = (value if index % 2 == 0 else None for index, value in enumerate(parameters))
        ctx.save_for_backward(x, *without_biases, *kept)
        ctx.paddings = paddings
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the parameters."""
        _, _, *needs = ctx.needs_input_grad
        saved = ctx.saved_tensors
        gradients = bridge.call(
            fused.conv_relu_pool_backward, grad_y, *saved, paddings=ctx.paddings, needs=tuple(needs)
        )
        return None, None, *gradients


def run(modules: Iterable[torch.nn.Module], x: Any) -> Any:
    """``x`` through the modules in order.

    If this package's ``Conv2d``, ``ReLU`` and ``MaxPool2d`` follow each other in their most common form (stride-1
    convolution, 2x2 pooling), once or several times, one Function computes them block by block. Every other module is
    called by itself; so are these if something observes them (hooks, a compiler, any tracer) or under autocast. Results
    are the same up to rounding.
    """
    todo = list(modules)
    place = 0
    while place < len(todo):
        stages = _fusable_stages(todo[place:], x)
        if stages:
            parameters = [value for conv, *_ in stages for value in (conv.weight, conv.bias)]
            paddings = tuple(_padding(conv) for conv, *_ in stages)
            keep = torch.is_grad_enabled() and _needs_gradient(x, stages[0])
            x = ConvReLUPoolFunction.apply(paddings, keep, x, *parameters)
            for listener in _listeners:
                listener.append([module for stage in stages for module in stage])
            place += 3 * len(stages)
        else:
            x = todo[place](x)
            place += 1
    return x


_listeners: list[list[list[torch.nn.Module]]] = []


@contextmanager
def computed() -> Iterator[list[list[torch.nn.Module]]]:
    """Collect the modules of each chain that `run` computes as one while inside, in the order of the calls."""
    listener: list[list[torch.nn.Module]] = []
    _listeners.append(listener)
    try:
        yield listener
    finally:
        _listeners.remove(listener)


class Sequential(torch.nn.Sequential):
    """``torch.nn.Sequential`` that computes chains of its layers as one if possible, see `run`."""

    def forward(self, input: Any) -> Any:
        """``input`` through the modules in order."""
        return run(self, input)


def chains(module: torch.nn.Module) -> list[list[str]]:
    """Names of the children that `run` can compute as one for images of a common size, if nothing observes them."""
    found: list[list[str]] = []
    children = list(module.named_children())
    place = 0
    while place < len(children):
        names, stage = zip(*children[place : place + 3], strict=True)
        if _is_plain_stage(stage):
            found.append(list(names))
            place += 3
        else:
            place += 1
    return found


def _is_plain_stage(stage: Sequence[Any]) -> bool:
    return (
        [type(module) for module in stage] == [Conv2d, ReLU, MaxPool2d]
        and _has_plain_options(stage[0])
        and _is_plain_pool(stage[2])
    )


def _fusable_stages(modules: Sequence[Any], x: Tensor) -> list[Sequence[Any]]:
    """The stages at the start of ``modules``, up to the first that can't be fused.

    Frozen stages before the first one with a gradient are a separate chain: as in torch, nothing is saved for them.
    """
    stages: list[Sequence[Any]] = []
    shape: Sequence[int] = x.shape
    while _fusable(stage := modules[3 * len(stages) : 3 * len(stages) + 3], shape, x):
        if stages and _needs_gradient(x, stage) and not _needs_gradient(x, stages[0]):
            break
        stages.append(stage)
        conv, padding = stage[0], 2 * _padding(stage[0])
        height, width = (
            (size + padding - kernel + 1) // 2 for size, kernel in zip(shape[2:], conv.kernel_size, strict=True)
        )
        shape = (shape[0], conv.out_channels, height, width)
    return stages


def _needs_gradient(x: Tensor, stage: Sequence[Any]) -> bool:
    conv = stage[0]
    return x.requires_grad or conv.weight.requires_grad or (conv.bias is not None and conv.bias.requires_grad)


def _fusable(stage: Sequence[torch.nn.Module], shape: Sequence[int], x: Tensor) -> bool:
    return (
        _is_plain_stage(stage)
        and bridge.is_plain(x)
        and _takes_plainly(stage[0], shape, x)
        and not any(map(_is_watched, stage))
        and chooser.is_chain("fused")
        and not torch.is_autocast_enabled(x.device.type)
    )


def _has_plain_options(module: Any) -> bool:
    return (
        module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and _padding(module) >= 0
        and (isinstance(module.padding, str) or module.padding[0] == module.padding[1])
    )


def _takes_plainly(module: Any, shape: Sequence[int], x: Tensor) -> bool:
    return (
        x.dim() == 4
        and x.dtype == module.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.device.type == module.weight.device.type == "cpu"
        and shape[1] == module.in_channels
        and all(
            size + 2 * _padding(module) > kernel for size, kernel in zip(shape[2:], module.kernel_size, strict=True)
        )
        and (x.is_contiguous() or x.permute(1, 2, 3, 0).is_contiguous())
    )


def _padding(module: Any) -> int:
    """The padding of all four sides, or -1 if they differ."""
    if module.padding == "valid":
        return 0
    if module.padding == "same":
        height, width = module.kernel_size
        return height // 2 if height == width and height % 2 else -1
    return int(module.padding[0])


def _is_plain_pool(module: Any) -> bool:
    pair = ((2, 2), 2)
    return (
        module.kernel_size in pair
        and module.stride in pair
        and module.padding in ((0, 0), 0)
        and module.dilation in ((1, 1), 1)
        and not module.ceil_mode
        and not module.return_indices
    )


def _is_watched(module: torch.nn.Module) -> bool:
    """Whether a hook on this module or on all modules, or a replaced forward, would notice that it is skipped."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )
