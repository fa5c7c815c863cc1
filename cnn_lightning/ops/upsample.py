"""Resizing of images along one axis after the other: each output pixel is a weighted sum of a few input pixels.

A tap is one of these: for each output pixel ``u`` along an axis, the place of an input pixel and its weight. Nearest
has one tap, linear has two, cubic has four. A place that would be outside the image is the nearest one inside.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.types import Array

Scales = Sequence[float | None]
Taps = list[tuple[Array, Array]]
"""(places, weights) of each tap, both (m,) for the m output pixels of an axis."""


def upsample_nearest(x: Array, *, size: Sequence[int], scales: Scales = (), exact: bool = False) -> Array:
    """``y[..., u] = x[..., min(floor(u / s), n - 1)]`` along each axis.

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        size: Of the output: a number for each axis after the channels.
        scales: ``s`` of each axis; where it is None or not given, the size of the output over that of the input.
        exact: Whether to take the middle of the output pixel, ``(u + 1 / 2) / s``, as torch's "nearest-exact" does.

    Raises:
        NotImplementedError: ``x`` is neither of floating numbers nor of uint8.
        RuntimeError: ``x`` has another number of axes or is empty except for its batch, or a size is less than 1.
    """
    expect.upsample("upsample_nearest", x, size, "fu")
    for axis, n, m, scale in _axes(x.shape[2:], size, scales):
        x = x[_along(axis, _nearest(np.arange(m, like=x), n, m, scale, exact, x))]
    return x


def upsample_nearest_backward(
    grad_y: Array, *, size_x: Sequence[int], scales: Scales = (), exact: bool = False
) -> Array:
    """Add the gradient of each output pixel to the pixel that it is a copy of.

    Args:
        grad_y: The gradient of the output.
        size_x: Of the input, as ``size`` of the output.
        scales: As of `upsample_nearest`.
        exact: As of `upsample_nearest`.
    """
    expect.upsample("upsample_nearest_backward", grad_y, size_x)
    grad_x = grad_y
    for axis, n, m, scale in _axes(size_x, grad_y.shape[2:], scales):
        outputs = np.arange(m, like=grad_y), np.arange(m)
        places, on_host = (_nearest(output, n, m, scale, exact, grad_y) for output in outputs)
        grad_x = _added(grad_x, axis, n, [(places, np.ones_like(places))], [on_host])
    return grad_x.astype(grad_y.dtype)


def _nearest(output: Array, n: int, m: int, scale: float | None, exact: bool, images: Array) -> Array:
    """The place of the pixel that each output pixel is a copy of.

    Near a border between pixels, rounding decides. As in torch, along two axes it is that of single precision, and an
    axis of the same or the double size is copied, whatever its scale.
    """
    is_flat = images.ndim == 4
    if is_flat and not exact and m in (n, 2 * n):
        return output * n // m
    number: Any = np.float64 if images.dtype == np.float64 and not is_flat else np.float32
    step = number(1 / scale) if scale else number(n) / number(m)
    place = (output.astype(number) + number(exact / 2)) * step
    return np.minimum(place.astype(np.float32).astype(np.int64), n - 1)


def upsample_linear(x: Array, *, size: Sequence[int], align_corners: bool = False, scales: Scales = ()) -> Array:
    """``y[..., u] = (1 - t) x[..., i] + t x[..., i + 1]`` along each axis, where ``i + t`` is the place of ``u``.

    The place is ``(u + 1 / 2) / s - 1 / 2``, and at least 0. With ``align_corners`` it is ``u (n - 1) / (m - 1)``, so
    that the first and the last of the n pixels are the first and the last of the m output pixels.

    Args:
        x: As of `upsample_nearest`, of floating numbers.
        size: As of `upsample_nearest`.
        align_corners: Which of the two places.
        scales: As of `upsample_nearest`; ``align_corners`` does not use them.

    Raises:
        NotImplementedError: ``x`` is not of floating numbers.
        RuntimeError: As `upsample_nearest`.
    """
    expect.upsample("upsample_linear", x, size)
    for axis, n, m, scale in _axes(x.shape[2:], size, scales):
        x = _summed(x, axis, _linear(np.arange(m, dtype=x.dtype, like=x), n, m, align_corners, scale))
    return x


def upsample_linear_backward(
    grad_y: Array, *, size_x: Sequence[int], align_corners: bool = False, scales: Scales = ()
) -> Array:
    """Add the gradient of each output pixel, times ``1 - t`` and ``t``, to its two pixels. As `upsample_nearest`."""
    expect.upsample("upsample_linear_backward", grad_y, size_x)
    grad_x = grad_y
    for axis, n, m, scale in _axes(size_x, grad_y.shape[2:], scales):
        outputs = np.arange(m, dtype=grad_y.dtype, like=grad_y), np.arange(m, dtype=grad_y.dtype)
        taps, on_host = (_linear(output, n, m, align_corners, scale) for output in outputs)
        grad_x = _added(grad_x, axis, n, taps, [places for places, _ in on_host])
    return grad_x.astype(grad_y.dtype)


def _linear(output: Array, n: int, m: int, align_corners: bool, scale: float | None) -> Taps:
    """The two taps of linear interpolation; none is between pixels if input and output have one size."""
    place = output if n == m else np.maximum(_place(output, n, m, align_corners, scale), 0)
    first = np.minimum(place.astype(np.float32).astype(np.int64), n - 1)
    t = np.minimum(np.maximum(place - first.astype(place.dtype), 0), 1)
    return [(first, 1 - t), (first if n == m else np.minimum(first + 1, n - 1), t)]


def upsample_cubic(x: Array, *, size: Sequence[int], align_corners: bool = False, scales: Scales = ()) -> Array:
    """``y[..., u] = sum_j w(j - t) x[..., i + j]`` for j from -1 to 2, along both axes of (N, C, H, W).

    ``i + t`` is the place of ``u`` as in `upsample_linear`, but it may be below 0. The weight is Keys' cubic with
    a = -3/4: ``w(d) = (a + 2) |d|^3 - (a + 3) |d|^2 + 1`` for ``|d| <= 1``, ``a |d|^3 - 5 a |d|^2 + 8 a |d| - 4 a``
    beyond. Arguments and errors as `upsample_linear`.
    """
    expect.upsample("upsample_cubic", x, size, axes=(2,))
    for axis, n, m, scale in _axes(x.shape[2:], size, scales):
        x = _summed(x, axis, _cubic(np.arange(m, dtype=x.dtype, like=x), n, m, align_corners, scale))
    return x


def upsample_cubic_backward(
    grad_y: Array, *, size_x: Sequence[int], align_corners: bool = False, scales: Scales = ()
) -> Array:
    """Add the gradient of each output pixel, times the four weights, to its pixels. As `upsample_nearest_backward`."""
    expect.upsample("upsample_cubic_backward", grad_y, size_x, axes=(2,))
    grad_x = grad_y
    for axis, n, m, scale in _axes(size_x, grad_y.shape[2:], scales):
        outputs = np.arange(m, dtype=grad_y.dtype, like=grad_y), np.arange(m, dtype=grad_y.dtype)
        taps, on_host = (_cubic(output, n, m, align_corners, scale) for output in outputs)
        grad_x = _added(grad_x, axis, n, taps, [places for places, _ in on_host])
    return grad_x.astype(grad_y.dtype)


def _cubic(output: Array, n: int, m: int, align_corners: bool, scale: float | None) -> Taps:
    """The four taps of cubic interpolation."""
    place = _place(output, n, m, align_corners, scale)
    middle = np.minimum((place.astype(np.float32) // 1).astype(np.int64), n - 1)
    t = np.minimum(np.maximum(place - middle.astype(place.dtype), 0), 1)
    a = -0.75
    inner = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    outer = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    places = [np.minimum(np.maximum(middle + j, 0), n - 1) for j in (-1, 0, 1, 2)]
    return list(zip(places, (outer[0], *inner, outer[1]), strict=True))


def _place(output: Array, n: int, m: int, align_corners: bool, scale: float | None) -> Array:
    """Where each output pixel is among the pixels of the input, rounded to the dtype as in torch."""
    number = output.dtype.type
    if align_corners:
        return output * (number(n - 1) / number(m - 1) if m > 1 else number(0))
    return (output + number(0.5)) * (number(1 / scale) if scale else number(n) / number(m)) - number(0.5)


def _axes(size_x: Sequence[int], size: Sequence[int], scales: Scales) -> Iterator[tuple[int, int, int, float | None]]:
    """``(axis, n, m, scale)`` of each axis after the channels; a scale that torch does not use is None."""
    for index, (n, m) in enumerate(zip(size_x, size, strict=True)):
        scale = scales[index] if scales else None
        yield index + 2, n, m, scale if scale is not None and scale > 0 else None


def _along(axis: int, index: Array | slice) -> tuple[slice | Array, ...]:
    return (*[slice(None)] * axis, index)


def _summed(x: Array, axis: int, taps: Taps) -> Array:
    """The weighted sum of the taps along an axis."""
    shape = -1, *[1] * (x.ndim - axis - 1)
    terms = [x[_along(axis, places)] * weights.reshape(shape) for places, weights in taps]
    return sum(terms[1:], terms[0])


def _added(grad_y: Array, axis: int, n: int, taps: Taps, on_host: Sequence[Array]) -> Array:
    """The adjoint of `_summed` for n pixels, in float64.

    Several output pixels may have one place, which would take one gradient only. Places do not decrease. So if no
    ``most`` + 1 of them are equal, those of every ``most``-th output pixel all differ.
    """
    grad_x = np.zeros_like(grad_y, dtype=np.float64, shape=(*grad_y.shape[:axis], n, *grad_y.shape[axis + 1 :]))
    for (places, weights), known in zip(taps, on_host, strict=True):
        each = grad_y * weights.reshape(-1, *[1] * (grad_y.ndim - axis - 1))
        most = int(np.bincount(known).max())
        for start in range(most):
            some = slice(start, None, most)
            grad_x[_along(axis, places[some])] += each[_along(axis, some)]
    return grad_x
