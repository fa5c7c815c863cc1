"""Batch-last memory: images that are (N, C, H, W) to the caller, and (C, H, W, N) in memory.

It is a third memory format beside contiguous and channels_last, and like those it travels in the strides of an array
from one operation to the next. In it a convolution needs no transposes of input, output and gradient, a channel is one
run of memory, and a convolution with a 1x1 kernel is one matrix product.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.types import Array


def is_batch_last(x: Array) -> bool:
    """Whether (N, C, ...) is (C, ..., N) in memory, and not contiguous as it is; an array of two axes never is."""
    return bool(x.ndim > 2 and not x.flags.c_contiguous and pixels(x).flags.c_contiguous)


def pixels(x: Array) -> Array:
    """The view (C, ..., N) of (N, C, ...)."""
    return x.transpose(*range(1, x.ndim), 0)


def images(pixels: Array) -> Array:
    """The view (N, C, ...) of (C, ..., N)."""
    return pixels.transpose(-1, *range(pixels.ndim - 1))


def packed(x: Array, name: str) -> Array:
    """``pixels(x)`` as it is if it is contiguous, otherwise copied to the scratch memory ``name``."""
    view = pixels(x)
    if view.flags.c_contiguous:
        return view
    copy = blocks.scratch(name, view.shape, like=x)
    copy[...] = view
    return copy


def empty(shape: Sequence[int], *, like: Array, dtype: Any = None) -> Array:
    """A new output of ``shape`` (N, C, ...) in batch-last memory, of ``like``'s dtype unless given."""
    return images(blocks.empty((*shape[1:], shape[0]), like=like, dtype=dtype))


def empty_as(x: Array, shape: Sequence[int]) -> Array:
    """A new output of ``shape`` (N, C, ...), batch-last if ``x`` is, contiguous otherwise."""
    return empty(shape, like=x) if is_batch_last(x) else blocks.empty(shape, like=x)


def empty_in_format(x: Array, shape: Sequence[int]) -> Array:
    """A new output of ``shape`` (N, C, ...), channels_last or batch-last if ``x`` is, contiguous otherwise."""
    if x.shape[1] > 1 and x.itemsize == x.strides[1] < x.strides[-1] and x.strides[2] <= x.strides[0]:
        n, c, *image = shape
        return blocks.empty((n, *image, c), like=x).transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
    return empty_as(x, shape)


def copy_in_format(x: Array, values: Array) -> Array:
    """A copy of ``values`` (N, C, ...) as `empty_in_format`."""
    copy = empty_in_format(x, values.shape)
    copy[...] = values
    return copy


def batch_last(x: Array) -> Array:
    """A copy of ``x`` (N, C, ...) in batch-last memory."""
    return images(np.ascontiguousarray(pixels(x)))
