"""Exercises 6, 7, 8 and 12: convolution, its gradients, stride and padding, and blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cnn_lightning.ops import conv
from cnn_lightning.tools.learn.course.exercise import (
    BIAS,
    WEIGHT,
    Array,
    Case,
    Exercise,
    Suspect,
    Task,
    Training,
    X,
    mean_over_batch,
    random,
)


def _images(seed: int, n: int, size: int, c: int, o: int, k: int, **options: Any) -> Case:
    point = {
        "x": random(seed, n, c, size, size),
        "weight": random(seed + 1, o, c, k, k),
        "bias": random(seed + 2, o),
    }
    words = ", ".join(f"{name} {value}" for name, value in options.items())
    return Case(point, options, label=f"{c} channels to {o}, kernel {k} x {k}" + (f", {words}" if words else ""))


_CHECK = "--options in_channels=3 out_channels=2 kernel_size=3"
_SMALL = _images(70, 3, 6, 2, 3, 3), _images(80, 2, 5, 3, 3, 2)

FORWARD = Exercise(
    number=6,
    stem="ex06_conv2d",
    title="Convolution: a kernel that slides",
    write=("conv2d",),
    tasks=(
        Task(
            "conv2d",
            conv.conv2d,
            ("the output",),
            _SMALL,
            (
                Suspect(
                    0,
                    "has the kernel flipped: it is upside down and mirrored",
                    "pixel (u + i, v + j) is multiplied by weight (i, j); only the gradient of x flips the kernel",
                    lambda x, weight, bias: conv.conv2d(x, weight[:, :, ::-1, ::-1], bias),
                ),
                Suspect(
                    0,
                    "has the rows and columns of the kernel swapped",
                    "i counts rows, of the weight and of the image; j counts columns",
                    lambda x, weight, bias: conv.conv2d(x, weight.swapaxes(2, 3), bias),
                ),
                Suspect(
                    0,
                    "lacks the last row and the last column",
                    "the kernel has H - kh + 1 places in a column of pixels, not H - kh",
                    lambda x, weight, bias: conv.conv2d(x, weight, bias)[:, :, :-1, :-1],
                ),
                Suspect(
                    0,
                    "lacks the bias",
                    "add bias[:, None, None]: one number for each output channel",
                    lambda x, weight, bias: conv.conv2d(x, weight),
                ),
                Suspect(
                    0,
                    "has the bias once for each pixel of the kernel",
                    "add the bias once, after the loop",
                    lambda x, weight, bias: conv.conv2d(x, weight, bias * weight[0, 0].size),
                ),
                Suspect(
                    0,
                    "has the bias once for each pixel of the kernel and each channel",
                    "add the bias once, after the loops",
                    lambda x, weight, bias: conv.conv2d(x, weight, bias * weight[0].size),
                ),
                Suspect(
                    0,
                    "lacks the sum over the input channels: it is that of the last channel alone",
                    "add to y (+=), over c as well as over i and j",
                    lambda x, weight, bias: conv.conv2d(x[:, -1:], weight[:, -1:], bias),
                ),
                Suspect(
                    0,
                    "lacks the sum over the pixels of the kernel: it is that of the last one alone",
                    "add to y (+=), for each (i, j)",
                    lambda x, weight, bias: conv.conv2d(
                        x[:, :, weight.shape[2] - 1 :, weight.shape[3] - 1 :], weight[:, :, -1:, -1:], bias
                    ),
                ),
            ),
        ),
    ),
    hints=(
        "Begin with y full of zeros. For each (i, j), which pixels of x does weight[:, :, i, j] meet?",
        "They are x[:, :, i : i + H', j : j + W']: (N, C, H', W'). The weight (O, C) times these, summed over C, is "
        "(N, O, H', W').",
        'y += np.einsum("oc,nchw->nohw", weight[:, :, i, j], pixels, optimize=True), and the bias at the end.',
    ),
    training=Training({"conv*": "Conv2dForward"}, check=_CHECK),
)

Gradient = Callable[..., Array]


def _of(result: int, **change: Callable[[Array], Array]) -> Gradient:
    """The gradient ``result`` of arguments that are changed first."""

    def wrong(grad_y: Array, x: Array, weight: Array, **options: int) -> Array:
        given = {"grad_y": grad_y, "x": x, "weight": weight}
        given |= {name: function(given[name]) for name, function in change.items()}
        found: Array = conv.conv2d_backward(given["grad_y"], given["x"], given["weight"], **options)[result]
        return found

    return wrong


def _weight_gradient(change: Callable[[Array], Array]) -> Gradient:
    def wrong(grad_y: Array, x: Array, weight: Array, **options: int) -> Array:
        return change(conv.conv2d_backward(grad_y, x, weight, **options)[1])

    return wrong


def _overwritten_by_taps(grad_y: Array, x: Array, weight: Array, stride: int = 1, padding: int = 0) -> Array:
    wide = _with_border(x, padding) * 0
    (rows, columns), (kh, kw) = grad_y.shape[2:], weight.shape[2:]
    for i, j in np.ndindex(kh, kw):
        pixels = np.einsum("oc,nohw->nchw", weight[:, :, i, j], grad_y)
        wide[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride] = pixels
    return _without_border(wide, padding)


def _overwritten_by_windows(grad_y: Array, x: Array, weight: Array, stride: int = 1, padding: int = 0) -> Array:
    wide = _with_border(x, padding) * 0
    kh, kw = weight.shape[2:]
    for u, v in np.ndindex(*grad_y.shape[2:]):
        window = np.einsum("ocij,no->ncij", weight, grad_y[:, :, u, v])
        wide[:, :, u * stride : u * stride + kh, v * stride : v * stride + kw] = window
    return _without_border(wide, padding)


def _with_border(x: Array, padding: int) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def _without_border(wide: Array, padding: int) -> Array:
    return wide[:, :, padding : wide.shape[2] - padding, padding : wide.shape[3] - padding]


_ADD = "add to grad_x (+=): a pixel lies under several pixels of the kernel, and their gradients add up"
_SUSPECTS = (
    Suspect(
        0,
        "has the kernel flipped once too often, or not at all: the kernel is upside down",
        "pixel (u + i, v + j) gets grad_y (u, v) times weight (i, j); in one convolution, the kernel is flipped",
        _of(0, weight=lambda weight: weight[:, :, ::-1, ::-1]),
    ),
    Suspect(
        0,
        "has the rows and columns of the kernel swapped",
        "i counts rows, of the weight and of the image; j counts columns",
        _of(0, weight=lambda weight: weight.swapaxes(2, 3)),
    ),
    Suspect(0, "is overwritten where places of the kernel overlap", _ADD, _overwritten_by_taps),
    Suspect(0, "is overwritten where windows overlap", _ADD, _overwritten_by_windows),
    Suspect(
        0,
        "lacks the sum over the output channels: it is that of the last channel alone",
        "every output channel sees the pixel: sum over o",
        lambda grad_y, x, weight, **options: conv.conv2d_backward(grad_y[:, -1:], x, weight[-1:], **options)[0],
    ),
    Suspect(
        1,
        "is that of the last image alone: it is overwritten, or lacks the sum over the batch",
        "every image adds to the gradient of the weight: sum over n",
        lambda grad_y, x, weight, **options: conv.conv2d_backward(grad_y[-1:], x[-1:], weight, **options)[1],
    ),
    Suspect(
        1,
        "is that of the first image alone: it lacks the sum over the batch",
        "every image adds to the gradient of the weight: sum over n",
        lambda grad_y, x, weight, **options: conv.conv2d_backward(grad_y[:1], x[:1], weight, **options)[1],
    ),
    mean_over_batch(
        1, lambda grad_y, x, weight, **options: conv.conv2d_backward(grad_y, x, weight, **options)[1] / len(x)
    ),
    Suspect(
        1,
        "is the mean over the positions: it is divided by H' W', and must be the sum",
        "add over all positions of the kernel",
        lambda grad_y, x, weight, **options: conv.conv2d_backward(grad_y, x, weight, **options)[1] / grad_y[0, 0].size,
    ),
    Suspect(
        1,
        "has the kernel flipped: it is upside down and mirrored",
        "weight (i, j) meets the pixels x[:, :, i : i + H', j : j + W']: the same ones as in the forward",
        _weight_gradient(lambda gradient: gradient[:, :, ::-1, ::-1]),
    ),
    Suspect(
        1,
        "has the two channel axes swapped: (C, O, kh, kw)",
        "the output channel comes first, as in the weight",
        _weight_gradient(lambda gradient: gradient.swapaxes(0, 1)),
    ),
    Suspect(
        2,
        "lacks the sum over the positions: the bias is added to every pixel of the output",
        "sum over the batch and over both axes of the image: axis=(0, 2, 3)",
        lambda grad_y, x, weight, **options: grad_y.sum(0),
    ),
    Suspect(
        2,
        "lacks the sum over the batch",
        "sum over the batch and over both axes of the image: axis=(0, 2, 3)",
        lambda grad_y, x, weight, **options: grad_y.sum((2, 3)),
    ),
    Suspect(
        2,
        "is a mean, and must be the sum over batch and positions",
        "sum over axis=(0, 2, 3), and divide by nothing",
        lambda grad_y, x, weight, **options: grad_y.mean((0, 2, 3)),
    ),
    mean_over_batch(2, lambda grad_y, x, weight, **options: grad_y.sum((0, 2, 3)) / len(x)),
)

BACKWARD = Exercise(
    number=7,
    stem="ex07_conv2d_backward",
    title="The gradients of a convolution",
    write=("conv2d_backward",),
    tasks=(
        Task("conv2d", conv.conv2d, ("the output",), _SMALL),
        Task(
            "conv2d_backward",
            conv.conv2d_backward,
            (X, WEIGHT, BIAS),
            _SMALL,
            _SUSPECTS,
            forward="conv2d",
            forward_formula=conv.conv2d,
            saved=("x", "weight"),
        ),
    ),
    hints=(
        "Use the loop of the forward. In it, y += weight[:, :, i, j] times pixels: what does each of the two get?",
        "weight[o, c, i, j] gets sum_{n, u, v} grad_y[n, o, u, v] pixels[n, c, u, v]; pixels[n, c, u, v] gets "
        "sum_o weight[o, c, i, j] grad_y[n, o, u, v].",
        'grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", grad_y, pixels), and add '
        "np.einsum(\"oc,nohw->nchw\", weight[:, :, i, j], grad_y) to grad_x[:, :, i : i + H', j : j + W'].",
    ),
    training=Training({"conv*": "Conv2dBackward"}, check=_CHECK),
)

_STRIDED = _images(90, 2, 7, 2, 3, 3, stride=2, padding=1), _images(100, 2, 8, 3, 2, 3, stride=1, padding=2)


def _border_kept(grad_y: Array, x: Array, weight: Array, stride: int, padding: int) -> Array:
    found: Array = conv.conv2d_backward(grad_y, _with_border(x, padding), weight, stride=stride)[0]
    return found


def _stride_forgotten(grad_y: Array, x: Array, weight: Array, stride: int, padding: int) -> tuple[Array, Array]:
    wide, (rows, columns) = _with_border(x, padding), grad_y.shape[2:]
    grad_wide, grad_weight = np.zeros_like(wide), np.zeros_like(weight)
    for i, j in np.ndindex(*weight.shape[2:]):
        place = slice(None), slice(None), slice(i, i + rows), slice(j, j + columns)
        grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", grad_y, wide[place])
        grad_wide[place] += np.einsum("oc,nohw->nchw", weight[:, :, i, j], grad_y)
    return _without_border(grad_wide, padding), grad_weight


_PIXELS = "take the pixels of the forward, wide[:, :, i : i + stride*H' : stride, ...], for both gradients"

STRIDE_PADDING = Exercise(
    number=8,
    stem="ex08_stride_padding",
    title="Stride and padding: the same pixels again",
    write=("conv2d_backward",),
    tasks=(
        Task("conv2d", conv.conv2d, ("the output",), _STRIDED),
        Task(
            "conv2d_backward",
            conv.conv2d_backward,
            (X, WEIGHT, BIAS),
            _STRIDED,
            (
                Suspect(
                    0,
                    "has the border of the padding still: it is larger than x",
                    "cut padding pixels off at each of the four sides",
                    _border_kept,
                ),
                Suspect(
                    0,
                    "is shifted by the padding: the border is cut off at the end only",
                    "cut padding pixels off at each of the four sides: grad_wide[:, :, p : p + H, p : p + W]",
                    lambda grad_y, x, weight, stride, padding: _border_kept(grad_y, x, weight, stride, padding)[
                        :, :, : x.shape[2], : x.shape[3]
                    ],
                ),
                Suspect(
                    0,
                    "has the border of the padding still at the end: it is cut off at the beginning only",
                    "cut padding pixels off at each of the four sides: grad_wide[:, :, p : p + H, p : p + W]",
                    lambda grad_y, x, weight, stride, padding: _border_kept(grad_y, x, weight, stride, padding)[
                        :, :, padding:, padding:
                    ],
                ),
                Suspect(
                    0,
                    "is shifted by the padding: the border is cut off at the beginning only",
                    "cut padding pixels off at each of the four sides: grad_wide[:, :, p : p + H, p : p + W]",
                    lambda grad_y, x, weight, stride, padding: _border_kept(grad_y, x, weight, stride, padding)[
                        :, :, -x.shape[2] :, -x.shape[3] :
                    ],
                ),
                Suspect(
                    0,
                    "ignores the stride: neighbours in grad_y are stride pixels apart in x",
                    _PIXELS,
                    lambda *arguments, **options: _stride_forgotten(*arguments, **options)[0],
                ),
                Suspect(
                    1,
                    "ignores the stride: neighbours in grad_y are stride pixels apart in x",
                    _PIXELS,
                    lambda *arguments, **options: _stride_forgotten(*arguments, **options)[1],
                ),
                *_SUSPECTS,
            ),
            forward="conv2d",
            forward_formula=conv.conv2d,
            saved=("x", "weight"),
        ),
    ),
    hints=(
        "Write the backward of exercise 7 for the padded image. Which pixels of it does the forward take?",
        "Both gradients use under(i, j, rows, columns, stride), as the forward does. grad_wide has the shape of the "
        "padded image; grad_x is what is inside of its border.",
        "wide = padded(x, padding); grad_wide = np.zeros_like(wide); in the loop r, c = under(...), then wide[:, :, r, "
        "c] for grad_weight and grad_wide[:, :, r, c] += ... for grad_x; at the end "
        "grad_wide[:, :, padding : padding + H, padding : padding + W].",
    ),
    training=Training({"conv*": "Conv2d"}, check=f"{_CHECK} stride=2 padding=1"),
)


# ---- blocks


def conv2d_blocks(x: Array, weight: Array, bias: Array, block: int) -> Array:
    """`conv.conv2d` without padding, for ``block`` images at a time."""
    rows, columns = x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1
    y = np.empty_like(x, shape=(len(x), len(weight), rows, columns))
    for start in range(0, len(x), block):
        some = slice(start, start + block)
        y[some] = conv.conv2d(x[some], weight, bias)
    return y


def most_bytes(x: Array, weight: Array, bias: Array, block: int) -> int:
    """Three times the output and the columns of a block: room for copies, too little for all columns."""
    rows, columns = x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1
    output, of_image = len(x) * len(weight) * rows * columns, weight[0].size * rows * columns
    return int(3 * x.itemsize * (output + block * of_image))


def _rest_of_zeros(x: Array, weight: Array, bias: Array, block: int) -> Array:
    y = conv.conv2d(x, weight, bias)
    y[len(x) // block * block :] = 0
    return y


_BATCH = _images(110, 10, 6, 2, 3, 3, block=4), _images(120, 7, 6, 3, 2, 2, block=3)
_MANY = Case(
    {"x": random(130, 65, 8, 14, 14), "weight": random(131, 4, 8, 3, 3), "bias": random(132, 4)},
    {"block": 4},
    rule="memory",
    label="for 65 images in blocks of 4",
)

BLOCKS = Exercise(
    number=12,
    stem="ex12_blocks",
    title="Blocks: the same numbers in less memory",
    write=("conv2d_blocks",),
    tasks=(
        Task(
            "conv2d_blocks",
            conv2d_blocks,
            ("the output",),
            (*_BATCH, _MANY),
            (
                Suspect(
                    0,
                    "lacks the last images: N is not a multiple of block, and the rest stays 0",
                    "go on until N: range(0, N, block) has a last, shorter block",
                    _rest_of_zeros,
                ),
                Suspect(
                    0,
                    "lacks the last images: N is not a multiple of block, and the rest is left out",
                    "go on until N: range(0, N, block) has a last, shorter block",
                    lambda x, weight, bias, block: conv.conv2d(x, weight, bias)[: len(x) // block * block],
                ),
                Suspect(
                    0,
                    "has the first block of images in every block",
                    "take x[start : start + block] for y[start : start + block]",
                    lambda x, weight, bias, block: conv.conv2d(x[np.arange(len(x)) % block], weight, bias),
                ),
                Suspect(
                    0,
                    "is that of the last block alone",
                    "write each block into its place of y",
                    lambda x, weight, bias, block: conv.conv2d(x[(len(x) - 1) // block * block :], weight, bias),
                ),
            ),
            most_bytes=most_bytes,
        ),
    ),
    hints=(
        "Make y once, for the whole batch. Then go through the batch in steps of block.",
        "y[start : start + block] = conv2d_whole(x[start : start + block], weight, bias), for start = 0, block, ...; a "
        "slice that goes beyond the end is cut, so the last block needs no case of its own.",
        "y = np.empty((len(x), O, H', W'), x.dtype), and for start in range(0, len(x), block): as above.",
    ),
    training=Training({"conv*": "Conv2dBlocks"}, check=_CHECK),
)
