"""Losses as layers: scores and targets to a number."""

import warnings
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import loss

__all__ = ["BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "L1Loss", "MSELoss", "NLLLoss", "SmoothL1Loss"]


class CrossEntropyFunction(torch.autograd.Function):
    """-sum_c a_c log softmax(logits)_c."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> Any:
        """Save copies of the logits, and of probabilities if torch would smooth them, as torch saves new tensors there.

        The backward computes the softmax again, so that it need not be saved.
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
        """Save the arguments."""
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
        """Save the arguments."""
        ctx.save_for_backward(x, target)
        ctx.reduction = reduction
        return bridge.call(loss.mse_loss, x, target, reduction=reduction)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradient of x; that of the target is its negative."""
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
        """The loss of two tensors of one shape; shapes that broadcast give torch's warning."""
        input, target = _of_one_shape(input, target)
        result: Tensor = MSELossFunction.apply(input, target, self.reduction)
        return result


class L1LossFunction(torch.autograd.Function):
    """|x - target|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, reduction: str) -> Any:
        """Save copies: torch saves the difference, a new tensor."""
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(bridge.copy(x), bridge.copy(target))
        ctx.reduction = reduction
        return bridge.call(loss.l1_loss, x, target, reduction=reduction)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradient of x; that of the target is its negative."""
        x, target = ctx.saved_tensors
        grad_x = bridge.call(loss.l1_loss_backward, grad_y, x, target, reduction=ctx.reduction)
        return grad_x, -grad_x, None


@catalog.layer(
    native=torch.nn.L1Loss,
    formulas="loss",
    functions=("l1_loss",),
    kinks=(),
    choices=None,
    page=(
        r"L = \frac{1}{n} \sum_k |x_k - t_k|",
        r"\d{x_k} = \frac{1}{n} \text{ where } x_k > t_k \text{; } -\frac{1}{n} \text{ where } x_k < t_k",
    ),
    memory=catalog.same_order(l1_loss=0, l1_loss_backward=1),
    flops=None,
)
class L1Loss(Layer, torch.nn.L1Loss):
    """`torch.nn.L1Loss` in NumPy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of two tensors of one shape; shapes that broadcast give torch's warning."""
        result: Tensor = L1LossFunction.apply(*_of_one_shape(input, target), self.reduction)
        return result


class SmoothL1LossFunction(torch.autograd.Function):
    """A parabola of x - target up to beta, beyond it |x - target| - beta / 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, options: dict[str, Any]) -> Any:
        """Save the arguments."""
        ctx.save_for_backward(x, target)
        ctx.options = options
        return bridge.call(loss.smooth_l1_loss, x, target, **options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradient of x; that of the target is its negative."""
        grad_x = bridge.call(loss.smooth_l1_loss_backward, grad_y, *ctx.saved_tensors, **ctx.options)
        return grad_x, -grad_x, None


@catalog.layer(
    native=torch.nn.SmoothL1Loss,
    formulas="loss",
    functions=("smooth_l1_loss",),
    kinks=(),
    choices=None,
    page=(
        r"L = \frac{1}{n} \sum_k l_k \text{, } l_k = \frac{d_k^2}{2 β} \text{ where } |d_k| < β \text{, else }"
        r" |d_k| - \frac{β}{2} \text{, with } d_k = x_k - t_k",
        r"\d{x_k} = \frac{d_k}{n β} \text{ where } |d_k| < β \text{; } \frac{1}{n} \text{ above, }"
        r" -\frac{1}{n} \text{ below}",
    ),
    memory=catalog.same_order(smooth_l1_loss=0, smooth_l1_loss_backward=1),
    flops=None,
)
class SmoothL1Loss(Layer, torch.nn.SmoothL1Loss):
    """`torch.nn.SmoothL1Loss` in NumPy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of two tensors of one shape; shapes that broadcast give torch's warning."""
        input, target = _of_one_shape(input, target)
        if self.beta == 0:
            return L1LossFunction.apply(input, target, self.reduction)  # type: ignore[no-any-return]
        options = {"reduction": self.reduction, "beta": self.beta}
        result: Tensor = SmoothL1LossFunction.apply(input, target, options)
        return result


class BinaryCrossEntropyFunction(torch.autograd.Function):
    """-weight (target log x + (1 - target) log(1 - x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Any:
        """Save the arguments."""
        _expect_no_gradient(ctx, "weight")
        ctx.save_for_backward(x, target, weight)
        ctx.reduction = reduction
        check = x.device.type == "cpu"
        return bridge.call(loss.binary_cross_entropy, x, target, weight, reduction=reduction, check_target=check)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradients of the probabilities and of their targets."""
        saved = ctx.saved_tensors
        pair = loss.binary_cross_entropy_backward, loss.binary_cross_entropy_backward_target
        of_x, of_target = (
            bridge.call(op, grad_y, *saved, reduction=ctx.reduction) if needed else None
            for op, needed in zip(pair, ctx.needs_input_grad, strict=False)
        )
        return of_x, of_target, None, None


@catalog.layer(
    native=torch.nn.BCELoss,
    formulas="loss",
    functions=("binary_cross_entropy",),
    kinks=(),
    choices=None,
    page=(
        r"L = -\frac{1}{n} \sum_k (t_k \ln x_k + (1 - t_k) \ln(1 - x_k))",
        r"\d{x_k} = \frac{x_k - t_k}{n x_k (1 - x_k)}",
    ),
    memory=catalog.same_order(
        binary_cross_entropy=0, binary_cross_entropy_backward=1, binary_cross_entropy_backward_target=2
    ),
    flops=None,
)
class BCELoss(Layer, torch.nn.BCELoss):
    """`torch.nn.BCELoss` in NumPy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of probabilities against targets of the same shape.

        Raises:
            ValueError: The shapes differ.
            RuntimeError: Autocast is on, on a GPU, where torch refuses this loss.
        """
        _expect_equal_sizes("binary_cross_entropy", input, target)
        if input.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            raise RuntimeError(
                "binary_cross_entropy: expected no autocast, in which it overflows; BCEWithLogitsLoss does not"
            )
        input, target, weight = bridge.autocast("float32", input, target, self.weight)
        weight = weight if weight is None else weight.to(input.dtype)
        result: Tensor = BinaryCrossEntropyFunction.apply(input, target, weight, self.reduction)
        return result


class BinaryCrossEntropyWithLogitsFunction(torch.autograd.Function):
    """The binary cross entropy of sigmoid(x)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str
    ) -> Any:
        """Save the arguments."""
        _expect_no_gradient(ctx, "weight", "pos_weight")
        ctx.save_for_backward(x, target, weight, pos_weight)
        ctx.reduction = reduction
        call = loss.binary_cross_entropy_with_logits
        return bridge.call(call, x, target, weight, pos_weight, reduction=reduction)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradients of the scores and of their targets."""
        saved = ctx.saved_tensors
        pair = (
            loss.binary_cross_entropy_with_logits_backward,
            loss.binary_cross_entropy_with_logits_backward_target,
        )
        of_x, of_target = (
            bridge.call(op, grad_y, *saved, reduction=ctx.reduction) if needed else None
            for op, needed in zip(pair, ctx.needs_input_grad, strict=False)
        )
        return of_x, of_target, None, None, None


@catalog.layer(
    native=torch.nn.BCEWithLogitsLoss,
    formulas="loss",
    functions=("binary_cross_entropy_with_logits",),
    kinks=(),
    choices=None,
    page=(
        r"L = -\frac{1}{n} \sum_k (t_k \ln p_k + (1 - t_k) \ln(1 - p_k)) \text{, } p_k = σ(x_k)",
        r"\d{x_k} = \frac{1}{n} (p_k - t_k)",
    ),
    memory=catalog.same_order(
        binary_cross_entropy_with_logits=1,
        binary_cross_entropy_with_logits_backward=1,
        binary_cross_entropy_with_logits_backward_target=1,
    ),
    flops=None,
)
class BCEWithLogitsLoss(Layer, torch.nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss` in NumPy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of scores against targets of the same shape; its dtype is that of the targets, as in torch.

        Raises:
            ValueError: The shapes differ.
            NotImplementedError: Scores that are not floating; targets or ``pos_weight`` of booleans.
            RuntimeError: Targets of integers.
        """
        op = "binary_cross_entropy_with_logits"
        _expect_equal_sizes(op, input, target)
        weights = self.weight, self.pos_weight
        input, target, *weights = bridge.autocast("float32", input, target, *weights)
        for name, value in (("input", input), ("target", target), ("pos_weight", weights[1])):
            if value is not None and (value.dtype == torch.bool or not (name != "input" or value.is_floating_point())):
                raise NotImplementedError(f"{op}: {name}: expected a floating dtype, got {value.dtype}")
        if not target.is_floating_point():
            raise RuntimeError(f"{op}: target: expected a floating dtype, got {target.dtype}")
        arguments = _promoted(input, target, *weights)
        result: Tensor = BinaryCrossEntropyWithLogitsFunction.apply(*arguments, self.reduction)
        return result.to(target.dtype)


def _expect_equal_sizes(op: str, input: Tensor, target: Tensor) -> None:
    bridge.expect_no_transform(input)
    bridge.expect_no_transform(target, "target")
    if target.size() != input.size():
        raise ValueError(
            f"{op}: target: expected the shape of input, {tuple(input.size())}, got {tuple(target.size())}"
        )


def _expect_no_gradient(ctx: Any, *names: str) -> None:
    """Refuse weights (the arguments after the target) that require a gradient, as torch does."""
    for name, needed in zip(names, ctx.needs_input_grad[2:], strict=False):
        if needed:
            raise RuntimeError(f"{name}: expected a tensor that requires no gradient, as torch has none for it")


def _of_one_shape(input: Tensor, target: Tensor) -> Any:
    """Both cast, promoted and broadcast as torch does, with its warning where their shapes differ."""
    bridge.expect_no_transform(input)
    bridge.expect_no_transform(target, "target")
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )
    input, target = bridge.autocast("float32", input, target)
    return torch.broadcast_tensors(*_promoted(input, target))  # type: ignore[no-untyped-call]


def _promoted(first: Tensor, *others: Tensor | None) -> Any:
    """All in the dtype to which torch promotes them together; None stays None."""
    dtype = first.dtype
    for other in others:
        dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    return tuple(tensor if tensor is None else tensor.to(dtype) for tensor in (first, *others))
