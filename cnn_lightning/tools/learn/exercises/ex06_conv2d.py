"""Exercise 6: convolution. Write the forward.

    y[n, o, u, v] = bias[o]
                    + sum_{c, i, j} weight[o, c, i, j] * x[n, c, u + i, v + j]

The kernel slides over the image. Seven loops would do, and take minutes. It is
enough to loop over the pixels (i, j) of the kernel: x[:, :, i : i + H',
j : j + W'] are the pixels under (i, j) at all places of the kernel, and the
sum over c is a product of matrices.

Shapes: x (N, C, H, W), weight (O, C, kh, kw), bias (O,),
y (N, O, H', W') with H' = H - kh + 1 and W' = W - kw + 1.
"""

import numpy as np


def conv2d(x, weight, bias):
    """Give y (N, O, H', W')."""
    raise NotImplementedError("write conv2d")
