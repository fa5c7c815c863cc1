"""Exercise 8: convolution with stride and padding. Write the backward.

    y[n, o, u, v] = bias[o] + sum_{c, i, j} weight[o, c, i, j]
                    * x[n, c, u*stride + i - padding, v*stride + j - padding]

where x is 0 outside of the image. The forward adds the border of zeros, and
takes every stride-th pixel. The backward takes the same pixels, of the image
and of a gradient with a border; at the end it cuts the border off.

Shapes: x (N, C, H, W), weight (O, C, kh, kw), bias (O,), y and grad_y
(N, O, H', W') with H' = (H + 2*padding - kh) // stride + 1, likewise W'.
"""

import numpy as np


def padded(x, padding):
    """Give x with a border of zeros: (N, C, H + 2*padding, W + 2*padding)."""
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def under(i, j, rows, columns, stride):
    """Give the rows and columns of the padded image under (i, j)."""
    last_row, last_column = i + stride * rows, j + stride * columns
    return slice(i, last_row, stride), slice(j, last_column, stride)


def conv2d(x, weight, bias, stride, padding):
    """Give y (N, O, H', W')."""
    wide, (o, _, kh, kw) = padded(x, padding), weight.shape
    rows = (wide.shape[2] - kh) // stride + 1
    columns = (wide.shape[3] - kw) // stride + 1
    y = np.zeros((len(x), o, rows, columns), x.dtype)
    for i, j in np.ndindex(kh, kw):
        r, c = under(i, j, rows, columns, stride)
        w, pixels = weight[:, :, i, j], wide[:, :, r, c]
        y += np.einsum("oc,nchw->nohw", w, pixels, optimize=True)
    return y + bias[:, None, None]


def conv2d_backward(grad_y, x, weight, stride, padding):
    """Give (grad_x, grad_weight, grad_bias), shaped as x, weight and bias."""
    raise NotImplementedError("write conv2d_backward")
