"""Exercises 5 and 9: pooling, and dropout."""

from typing import Any

import numpy as np

from cnn_lightning.ops import dropout, pool
from cnn_lightning.tools.learn.course.exercise import Array, Case, Exercise, Suspect, Task, Training, X, random, whole

_APART = Case({"x": random(40, 2, 3, 6, 6)}, {"kernel_size": 2, "stride": 2}, label="windows side by side")
_OVERLAP = Case({"x": random(41, 2, 3, 7, 7)}, {"kernel_size": 3, "stride": 2}, label="windows that overlap")
_TIES = Case({"x": whole(42, 0, 1, 2, 3, 6, 6)}, {"kernel_size": 2, "stride": 2}, "ties", "where pixels are equal")


def _windows(grad_y: Array, kernel_size: int, stride: int) -> Any:
    """``(window, grad_y of the window)`` for each place, row by row."""
    for u, v in np.ndindex(*grad_y.shape[2:]):
        rows = slice(u * stride, u * stride + kernel_size)
        columns = slice(v * stride, v * stride + kernel_size)
        yield (slice(None), slice(None), rows, columns), grad_y[:, :, u, v, None, None]


def _equal(window: Array) -> Array:
    """Where a window (N, C, k, k) has its maximum."""
    return np.asarray(window == window.max((2, 3), keepdims=True))


def _one_of(equal: Array, last: bool = False) -> Array:
    """The first of the places that are marked in a window, or the last."""
    flat = equal.reshape(*equal.shape[:2], -1)
    place = flat.shape[2] - 1 - flat[:, :, ::-1].argmax(2) if last else flat.argmax(2)
    return np.asarray(np.arange(flat.shape[2]) == place[:, :, None]).reshape(equal.shape)


def _to_all_that_are_equal(grad_y: Array, x: Array, kernel_size: int, stride: int) -> Array:
    grad_x = np.zeros_like(x)
    for window, upstream in _windows(grad_y, kernel_size, stride):
        grad_x[window] += _equal(x[window]) * upstream
    return grad_x


def _to_the_whole_window(grad_y: Array, x: Array, kernel_size: int, stride: int) -> Array:
    grad_x = np.zeros_like(x)
    for window, upstream in _windows(grad_y, kernel_size, stride):
        grad_x[window] += upstream
    return grad_x


def _last_window_alone(grad_y: Array, x: Array, kernel_size: int, stride: int) -> Array:
    grad_x = np.zeros_like(x)
    for window, upstream in _windows(grad_y, kernel_size, stride):
        grad_x[window] = _one_of(_equal(x[window])) * upstream
    return grad_x


def _to_the_last(grad_y: Array, x: Array, kernel_size: int, stride: int) -> Array:
    grad_x = np.zeros_like(x)
    for window, upstream in _windows(grad_y, kernel_size, stride):
        grad_x[window] += _one_of(_equal(x[window]), last=True) * upstream
    return grad_x


MAX_POOL = Exercise(
    number=5,
    stem="ex05_max_pool2d",
    title="Max-pooling: the winner takes it all",
    write=("max_pool2d_backward",),
    tasks=(
        Task("max_pool2d", pool.max_pool2d, ("the output",), (_APART, _OVERLAP)),
        Task(
            "max_pool2d_backward",
            pool.max_pool2d_backward,
            (X,),
            (_APART, _OVERLAP, _TIES),
            (
                Suspect(
                    0,
                    "goes to the whole window, not to the pixel that won",
                    "only the largest pixel of a window changes its output",
                    _to_the_whole_window,
                ),
                Suspect(
                    0,
                    "goes to the whole window, divided among its pixels: that is average pooling",
                    "only the largest pixel of a window changes its output",
                    lambda grad_y, x, kernel_size, stride: (
                        _to_the_whole_window(grad_y, x, kernel_size, stride) / kernel_size**2
                    ),
                ),
                Suspect(
                    0,
                    "is overwritten where windows overlap: a pixel that wins several windows gets the last one's alone",
                    "add to grad_x (+=): what several windows give to one pixel adds up",
                    _last_window_alone,
                ),
                Suspect(
                    0,
                    "lacks the factor grad_y: it counts how often a pixel won",
                    "the pixel that won gets grad_y of its window",
                    lambda grad_y, x, kernel_size, stride: _to_all_that_are_equal(
                        np.ones_like(grad_y), x, kernel_size, stride
                    ),
                ),
                Suspect(
                    0,
                    "goes to every pixel that is equal to the maximum: of equal pixels the first alone wins",
                    "find one place for each window, by argmax of the flat window: it gives the first",
                    _to_all_that_are_equal,
                ),
                Suspect(
                    0,
                    "ignores the stride: the windows are those of stride 1",
                    "window (u, v) begins at row u*stride and column v*stride",
                    lambda grad_y, x, kernel_size, stride: _to_all_that_are_equal(grad_y, x, kernel_size, 1),
                ),
                Suspect(
                    0,
                    "goes to the last of equal pixels: the first wins",
                    "argmax gives the first place; in a loop, > keeps the first and >= the last",
                    _to_the_last,
                ),
            ),
            forward="max_pool2d",
            forward_formula=pool.max_pool2d,
            saved=("x",),
        ),
    ),
    hints=(
        "Go through the windows as the forward does. Which pixel of a window gets grad_y[:, :, u, v]?",
        "The place of the winner is the argmax of the flat window. Two windows may have the same winner: add.",
        "For each (u, v): flat = window.reshape(n, c, k * k); won = np.arange(flat.shape[2]) == "
        "flat.argmax(2)[:, :, None]; add won * grad_y[:, :, u, v, None] to the window of grad_x, in its shape.",
    ),
    training=Training({"pool*": "MaxPool2d"}, check="--options kernel_size=2"),
)

_AVERAGED = tuple(
    Case({"x": random(50 + k, 2, 3, 12, 12)}, {"kernel_size": k}, label=f"windows of {k} x {k}") for k in (2, 3)
)


def _dropped(p: float) -> Case:
    keep = (np.random.default_rng(60).random((4, 3, 5)) >= p) * 1.0
    return Case({"x": random(61, 4, 3, 5), "keep": keep}, {"p": p}, label=f"p = {p}")


_DROPPED = _dropped(0.2), _dropped(0.6)


def _repeated(grad_y: Array, kernel_size: int) -> Array:
    return grad_y.repeat(kernel_size, 2).repeat(kernel_size, 3)


AVERAGE_DROPOUT = Exercise(
    number=9,
    stem="ex09_average_dropout",
    title="Average pooling and dropout: factors",
    write=("avg_pool2d_backward", "dropout", "dropout_backward"),
    tasks=(
        Task("avg_pool2d", pool.avg_pool2d, ("the output",), _AVERAGED),
        Task(
            "avg_pool2d_backward",
            pool.avg_pool2d_backward,
            (X,),
            _AVERAGED,
            (
                Suspect(
                    0,
                    "lacks the factor 1/k^2: the forward is a mean of k x k pixels",
                    "divide by kernel_size ** 2",
                    lambda grad_y, x, kernel_size: _repeated(grad_y, kernel_size),
                ),
                Suspect(
                    0,
                    "is divided by k, not by k^2",
                    "a window has kernel_size rows and as many columns",
                    lambda grad_y, x, kernel_size: _repeated(grad_y, kernel_size) / kernel_size,
                ),
                Suspect(
                    0,
                    "repeats grad_y as tiles side by side, not pixel by pixel",
                    "np.repeat repeats each element, np.tile the whole array",
                    lambda grad_y, x, kernel_size: np.tile(grad_y, (1, 1, kernel_size, kernel_size)) / kernel_size**2,
                ),
            ),
            forward="avg_pool2d",
            forward_formula=pool.avg_pool2d,
            saved=("x",),
        ),
        Task(
            "dropout",
            dropout.dropout,
            ("the output",),
            _DROPPED,
            (
                Suspect(
                    0,
                    "lacks the factor 1/(1 - p): what stays must be made larger",
                    "divide by 1 - p, so that the expected value of y is x",
                    lambda x, keep, p: x * keep,
                ),
                Suspect(
                    0,
                    "is divided by p, not by 1 - p",
                    "p is the probability to drop; what stays has the probability 1 - p",
                    lambda x, keep, p: x * keep / p,
                ),
                Suspect(
                    0,
                    "is multiplied by 1 - p, not divided by it",
                    "what stays must be made larger, so that the expected value of y is x",
                    lambda x, keep, p: x * keep * (1 - p),
                ),
                Suspect(
                    0,
                    "has the mask the wrong way round: keep is 1 for an element that stays",
                    "multiply by keep, not by 1 - keep",
                    lambda x, keep, p: x * (1 - keep) / (1 - p),
                ),
            ),
        ),
        Task(
            "dropout_backward",
            dropout.dropout_backward,
            (X,),
            _DROPPED,
            (
                Suspect(
                    0,
                    "lacks the mask: an element that was dropped gets no gradient",
                    "multiply by keep, as the forward does",
                    lambda grad_y, keep, p: grad_y / (1 - p),
                ),
                Suspect(
                    0,
                    "lacks the factor 1/(1 - p) of the forward",
                    "the backward has the same factor as the forward: keep / (1 - p)",
                    lambda grad_y, keep, p: grad_y * keep,
                ),
                Suspect(
                    0,
                    "is multiplied by 1 - p, not divided by it",
                    "the backward has the same factor as the forward: keep / (1 - p)",
                    lambda grad_y, keep, p: grad_y * keep * (1 - p),
                ),
                Suspect(
                    0,
                    "is grad_y as it is: it lacks the mask and the factor 1/(1 - p)",
                    "the backward has the same factor as the forward: keep / (1 - p)",
                    lambda grad_y, keep, p: grad_y,
                ),
            ),
            forward="dropout",
            forward_formula=dropout.dropout,
            saved=("keep",),
        ),
    ),
    hints=(
        "Which factor does each x have in y? The backward has the same one.",
        "In the mean of a window of k x k pixels, each pixel has the factor 1/k^2. In dropout, each x has the factor "
        "keep / (1 - p).",
        "grad_y.repeat(k, axis=2).repeat(k, axis=3) brings grad_y to every pixel of its window: divide it by k**2.",
    ),
    training=Training(
        {"pool*": "AvgPool2d", "flatten": "Dropout"}, ("--trainer.max_epochs", "30"), "--options kernel_size=2"
    ),
)
