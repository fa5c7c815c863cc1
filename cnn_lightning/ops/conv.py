"""Convolution: a sum over the taps of the kernel, of matrix products with the pixels under each tap."""

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.taps import as_batch, frames, inside, padded, rows, taps, volumes
from cnn_lightning.ops.types import Array, Padding, Pair


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """Slide ``weight`` over ``x``.

    ``y[n, o, u, v] = bias[o] + sum_{c, i, j} weight[o, c, i, j] * x[n, c, u*stride + i*dilation - padding,
    v*stride + j*dilation - padding]``, where ``x`` is zero outside and ``c`` runs over the channels of ``o``'s group.

    Args:
        x: Images (N, C, H, W).
        weight: Kernels (O, C / groups, kh, kw).
        bias: (O,) or None.
        stride: Step between patches, one number or (rows, columns).
        padding: Zeros around the image, one number or (rows, columns); "valid" for none, "same" for the input's size.
        dilation: Step between the pixels of a patch.
        groups: Number of independent groups of channels.

    Returns:
        (N, O, (H + 2*padding - dilation*(kh - 1) - 1) // stride + 1, likewise the width).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: A wrong number of axes, channels or groups, a kernel larger than the padded image, or dtypes that
            differ or are not floating.
    """
    g = expect.conv2d(x, weight, bias, stride, padding, dilation, groups)
    w = weight.reshape(groups, g.o // groups, *weight.shape[1:])
    y = np.zeros_like(x, shape=(g.n, groups, g.o // groups, g.oh * g.ow))
    for i, j, pixels in taps(padded(x, g.pad), g):
        y += w[..., i, j] @ rows(pixels, groups)
    y = y.reshape(g.n, g.o, *g.size)
    return y if bias is None else y + bias[:, None, None]


def conv2d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv2d`.

    Each product ``weight[o, c, i, j] * pixel`` of the forward gives ``grad_y * pixel`` to the weight and ``grad_y *
    weight`` to the pixel: ``grad_weight[..., i, j] = sum_n grad_y @ pixels^T``, and the pixels under tap (i, j) get
    ``weight[..., i, j]^T @ grad_y``. ``grad_bias`` is the sum of ``grad_y`` over images and pixels.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, H', W').
        x: The forward's input (N, C, H, W).
        weight: The forward's kernels (O, C / groups, kh, kw).
        stride: As in the forward; so are the other options.
        padding: See `conv2d`.
        dilation: See `conv2d`.
        groups: See `conv2d`.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    g = expect.conv2d(x, weight, None, stride, padding, dilation, groups)
    w = weight.reshape(groups, g.o // groups, *weight.shape[1:])
    upstream, wide = rows(grad_y, groups), padded(x, g.pad)
    grad_w, grad_wide = np.zeros_like(w), np.zeros_like(wide)
    for (i, j, pixels), (_, _, grad_pixels) in zip(taps(wide, g), taps(grad_wide, g), strict=True):
        grad_w[..., i, j] = (upstream @ rows(pixels, groups).swapaxes(2, 3)).sum(0, dtype=np.float64)
        grad_pixels += (w[..., i, j].swapaxes(1, 2) @ upstream).reshape(pixels.shape)
    grad_bias = grad_y.sum((0, 2, 3), dtype=np.float64).astype(x.dtype)
    return inside(grad_wide, g.pad), grad_w.reshape(weight.shape), grad_bias


def bias_gradient(grad_y: Array) -> Array:
    """Sum of ``grad_y`` (N, O, H, W) over images and pixels, (O,); in float64, since thousands of additions round."""
    return grad_y.sum((0, 2, 3), dtype=np.float64).astype(grad_y.dtype)


# ---- along one axis: images of one row


def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """Slide ``weight`` along ``x``.

    ``y[n, o, u] = bias[o] + sum_{c, i} weight[o, c, i] * x[n, c, u*stride + i*dilation - padding]``, which is `conv2d`
    on images of one row.

    Args:
        x: Signals (N, C, L).
        weight: Kernels (O, C / groups, k).
        bias: (O,) or None.
        stride: Step between patches.
        padding: Zeros at both ends; "valid" for none, "same" for the input's length.
        dilation: Step between the samples of a patch.
        groups: Number of independent groups of channels.

    Returns:
        (N, O, (L + 2*padding - dilation*(k - 1) - 1) // stride + 1).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: As `conv2d`.
    """
    options = expect.conv1d(x, weight, stride, padding, dilation)._asdict()
    return conv2d(x[:, :, None], weight[:, :, None], bias, **options, groups=groups)[:, :, 0]


def conv1d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv1d`: those of `conv2d` on images of one row.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, L').
        x: The forward's input (N, C, L).
        weight: The forward's kernels (O, C / groups, k).
        stride: As in the forward; so are the other options.
        padding: See `conv1d`.
        dilation: See `conv1d`.
        groups: See `conv1d`.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    options = expect.conv1d(x, weight, stride, padding, dilation)._asdict()
    images = grad_y[:, :, None], x[:, :, None], weight[:, :, None]
    grad_x, grad_weight, grad_bias = conv2d_backward(*images, **options, groups=groups)
    return grad_x[:, :, 0], grad_weight[:, :, 0], grad_bias


# ---- of volumes: images for each depth tap of the kernel


def conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """Slide ``weight`` through ``x``.

    ``y[n, o, t] = bias[o] + sum_l conv2d(x[n, :, t*stride + l*dilation - padding], weight[o, :, l])``: a frame ``t`` of
    the output is a sum of convolutions of frames of the input, one for each depth tap ``l``.

    Args:
        x: Volumes (N, C, D, H, W).
        weight: Kernels (O, C / groups, kd, kh, kw).
        bias: (O,) or None.
        stride: Step between patches, one number or (frames, rows, columns).
        padding: Zeros around the volume, one number or (frames, rows, columns); "valid" for none, "same" for the
            input's size.
        dilation: Step between the pixels of a patch.
        groups: Number of independent groups of channels.

    Returns:
        (N, O, (D + 2*padding - dilation*(kd - 1) - 1) // stride + 1, likewise height and width).

    Raises:
        TypeError: An option is not an integer.
        RuntimeError: As `conv2d`.
    """
    g = expect.conv3d(x, weight, bias, stride, padding, dilation, groups)
    deep, y = frames(x, g.pad), np.zeros_like(x, shape=g.shape)
    for i, under in enumerate(g.under):
        y += conv2d(as_batch(deep[under]), weight[:, :, i], **g.options).reshape(g.shape)
    return volumes(y if bias is None else y + bias[:, None, None])


def conv3d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv3d`.

    Each depth tap gets the gradients of its own `conv2d`: those of the frames under it are added to ``grad_x``.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, D', H', W').
        x: The forward's input (N, C, D, H, W).
        weight: The forward's kernels (O, C / groups, kd, kh, kw).
        stride: As in the forward; so are the other options.
        padding: See `conv3d`.
        dilation: See `conv3d`.
        groups: See `conv3d`.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    g = expect.conv3d(x, weight, None, stride, padding, dilation, groups)
    deep, upstream = frames(x, g.pad), as_batch(frames(grad_y))
    grad_deep, grad_weight = np.zeros_like(deep), np.zeros_like(weight)
    for i, under in enumerate(g.under):
        images = as_batch(deep[under])
        of_images, grad_weight[:, :, i], _ = conv2d_backward(upstream, images, weight[:, :, i], **g.options)
        grad_deep[under] += of_images.reshape(grad_deep[under].shape)
    return volumes(grad_deep, g.pad), grad_weight, bias_gradient(upstream)
