"""torch's operators by elementary tensor operations: a second computation of what a torch kernel returns.

Most come from torch's own decompositions (``torch._decomp``, ``torch._refs``), which its compiler uses. A convolution,
a product of matrices and an average pooling have none: here they are sums over shifted copies of the input.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Elementary(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no types
    """Inside, torch's operators run as elementary operations, forward and backward: slow, in the given dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._computed = self._foreign = self._kernels = False
        self._depth = 0

    @property
    def is_second_opinion(self) -> bool:
        """Whether operators ran inside, and all of them are torch's: none of another library, and not NumPy alone."""
        return self._computed and not self._foreign

    @property
    def is_independent(self) -> bool:
        """Whether it is a second opinion, and no operator ran by a kernel of its own but for views and copies."""
        return self.is_second_opinion and not self._kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operator."""
        options = kwargs or {}
        if func.overloadpacket in _COPIES:
            return func(*args, **options)
        formula = _FORMULAS.get(func) or decomposition_table.get(func)
        self._computed = True
        self._foreign |= func.namespace not in ("aten", "prims")
        if formula is not None:
            self._depth += 1
            with self:
                result = formula(*args, **options)
            self._depth -= 1
            if result is not NotImplemented:
                return result
        result = func(*args, **options)
        self._kernels |= not self._depth and not func.is_view and _is_float(result)
        return result


def _is_float(result: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in pytree.tree_leaves(result))


_COPIES = {getattr(torch.ops.aten, name) for name in ("alias", "clone", "copy_", "detach", "lift_fresh", "_to_copy")}


# ---- sums over the taps of a kernel


def _taps(
    kernel: Sequence[int], out: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[Any, Any]]:
    """The index of each tap in the kernel, and the pixels (of the padded input) under it."""
    for tap in itertools.product(*map(range, kernel)):
        pixels = tuple(
            slice(i * d, i * d + (n - 1) * s + 1, s) for i, n, s, d in zip(tap, out, stride, dilation, strict=True)
        )
        yield (..., *tap), (..., *pixels)


def _padded(x: Tensor, padding: Sequence[int], more: Sequence[int] | None = None) -> Tensor:
    """``x`` in a border of zeros, with ``more`` zeros at the end of each axis."""
    axes = len(padding)
    size = x.shape[-axes:]
    wide = x.new_zeros(
        *x.shape[:-axes], *(n + 2 * p + m for n, p, m in zip(size, padding, more or [0] * axes, strict=True))
    )
    _cropped(wide, padding, size).copy_(x)
    return wide


def _cropped(wide: Tensor, padding: Sequence[int], size: Sequence[int]) -> Tensor:
    inside: Any = (..., *(slice(p, p + n) for p, n in zip(padding, size, strict=True)))
    return wide[inside]


def _per_channel(weights: Tensor, axes: int) -> Tensor:
    return weights.reshape(1, -1, *(1,) * axes)


def _gather(x: Tensor, weight: Tensor, out: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """``y[n, a] = sum over b and taps of weight[a, b, tap] x[n, b, pixels]``."""
    y = x.new_zeros(x.shape[0], weight.shape[0], *out)
    for tap, pixels in _taps(weight.shape[2:], out, stride, dilation):
        for b in range(weight.shape[1]):
            y += _per_channel(weight[:, b][tap], len(out)) * x[:, b : b + 1][pixels]
    return y


def _scatter(y: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The adjoint of `_gather` in x: ``x[n, b, pixels] += weight[a, b, tap] y[n, a]``."""
    x = y.new_zeros(y.shape[0], weight.shape[1], *size)
    for tap, pixels in _taps(weight.shape[2:], y.shape[2:], stride, dilation):
        for a in range(weight.shape[0]):
            x[pixels] += _per_channel(weight[a][tap], len(size)) * y[:, a : a + 1]
    return x


def _correlate(y: Tensor, x: Tensor, like: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The adjoint of `_gather` in the weight: ``weight[a, b, tap] = sum over n, pixels of y[n, a] x[n, b, pixels]``."""
    weight = torch.zeros_like(like)
    others = [axis for axis in range(y.dim()) if axis != 1]
    for tap, pixels in _taps(like.shape[2:], y.shape[2:], stride, dilation):
        for b in range(like.shape[1]):
            weight[:, b][tap] = (y * x[:, b : b + 1][pixels]).sum(others)
    return weight


# ---- operators

_Ints = Sequence[int]


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
) -> Tensor:
    axes = weight.dim() - 2
    stride, padding, dilation, output_padding = (_each(v, axes) for v in (stride, padding, dilation, output_padding))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    groups_of = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
    if transposed:
        sizes = [(n - 1) * s + k + o for n, s, k, o in zip(x.shape[2:], stride, spans, output_padding, strict=True)]
        wide = torch.cat([_scatter(some, w, sizes, stride, dilation) for some, w in groups_of], 1)
        y = _cropped(wide, padding, [n - 2 * p for n, p in zip(sizes, padding, strict=True)]).clone()
    else:
        out = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, spans, stride, strict=True)]
        y = torch.cat([_gather(_padded(some, padding), w, out, stride, dilation) for some, w in groups_of], 1)
    return y if bias is None else y + _per_channel(bias, axes)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    needs: Sequence[bool],
) -> Any:
    axes = weight.dim() - 2
    stride, padding, dilation = (_each(v, axes) for v in (stride, padding, dilation))
    grads_x, grads_weight = [], []
    groups_of = zip(grad.chunk(groups, 1), x.chunk(groups, 1), weight.chunk(groups), strict=True)
    for g, some, w in groups_of:
        if transposed:
            wide = _padded(g, padding)
            grads_x.append(_gather(wide, w, some.shape[2:], stride, dilation))
            grads_weight.append(_correlate(some, wide, w, stride, dilation))
        else:
            wide = _padded(some, padding)
            grads_x.append(_cropped(_scatter(g, w, wide.shape[2:], stride, dilation), padding, some.shape[2:]))
            grads_weight.append(_correlate(g, wide, w, stride, dilation))
    others = [axis for axis in range(grad.dim()) if axis != 1]
    found = (torch.cat(grads_x, 1), torch.cat(grads_weight), grad.sum(others))
    return tuple(value if need else None for value, need in zip(found, needs, strict=True))


def _each(value: _Ints, axes: int) -> list[int]:
    return list(value) * axes if len(value) == 1 else list(value)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(a.shape[0], b.shape[1])
    for k in range(a.shape[1]):
        y += a[:, k : k + 1] * b[k]
    return y


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
    for k in range(a.shape[2]):
        y += a[:, :, k : k + 1] * b[:, k : k + 1]
    return y


def _averages(
    size: _Ints, kernel: _Ints, stride: _Ints, padding: _Ints, ceil: bool, count_padding: bool, divisor: int | None
) -> tuple[list[int], list[int], list[int], list[int], Tensor]:
    """Kernel, stride, padding and output size of a pooling, and the number that each sum is divided by."""
    kernel, padding = _each(kernel, 2), _each(padding, 2)
    stride = _each(stride, 2) if len(stride) else kernel
    out, counts = [], []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        steps = (n + 2 * p - k) / s
        length = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        if ceil and (length - 1) * s >= n + p:  # a window must not begin after the input
            length -= 1
        starts = [i * s - p for i in range(length)]
        ends = [min(start + k, n + p) for start in starts]
        inside = [min(end, n) - max(start, 0) for start, end in zip(starts, ends, strict=True)]
        whole = [end - start for start, end in zip(starts, ends, strict=True)]
        out.append(length)
        counts.append(torch.tensor(whole if count_padding else inside))
    number = counts[0][:, None] * counts[1] if divisor is None else torch.full(out, divisor)
    return kernel, stride, padding, out, number


def _beyond(size: _Ints, kernel: _Ints, stride: _Ints, padding: _Ints, out: _Ints) -> list[int]:
    """The number of pixels of the last window that are beyond the padded input."""
    return [
        max(0, (o - 1) * s + k - n - 2 * p) for n, k, s, p, o in zip(size, kernel, stride, padding, out, strict=True)
    ]


def _avg_pool2d(
    x: Tensor,
    kernel: _Ints,
    stride: _Ints = (),
    padding: _Ints = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    size = x.shape[-2:]
    options = (ceil_mode, count_include_pad, divisor_override)
    kernel, stride, padding, out, number = _averages(size, kernel, stride, padding, *options)
    wide = _padded(x, padding, more=_beyond(size, kernel, stride, padding, out))
    y = x.new_zeros(*x.shape[:-2], *out)
    for _, pixels in _taps(kernel, out, stride, (1, 1)):
        y += wide[pixels]
    return y / number.to(x)


def _avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: _Ints,
    stride: _Ints,
    padding: _Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    size = x.shape[-2:]
    options = (ceil_mode, count_include_pad, divisor_override)
    kernel, stride, padding, out, number = _averages(size, kernel, stride, padding, *options)
    wide = _padded(torch.zeros_like(x), padding, more=_beyond(size, kernel, stride, padding, out))
    for _, pixels in _taps(kernel, out, stride, (1, 1)):
        wide[pixels] += grad / number.to(grad)
    return _cropped(wide, padding, size).clone()


def _max_pool2d(
    x: Tensor, kernel: _Ints, stride: _Ints = (), padding: _Ints = (0,), dilation: _Ints = (1,), ceil_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """The first of the largest values of each window, or its last NaN; and its pixel."""
    size, kernel, padding, dilation = x.shape[-2:], _each(kernel, 2), _each(padding, 2), _each(dilation, 2)
    stride = _each(stride, 2) if len(stride) else kernel
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    out = _averages(size, spans, stride, padding, ceil_mode, True, None)[3]
    more = _beyond(size, spans, stride, padding, out)
    pixel = _padded(torch.arange(1, size[0] * size[1] + 1, device=x.device).reshape(size), padding, more) - 1
    wide = _padded(x, padding, more)
    best, place = x.new_full((*x.shape[:-2], *out), -math.inf), pixel.new_full((*x.shape[:-2], *out), -1)
    for _, pixels in _taps(kernel, out, stride, dilation):
        value, here = wide[pixels], pixel[pixels].expand_as(place)
        better = (here >= 0) & ((value > best) | value.isnan() | (place < 0))
        best, place = torch.where(better, value, best), torch.where(better, here, place)
    return best, place


_FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.convolution_backward.default: _convolution_backward,
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.bmm.default: _bmm,
    torch.ops.aten.avg_pool2d.default: _avg_pool2d,
    torch.ops.aten.avg_pool2d_backward.default: _avg_pool2d_backward,
    torch.ops.aten.max_pool2d_with_indices.default: _max_pool2d,
}
