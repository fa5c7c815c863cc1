"""Normalisation layers."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchvision.models import convnext

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import norm
from cnn_lightning.processes import are_several

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "RMSNorm",
]


class BatchNormFunction(torch.autograd.Function):
    """`ops.norm.batch_norm` and its backward; returns the batch's statistics too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> tuple[Tensor, ...]:
        """Output, mean and variance."""
        wide = _statistics_like(x)
        results = bridge.call(norm.batch_norm, x, weight, bias, mean, var, eps=eps, mixed=True, like=(x, wide, wide))
        ctx.save_for_backward(x, weight, *results[1:])
        ctx.options = {"eps": eps, "training": mean is None}
        ctx.mark_non_differentiable(*results[1:])
        return results  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, *statistics = ctx.saved_tensors
        return *_gradients(ctx, norm.batch_norm_backward, grad_y, x, weight, *statistics), None, None, None


class SyncBatchNormFunction(torch.autograd.Function):
    """`BatchNormFunction` for one process's slice of a batch, by the statistics and size of the whole batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, count: int, eps: float) -> Any:
        """The normalised slice."""
        y, *_ = bridge.call(norm.batch_norm, x, weight, bias, mean, var, eps=eps, mixed=True, like=(x, mean, var))
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, by the sums over all processes, and what this process adds to those of weight and bias."""
        x, weight, mean, var = ctx.saved_tensors
        needs_x, *needs, _, _, _, _ = ctx.needs_input_grad
        given = (grad_y, x, weight, mean, var)
        options = {"mixed": True, "eps": ctx.eps}
        _, *own = bridge.call(
            norm.batch_norm_backward, *given, needs=(False, True, True), like=(x, mean, mean), **options
        )
        grad_x = None
        if needs_x:
            sums = torch.stack(own)
            distributed.all_reduce(sums)
            grad_x = bridge.call(norm.batch_norm_backward_part, *given, *sums, count=max(1, ctx.count), **options)
        dtype = x.dtype if weight is None else weight.dtype
        gradients = (gradient.to(dtype) if need else None for gradient, need in zip(own, needs, strict=True))
        return grad_x, *gradients, None, None, None, None


class LayerNormFunction(torch.autograd.Function):
    """`ops.norm.layer_norm` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, axes: int, eps: float) -> Tensor:
        """The normalised input. The bias is saved because torch saves it: an in-place change raises the same error."""
        ctx.options = {"axes": axes, "eps": eps}
        y, *statistics = _forward(ctx, norm.layer_norm, x, weight, bias)
        ctx.save_for_backward(x, weight, bias, *statistics)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, _, *statistics = ctx.saved_tensors
        return *_gradients(ctx, norm.layer_norm_backward, grad_y, x, weight, *statistics), None, None


class RMSNormFunction(torch.autograd.Function):
    """`ops.norm.rms_norm` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, axes: int, eps: float | None) -> Tensor:
        """The normalised input."""
        ctx.axes = axes
        like = (x, _statistics_like(x))
        y, rms = bridge.call(norm.rms_norm, x, weight, axes=axes, eps=eps, mixed=True, like=like)
        ctx.save_for_backward(x, weight if ctx.needs_input_grad[0] else None, rms)
        ctx.dtype = x.dtype if weight is None else weight.dtype
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight."""
        x, weight, rms = ctx.saved_tensors
        options = {"axes": ctx.axes, "needs": tuple(ctx.needs_input_grad[:2]), "mixed": True}
        like = (x, x.new_empty(0, dtype=ctx.dtype))
        return *bridge.call(norm.rms_norm_backward, grad_y, x, weight, rms, like=like, **options), None, None


class GroupNormFunction(torch.autograd.Function):
    """`ops.norm.group_norm` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, groups: int, eps: float) -> Tensor:
        """The normalised input."""
        ctx.options = {"groups": groups, "eps": eps}
        y, *statistics = _forward(ctx, norm.group_norm, x, weight, bias)
        ctx.save_for_backward(x, weight, *statistics)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        return *_gradients(ctx, norm.group_norm_backward, grad_y, *ctx.saved_tensors), None, None


class InstanceNormFunction(torch.autograd.Function):
    """`ops.norm.instance_norm` and its backward; returns each sample's statistics too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...]:
        """Output, mean and variance."""
        ctx.options = {"eps": eps}
        results = _forward(ctx, norm.instance_norm, x, weight, bias)
        ctx.save_for_backward(x, weight, *results[1:])
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        return *_gradients(ctx, norm.instance_norm_backward, grad_y, *ctx.saved_tensors), None


def _forward(ctx: Any, op: bridge.Operation, x: Tensor, weight: Any, bias: Any) -> tuple[Tensor, ...]:
    """The output and the statistics."""
    wide = _statistics_like(x)
    return bridge.call(op, x, weight, bias, mixed=True, like=(x, wide, wide), **ctx.options)  # type: ignore[no-any-return]


def _gradients(ctx: Any, op: bridge.Operation, grad_y: Tensor, x: Tensor, weight: Any, *statistics: Tensor) -> Any:
    needs = tuple(ctx.needs_input_grad[:3])
    like = (x, *(x if weight is None else weight,) * 2)
    return bridge.call(op, grad_y, x, weight, *statistics, needs=needs, mixed=True, like=like, **ctx.options)


def _statistics_like(x: Tensor) -> Tensor:
    """A tensor of the dtype of statistics: float64, or float32 on Apple's GPUs, which have no float64."""
    if x.is_cpu and not torch.compiler.is_compiling():
        return _FLOAT64
    return x.new_empty(0, dtype=torch.float32 if x.device.type == "mps" else torch.float64)


_FLOAT64 = torch.empty(0, dtype=torch.float64)

BATCH_NORM = (
    r"y_{c,u,v} = γ_c \frac{x_{c,u,v} - μ_c}{\sqrt{σ_c^2 + ε}} + β_c",
    r"\d{x_{c,u,v}} = \frac{γ_c}{\sqrt{σ_c^2 + ε}} g_{c,u,v}"
    "\n"
    r"\d{γ_c} = \sum_{u,v} g_{c,u,v} \frac{x_{c,u,v} - μ_c}{\sqrt{σ_c^2 + ε}}"
    "\n"
    r"\d{β_c} = \sum_{u,v} g_{c,u,v}",
)
LAYER_NORM = (
    r"y_k = γ_k z_k + β_k \text{, } z_k = \frac{x_k - μ}{\sqrt{σ^2 + ε}}",
    r"\d{x_k} = \frac{1}{\sqrt{σ^2 + ε}} (h_k - \text{mean}(h) - z_k \text{mean}(h z)) \text{, } h_k = γ_k g_k"
    "\n"
    r"\d{γ_k} = \sum g_k z_k"
    "\n"
    r"\d{β_k} = \sum g_k",
)
RMS_NORM = (
    r"y_k = γ_k z_k \text{, } z_k = \frac{x_k}{\sqrt{\text{mean}(x^2) + ε}}",
    r"\d{x_k} = \frac{1}{\sqrt{\text{mean}(x^2) + ε}} (h_k - z_k \text{mean}(h z)) \text{, } h_k = γ_k g_k"
    "\n"
    r"\d{γ_k} = \sum g_k z_k",
)
"""Formulas of the page."""


@catalog.layer(
    native=torch.nn.BatchNorm1d,
    formulas="norm",
    functions=("batch_norm",),
    kinks=(),
    choices=None,
    page=BATCH_NORM,
    memory=catalog.channels_last(batch_norm=0, batch_norm_backward=1, batch_norm_backward_part=1),
    flops=None,
)
class BatchNorm1d(Layer, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of (N, C) or (N, C, L)."""
        return _batch_norm(self, input)


@catalog.layer(
    native=torch.nn.BatchNorm2d,
    formulas="norm",
    functions=("batch_norm",),
    kinks=(),
    choices=None,
    page=BATCH_NORM,
    memory=catalog.channels_last(batch_norm=0, batch_norm_backward=1, batch_norm_backward_part=1),
    flops=None,
)
class BatchNorm2d(Layer, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of (N, C, H, W)."""
        return _batch_norm(self, input)


@catalog.layer(
    native=torch.nn.BatchNorm3d,
    formulas="norm",
    functions=("batch_norm",),
    kinks=(),
    choices=None,
    page=BATCH_NORM,
    memory=catalog.channels_last(batch_norm=0, batch_norm_backward=1, batch_norm_backward_part=1),
    flops=None,
)
class BatchNorm3d(Layer, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of (N, C, D, H, W)."""
        return _batch_norm(self, input)


class SyncBatchNorm1d(BatchNorm1d):
    """`BatchNorm1d` by the statistics over the batches of all processes, on any device."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of this process's slice, (N, C) or (N, C, L)."""
        return _batch_norm(self, input, are_several())


class SyncBatchNorm2d(BatchNorm2d):
    """`BatchNorm2d` by the statistics over the batches of all processes, on any device."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of this process's slice, (N, C, H, W)."""
        return _batch_norm(self, input, are_several())


class SyncBatchNorm3d(BatchNorm3d):
    """`BatchNorm3d` by the statistics over the batches of all processes, on any device."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels of this process's slice, (N, C, D, H, W)."""
        return _batch_norm(self, input, are_several())


def _batch_norm(module: torch.nn.modules.batchnorm._BatchNorm, input: Tensor, together: bool = False) -> Tensor:
    """Normalise by the statistics of the batch or by the running ones, and update the running ones as torch does.

    The batch's are those of all processes' batches if ``together``.
    """
    bridge.expect_no_transform(input)
    module._check_input_dim(input)  # type: ignore[no-untyped-call]
    if not input.is_floating_point():
        raise NotImplementedError(f"input: expected a floating dtype, got {input.dtype}")
    weight, bias, mean, var, batches = _state(module)
    eps, training = module.eps, module.training
    tracks = training and module.track_running_stats
    if tracks and batches is not None:
        batches.add_(1)
    stored = not training and mean is not None and var is not None
    count = input.numel() // max(1, input.shape[1])
    if not stored and not together:
        _check_count(input, count)
    if eps < 0 or (eps == 0 and not stored):
        raise ValueError(f"eps: expected a number above 0, got {eps}")
    _check_dtypes(input, mean if weight is None else weight)
    if (tracks or not training) and mean is not None and mean.shape[0] != input.shape[1]:
        raise RuntimeError(f"input: expected {mean.shape[0]} channels, got shape {tuple(input.shape)}")
    if stored:
        y, *_ = BatchNormFunction.apply(input, weight, bias, mean, var, eps)
        return y  # type: ignore[no-any-return]
    if together:
        batch_mean, batch_var, count = _whole_batch(input, count)
        _check_count(input, count)
        y = SyncBatchNormFunction.apply(input, weight, bias, batch_mean, batch_var, count, eps)
    else:
        y, batch_mean, batch_var = BatchNormFunction.apply(input, weight, bias, None, None, eps)
    if tracks and count and mean is not None and var is not None:
        factor = module.momentum
        if factor is None:
            assert batches is not None
            factor = 1.0 / float(batches)
        _average((mean, var), (batch_mean, batch_var), factor, count)
    return y  # type: ignore[no-any-return]


def _state(module: torch.nn.modules.batchnorm._BatchNorm) -> tuple[Any, ...]:
    """Weight, bias, running mean and variance, number of batches; from the module's own tables, which is faster."""
    parameters, buffers = module._parameters, module._buffers
    try:
        held = parameters["weight"], parameters["bias"]
        return *held, buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
    except KeyError:  # one is computed, or was replaced by a plain attribute
        held = module.weight, module.bias
        return *held, module.running_mean, module.running_var, module.num_batches_tracked


def _whole_batch(input: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Mean, variance and values per channel of all processes' batches; a process may have none.

    With n values of mean m and variance v on each: ``mean = sum(n m) / sum(n)``, ``var = sum(n (v + (m - mean)^2)) /
    sum(n)``.
    """
    with torch.no_grad():
        wide = _statistics_like(input)
        mean, var = bridge.call(norm.batch_statistics, input, like=(wide, wide))
        mine = torch.cat([mean, var, mean.new_full((1,), count)])
        parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine)
        means, variances, counts = torch.split(torch.stack(parts), [len(mean), len(var), 1], dim=1)
        weights = counts / counts.sum().clamp(min=1)
        mean = (weights * means).sum(0)
        var = (weights * (variances + (means - mean) ** 2)).sum(0)
        return mean, var, int(counts.sum())


def _average(running: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], factor: float, count: int) -> None:
    """``running = (1 - factor) * running + factor * correction * new``, rounded once, for mean and variance.

    The correction of the variance of ``count`` values is ``count / (count - 1)``. Tensors that nobody observes are
    computed on their own memory, in 5 us where torch's operators take 11; autograd is told of the change.
    """
    factors = factor, factor * count / (count - 1)
    if _are_observed_by_nobody(*running, *new):
        for tensor, latest, share in zip(running, new, factors, strict=True):
            values = tensor.numpy(force=True)
            values[...] = values * np.float64(1 - factor) + latest.numpy() * share
        torch.autograd.graph.increment_version(running)
        return
    with torch.no_grad():
        for tensor, latest, share in zip(running, new, factors, strict=True):
            tensor.copy_(tensor.to(latest.dtype).mul_(1 - factor).add_(latest, alpha=share))


def _are_observed_by_nobody(*tensors: Tensor) -> bool:
    """Whether they may change on their own memory: no tracer or mode sees it, and no process shares it."""
    if are_several() or not bridge.is_plain(*tensors):
        return False
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype not in _ON_HOST or torch._is_functional_tensor(tensor):
            return False
    return True


_ON_HOST = {torch.float32, torch.float64}


@catalog.layer(
    native=torch.nn.LayerNorm,
    formulas="norm",
    functions=("layer_norm",),
    kinks=(),
    choices=None,
    page=LAYER_NORM,
    memory={},
    flops=None,
)
class LayerNorm(Layer, torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the last axes, ``normalized_shape``."""
        axes = len(self.normalized_shape)
        _check_dtypes(bridge.expect_tensor(input), self.weight)
        if tuple(input.shape[-axes:]) != tuple(self.normalized_shape):
            raise RuntimeError(
                f"input: expected its last axes to be {tuple(self.normalized_shape)}, got shape {tuple(input.shape)}"
            )
        x, weight, bias = _autocast(input, self.weight, self.bias)
        return LayerNormFunction.apply(x, weight, bias, axes, self.eps)  # type: ignore[no-any-return]


@catalog.layer(
    native=convnext.LayerNorm2d,
    formulas="norm",
    functions=(),
    kinks=(),
    choices=None,
    page=LAYER_NORM,
    memory={},
    flops=None,
)
class LayerNorm2d(Layer, convnext.LayerNorm2d):  # type: ignore[misc]
    """torchvision's layer norm over the channels of (N, C, H, W), in NumPy."""

    normalized_shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the channels of every pixel.

        Raises:
            RuntimeError: Another number of channels, or another dtype than the weight's.
        """
        bridge.expect_no_transform(x, "x")
        last = x.permute(0, 2, 3, 1)
        _check_dtypes(x, self.weight)
        if tuple(last.shape[-1:]) != tuple(self.normalized_shape):
            raise RuntimeError(f"input: expected {tuple(self.normalized_shape)} channels, got shape {tuple(x.shape)}")
        last, weight, bias = _autocast(last, self.weight, self.bias)
        y: Tensor = LayerNormFunction.apply(last, weight, bias, 1, self.eps)
        return y.permute(0, 3, 1, 2)


@catalog.layer(
    native=torch.nn.RMSNorm,
    formulas="norm",
    functions=("rms_norm",),
    kinks=(),
    choices=None,
    page=RMS_NORM,
    memory={},
    flops=None,
)
class RMSNorm(Layer, torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` in NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square over the last axes, ``normalized_shape``."""
        axes = len(self.normalized_shape)
        if not bridge.expect_tensor(x, "x").is_floating_point():
            raise NotImplementedError(f"x: expected a floating dtype, got {x.dtype}")
        if axes < 1 or tuple(x.shape[-axes:]) != tuple(self.normalized_shape):
            error = ValueError if axes > x.dim() else RuntimeError
            raise error(f"x: expected its last axes to be {tuple(self.normalized_shape)}, got shape {tuple(x.shape)}")
        x, weight = _autocast(x, self.weight)
        if weight is not None and weight.requires_grad and not x.requires_grad:
            x = x.clone()  # torch saves x / rms then, so that x may change in place before the backward
        return RMSNormFunction.apply(x, weight, axes, self.eps)  # type: ignore[no-any-return]


@catalog.layer(
    native=torch.nn.GroupNorm,
    formulas="norm",
    functions=("group_norm",),
    kinks=(),
    choices=None,
    page=LAYER_NORM,
    memory=catalog.channels_last(group_norm=0, group_norm_backward=1),
    flops=None,
)
class GroupNorm(Layer, torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise groups of channels of (N, C, ...)."""
        bridge.expect_no_transform(input)
        if input.dim() < 2:
            raise RuntimeError(f"input: expected at least 2 axes, got shape {tuple(input.shape)}")
        _check_dtypes(input, self.weight)
        if 0 in input.shape[1:]:
            raise RuntimeError(f"input: expected no empty axis but the batch, got shape {tuple(input.shape)}")
        n, channels, *space = input.shape
        if n * channels // self.num_groups * math.prod(space) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        if self.affine and channels != self.num_channels:
            raise RuntimeError(f"input: expected {self.num_channels} channels, got shape {tuple(input.shape)}")
        if channels % self.num_groups:
            raise RuntimeError(
                f"input: expected a multiple of {self.num_groups} channels, got shape {tuple(input.shape)}"
            )
        x, weight, bias = _autocast(input, self.weight, self.bias)
        return GroupNormFunction.apply(x, weight, bias, self.num_groups, self.eps)  # type: ignore[no-any-return]


@catalog.layer(
    native=torch.nn.InstanceNorm1d,
    formulas="norm",
    functions=("instance_norm",),
    kinks=(),
    choices=None,
    page=LAYER_NORM,
    memory=catalog.channels_last(instance_norm=0, instance_norm_backward=1),
    flops=None,
)
class InstanceNorm1d(Layer, torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of (N, C, L), or of one sample (C, L)."""
        return _instance_norm(self, input)


@catalog.layer(
    native=torch.nn.InstanceNorm2d,
    formulas="norm",
    functions=("instance_norm",),
    kinks=(),
    choices=None,
    page=LAYER_NORM,
    memory=catalog.channels_last(instance_norm=0, instance_norm_backward=1),
    flops=None,
)
class InstanceNorm2d(Layer, torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of (N, C, H, W), or of one sample (C, H, W)."""
        return _instance_norm(self, input)


@catalog.layer(
    native=torch.nn.InstanceNorm3d,
    formulas="norm",
    functions=("instance_norm",),
    kinks=(),
    choices=None,
    page=LAYER_NORM,
    memory=catalog.channels_last(instance_norm=0, instance_norm_backward=1),
    flops=None,
)
class InstanceNorm3d(Layer, torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of (N, C, D, H, W), or of one sample (C, D, H, W)."""
        return _instance_norm(self, input)


def _instance_norm(module: torch.nn.modules.instancenorm._InstanceNorm, input: Tensor) -> Tensor:
    """Normalise by each sample's statistics or by the running ones, and update the running ones as torch does."""
    bridge.expect_no_transform(input)
    module._check_input_dim(input)  # type: ignore[no-untyped-call]
    batched = input.dim() > module._get_no_batch_dim()  # type: ignore[no-untyped-call]
    x = (input if batched else input.unsqueeze(0)).contiguous()
    own, length = module.training or not module.track_running_stats, math.prod(x.shape[2:])
    _check_features(module, input, x.shape[1])
    if own and length == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.size()}")
    _check_sizes(module, x.shape[1])
    _check_dtypes(input, module.weight)
    mean, var = module.running_mean, module.running_var
    # torch repeats these for each sample, so they may change in place before the backward.
    weight, bias = (None if each is None else each.clone() for each in (module.weight, module.bias))
    if own:
        if module.eps <= 0:
            raise ValueError(f"eps: expected a number above 0, got {module.eps}")
        y, means, variances = InstanceNormFunction.apply(x, weight, bias, module.eps)
        if mean is not None and var is not None and length:
            momentum = module.momentum or 0.0
            _average((mean, var), (means.mean(0)[:, 0], variances.mean(0)[:, 0]), momentum, length)
    elif mean is None or var is None:
        raise RuntimeError("running_mean: expected the running statistics to evaluate with, got none")
    else:
        y, *_ = BatchNormFunction.apply(x, weight, bias, mean.clone(), var.clone(), module.eps)
    return y if batched else y.squeeze(0)  # type: ignore[no-any-return]


def _check_features(module: torch.nn.modules.instancenorm._InstanceNorm, input: Tensor, channels: int) -> None:
    """Refuse another number of channels than a layer with weights has; without weights, warn of it, as torch does."""
    message = f"input: expected {module.num_features} channels, got shape {tuple(input.shape)}"
    if channels != module.num_features and module.affine:
        raise ValueError(message)
    if channels != module.num_features:
        warnings.warn(f"{message}; num_features is not used because affine=False", stacklevel=4)


def _check_sizes(module: torch.nn.modules.instancenorm._InstanceNorm, channels: int) -> None:
    for name in ("running_mean", "running_var", "weight", "bias"):
        value = getattr(module, name)
        if value is not None and len(value) != channels:
            raise RuntimeError(f"{name}: expected one value for each of {channels} channels, got {len(value)}")


def _check_count(input: Tensor, count: int) -> None:
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")


def _check_dtypes(input: Tensor, weight: Tensor | None) -> None:
    """Half precision may come with float32 weights (or, where there are none, statistics)."""
    if weight is None:
        if not input.is_floating_point():
            raise NotImplementedError(f"input: expected a floating dtype, got {input.dtype}")
    elif weight.dtype is not input.dtype and (weight.dtype is not torch.float32 or input.dtype not in _HALF):
        raise RuntimeError(f"input: expected the dtype of weight, {weight.dtype}, got {input.dtype}")


_HALF = {torch.bfloat16, torch.float16}


def _autocast(*tensors: Tensor | None) -> Any:
    """On a GPU, autocast computes these in float32; on the CPU it leaves them alone."""
    first = tensors[0]
    return bridge.autocast("float32", *tensors) if first is not None and first.is_cuda else tensors
