"""Pooling: the largest value or the mean of every window, and the gradients."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.taps import inside, padded, taps
from cnn_lightning.ops.types import Array, Pair


def max_pool2d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """``y[n, c, u, v] = max_{i, j} x[n, c, u*stride + i*dilation - padding, v*stride + j*dilation - padding]``.

    The maximum ignores pixels outside the image; it is NaN if the window has a NaN.

    Args:
        x: Images (N, C, H, W).
        kernel_size: Size of the window, one number or (rows, columns); so are the next three.
        stride: Step between windows; the size of the window if None.
        padding: Pixels outside the image at each side that windows may cover, at most half the size of the window.
        dilation: Step between the pixels of a window.
        ceil_mode: Whether the last window may be partly outside the padded image.

    Raises:
        NotImplementedError: ``x`` is of booleans.
        TypeError: An option is not an integer.
        RuntimeError: Options or sizes give no window.
    """
    y, _ = max_pool2d_with_indices(
        x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    return y


def max_pool2d_with_indices(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """`max_pool2d`, and for each output the place ``row * W + column`` of the pixel that won, as int64.

    Of equal pixels the first wins, of several NaN the last: each pixel in turn is compared with the best before it.
    """
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    y = np.full_like(x, lowest, shape=(*x.shape[:2], *g.size))
    winner = np.full_like(y, -1, dtype=np.int64)
    places = padded(np.arange(prod(x.shape[2:]), like=x).reshape(1, 1, *x.shape[2:]), g.pad, -1)
    for (_, _, pixels), (_, _, place) in zip(taps(padded(x, g.pad, lowest), g), taps(places, g), strict=True):
        won = (pixels > y) | np.isnan(pixels) | ((winner < 0) & (place >= 0))
        y, winner = np.where(won, pixels, y), np.where(won, place, winner)
    return y, winner


def max_pool2d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """Add the gradient of each window to the pixel that won: of equal pixels the first, of several NaN the last."""
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    _, winner = max_pool2d_with_indices(
        x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    places = padded(np.arange(prod(x.shape[2:]), like=x).reshape(1, 1, *x.shape[2:]), g.pad, -1)
    grad_wide = padded(np.zeros_like(x), g.pad)
    for (_, _, grad_pixels), (_, _, place) in zip(taps(grad_wide, g), taps(places, g), strict=True):
        grad_pixels += np.where(winner == place, grad_y, 0)
    return inside(grad_wide, g.pad)


def add_at(grad_y: Array, x: Array, indices: Array) -> Array:
    """The gradient of max-pooling by the places that won: ``grad_x[n, c, indices[n, c, u]] += grad_y[n, c, u]``.

    Args:
        grad_y: Upstream gradient (N, C, ...).
        x: The forward's input (N, C, ...), for its shape; its values are not read.
        indices: The place of the pixel that won, as `max_pool2d_with_indices` gives it, shaped as ``grad_y``.

    Returns:
        ``grad_x``, shaped as ``x``.
    """
    planes = prod(x.shape[:2])
    upstream, places = (array.reshape(planes, prod(grad_y.shape[2:])) for array in (grad_y, indices))
    grad_x = np.zeros_like(x, shape=(planes, prod(x.shape[2:])))
    for u in range(upstream.shape[1]):
        place = places[:, u : u + 1]
        np.put_along_axis(grad_x, place, np.take_along_axis(grad_x, place, 1) + upstream[:, u : u + 1], 1)
    return grad_x.reshape(x.shape)


def avg_pool2d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """``y[n, c, u, v] = sum_{i, j} x[n, c, u*stride + i - padding, v*stride + j - padding] / divisor``.

    The divisor is the number of pixels of the window, without those outside the padded image (``ceil_mode``) and,
    unless ``count_include_pad``, without the padding; or ``divisor_override``. Other arguments and errors as
    `max_pool2d`.

    Raises:
        RuntimeError: Also if ``divisor_override`` is 0.
    """
    g = expect.windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    total = np.zeros_like(x, shape=(*x.shape[:2], *g.size))
    for _, _, pixels in taps(padded(x, g.pad), g):
        total += pixels
    return total / _divisor(x, g, count_include_pad, divisor_override)


def avg_pool2d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Add the gradient of each window, divided by its divisor, to every pixel of the window."""
    g = expect.windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    each = grad_y / _divisor(x, g, count_include_pad, divisor_override)
    grad_wide = padded(np.zeros_like(x), g.pad)
    for _, _, grad_pixels in taps(grad_wide, g):
        grad_pixels += each
    return inside(grad_wide, g.pad)


def _divisor(x: Array, g: expect.Windows, count_include_pad: bool, override: int | None) -> Array | int:
    """The divisor of each window: (h, w), or one number for all."""
    expect.divisor(override)
    if override is not None:
        return override
    counts = []
    for n, k, s, count, (pad, _) in zip(x.shape[2:], g.kernel, g.stride, g.size, g.pad, strict=True):
        start = np.arange(count, like=x) * s - pad
        end = np.minimum(start + k, n + pad)
        counts.append(end - start if count_include_pad else np.minimum(end, n) - np.maximum(start, 0))
    return (counts[0][:, None] * counts[1]).astype(x.dtype)


def adaptive_avg_pool2d(x: Array, *, output_size: Sequence[int]) -> Array:
    """The mean of window (u, v): rows ``floor(u H / h)`` to ``ceil((u + 1) H / h)``, columns likewise.

    Args:
        x: Images (N, C, H, W).
        output_size: (h, w).
    """
    y = np.zeros_like(x, shape=(*x.shape[:2], *output_size))
    for u, v, rows, columns in _adaptive(x, output_size):
        window = x[:, :, rows, columns]
        y[:, :, u, v] = window.sum((2, 3), dtype=np.float64) / (window.shape[2] * window.shape[3])
    return y


def adaptive_avg_pool2d_backward(grad_y: Array, x: Array, *, output_size: Sequence[int]) -> Array:
    """Add the gradient of each window, divided by its number of pixels, to every pixel of the window.

    Raises:
        RuntimeError: There are no windows.
    """
    expect.some_windows("adaptive_avg_pool2d", grad_y)
    grad_x = np.zeros_like(x)
    for u, v, rows, columns in _adaptive(x, output_size):
        window = grad_x[:, :, rows, columns]
        window += (grad_y[:, :, u, v] / max(1, window.shape[2] * window.shape[3]))[:, :, None, None]
    return grad_x


def adaptive_max_pool2d(x: Array, *, output_size: Sequence[int]) -> tuple[Array, Array]:
    """The maximum of each window of `adaptive_avg_pool2d`, and the place of the pixel that won, as int64.

    Of equal pixels the first wins, of several NaN the last.
    """
    y = np.zeros_like(x, shape=(*x.shape[:2], *output_size))
    winner = np.zeros_like(y, dtype=np.int64)
    places = np.broadcast_to(np.arange(prod(x.shape[2:]), like=x).reshape(1, 1, *x.shape[2:]), x.shape)
    for u, v, rows, columns in _adaptive(x, output_size):
        count = (rows.stop - rows.start) * (columns.stop - columns.start)
        window, place = (array[:, :, rows, columns].reshape(*x.shape[:2], count) for array in (x, places))
        nan = np.isnan(window)
        last_nan = count - 1 - nan[:, :, ::-1].argmax(2)
        index = np.where(nan.any(2), last_nan, window.argmax(2))[:, :, None]
        y[:, :, u, v] = np.take_along_axis(window, index, 2)[:, :, 0]
        winner[:, :, u, v] = np.take_along_axis(place, index, 2)[:, :, 0]
    return y, winner


def adaptive_max_pool2d_backward(grad_y: Array, x: Array, indices: Array, *, output_size: Sequence[int]) -> Array:
    """Add the gradient of each window to the pixel that won: `add_at`.

    Raises:
        RuntimeError: There are no windows.
    """
    expect.some_windows("adaptive_max_pool2d", grad_y)
    return add_at(grad_y, x, indices)


def _adaptive(x: Array, output_size: Sequence[int]) -> Iterator[tuple[int, int, slice, slice]]:
    """``(u, v, rows, columns)`` of each window of an adaptive pooling."""
    for u, v in product(*map(range, output_size)):
        rows, columns = (
            slice(k * n // size, -(-(k + 1) * n // size))
            for k, n, size in zip((u, v), x.shape[2:], output_size, strict=True)
        )
        yield u, v, rows, columns


# ---- volumes (N, C, D, H, W): within each frame (H, W), and then between frames


def max_pool3d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """`max_pool2d` along three axes.

    Args:
        x: Volumes (N, C, D, H, W).
        kernel_size: Size of the window, one number or (frames, rows, columns); so are the next three.
        stride: As of `max_pool2d`.
        padding: As of `max_pool2d`.
        dilation: As of `max_pool2d`.
        ceil_mode: As of `max_pool2d`.

    Raises:
        NotImplementedError, TypeError, RuntimeError: As `max_pool2d`.
    """
    y, _ = max_pool3d_with_indices(
        x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    return y


def max_pool3d_with_indices(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """`max_pool3d`, and for each output the place ``(frame * H + row) * W + column`` of the voxel that won, as int64.

    Of equal voxels the first wins, of several NaN the last: it is that of its frame, in the first or last such frame.
    """
    inside, along = expect.frames("max_pool3d", x, kernel_size, stride, padding, dilation, ceil_mode)
    best, places = max_pool2d_with_indices(_frames(x), **inside)
    y, winner = max_pool2d_with_indices(_stacked(best, x), **along)
    size = (*y.shape[:3], *best.shape[2:])
    return y.reshape(size), _voxels(places, winner, x).reshape(size)


def max_pool3d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """Add the gradient of each window to the voxel that won: between frames, and then within each frame."""
    inside, along = expect.frames("max_pool3d", x, kernel_size, stride, padding, dilation, ceil_mode)
    best = max_pool2d(_frames(x), **inside)
    grad_best = max_pool2d_backward(_stacked(grad_y, grad_y), _stacked(best, x), **along)
    return max_pool2d_backward(grad_best.reshape(best.shape), _frames(x), **inside).reshape(x.shape)


def avg_pool3d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`avg_pool2d` along three axes: the mean of the means of each frame. Arguments as `max_pool3d`."""
    inside, along = expect.frames("avg_pool3d", x, kernel_size, stride, padding, 1, ceil_mode)
    expect.divisor(divisor_override)
    first = None if divisor_override is None else 1
    mean = avg_pool2d(_frames(x), **inside, count_include_pad=count_include_pad, divisor_override=first)
    y = avg_pool2d(_stacked(mean, x), **along, count_include_pad=count_include_pad, divisor_override=divisor_override)
    return y.reshape(*y.shape[:3], *mean.shape[2:])


def avg_pool3d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Divide the gradient of each window among its frames, and then among the pixels of each frame."""
    inside, along = expect.frames("avg_pool3d", x, kernel_size, stride, padding, 1, ceil_mode)
    expect.divisor(divisor_override)
    first, pixels = None if divisor_override is None else 1, grad_y.shape[3] * grad_y.shape[4]
    means = np.zeros_like(x, shape=(*x.shape[:3], pixels))
    grad_mean = avg_pool2d_backward(
        _stacked(grad_y, grad_y), means, **along, count_include_pad=count_include_pad, divisor_override=divisor_override
    )
    grad_mean = grad_mean.reshape(x.shape[0], x.shape[1] * x.shape[2], *grad_y.shape[3:])
    grad_x = avg_pool2d_backward(
        grad_mean, _frames(x), **inside, count_include_pad=count_include_pad, divisor_override=first
    )
    return grad_x.reshape(x.shape)


def adaptive_avg_pool3d(x: Array, *, output_size: Sequence[int]) -> Array:
    """`adaptive_avg_pool2d` along three axes: the mean of the means of each frame.

    Args:
        x: Volumes (N, C, D, H, W).
        output_size: (d, h, w).
    """
    depth, *size = output_size
    mean = adaptive_avg_pool2d(_frames(x), output_size=size)
    y = adaptive_avg_pool2d(_stacked(mean, x), output_size=(depth, prod(size)))
    return y.reshape(*x.shape[:2], *output_size)


def adaptive_avg_pool3d_backward(grad_y: Array, x: Array, *, output_size: Sequence[int]) -> Array:
    """Divide the gradient of each window among its frames, and then among the pixels of each frame.

    Raises:
        RuntimeError: There are no windows.
    """
    expect.some_windows("adaptive_avg_pool3d", grad_y)
    depth, *size = output_size
    means = np.zeros_like(x, shape=(*x.shape[:3], prod(size)))
    grad_mean = adaptive_avg_pool2d_backward(_stacked(grad_y, grad_y), means, output_size=(depth, prod(size)))
    grad_mean = grad_mean.reshape(x.shape[0], x.shape[1] * x.shape[2], *size)
    return adaptive_avg_pool2d_backward(grad_mean, _frames(x), output_size=size).reshape(x.shape)


def adaptive_max_pool3d(x: Array, *, output_size: Sequence[int]) -> tuple[Array, Array]:
    """`adaptive_max_pool2d` along three axes, with the places of `max_pool3d_with_indices`."""
    depth, *size = output_size
    best, places = adaptive_max_pool2d(_frames(x), output_size=size)
    y, winner = adaptive_max_pool2d(_stacked(best, x), output_size=(depth, prod(size)))
    shape = (*x.shape[:2], *output_size)
    return y.reshape(shape), _voxels(places, winner, x).reshape(shape)


def adaptive_max_pool3d_backward(grad_y: Array, x: Array, indices: Array, *, output_size: Sequence[int]) -> Array:
    """Add the gradient of each window to the voxel that won: `add_at`.

    Raises:
        RuntimeError: There are no windows.
    """
    expect.some_windows("adaptive_max_pool3d", grad_y)
    return add_at(grad_y, x, indices)


def _frames(x: Array) -> Array:
    """Volumes (N, C, D, H, W) as images (N, C D, H, W), one for each frame."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _stacked(y: Array, x: Array) -> Array:
    """Results for the frames of ``x`` as images (N, C, D, h w), with a column for each pixel of a frame."""
    return y.reshape(*x.shape[:3], y.shape[-2] * y.shape[-1])


def _voxels(places: Array, winner: Array, x: Array) -> Array:
    """Of each column and each window along D, the place of the voxel that won.

    Args:
        places: Of the pixel that won in each window of each frame.
        winner: Of the frame that won in each window of each column: a place in images (D, h w).
        x: The volumes.
    """
    frame = winner // (places.shape[-2] * places.shape[-1])
    return frame * prod(x.shape[3:]) + np.take_along_axis(_stacked(places, x), frame, 2)
