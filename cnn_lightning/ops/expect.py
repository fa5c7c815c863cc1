"""Checks of the arguments of operations, and the sizes, steps and borders that follow from them.

The first line of a formula, and of the fast function of the same name, calls the function here that checks its
arguments. Each error is one line, ``op: argument: expected X, got Y``, of the exception type that torch raises.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np

from cnn_lightning.ops.types import Array, Padding, Pair

Border = tuple[int, int]
"""Pixels before and after the image along one axis."""


def integers(value: Pair | str, name: str, count: int, least: int | None = None) -> tuple[int, ...]:
    """An option as ``count`` integers, each at least ``least``; one integer stands for all.

    Raises:
        TypeError: It is not of integers.
        RuntimeError: The number of integers is neither 1 nor ``count``, or one is less than ``least``.
    """
    numbers = (value,) if isinstance(value, Integral) else value
    if not isinstance(numbers, Sequence) or not all(isinstance(number, Integral) for number in numbers):
        raise TypeError(f"{name}: expected integers, got {value!r}")
    if len(numbers) not in (1, count):
        raise RuntimeError(f"{name}: expected {count} {'number' if count == 1 else 'numbers'}, got {value}")
    found = tuple(int(number) for number in numbers) * (count // len(numbers))
    if least is not None and min(found) < least:
        raise RuntimeError(f"{name}: expected at least {least}, got {value}")
    return found


def pair(value: Pair, name: str) -> tuple[int, int]:
    """`integers` for rows and columns."""
    rows, columns = integers(value, name, 2)
    return rows, columns


def dtype(name: str, x: Array, kinds: str = "f") -> None:
    """Check the kind of dtype: "f" for floating, "i" and "u" for integers.

    Raises:
        NotImplementedError: The dtype is of another kind.
    """
    if x.dtype.kind not in kinds:
        raise NotImplementedError(f"{name}: expected a floating dtype, got {x.dtype}")


def number(name: str, value: float) -> None:
    """Check that ``value`` is a real number.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")


def one_dtype(op: str, **arrays: Array | None) -> None:
    """Check that the arrays have the floating dtype of the first; None is skipped.

    Raises:
        RuntimeError: An array has another dtype.
    """
    first = next(array for array in arrays.values() if array is not None)
    for name, array in arrays.items():
        if array is not None and (array.dtype.kind != "f" or array.dtype != first.dtype):
            wanted = "a floating dtype" if array.dtype.kind != "f" else f"{next(iter(arrays))}'s dtype {first.dtype}"
            raise RuntimeError(f"{op}: {name}: expected {wanted}, got {array.dtype}")


# ---- convolution


class Geometry(NamedTuple):
    """Sizes of a convolution: input (n, c, h, w), output (n, o, oh, ow), and the steps of its window."""

    n: int
    c: int
    h: int
    w: int
    o: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[Border, Border]
    oh: int
    ow: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self.oh, self.ow


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Geometry:
    """Check images (N, C, H, W), kernels (O, C / groups, kh, kw), a bias (O,) or None, and the options.

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: Shapes, dtypes and options do not match.
    """
    (sy, sx), (dy, dx), (rows, columns), (oh, ow) = _sliding(
        "conv2d", 2, x, weight, bias, stride, padding, dilation, groups
    )
    (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    return Geometry(n, c, h, w, o, groups, (kh, kw), (sy, sx), (dy, dx), (rows, columns), oh, ow)


def _sliding(
    op: str,
    axes: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Border, ...], tuple[int, ...]]:
    """Check a convolution along ``axes`` axes; return, for each, stride, dilation, border and size of the output.

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: Shapes, dtypes and options do not match.
    """
    for name, array in (("x", x), ("weight", weight)):
        if array.ndim != axes + 2:
            raise RuntimeError(f"{op}: {name}: expected {axes + 2} axes, got shape {tuple(array.shape)}")
    one_dtype(op, x=x, weight=weight, bias=bias)
    (_, c, *image), (o, per_group, *kernel) = x.shape, weight.shape
    if groups < 1 or o % groups:
        raise RuntimeError(f"{op}: groups: expected a positive divisor of {o} output channels, got {groups}")
    if c != per_group * groups:
        raise RuntimeError(f"{op}: x: expected {per_group * groups} channels, got {c} in shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (o,):
        raise RuntimeError(f"{op}: bias: expected shape ({o},), got {tuple(bias.shape)}")
    steps, spacing = integers(stride, f"{op}: stride", axes), integers(dilation, f"{op}: dilation", axes)
    if min(*steps, *spacing) < 1:
        raise RuntimeError(f"{op}: stride and dilation: expected at least 1, got {stride} and {dilation}")
    if o < 1:
        raise RuntimeError(f"{op}: weight: expected at least 1 output channel, got shape {tuple(weight.shape)}")
    reach = [d * (k - 1) for d, k in zip(spacing, kernel, strict=True)]
    pad = _borders(op, padding, steps, reach)
    size = [n + sum(border) for n, border in zip(image, pad, strict=True)]
    if min(kernel) < 1 or any(s <= r for s, r in zip(size, reach, strict=True)):
        raise RuntimeError(
            f"{op}: x: expected a padded image of at least {_by(r + 1 for r in reach)} for the kernel {_by(kernel)}, "
            f"got {_by(size)}"
        )
    return steps, spacing, pad, tuple((s - r - 1) // step + 1 for s, r, step in zip(size, reach, steps, strict=True))


def _by(sizes: Iterable[int]) -> str:
    """Sizes as a text, "3x4"."""
    return "x".join(map(str, sizes))


def _borders(op: str, padding: Padding, steps: tuple[int, ...], reach: Sequence[int]) -> tuple[Border, ...]:
    """Zeros before and after the image, along each axis."""
    if not isinstance(padding, str):
        return tuple((width, width) for width in integers(padding, f"{op}: padding", len(steps), 0))
    if padding not in ("same", "valid"):
        raise RuntimeError(f"{op}: padding: expected 'same', 'valid' or numbers, got {padding!r}")
    if padding == "same" and max(steps) > 1:
        raise RuntimeError(f"{op}: padding: 'same' expects stride 1, got {steps}")
    return tuple((r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach)


class OneRow(NamedTuple):
    """Options of a one-dimensional convolution, as options of `conv2d` on images of one row."""

    stride: Pair
    padding: Padding
    dilation: Pair


def conv1d(x: Array, weight: Array, stride: Pair, padding: Padding, dilation: Pair) -> OneRow:
    """Check signals (N, C, L) and kernels (O, C / groups, k).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: ``x`` or ``weight`` has not three axes.
    """
    for name, array in (("x", x), ("weight", weight)):
        if array.ndim != 3:
            raise RuntimeError(f"conv1d: {name}: expected 3 axes, got shape {tuple(array.shape)}")
    step, spacing = integers(stride, "conv1d: stride", 1), integers(dilation, "conv1d: dilation", 1)
    border = padding if isinstance(padding, str) else (0, *integers(padding, "conv1d: padding", 1))
    return OneRow((1, *step), border, (1, *spacing))


class Frames(NamedTuple):
    """A convolution of volumes, as convolutions of their frames: one for each depth tap of the kernel.

    Attributes:
        shape: Of the output with its frames first, (D', N, O, H', W').
        pad: Frames of zeros before and after the volume.
        under: For each depth tap, the frames of the padded volume under it.
        options: Of the convolution of frames.
    """

    shape: tuple[int, ...]
    pad: Border
    under: tuple[slice, ...]
    options: dict[str, Any]


def conv3d(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Frames:
    """Check volumes (N, C, D, H, W), kernels (O, C / groups, kd, kh, kw), a bias (O,) or None, and the options.

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: Shapes, dtypes and options do not match.
    """
    steps, spacing, pad, size = _sliding("conv3d", 3, x, weight, bias, stride, padding, dilation, groups)
    border = padding if isinstance(padding, str) else (pad[1][0], pad[2][0])
    options: dict[str, Any] = {"stride": steps[1:], "padding": border, "dilation": spacing[1:], "groups": groups}
    under = _under(weight.shape[2], steps[0], spacing[0], size[0])
    return Frames((size[0], x.shape[0], weight.shape[0], *size[1:]), pad[0], under, options)


def _under(taps: int, step: int, spacing: int, count: int) -> tuple[slice, ...]:
    """For each tap along one axis, the places of a padded image under it in ``count`` positions of the kernel."""
    return tuple(slice(i * spacing, i * spacing + step * (count - 1) + 1, step) for i in range(taps))


class Transposed(NamedTuple):
    """A transposed convolution: the shape of its output, and the convolution from its output to its input."""

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[Border, Border]
    size: tuple[int, int]
    output_padding: tuple[int, int]


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> Transposed:
    """Check images (N, C, H, W), kernels (C, O / groups, kh, kw), a bias (O,) or None, and the options.

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: Shapes, dtypes and options do not match.
    """
    steps, spacing, cut, more, (height, width) = _transposed(
        "conv_transpose2d", 2, x, weight, bias, stride, padding, output_padding, groups, dilation
    )
    (n, _, h, w), (_, per_group, kh, kw) = x.shape, weight.shape
    window = (kh, kw), (steps[0], steps[1]), (spacing[0], spacing[1]), ((cut[0], cut[0]), (cut[1], cut[1])), (h, w)
    return Transposed((n, per_group * groups, height, width), *window, (more[0], more[1]))


def _transposed(
    op: str,
    axes: int,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> tuple[tuple[int, ...], ...]:
    """Check a transposed convolution along ``axes`` axes.

    Returns:
        For each axis: stride, dilation, padding, output padding, and size of the result.

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: Shapes, dtypes and options do not match.
    """
    for name, array in (("x", x), ("weight", weight)):
        if array.ndim != axes + 2:
            raise RuntimeError(f"{op}: {name}: expected {axes + 2} axes, got shape {tuple(array.shape)}")
    one_dtype(op, x=x, weight=weight, bias=bias)
    (_, c, *image), (channels, per_group, *kernel) = x.shape, weight.shape
    if groups < 1 or channels % groups:
        raise RuntimeError(f"{op}: groups: expected a divisor of {channels} input channels, got {groups}")
    if c != channels:
        raise RuntimeError(f"{op}: x: expected {channels} channels, got {c} in shape {tuple(x.shape)}")
    if min(*image, *kernel, channels, per_group) < 1:
        raise RuntimeError(
            f"{op}: x and weight: expected at least one pixel and channel, "
            f"got shapes {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (per_group * groups,):
        raise RuntimeError(f"{op}: bias: expected shape ({per_group * groups},), got {tuple(bias.shape)}")
    steps, spacing = integers(stride, f"{op}: stride", axes, 1), integers(dilation, f"{op}: dilation", axes, 1)
    cut = integers(padding, f"{op}: padding", axes, 0)
    more = integers(output_padding, f"{op}: output_padding", axes, 0)
    if any(m >= max(s, d) for m, s, d in zip(more, steps, spacing, strict=True)):
        raise RuntimeError(f"{op}: output_padding: expected less than stride {steps} or dilation {spacing}, got {more}")
    size = tuple(
        (n - 1) * s - 2 * p + d * (taps - 1) + m + 1
        for n, s, p, d, taps, m in zip(image, steps, cut, spacing, kernel, more, strict=True)
    )
    if min(size) < 0:
        raise RuntimeError(f"{op}: padding: expected to leave an image, got {cut} for a result of {_by(size)}")
    return steps, spacing, cut, more, size


class OneRowTransposed(NamedTuple):
    """Options of a one-dimensional transposed convolution, as options of `conv_transpose2d` on images of one row."""

    stride: Pair
    padding: Pair
    output_padding: Pair
    dilation: Pair


def conv_transpose1d(
    x: Array, weight: Array, stride: Pair, padding: Pair, output_padding: Pair, dilation: Pair
) -> OneRowTransposed:
    """Check signals (N, C, L) and kernels (C, O / groups, k).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: ``x`` or ``weight`` has not three axes.
    """
    op = "conv_transpose1d"
    for name, array in (("x", x), ("weight", weight)):
        if array.ndim != 3:
            raise RuntimeError(f"{op}: {name}: expected 3 axes, got shape {tuple(array.shape)}")
    step, cut = integers(stride, f"{op}: stride", 1), integers(padding, f"{op}: padding", 1)
    more, spacing = integers(output_padding, f"{op}: output_padding", 1), integers(dilation, f"{op}: dilation", 1)
    return OneRowTransposed((1, *step), (0, *cut), (0, *more), (1, *spacing))


def conv_transpose3d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> Frames:
    """Check volumes (N, C, D, H, W), kernels (C, O / groups, kd, kh, kw), a bias (O,) or None, and the options.

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: Shapes, dtypes and options do not match.
    """
    steps, spacing, cut, more, size = _transposed(
        "conv_transpose3d", 3, x, weight, bias, stride, padding, output_padding, groups, dilation
    )
    options: dict[str, Any] = {"stride": steps[1:], "padding": cut[1:], "output_padding": more[1:]}
    options |= {"groups": groups, "dilation": spacing[1:]}
    under = _under(weight.shape[2], steps[0], spacing[0], x.shape[2])
    shape = size[0], x.shape[0], weight.shape[1] * groups, *size[1:]
    return Frames(shape, (cut[0], cut[0]), under, options)


# ---- pooling


class Windows(NamedTuple):
    """The windows of a pooling: ``size`` windows of ``kernel`` pixels, their steps, and the padding that they cover."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[Border, Border]
    size: tuple[int, int]


def windows(
    op: str,
    x: Array,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Windows:
    """Check images (N, C, H, W) and options, which must give at least one window.

    Raises:
        NotImplementedError: ``x`` is of booleans.
        TypeError: An option is not an integer.
        RuntimeError: ``x`` has not four axes, an option is out of range, or the image is too small.
    """
    kernel, padding = pair(kernel_size, f"{op}: kernel_size"), pair(padding, f"{op}: padding")
    step = kernel if stride is None or stride == () else pair(stride, f"{op}: stride")
    spacing = pair(dilation, f"{op}: dilation")
    if x.dtype.kind == "b":
        raise NotImplementedError(f"{op}: x: expected a dtype of numbers, got {x.dtype}")
    if x.ndim != 4:
        raise RuntimeError(f"{op}: x: expected 4 axes, got shape {tuple(x.shape)}")
    if min(*kernel, *step, *spacing) < 1:
        raise RuntimeError(f"{op}: kernel_size, stride, dilation: expected at least 1, got {kernel}, {step}, {spacing}")
    if any(p > k // 2 or p < 0 for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(f"{op}: padding: expected at most half the kernel {kernel} and not negative, got {padding}")
    pads, sizes = [], []
    for n, k, s, p, d in zip(x.shape[2:], kernel, step, padding, spacing, strict=True):
        reach = n + 2 * p - d * (k - 1) - 1
        count = (-(-reach // s) if ceil_mode else reach // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # the last window would begin after the image and its left padding
        if count < 1:
            raise RuntimeError(f"{op}: x: expected an image of at least {d * (k - 1) + 1 - 2 * p}, got {n}")
        sizes.append(count)
        pads.append((p, max(0, (count - 1) * s + d * (k - 1) + 1 - n - p)))
    return Windows(kernel, step, spacing, (pads[0], pads[1]), (sizes[0], sizes[1]))


def divisor(value: int | None) -> None:
    """`avg_pool2d`'s ``divisor_override``: None, or an integer other than 0.

    Raises:
        TypeError: It is not an integer.
        RuntimeError: It is 0.
    """
    if value is not None and not isinstance(value, int):
        raise TypeError(f"avg_pool2d: divisor_override: expected an integer, got {value!r}")
    if value == 0:
        raise RuntimeError("avg_pool2d: divisor_override: expected a number other than 0, got 0")


def some_windows(op: str, grad_y: Array) -> None:
    """Check that a gradient has at least one window: as in torch, an output of size 0 has no gradient.

    Raises:
        RuntimeError: It has none.
    """
    if 0 in grad_y.shape[1:]:
        raise RuntimeError(f"{op}: output_size: expected at least 1 for a gradient, got shape {tuple(grad_y.shape)}")


# ---- normalisation


def channels(x: Array, **arrays: Array | None) -> None:
    """Check that each array that is not None has one value for each channel of ``x`` (N, C, ...).

    Raises:
        RuntimeError: An array has another shape.
    """
    for name, array in arrays.items():
        if array is not None and array.shape != (x.shape[1],):
            raise RuntimeError(
                f"{name}: expected one value for each of {x.shape[1]} channels, got {tuple(array.shape)}"
            )


def group_norm(x: Array, weight: Array | None, bias: Array | None, groups: int) -> None:
    """Check that ``groups`` divides the channels, and that weight and bias have one value for each channel.

    Raises:
        RuntimeError: They do not.
    """
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(f"group_norm: x: expected channels that divide into {groups} groups, got {tuple(x.shape)}")
    channels(x, weight=weight, bias=bias)


def layer_norm(x: Array, weight: Array | None, bias: Array | None, axes: int) -> None:
    """Check that weight and bias have the shape of the last ``axes`` axes of ``x``.

    Raises:
        RuntimeError: They do not.
    """
    inner = x.shape[x.ndim - axes :]
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.shape != inner:
            raise RuntimeError(f"layer_norm: {name}: expected shape {tuple(inner)}, got {tuple(array.shape)}")


def rms_norm(x: Array, weight: Array | None, axes: int) -> None:
    """Check a floating ``x`` with at least ``axes`` axes, and a weight of the shape of the last of them.

    Raises:
        NotImplementedError: ``x`` is not floating.
        ValueError: ``x`` has fewer axes.
        RuntimeError: ``axes`` is less than 1, or the weight has another shape.
    """
    dtype("rms_norm: x", x)
    if axes < 1:
        raise RuntimeError(f"rms_norm: axes: expected at least 1, got {axes}")
    if axes > x.ndim:
        raise ValueError(f"rms_norm: x: expected at least {axes} axes, got shape {tuple(x.shape)}")
    inner = x.shape[x.ndim - axes :]
    if weight is not None and weight.shape != inner:
        raise RuntimeError(f"rms_norm: weight: expected shape {tuple(inner)}, got {tuple(weight.shape)}")


# ---- activation, softmax, linear, padding


def limits(op: str, x: Array, **values: float) -> list[Any]:
    """Numbers as ``x`` has them: cut to integers where ``x`` holds integers.

    Raises:
        TypeError: A value that is no number.
        NotImplementedError: An ``x`` of booleans or complex numbers.
        RuntimeError: A value below 0 for an ``x`` of unsigned integers.
    """
    dtype(f"{op}: x", x, "fiu")
    for name, value in values.items():
        number(f"{op}: {name}", value)
        if x.dtype.kind == "u" and value < 0:
            raise RuntimeError(f"{op}: {name}: expected at least 0 for x of {x.dtype}, got {value}")
    return [x.dtype.type(value) for value in values.values()]


def hardtanh(x: Array, min_val: float, max_val: float) -> tuple[Any, Any]:
    """`limits`, in their order.

    Raises:
        ValueError: Limits in the wrong order.
    """
    low, high = limits("hardtanh", x, min_val=min_val, max_val=max_val)
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val: expected at most max_val, {max_val}, got {min_val}")
    return low, high


def celu(x: Array, alpha: float) -> None:
    """A floating ``x``.

    Raises:
        RuntimeError: An ``alpha`` of 0.
    """
    dtype("celu: x", x)
    number("celu: alpha", alpha)
    if alpha == 0:
        raise RuntimeError("celu: alpha: expected a number other than 0, got 0")


def glu(x: Array, dim: int) -> list[tuple[slice, ...]]:
    """Where the halves of a floating ``x`` along ``dim`` are.

    Raises:
        NotImplementedError: An ``x`` that is not floating.
        RuntimeError: An ``x`` without dimensions, or of an odd size along ``dim``.
        IndexError: A ``dim`` that ``x`` does not have.
    """
    dtype("glu: x", x)
    if x.ndim == 0:
        raise RuntimeError("glu: x: expected at least one dimension, got none")
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"glu: dim: expected a number from {-x.ndim} to {x.ndim - 1}, got {dim}")
    size = x.shape[dim]
    if size % 2:
        raise RuntimeError(f"glu: x: expected an even size along dim {dim}, got shape {tuple(x.shape)}")
    before = (slice(None),) * (dim % x.ndim)
    return [(*before, slice(size // 2)), (*before, slice(size // 2, None))]


def prelu(x: Array, weight: Array) -> tuple[int, ...]:
    """Check a floating ``x`` and one weight, or one for each channel; return the shape that broadcasts to ``x``.

    Raises:
        RuntimeError: ``x`` is not floating, or the number of weights is wrong.
    """
    if x.dtype.kind != "f":
        raise RuntimeError(f"prelu: x: expected the dtype of weight, {weight.dtype}, got {x.dtype}")
    if weight.ndim > 1:
        raise RuntimeError(f"prelu: weight: expected no more than one axis, got shape {weight.shape}")
    if weight.size == 1:
        return ()
    count = x.shape[1] if x.ndim > 1 else 1
    if x.ndim == 0 or weight.size != count:
        raise RuntimeError(f"prelu: weight: expected 1 or {count} elements, the channels of x, got {weight.size}")
    return (count, *(1,) * (x.ndim - 2))


def approximate(value: str) -> None:
    """`gelu`'s ``approximate``: "none" or "tanh".

    Raises:
        TypeError: It is not a string.
        RuntimeError: It is another string.
    """
    if not isinstance(value, str):
        raise TypeError(f"gelu: approximate: expected 'none' or 'tanh', got {type(value).__name__}")
    if value not in ("none", "tanh"):
        raise RuntimeError(f"gelu: approximate: expected 'none' or 'tanh', got {value!r}")


def softmax(op: str, x: Array, dim: int) -> None:
    """Check that ``x`` is floating and has the dimension ``dim``.

    Raises:
        NotImplementedError: ``x`` is not floating.
        IndexError: ``x`` has no such dimension.
    """
    dtype(f"{op}: x", x)
    bound = max(1, x.ndim)
    if not -bound <= dim < bound:
        raise IndexError(f"{op}: dim: expected one from {-bound} to {bound - 1}, got {dim}")


def linear(x: Array, weight: Array, bias: Array | None) -> None:
    """Check ``x`` (..., I), a weight (O, I) and a bias (O,) or None, of one floating dtype.

    Raises:
        RuntimeError: Shapes or dtypes do not match.
    """
    if weight.ndim != 2:
        raise RuntimeError(f"linear: weight: expected 2 axes, got shape {tuple(weight.shape)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"linear: x: expected {weight.shape[1]} features, got shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise RuntimeError(f"linear: bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    one_dtype("linear", x=x, weight=weight, bias=bias)


Mode = Literal["reflect", "replicate", "circular"]


def pad(shape: Sequence[int], pad: Sequence[int], mode: Mode) -> list[tuple[int, int, int]]:
    """Check the widths of borders; return ``(axis, left, right)`` for each axis that is padded.

    Raises:
        ValueError: The mode is unknown.
        RuntimeError: A border is negative, wider than the image has pixels for, or of an axis that ``x`` lacks.
    """
    if mode not in ("reflect", "replicate", "circular"):
        raise ValueError(f"pad: mode: expected 'reflect', 'replicate' or 'circular', got {mode!r}")
    if len(pad) % 2 or len(pad) // 2 > len(shape):
        raise RuntimeError(f"pad: pad: expected two widths for each of at most {len(shape)} axes, got {tuple(pad)}")
    axes = [(len(shape) - 1 - i, pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]
    for axis, left, right in axes:
        n = shape[axis]
        most = {"reflect": n - 1, "replicate": max(left, right) if n else 0, "circular": n}[mode]
        if min(left, right) < 0 or max(left, right) > most:
            raise RuntimeError(
                f"pad: pad: expected widths from 0 to {most} for {mode!r} on the {n} pixels of axis {axis}, "
                f"got {left} and {right}"
            )
    return [(axis, left, right) for axis, left, right in axes if left or right]


# ---- losses


def number_of_classes(scores: Array) -> int:
    """C of scores (C,), (N, C) or (N, C, d1, ...)."""
    return int(scores.shape[0 if scores.ndim == 1 else 1])


def shape_of_losses(scores: Array) -> tuple[int, ...]:
    """The shape of the losses, one for each target: that of the scores without C."""
    return () if scores.ndim == 1 else (scores.shape[0], *scores.shape[2:])


def reduction(value: str) -> None:
    """Check that ``value`` is "mean", "sum" or "none".

    Raises:
        ValueError: It is none of them.
    """
    if value not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {value!r}")


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    kind: str,
    label_smoothing: float,
    check_target: bool,
) -> None:
    """Check scores with class indices or class probabilities, and the options; see `ops.loss`.

    Raises:
        IndexError, ValueError, TypeError, RuntimeError, NotImplementedError: As torch.
    """
    reduction(kind)
    if label_smoothing > 1:
        raise RuntimeError(f"label_smoothing: expected a number between 0 and 1, got {label_smoothing}")
    dtype("logits", logits)
    if target.shape == logits.shape:
        if target.dtype.kind != "f":
            raise RuntimeError(
                f"target: expected a floating dtype for class probabilities (the shape of logits), got {target.dtype}"
            )
        if ignore_index >= 0:
            raise RuntimeError(f"ignore_index: expected none (-100) with class probabilities, got {ignore_index}")
        _factors(logits, weight)
    if logits.ndim == 0:
        raise IndexError("logits: expected at least one dimension, that of the classes, got none")
    if target.shape != logits.shape:
        _classes(logits, target, weight, ignore_index, check_target)


def nll_loss(
    log_probs: Array, target: Array, weight: Array | None, ignore_index: int, kind: str, check_target: bool
) -> None:
    """Check log-probabilities with class indices.

    Raises:
        IndexError, ValueError, TypeError, RuntimeError, NotImplementedError: As torch.
    """
    reduction(kind)
    dtype("log_probs", log_probs)
    _classes(log_probs, target, weight, ignore_index, check_target)


def _factors(scores: Array, weight: Array | None) -> None:
    if weight is not None and weight.dtype != scores.dtype:
        raise RuntimeError(f"weight: expected the dtype of the scores, {scores.dtype}, got {weight.dtype}")
    if weight is not None and weight.shape != (number_of_classes(scores),):
        raise RuntimeError(
            f"weight: expected one factor for each of {number_of_classes(scores)} classes, got shape {weight.shape}"
        )


def _classes(scores: Array, target: Array, weight: Array | None, ignore_index: int, check_range: bool) -> None:
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an integer, got {type(ignore_index).__name__}")
    if scores.ndim == 0:
        raise ValueError("log_probs: expected at least one dimension, that of the classes, got none")
    if scores.ndim == 1 and target.ndim < 2:
        if target.size != 1:
            _indices(scores, target)
            raise ValueError(f"target: expected one class for scores of shape {scores.shape}, got {target.shape}")
    elif scores.ndim <= 2 and target.ndim > 1:
        raise RuntimeError(f"target: expected no more than one dimension, got shape {target.shape}")
    elif target.shape[:1] != scores.shape[:1]:
        raise ValueError(f"target: expected a batch of {scores.shape[0]}, got shape {target.shape}")
    elif target.shape != shape_of_losses(scores):
        raise RuntimeError(f"target: expected shape {shape_of_losses(scores)}, got {target.shape}")
    _indices(scores, target)
    _factors(scores, weight)
    if check_range:
        count = number_of_classes(scores)
        bad = target[(target != ignore_index) & ((target < 0) | (target >= count))]
        if bad.size:
            raise IndexError(f"target: expected classes from 0 to {count - 1}, got {bad.reshape(-1)[0]}")


def _indices(scores: Array, target: Array) -> None:
    if target.dtype != np.int64 and not (target.dtype == np.uint8 and scores.ndim <= 2):
        raise RuntimeError(f"target: expected class indices of dtype int64, got {target.dtype}")


def rows_of_losses(scores: Array) -> int:
    """The number of targets."""
    return math.prod(shape_of_losses(scores))
