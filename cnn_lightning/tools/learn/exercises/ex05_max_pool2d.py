"""Exercise 5: max-pooling. Write the backward.

    y[n, c, u, v] = max of x[n, c, u*stride + i, v*stride + j]
                    over i, j = 0 ... kernel_size - 1

A small change of y comes from the pixel that won, and from no other. If
several are equal, the first one (row by row) wins. With a stride below the
kernel size, windows overlap: one pixel may win more than once.

Shapes: x (N, C, H, W), y and grad_y (N, C, H', W').
"""

import numpy as np


def max_pool2d(x, kernel_size, stride):
    """Give y (N, C, H', W')."""
    n, c, height, width = x.shape
    rows = (height - kernel_size) // stride + 1
    columns = (width - kernel_size) // stride + 1
    y = np.empty((n, c, rows, columns), x.dtype)
    for u, v in np.ndindex(rows, columns):
        top, left = u * stride, v * stride
        window = x[:, :, top : top + kernel_size, left : left + kernel_size]
        y[:, :, u, v] = window.max(axis=(2, 3))
    return y


def max_pool2d_backward(grad_y, x, kernel_size, stride):
    """Give grad_x, shaped as x."""
    raise NotImplementedError("write max_pool2d_backward")
