"""Transposed convolution: the adjoint of convolution, as a forward.

A convolution computes one pixel from the patch under the kernel. The transposed convolution adds one pixel, times the
kernel, to the patch. Both gradients are those of `conv` with forward and backward exchanged.
"""

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.conv import bias_gradient
from cnn_lightning.ops.taps import as_batch, frames, inside, padded, rows, taps, volumes
from cnn_lightning.ops.types import Array, Pair


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Array:
    """Add every pixel of ``x``, times ``weight``, to its patch of the output; patches may overlap.

    ``y[n, o, u, v] = bias[o] + sum of weight[c, o, i, j] * x[n, c, p, q]`` over the channels ``c`` of ``o``'s group and
    all i, j, p, q with ``u = p*stride + i*dilation - padding``, ``v = q*stride + j*dilation - padding``.

    Args:
        x: Images (N, C, H, W).
        weight: Kernels (C, O / groups, kh, kw).
        bias: (O,) or None.
        stride: Step between the patches of neighbouring pixels, one number or (rows, columns).
        padding: Rows and columns removed at every side of the result.
        output_padding: Rows and columns added at its bottom and right.
        groups: Number of independent groups of channels.
        dilation: Step between the pixels of a patch.

    Returns:
        (N, O, (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1, likewise the width).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: A wrong number of axes, channels or groups, an output padding that is not smaller than stride or
            dilation, a result of negative size, or dtypes that differ or are not floating.
    """
    g = expect.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    w, pixels = weight.reshape(groups, x.shape[1] // groups, *weight.shape[1:]), rows(x, groups)
    wide = padded(np.zeros_like(x, shape=g.shape), g.pad)
    for i, j, patch in taps(wide, g):
        patch += (w[..., i, j].swapaxes(1, 2) @ pixels).reshape(patch.shape)
    y = inside(wide, g.pad)
    return y if bias is None else y + bias[:, None, None]


def conv_transpose2d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv_transpose2d`.

    ``grad_x = sum_{i, j} weight[..., i, j] @ grad_y under the tap``, which is a convolution of ``grad_y``;
    ``grad_weight[..., i, j] = sum_n x @ (grad_y under the tap)^T``; ``grad_bias`` is the sum of ``grad_y`` over images
    and pixels.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, H', W').
        x: The forward's input (N, C, H, W).
        weight: The forward's kernels (C, O / groups, kh, kw).
        stride: As in the forward; so are the other options.
        padding: See `conv_transpose2d`.
        output_padding: See `conv_transpose2d`.
        groups: See `conv_transpose2d`.
        dilation: See `conv_transpose2d`.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    g = expect.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups, dilation)
    w, pixels = weight.reshape(groups, x.shape[1] // groups, *weight.shape[1:]), rows(x, groups)
    grad_x, grad_w = np.zeros_like(pixels), np.zeros_like(w)
    for i, j, patch in taps(padded(grad_y, g.pad), g):
        upstream = rows(patch, groups)
        grad_x += w[..., i, j] @ upstream
        grad_w[..., i, j] = (pixels @ upstream.swapaxes(2, 3)).sum(0, dtype=np.float64)
    return grad_x.reshape(x.shape), grad_w.reshape(weight.shape), bias_gradient(grad_y)


# ---- along one axis: images of one row


def conv_transpose1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Array:
    """Add every sample of ``x``, times ``weight``, to its patch of the output: `conv_transpose2d` on images of one row.

    Args:
        x: Signals (N, C, L).
        weight: Kernels (C, O / groups, k).
        bias: (O,) or None.
        stride: Step between the patches of neighbouring samples.
        padding: Samples removed at both ends of the result.
        output_padding: Samples added at its end.
        groups: Number of independent groups of channels.
        dilation: Step between the samples of a patch.

    Returns:
        (N, O, (L - 1)*stride - 2*padding + dilation*(k - 1) + output_padding + 1).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: As `conv_transpose2d`.
    """
    options = expect.conv_transpose1d(x, weight, stride, padding, output_padding, dilation)._asdict()
    return conv_transpose2d(x[:, :, None], weight[:, :, None], bias, **options, groups=groups)[:, :, 0]


def conv_transpose1d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv_transpose1d`: those of `conv_transpose2d` on images of one row.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, L').
        x: The forward's input (N, C, L).
        weight: The forward's kernels (C, O / groups, k).
        stride: As in the forward; so are the other options.
        padding: See `conv_transpose1d`.
        output_padding: See `conv_transpose1d`.
        groups: See `conv_transpose1d`.
        dilation: See `conv_transpose1d`.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    options = expect.conv_transpose1d(x, weight, stride, padding, output_padding, dilation)._asdict()
    images = grad_y[:, :, None], x[:, :, None], weight[:, :, None]
    grad_x, grad_weight, grad_bias = conv_transpose2d_backward(*images, **options, groups=groups)
    return grad_x[:, :, 0], grad_weight[:, :, 0], grad_bias


# ---- of volumes: images for each depth tap of the kernel


def conv_transpose3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Array:
    """Add every pixel of ``x``, times ``weight``, to its patch of the output; patches may overlap.

    ``conv_transpose2d(x[n, :, p], weight[:, :, l])`` is added to frame ``p*stride + l*dilation - padding`` of the
    output, for each frame ``p`` of the input and each depth tap ``l``.

    Args:
        x: Volumes (N, C, D, H, W).
        weight: Kernels (C, O / groups, kd, kh, kw).
        bias: (O,) or None.
        stride: Step between the patches of neighbouring pixels, one number or (frames, rows, columns).
        padding: Frames, rows and columns removed at every side of the result.
        output_padding: Those added at its end, bottom and right.
        groups: Number of independent groups of channels.
        dilation: Step between the pixels of a patch.

    Returns:
        (N, O, (D - 1)*stride - 2*padding + dilation*(kd - 1) + output_padding + 1, likewise height and width).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: As `conv_transpose2d`.
    """
    g = expect.conv_transpose3d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    depth, *image = g.shape
    images, deep = as_batch(frames(x)), np.zeros_like(x, shape=(depth + sum(g.pad), *image))
    for i, under in enumerate(g.under):
        deep[under] += conv_transpose2d(images, weight[:, :, i], **g.options).reshape(deep[under].shape)
    return volumes(deep if bias is None else deep + bias[:, None, None], g.pad)


def conv_transpose3d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv_transpose3d`.

    Each depth tap gives the gradients of its own `conv_transpose2d`, from the frames of ``grad_y`` under it.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, D', H', W').
        x: The forward's input (N, C, D, H, W).
        weight: The forward's kernels (C, O / groups, kd, kh, kw).
        stride: As in the forward; so are the other options.
        padding: See `conv_transpose3d`.
        output_padding: See `conv_transpose3d`.
        groups: See `conv_transpose3d`.
        dilation: See `conv_transpose3d`.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    g = expect.conv_transpose3d(x, weight, None, stride, padding, output_padding, groups, dilation)
    x_frames, upstream = frames(x), frames(grad_y, g.pad)
    grad_frames, grad_weight = np.zeros_like(x_frames), np.zeros_like(weight)
    for i, under in enumerate(g.under):
        pair = as_batch(upstream[under]), as_batch(x_frames)
        of_images, grad_weight[:, :, i], _ = conv_transpose2d_backward(*pair, weight[:, :, i], **g.options)
        grad_frames += of_images.reshape(x_frames.shape)
    return volumes(grad_frames), grad_weight, bias_gradient(as_batch(frames(grad_y)))
