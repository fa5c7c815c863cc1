"""Convolution layers. An image without a batch axis counts as a batch of one, as in torch."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.layers.padding import PADDING, PadFunction
from cnn_lightning.ops import conv, conv_transpose

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class Conv1dFunction(torch.autograd.Function):
    """A convolution along one axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
        """Save input and weight: the gradient of each needs the other."""
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return bridge.call(conv.conv1d, x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        return *bridge.call(conv.conv1d_backward, grad_y, x, weight, **ctx.options, needs=needs), None


class Conv2dFunction(torch.autograd.Function):
    """A convolution of images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
        """Save input and weight: the gradient of each needs the other."""
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return bridge.call(conv.conv2d, x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        return *bridge.call(conv.conv2d_backward, grad_y, x, weight, **ctx.options, needs=needs), None


class Conv3dFunction(torch.autograd.Function):
    """A convolution of volumes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
        """Save input and weight: the gradient of each needs the other."""
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return bridge.call(conv.conv3d, x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        return *bridge.call(conv.conv3d_backward, grad_y, x, weight, **ctx.options, needs=needs), None


class ConvTranspose1dFunction(torch.autograd.Function):
    """The adjoint of a convolution along one axis: its gradient with respect to the input, as a forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
        """Save input and weight: the gradient of each needs the other."""
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return bridge.call(conv_transpose.conv_transpose1d, x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        pair = conv_transpose.conv_transpose1d_backward
        needs = tuple(ctx.needs_input_grad[:3])
        return *bridge.call(pair, grad_y, x, weight, **ctx.options, needs=needs), None


class ConvTranspose2dFunction(torch.autograd.Function):
    """The adjoint of a convolution: its gradient with respect to the input, as a forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
        """Save input and weight: the gradient of each needs the other."""
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return bridge.call(conv_transpose.conv_transpose2d, x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        pair = conv_transpose.conv_transpose2d_backward
        needs = tuple(ctx.needs_input_grad[:3])
        return *bridge.call(pair, grad_y, x, weight, **ctx.options, needs=needs), None


class ConvTranspose3dFunction(torch.autograd.Function):
    """The adjoint of a convolution of volumes: its gradient with respect to the input, as a forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
        """Save input and weight: the gradient of each needs the other."""
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return bridge.call(conv_transpose.conv_transpose3d, x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        pair = conv_transpose.conv_transpose3d_backward
        needs = tuple(ctx.needs_input_grad[:3])
        return *bridge.call(pair, grad_y, x, weight, **ctx.options, needs=needs), None


@catalog.layer(
    native=torch.nn.Conv1d,
    formulas="conv",
    functions=("conv1d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{o,u} = b_o + \sum_{c,i} w_{o,c,i} x_{c,ROW}",
        r"\d{w_{o,c,i}} = \sum_{u} g_{o,u} x_{c,ROW}"
        "\n"
        r"\d{b_o} = \sum_{u} g_{o,u}"
        "\n"
        r"\d{x_{c,r}} = \sum_{o,u,i : ROW = r} w_{o,c,i} g_{o,u}",
    ),
    memory=catalog.channels_last(conv1d=0, conv1d_backward=1, image_by_image=True) | PADDING,
    flops=catalog.products,
)
class Conv1d(Layer, torch.nn.Conv1d):
    """`torch.nn.Conv1d` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to (N, O, L') or (O, L')."""
        x, options = _prepared(self, input)
        arguments = bridge.autocast("lower", x, self.weight, self.bias)
        return _like(input, Conv1dFunction.apply(*arguments, options))


@catalog.layer(
    native=torch.nn.Conv2d,
    formulas="conv",
    functions=("conv2d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{o,u,v} = b_o + \sum_{c,i,j} w_{o,c,i,j} x_{c,ROW,COLUMN}",
        r"\d{w_{o,c,i,j}} = \sum_{u,v} g_{o,u,v} x_{c,ROW,COLUMN}"
        "\n"
        r"\d{b_o} = \sum_{u,v} g_{o,u,v}"
        "\n"
        r"\d{x_{c,r,s}} = \sum_{o,u,i,v,j : ROW = r, COLUMN = s} w_{o,c,i,j} g_{o,u,v}",
    ),
    memory=catalog.channels_last(conv2d=0, conv2d_backward=1, image_by_image=True) | PADDING,
    flops=catalog.products,
)
class Conv2d(Layer, torch.nn.Conv2d):
    """`torch.nn.Conv2d` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, O, H', W') or (O, H', W')."""
        x, options = _prepared(self, input)
        arguments = bridge.autocast("lower", x, self.weight, self.bias)
        return _like(input, Conv2dFunction.apply(*arguments, options))


@catalog.layer(
    native=torch.nn.Conv3d,
    formulas="conv",
    functions=("conv3d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{o,t,u,v} = b_o + \sum_{c,l,i,j} w_{o,c,l,i,j} x_{c,FRAME,ROW,COLUMN}",
        r"\d{w_{o,c,l,i,j}} = \sum_{t,u,v} g_{o,t,u,v} x_{c,FRAME,ROW,COLUMN}"
        "\n"
        r"\d{b_o} = \sum_{t,u,v} g_{o,t,u,v}"
        "\n"
        r"\d{x_{c,q,r,s}} = \sum_{o,t,l,u,i,v,j : FRAME = q, ROW = r, COLUMN = s} w_{o,c,l,i,j} g_{o,t,u,v}",
    ),
    memory=catalog.channels_last(conv3d=0, conv3d_backward=1, image_by_image=True) | PADDING,
    flops=catalog.products,
)
class Conv3d(Layer, torch.nn.Conv3d):
    """`torch.nn.Conv3d` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, O, D', H', W') or (O, D', H', W')."""
        x, options = _prepared(self, input)
        arguments = bridge.autocast("lower", x, self.weight, self.bias)
        return _like(input, Conv3dFunction.apply(*arguments, options))


@catalog.layer(
    native=torch.nn.ConvTranspose1d,
    formulas="conv_transpose",
    functions=("conv_transpose1d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{o,r} = b_o + \sum_{c,u,i : \text{u and i reach r}} w_{c,o,i} x_{c,u}",
        r"\d{x_{c,u}} = \sum_{o,i} w_{c,o,i} g_{o,r}",
    ),
    memory=catalog.channels_last(conv_transpose1d=0, conv_transpose1d_backward=0, image_by_image=True),
    flops=catalog.products_of_input,
)
class ConvTranspose1d(Layer, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` in NumPy."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, L) or (C, L) to (N, O, L') or (O, L'); ``output_size`` as in `ConvTranspose2d`."""
        x, options = _prepared(self, input)
        options["output_padding"] = _output_padding(self, input, output_size)
        arguments = bridge.autocast("lower", x, self.weight, self.bias)
        return _like(input, ConvTranspose1dFunction.apply(*arguments, options))


@catalog.layer(
    native=torch.nn.ConvTranspose2d,
    formulas="conv_transpose",
    functions=("conv_transpose2d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{o,r,s} = b_o + \sum_{c,u,i,v,j : \text{(u,v) and (i,j) reach (r,s)}} w_{c,o,i,j} x_{c,u,v}",
        r"\d{x_{c,u,v}} = \sum_{o,i,j} w_{c,o,i,j} g_{o,r,s}",
    ),
    memory=catalog.channels_last(conv_transpose2d=0, conv_transpose2d_backward=0, image_by_image=True),
    flops=catalog.products_of_input,
)
class ConvTranspose2d(Layer, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` in NumPy."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, O, H', W') or (O, H', W').

        ``output_size`` is (H', W'): several sizes are possible, because the convolution gives H and W for each of them.
        """
        x, options = _prepared(self, input)
        options["output_padding"] = _output_padding(self, input, output_size)
        arguments = bridge.autocast("lower", x, self.weight, self.bias)
        return _like(input, ConvTranspose2dFunction.apply(*arguments, options))


@catalog.layer(
    native=torch.nn.ConvTranspose3d,
    formulas="conv_transpose",
    functions=("conv_transpose3d",),
    kinks=(),
    choices=None,
    page=(
        r"y_{o,q,r,s} = b_o + \sum_{c,t,l,u,i,v,j : \text{(t,u,v) and (l,i,j) reach (q,r,s)}} "
        r"w_{c,o,l,i,j} x_{c,t,u,v}",
        r"\d{x_{c,t,u,v}} = \sum_{o,l,i,j} w_{c,o,l,i,j} g_{o,q,r,s}",
    ),
    memory=catalog.channels_last(conv_transpose3d=0, conv_transpose3d_backward=0, image_by_image=True),
    flops=catalog.products_of_input,
)
class ConvTranspose3d(Layer, torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` in NumPy."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, O, D', H', W') or (O, D', H', W').

        ``output_size`` is as in `ConvTranspose2d`.
        """
        x, options = _prepared(self, input)
        options["output_padding"] = _output_padding(self, input, output_size)
        arguments = bridge.autocast("lower", x, self.weight, self.bias)
        return _like(input, ConvTranspose3dFunction.apply(*arguments, options))


def _prepared(module: Any, input: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Give the input a batch axis and, for other modes than zeros, its padding; return it and the remaining options."""
    kind, axes = type(module).__name__, len(module.kernel_size) + 1
    if bridge.expect_tensor(input).dim() not in (axes, axes + 1):
        # torch leaves this to its padding function, which has no kernel ("not implemented") for other ranks.
        error = RuntimeError if module.padding_mode == "zeros" else NotImplementedError
        raise error(
            f"{kind}: input: expected {axes + 1} axes (batch, channels, ...) or {axes} (channels, ...), "
            f"got shape {tuple(input.shape)}"
        )
    x = input if input.dim() == axes + 1 else input.unsqueeze(0)
    options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
    if module.padding_mode != "zeros":
        x = PadFunction.apply(x, tuple(module._reversed_padding_repeated_twice), module.padding_mode)
        options["padding"] = 0
    return x, options


def _output_padding(module: Any, input: Tensor, output_size: list[int] | None) -> Any:
    """Rows at the bottom and columns at the right for ``output_size``, by torch's own arithmetic, with its errors."""
    sizes = module.stride, module.padding, module.kernel_size
    return tuple(module._output_padding(input, output_size, *sizes, len(module.kernel_size), module.dilation))


def _like(input: Tensor, y: Tensor) -> Tensor:
    """``y``, without its batch axis if ``input`` had none."""
    return y if y.dim() == input.dim() else y.squeeze(0)
