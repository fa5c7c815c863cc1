"""Layers whose backward lacks one term, as the page's checkboxes leave it out; their forwards are torch's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad


class ConvolutionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, bias, padding=1)


def gradients(x: Tensor, weight: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = grad.conv2d_input(x.shape, weight, upstream, padding=1)
    grad_weight = grad.conv2d_weight(x, weight.shape, upstream, padding=1)
    return grad_x, grad_weight, upstream.sum((0, 2, 3))


class OnePositionFunction(ConvolutionFunction):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        row, column = (size // 2 for size in upstream.shape[2:])
        alone = torch.zeros_like(upstream)
        alone[:, :, row, column] = upstream[:, :, row, column]
        grad_x, _, _ = gradients(x, weight, upstream)
        return grad_x, *gradients(x, weight, alone)[1:]


class UnflippedFunction(ConvolutionFunction):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x, _, _ = gradients(x, weight.flip(2, 3), upstream)
        return grad_x, *gradients(x, weight, upstream)[1:]


class WholeFunction(ConvolutionFunction):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradients(x, weight, upstream)


class Whole(nn.Module):
    function: type[torch.autograd.Function] = WholeFunction

    def __init__(self, inputs: int = 1, outputs: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Any:
        return self.function.apply(x, self.weight, self.bias)


class OnePosition(Whole):
    function = OnePositionFunction


class Unflipped(Whole):
    function = UnflippedFunction


class UnmaskedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.clone()


class Unmasked(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return UnmaskedFunction.apply(x)


class EveryPixelFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.repeat_interleave(2, 2).repeat_interleave(2, 3)


class EveryPixel(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return EveryPixelFunction.apply(x)


class SumForMeanFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        return functional.cross_entropy(logits, labels)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        logits, labels = ctx.saved_tensors
        return upstream * (logits.softmax(1) - functional.one_hot(labels, logits.shape[1])), None


class SumForMean(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Any:
        return SumForMeanFunction.apply(logits, labels)


N = 4
IMAGES = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LAYERS: dict[str, tuple[type[nn.Module], Any]] = {
    "positions": (OnePosition, IMAGES),
    "mean": (SumForMean, (IMAGES.reshape(N, -1)[:, :5], torch.tensor([0, 1, 2, 3]))),
    "mask": (Unmasked, IMAGES),
    "flip": (Unflipped, IMAGES),
    "winner": (EveryPixel, IMAGES),
}
"""The key of each term, a layer without it, and the layer's sample."""
