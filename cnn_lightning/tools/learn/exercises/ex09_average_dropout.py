"""Exercise 9: average pooling and dropout. Write a backward, then a pair.

Average pooling, with windows side by side (the stride is the kernel size):

    y[n, c, u, v] = mean of x[n, c, u*k + i, v*k + j]  over i, j = 0 ... k - 1

Dropout sets an element to 0 with probability p. keep is its mask: 1 for an
element that stays, 0 for one that goes. What stays is made larger, so that
the expected value of y is x, and nothing needs to change after the training:

    y = x * keep / (1 - p)                  for each element

Shapes: x (N, C, H, W) with H and W multiples of k, y (N, C, H / k, W / k);
for dropout x, keep and y (any).
"""

import numpy as np


def avg_pool2d(x, kernel_size):
    """Give y (N, C, H / k, W / k)."""
    n, c, height, width = x.shape
    k = kernel_size
    return x.reshape(n, c, height // k, k, width // k, k).mean(axis=(3, 5))


def avg_pool2d_backward(grad_y, x, kernel_size):
    """Give grad_x, shaped as x."""
    raise NotImplementedError("write avg_pool2d_backward, perhaps by np.repeat")


def dropout(x, keep, p):
    """Give y, shaped as x."""
    raise NotImplementedError("write dropout")


def dropout_backward(grad_y, keep, p):
    """Give grad_x, shaped as grad_y."""
    raise NotImplementedError("write dropout_backward")
