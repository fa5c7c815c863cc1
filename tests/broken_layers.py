"""Layers that each have one fault, for the grading to find, and the sound ones they were made from."""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cnn_lightning.layers import bridge
from cnn_lightning.layers.bridge import host

# ---- sound: y = x W^T + b and y = x * x


def affine(x: Any, weight: Any, bias: Any) -> Any:
    return x @ weight.T + bias


def affine_backward(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ weight, grad.T @ x, grad.sum(0)


def square(x: Any) -> Any:
    return x * x


def square_backward(grad: Any, x: Any) -> Any:
    return 2 * x * grad


class AffineFunction(torch.autograd.Function):
    """Subclasses replace `pair`'s backward by one with a fault."""

    op_backward = staticmethod(affine_backward)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, backward: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.op_backward = backward
        return bridge.call(affine, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return *bridge.call(ctx.op_backward, grad, x, weight), None


class Affine(torch.nn.Module):
    op_backward = staticmethod(affine_backward)

    def __init__(self, features: int = 4, outputs: int = 4) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, features))
        self.bias = torch.nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias = bridge.autocast("lower", x, self.weight, self.bias)
        return AffineFunction.apply(x, weight, bias, self.op_backward)


class PointwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, op: Any, op_backward: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.op_backward = op_backward
        return bridge.call(op, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return bridge.call(ctx.op_backward, grad, x), None, None


class Square(torch.nn.Module):
    op = staticmethod(square)
    op_backward = staticmethod(square_backward)

    def forward(self, x: Tensor) -> Tensor:
        return PointwiseFunction.apply(x, self.op, self.op_backward)


# ---- wrong gradients


def without_bias(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ weight, grad.T @ x, None


class ForgottenBias(Affine):
    op_backward = staticmethod(without_bias)


def transposed_weight(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ weight, x.T @ grad, grad.sum(0)


class TransposedWeight(Affine):
    op_backward = staticmethod(transposed_weight)


def transposed_factor(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ weight.T, grad.T @ x, grad.sum(0)


class TransposedFactor(Affine):
    op_backward = staticmethod(transposed_factor)


def mean_bias(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ weight, grad.T @ x, grad.mean(0)


class MeanForSum(Affine):
    op_backward = staticmethod(mean_bias)


def flipped_weight(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ weight, (grad.T @ x)[::-1, ::-1], grad.sum(0)


class FlippedWeight(Affine):
    op_backward = staticmethod(flipped_weight)


def without_last_column(grad: Any, x: Any, weight: Any) -> Any:
    grad_x = grad @ weight
    grad_x[:, -1] = 0
    return grad_x, grad.T @ x, grad.sum(0)


class ForgottenBorder(Affine):
    op_backward = staticmethod(without_last_column)


def half_of_square(grad: Any, x: Any) -> Any:
    return x * grad


class MissingFactor(Square):
    op_backward = staticmethod(half_of_square)


def nearly_square(grad: Any, x: Any) -> Any:
    return 2.002 * x * grad


class OffByOnePerMille(Square):
    op_backward = staticmethod(nearly_square)


def minus_square(grad: Any, x: Any) -> Any:
    return -2 * x * grad


class WrongSign(Square):
    op_backward = staticmethod(minus_square)


class Detached(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        (y,) = host.run(square, (x,), (x.dtype,), False, {})  # as torch.from_numpy(op(x.detach().numpy())) would
        assert y is not None
        return y


class WrongShapeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return bridge.call(square, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return bridge.call(square_backward, grad, x).T


class WrongShape(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return WrongShapeFunction.apply(x)


# ---- wrong at ties and special numbers


def row_max(x: Any) -> Any:
    return x.max(-1, keepdims=True)


def every_winner(grad: Any, x: Any) -> Any:
    return grad * (x == row_max(x)).astype(x.dtype)


class EveryWinner(Square):
    op = staticmethod(row_max)
    op_backward = staticmethod(every_winner)


def last_winner(grad: Any, x: Any) -> Any:
    last = x.shape[-1] - 1 - x[:, ::-1].argmax(-1)
    return grad * (np.arange(x.shape[-1]) == last[:, None]).astype(x.dtype)


class LastWinner(Square):
    op = staticmethod(row_max)
    op_backward = staticmethod(last_winner)


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def relu_backward_at_zero(grad: Any, x: Any) -> Any:
    return np.where(x >= 0, grad, 0)


class OneAtZero(Square):
    op = staticmethod(relu)
    op_backward = staticmethod(relu_backward_at_zero)


def fmax(x: Any) -> Any:
    return np.fmax(x, 0)


def fmax_backward(grad: Any, x: Any) -> Any:
    return np.where(x <= 0, 0, grad)


class SwallowsNaN(Square):
    op = staticmethod(fmax)
    op_backward = staticmethod(fmax_backward)


# ---- dtype


def wide_square(x: Any) -> Any:
    return x * x * np.ones(1)


class CreepingForward(Square):
    op = staticmethod(wide_square)


def wide_square_backward(grad: Any, x: Any) -> Any:
    return 2 * x * grad * np.ones(1)


class CreepingBackward(Square):
    op_backward = staticmethod(wide_square_backward)


def narrow_square(x: Any) -> Any:
    return (x * x).astype(np.float32)


class OnlyFloat32(Square):
    op = staticmethod(narrow_square)


class BareFunction(torch.autograd.Function):
    """Without the bridge: float64 in the backward, no bfloat16, a second derivative that is silently none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad.numpy() * np.cos(x.numpy()) * np.ones(1))


class Bare(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BareFunction.apply(x)


class Wide(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double() * 2


# ---- strides and shapes


def raw_memory_square(x: Any) -> Any:
    flat = x.ravel(order="K")
    return (flat * flat).reshape(x.shape)


class IgnoresStrides(Square):
    op = staticmethod(raw_memory_square)


def raw_memory_backward(grad: Any, x: Any) -> Any:
    return 2 * x * grad.ravel(order="K").reshape(x.shape)


class IgnoresUpstreamStrides(Square):
    op_backward = staticmethod(raw_memory_backward)


def flattening_square(x: Any) -> Any:
    return np.square(x.reshape(len(x), -1)).reshape(x.shape)


class NoEmptyBatch(Square):
    op = staticmethod(flattening_square)


# ---- memory


def view(x: Any) -> Any:
    return x[:]


def double_view(grad: Any, x: Any) -> Any:
    return grad[:]


class ReturnsView(Square):
    op = staticmethod(view)
    op_backward = staticmethod(double_view)


class UnseenViewFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return torch.from_numpy(x.detach().float().numpy()) if x.dtype == torch.bfloat16 else _unseen(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.clone() if grad.dtype == torch.bfloat16 else _unseen(grad)


def _unseen(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy())


class UnseenView(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return UnseenViewFunction.apply(x)


BUFFERS: dict[Any, Any] = {}


def buffered_square(x: Any) -> Any:
    buffer = BUFFERS.setdefault((x.shape, x.dtype), np.empty_like(x))
    np.multiply(x, x, out=buffer)
    return buffer


class ReusedBuffer(Square):
    op = staticmethod(buffered_square)


def consuming_square(x: Any) -> Any:
    y = x * x
    x[...] = 0
    return y


def backward_of_consumed(grad: Any, x: Any) -> Any:
    return 2 * np.sqrt(x) * grad


class WritesIntoInput(Square):
    op = staticmethod(consuming_square)


def writing_backward(grad: Any, x: Any) -> Any:
    result = 2 * x * grad
    grad *= 0
    return result


class WritesIntoUpstream(Square):
    op_backward = staticmethod(writing_backward)


# ---- state


class CachedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Any:
        ctx.module = module
        module.x = x.detach().clone()
        return bridge.call(square, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return bridge.call(square_backward, grad, ctx.module.x), None


class CachedOnSelf(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return CachedFunction.apply(x, self)


class ArrayOnCtxFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        ctx.x = x.detach()
        return bridge.call(square, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return bridge.call(square_backward, grad, ctx.x)


class ArrayOnCtx(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ArrayOnCtxFunction.apply(x)


class Counting(Square):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return super().forward(x) * self.calls[0]


class Lambda(Square):
    def __init__(self) -> None:
        super().__init__()
        self.before = lambda x: x


class Lock(Square):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class PlainTensor(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return x * x + self.shift.to(x)


# ---- calls


class OnlyNeededFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        ctx.save_for_backward(x, weight)
        return bridge.call(affine, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        gradients = bridge.call(affine_backward, grad, x, weight)
        return tuple(g for g, need in zip(gradients, ctx.needs_input_grad, strict=True) if need)


class OnlyNeeded(Affine):
    def forward(self, x: Tensor) -> Tensor:
        return OnlyNeededFunction.apply(*bridge.autocast("lower", x, self.weight, self.bias))


class NoAutocast(Affine):
    def forward(self, x: Tensor) -> Tensor:
        return AffineFunction.apply(x, self.weight, self.bias, self.op_backward)


class Raises(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("nothing\nmore")


class ReturnsNone(torch.nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Half(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.dtype != torch.bfloat16 else x.float() * 2


class InaccurateHalf(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.dtype != torch.bfloat16 else x * 3


# ---- rounding


def there_and_back(x: Any) -> Any:
    return (x + 1000) - 1000


def there_and_back_backward(grad: Any, x: Any) -> Any:
    return grad.copy()


class Rounding(Square):
    op = staticmethod(there_and_back)
    op_backward = staticmethod(there_and_back_backward)
