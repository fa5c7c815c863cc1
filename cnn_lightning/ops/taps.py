"""Windows that slide over images, one pixel of the window at a time.

A tap is one pixel (i, j) of a window. The pixels of the image under it, for all positions of the window, are a view of
the image: every ``stride``-th pixel, from row ``i * dilation`` and column ``j * dilation`` on.
"""

from collections.abc import Iterator

import numpy as np

from cnn_lightning.ops.expect import Border, Geometry, Transposed, Windows
from cnn_lightning.ops.types import Array

Window = Geometry | Transposed | Windows
"""A window of ``kernel`` pixels at ``size`` positions (rows and columns of the output), with stride and dilation."""


def taps(wide: Array, window: Window) -> Iterator[tuple[int, int, Array]]:
    """``(i, j, pixels)`` for each tap: a view (N, C, H', W') of the pixels of ``wide`` under it."""
    (dy, dx), (sy, sx), (height, width) = window.dilation, window.stride, window.size
    for i, j in np.ndindex(*window.kernel):
        rows = slice(i * dy, i * dy + sy * (height - 1) + 1, sy)
        columns = slice(j * dx, j * dx + sx * (width - 1) + 1, sx)
        yield i, j, wide[:, :, rows, columns]


def padded(x: Array, pad: tuple[Border, Border], value: float = 0) -> Array:
    """Images (N, C, H, W) with borders of ``value``: ``pad`` rows above and below, columns left and right."""
    (top, bottom), (left, right) = pad
    n, c, height, width = x.shape
    wide = np.full_like(x, value, shape=(n, c, top + height + bottom, left + width + right))
    wide[:, :, top : top + height, left : left + width] = x
    return wide


def inside(wide: Array, pad: tuple[Border, Border]) -> Array:
    """The image inside the borders that `padded` added: a view."""
    (top, bottom), (left, right) = pad
    return wide[:, :, top : wide.shape[2] - bottom, left : wide.shape[3] - right]


def rows(images: Array, groups: int) -> Array:
    """(N, C, H, W) as matrices (N, groups, C / groups, H * W): a row for each channel."""
    n, c, height, width = images.shape
    return images.reshape(n, groups, c // groups, height * width)


# ---- volumes: their frames are images


def frames(x: Array, pad: Border = (0, 0)) -> Array:
    """Volumes (N, C, D, H, W) as frames (D, N, C, H, W), with ``pad`` frames of zeros before and after."""
    n, c, depth, height, width = x.shape
    before, after = pad
    deep = np.zeros_like(x, shape=(before + depth + after, n, c, height, width))
    deep[before : before + depth] = x.transpose(2, 0, 1, 3, 4)
    return deep


def as_batch(frames: Array) -> Array:
    """Frames (D, N, C, H, W) as images (D * N, C, H, W)."""
    depth, n, *image = frames.shape
    return frames.reshape(depth * n, *image)


def volumes(frames: Array, pad: Border = (0, 0)) -> Array:
    """Frames (D, N, C, H, W) as volumes (N, C, D, H, W), without the ``pad`` frames that `frames` added: a view."""
    before, after = pad
    return frames[before : frames.shape[0] - after].transpose(1, 2, 0, 3, 4)
