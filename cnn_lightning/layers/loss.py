"""Losses as layers: scores and targets in, a number out."""

import warnings
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import loss

__all__ = ["CrossEntropyLoss", "MSELoss", "NLLLoss"]


class CrossEntropyFunction(torch.autograd.Function):
    """-sum_c a_c log softmax(logits)_c."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> Any:
        """Keep copies of what torch keeps no argument of: of the logits, and of probabilities that it smooths first.

        The softmax is computed again in backward rather than held until then.
        """
        check = target.device.type == "cpu"
        y = bridge.call(loss.cross_entropy, logits, target, weight, check_target=check, **options)
        of_logits, of_target, *_ = ctx.needs_input_grad
        if of_logits or of_target:
            logits = logits.clone()
            if target.is_floating_point() and (options["label_smoothing"] > 0 or not of_logits):
                target = target.clone()
        ctx.save_for_backward(logits, target, weight)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradients of the logits and of class probabilities."""
        logits, target, weight = ctx.saved_tensors
        of_logits, of_target = (
            bridge.call(op, grad_y, logits, target, weight, **ctx.options) if needed else None
            for op, needed in zip(
                (loss.cross_entropy_backward, loss.cross_entropy_backward_target), ctx.needs_input_grad, strict=False
            )
        )
        return of_logits, of_target, None, None


@catalog.layer(
    native=torch.nn.CrossEntropyLoss,
    formulas="loss",
    functions=("cross_entropy",),
    kinks=(),
    choices=None,
    page=(
        r"L = -\ln p_t \text{, } p_k = \frac{e^{x_k}}{\sum_j e^{x_j}}",
        r"\d{x_k} = p_k - 1 \text{ for the true class } t \text{, else } p_k",
    ),
    memory=catalog.same_order(cross_entropy_backward=1, cross_entropy_backward_target=2),
    flops=None,
)
class CrossEntropyLoss(Layer, torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` in NumPy: class indices or probabilities, weights, smoothing, every reduction."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``(N, C, ...)`` against indices ``(N, ...)`` or probabilities ``(N, C, ...)``."""
        input, target, weight = bridge.autocast("float32", input, bridge.expect_tensor(target, "target"), self.weight)
        if target.is_floating_point():
            input, target, weight = _promoted(input, target, weight)
        options = {
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
        }
        result: Tensor = CrossEntropyFunction.apply(input, target, weight, options)
        return result


class NLLLossFunction(torch.autograd.Function):
    """-weight_t log_probs_t."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> Any:
        """Keep the arguments."""
        ctx.save_for_backward(log_probs, target, weight)
        ctx.options = options
        check = target.device.type == "cpu"
        return bridge.call(loss.nll_loss, log_probs, target, weight, check_target=check, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradient of the log-probabilities."""
        return bridge.call(loss.nll_loss_backward, grad_y, *ctx.saved_tensors, **ctx.options), None, None, None


@catalog.layer(
    native=torch.nn.NLLLoss,
    formulas="loss",
    functions=("nll_loss",),
    kinks=(),
    choices=None,
    page=(
        r"L = -x_t",
        r"\d{x_k} = -1 \text{ for the true class } t \text{, else } 0",
    ),
    memory=catalog.same_order(nll_loss_backward=1),
    flops=None,
)
class NLLLoss(Layer, torch.nn.NLLLoss):
    """`torch.nn.NLLLoss` in NumPy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of log-probabilities ``(N, C, ...)`` against indices ``(N, ...)``."""
        input, target, weight = bridge.autocast("float32", input, bridge.expect_tensor(target, "target"), self.weight)
        options = {"ignore_index": self.ignore_index, "reduction": self.reduction}
        result: Tensor = NLLLossFunction.apply(input, target, weight, options)
        return result


class MSELossFunction(torch.autograd.Function):
    """(x - target)^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, reduction: str) -> Any:
        """Keep the arguments."""
        ctx.save_for_backward(x, target)
        ctx.reduction = reduction
        return bridge.call(loss.mse_loss, x, target, reduction=reduction)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradient of x, and its negative for the target."""
        x, target = ctx.saved_tensors
        grad_x = bridge.call(loss.mse_loss_backward, grad_y, x, target, reduction=ctx.reduction)
        return grad_x, -grad_x, None


@catalog.layer(
    native=torch.nn.MSELoss,
    formulas="loss",
    functions=("mse_loss",),
    kinks=(),
    choices=None,
    page=(
        r"L = \frac{1}{n} \sum_k (x_k - t_k)^2",
        r"\d{x_k} = \frac{2}{n} (x_k - t_k)",
    ),
    memory=catalog.same_order(mse_loss=0, mse_loss_backward=1),
    flops=None,
)
class MSELoss(Layer, torch.nn.MSELoss):
    """`torch.nn.MSELoss` in NumPy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of two tensors of one shape, or, with torch's warning, of shapes that broadcast."""
        bridge.expect_no_transform(input)
        bridge.expect_no_transform(target, "target")
        if target.size() != input.size():
            warnings.warn(
                f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
                "This will likely lead to incorrect results due to broadcasting. "
                "Please ensure they have the same size.",
                stacklevel=2,
            )
        input, target = bridge.autocast("float32", input, target)
        input, target = torch.broadcast_tensors(*_promoted(input, target))  # type: ignore[no-untyped-call]
        result: Tensor = MSELossFunction.apply(input, target, self.reduction)
        return result


def _promoted(first: Tensor, *others: Tensor | None) -> Any:
    """All in the dtype that torch's arithmetic would give them together; None stays None."""
    dtype = first.dtype
    for other in others:
        dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    return tuple(tensor if tensor is None else tensor.to(dtype) for tensor in (first, *others))
