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
    pads, sizes = _positions(op, x.shape[2:], kernel, step, padding, spacing, ceil_mode)
    return Windows(kernel, step, spacing, (pads[0], pads[1]), (sizes[0], sizes[1]))


def _positions(
    op: str,
    shape: Sequence[int],
    kernel: Sequence[int],
    step: Sequence[int],
    padding: Sequence[int],
    spacing: Sequence[int],
    ceil_mode: bool,
) -> tuple[list[Border], list[int]]:
    """Check the windows along each axis of images of this shape; return the borders and the numbers of windows."""
    if min(*kernel, *step, *spacing) < 1:
        raise RuntimeError(f"{op}: kernel_size, stride, dilation: expected at least 1, got {kernel}, {step}, {spacing}")
    if any(p > k // 2 or p < 0 for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(f"{op}: padding: expected at most half the kernel {kernel} and not negative, got {padding}")
    pads, sizes = [], []
    for n, k, s, p, d in zip(shape, kernel, step, padding, spacing, strict=True):
        reach = n + 2 * p - d * (k - 1) - 1
        count = (-(-reach // s) if ceil_mode else reach // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # the last window would begin after the image and its left padding
        if count < 1:
            raise RuntimeError(f"{op}: x: expected an image of at least {d * (k - 1) + 1 - 2 * p}, got {n}")
        sizes.append(count)
        pads.append((p, max(0, (count - 1) * s + d * (k - 1) + 1 - n - p)))
    return pads, sizes


def frames(
    op: str,
    x: Array,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`windows` for volumes (N, C, D, H, W), each option one number or three.

    Returns:
        The options of pooling within each frame (H, W), and of pooling along D then, in images (D, pixels of a frame).
    """
    kernel, pads = integers(kernel_size, f"{op}: kernel_size", 3), integers(padding, f"{op}: padding", 3)
    steps = kernel if stride is None or stride == () else integers(stride, f"{op}: stride", 3)
    spacing = integers(dilation, f"{op}: dilation", 3)
    if x.dtype.kind == "b":
        raise NotImplementedError(f"{op}: x: expected a dtype of numbers, got {x.dtype}")
    if x.ndim != 5:
        raise RuntimeError(f"{op}: x: expected 5 axes, got shape {tuple(x.shape)}")
    _positions(op, x.shape[2:], kernel, steps, pads, spacing, ceil_mode)
    is_max = op.startswith("max")
    if not is_max and any(n < k for n, k in zip(x.shape[2:], kernel, strict=True)):
        raise RuntimeError(f"{op}: x: expected at least the size of the kernel {kernel}, got shape {tuple(x.shape)}")
    inside: dict[str, Any] = {"kernel_size": kernel[1:], "stride": steps[1:], "padding": pads[1:]}
    along: dict[str, Any] = {"kernel_size": (kernel[0], 1), "stride": (steps[0], 1), "padding": (pads[0], 0)}
    if is_max:
        inside, along = inside | {"dilation": spacing[1:]}, along | {"dilation": (spacing[0], 1)}
    return inside | {"ceil_mode": ceil_mode}, along | {"ceil_mode": ceil_mode}


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


def upsample(op: str, x: Array, size: Sequence[int], kinds: str = "f", axes: Sequence[int] = (1, 2, 3)) -> None:
    """Check images or their gradient (N, C, ...), of a dtype of these kinds, and the size that they are brought to.

    Raises:
        NotImplementedError: The dtype is of another kind, or of integers other than uint8.
        RuntimeError: Not one of these numbers of axes after the channels, an empty axis other than the batch, another
            number of sizes, or a size below 1.
    """
    if x.dtype.kind not in kinds or (x.dtype.kind == "u" and x.dtype.itemsize > 1):
        raise NotImplementedError(f"{op}: x: expected a floating dtype, got {x.dtype}")
    if x.ndim - 2 not in axes or 0 in x.shape[1:]:
        wanted = " or ".join(str(count + 2) for count in axes)
        raise RuntimeError(f"{op}: x: expected {wanted} axes, none empty but the batch, got shape {tuple(x.shape)}")
    if len(size) != x.ndim - 2 or min(size) < 1:
        raise RuntimeError(f"{op}: size: expected {x.ndim - 2} numbers, each at least 1, got {tuple(size)}")


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


def response(x: Array, size: int) -> None:
    """Check a floating ``x`` (N, C, ...) and the number of channels of `local_response_norm`.

    Raises:
        TypeError: ``size`` is not an integer.
        NotImplementedError: ``x`` is not of floating numbers.
        RuntimeError: ``size`` is less than 1, or ``x`` has fewer than two axes.
    """
    if not isinstance(size, Integral):
        raise TypeError(f"local_response_norm: size: expected an integer, got {size!r}")
    dtype("local_response_norm: x", x)
    if x.ndim < 2:
        raise RuntimeError(f"local_response_norm: x: expected at least 2 axes, got shape {tuple(x.shape)}")
    if size < 1:
        raise RuntimeError(f"local_response_norm: size: expected at least 1, got {size}")


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


def product(a: Array, b: Array) -> None:
    """Check two matrices (I, K) and (K, J), or two stacks of as many, of one floating dtype.

    Raises:
        RuntimeError: Shapes or dtypes do not match.
    """
    if a.ndim not in (2, 3):
        raise RuntimeError(f"product: a: expected 2 or 3 axes, got shape {tuple(a.shape)}")
    if b.ndim != a.ndim or b.shape[:-2] != a.shape[:-2] or b.shape[-2] != a.shape[-1]:
        wanted = ", ".join(map(str, (*a.shape[:-2], a.shape[-1], "J")))
        raise RuntimeError(f"product: b: expected shape ({wanted}), got {tuple(b.shape)}")
    one_dtype("product", a=a, b=b)


def add_product(c: Array, a: Array, b: Array) -> None:
    """Check the arguments of `product`, and ``c``, which broadcasts to it.

    Raises:
        RuntimeError: Shapes or dtypes do not match.
    """
    product(a, b)
    shape = (*a.shape[:-1], b.shape[-1])
    fits = c.ndim <= len(shape) and all(n in (1, m) for n, m in zip(c.shape[::-1], shape[::-1], strict=False))
    if not fits:
        raise RuntimeError(f"add_product: c: expected a shape that broadcasts to {shape}, got {tuple(c.shape)}")
    one_dtype("add_product", c=c, a=a)


Mode = Literal["reflect", "replicate", "circular", "constant"]


def borders(shape: Sequence[int], pad: Sequence[int]) -> list[tuple[int, int, int]]:
    """Check that there are two integers for each of the last axes; return ``(axis, left, right)`` for those.

    Raises:
        TypeError: A width is not an integer.
        RuntimeError: Their number is odd, or there are more than ``shape`` has axes.
    """
    if not all(isinstance(width, Integral) for width in pad):
        raise TypeError(f"pad: pad: expected integers, got {tuple(pad)}")
    if len(pad) % 2 or len(pad) // 2 > len(shape):
        raise RuntimeError(f"pad: pad: expected two widths for each of at most {len(shape)} axes, got {tuple(pad)}")
    return [(len(shape) - 1 - i, int(pad[2 * i]), int(pad[2 * i + 1])) for i in range(len(pad) // 2)]


def pad(shape: Sequence[int], pad: Sequence[int], mode: Mode) -> list[tuple[int, int, int]]:
    """Check the widths of borders; return ``(axis, left, right)`` for each axis that is padded.

    Raises:
        ValueError: The mode is unknown.
        TypeError: A width is not an integer.
        RuntimeError: A border is wider than the image has pixels for, or of an axis that ``x`` lacks; or negative
            borders leave too few pixels.
    """
    if mode not in ("reflect", "replicate", "circular", "constant"):
        raise ValueError(f"pad: mode: expected 'reflect', 'replicate', 'circular' or 'constant', got {mode!r}")
    axes = borders(shape, pad)
    for axis, left, right in axes:
        n, widest = shape[axis], max(left, right)
        kept = n + min(left, 0) + min(right, 0)
        most = {"reflect": n - 1, "replicate": widest if n else 0, "circular": kept}.get(mode, widest)
        too_few = n + left + right < (mode == "replicate") or (mode == "constant" and kept < 0)
        if too_few or widest > most:
            raise RuntimeError(
                f"pad: pad: expected widths of at most {most} that leave an image, for {mode!r} on the {n} pixels of "
                f"axis {axis}, got {left} and {right}"
            )
    if mode == "reflect" and axes and not any(shape[axis] + left + right for axis, left, right in axes):
        raise RuntimeError(f"pad: pad: expected widths that leave a pixel of shape {tuple(shape)}, got {tuple(pad)}")
    return [(axis, left, right) for axis, left, right in axes if left or right]


def fill(x: Array, value: float) -> float:
    """Check that the dtype of ``x`` can hold ``value``, and return it as that does.

    Raises:
        TypeError: It is not a number.
        RuntimeError: It is out of range.
    """
    number("pad: value", value)
    if x.dtype.kind == "b":
        return bool(value)
    if x.dtype.kind == "f":
        if math.isfinite(value) and abs(value) > np.finfo(x.dtype).max:
            raise RuntimeError(f"pad: value: expected a number in the range of {x.dtype}, got {value}")
        return value
    if not np.iinfo(x.dtype).min <= value <= np.iinfo(x.dtype).max:
        raise RuntimeError(f"pad: value: expected a number in the range of {x.dtype}, got {value}")
    return int(value)


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


# ---- losses of numbers


def l1_loss(x: Array, kind: str) -> None:
    """Check the dtype of ``x`` and the reduction.

    Raises:
        ValueError: The reduction is unknown.
        RuntimeError: The mean of integers.
        NotImplementedError: ``x`` is of booleans.
    """
    reduction(kind)
    dtype("l1_loss: x", x, "fiu")
    if kind == "mean" and x.dtype.kind != "f":
        raise RuntimeError(f"l1_loss: x: expected a floating dtype for the mean, got {x.dtype}")


def smooth_l1_loss(x: Array, kind: str, beta: float) -> None:
    """Check the dtype of ``x`` and the options; with ``beta`` 0 that is left to `l1_loss`.

    Raises:
        ValueError: The reduction is unknown.
        TypeError: ``beta`` is not a number.
        RuntimeError: ``beta`` is negative or NaN.
        NotImplementedError: ``x`` is not floating.
    """
    reduction(kind)
    number("smooth_l1_loss: beta", beta)
    if not beta >= 0:
        raise RuntimeError(f"smooth_l1_loss: beta: expected at least 0, got {beta}")
    if beta:
        dtype("smooth_l1_loss: x", x)


def binary_cross_entropy(x: Array, target: Array, weight: Array | None, kind: str, check_target: bool) -> None:
    """Check probabilities and targets of one shape and dtype, and a weight that broadcasts.

    Raises:
        ValueError, RuntimeError, NotImplementedError: As torch.
    """
    op = "binary_cross_entropy"
    reduction(kind)
    _weights_of(op, x, target, weight=weight)
    if target.dtype != x.dtype:
        raise RuntimeError(f"{op}: target: expected the dtype of x, {x.dtype}, got {target.dtype}")
    dtype(f"{op}: x", x)
    for name, array in (("x", x), ("target", target)) if check_target else ():
        if not ((array >= 0) & (array <= 1)).all():
            raise RuntimeError(f"{op}: {name}: expected numbers between 0 and 1, got others")


def binary_cross_entropy_with_logits(
    x: Array, target: Array, weight: Array | None, pos_weight: Array | None, kind: str
) -> None:
    """Check scores and targets of one shape and dtype, and weights that broadcast.

    Raises:
        ValueError, RuntimeError, NotImplementedError: As torch.
    """
    op = "binary_cross_entropy_with_logits"
    reduction(kind)
    _weights_of(op, x, target, weight=weight, pos_weight=pos_weight)
    dtype(f"{op}: x", x)
    one_dtype(op, x=x, target=target)


def _weights_of(op: str, x: Array, target: Array, **weights: Array | None) -> None:
    """Check that ``target`` has the shape of ``x``, and that each weight broadcasts to it."""
    if target.shape != x.shape:
        raise ValueError(f"{op}: target: expected the shape of x, {tuple(x.shape)}, got {tuple(target.shape)}")
    for name, weight in weights.items():
        if weight is not None and not _broadcasts(weight.shape, x.shape):
            raise RuntimeError(
                f"{op}: {name}: expected a shape that broadcasts to {tuple(x.shape)}, got {weight.shape}"
            )


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    aligned = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in aligned)


# ---- attention


def attention(q: Array, k: Array, v: Array, mask: Array | None, scale: float | None, is_causal: bool) -> float:
    """Check queries (..., L, E), keys (..., S, E), values (..., S, V) and a mask; return the scale of the scores.

    Raises:
        RuntimeError: Shapes or dtypes do not match, or there are both a mask and ``is_causal``.
    """
    op = "scaled_dot_product_attention"
    one_dtype(op, q=q, k=k, v=v)
    if q.ndim < 2 or k.shape != (*q.shape[:-2], *k.shape[-2:-1], q.shape[-1]):
        raise RuntimeError(
            f"{op}: k: expected (..., S, E) for q (..., L, E), got {tuple(k.shape)} for {tuple(q.shape)}"
        )
    if v.shape[:-1] != k.shape[:-1]:
        raise RuntimeError(
            f"{op}: v: expected (..., S, V) for k (..., S, E), got {tuple(v.shape)} for {tuple(k.shape)}"
        )
    if mask is not None and is_causal:
        raise RuntimeError(f"{op}: mask: expected none with is_causal, got one")
    shape = (*q.shape[:-1], k.shape[-2])
    if mask is not None and not _broadcasts(mask.shape, shape):
        raise RuntimeError(f"{op}: mask: expected to broadcast to shape {tuple(shape)}, got {tuple(mask.shape)}")
    if mask is not None and mask.dtype.kind != "b":
        one_dtype(op, q=q, mask=mask)
    return 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale
