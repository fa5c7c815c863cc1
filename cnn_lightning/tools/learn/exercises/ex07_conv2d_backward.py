"""Exercise 7: the gradients of a convolution. Write the backward.

    y[n, o, u, v] = bias[o]
                    + sum_{c, i, j} weight[o, c, i, j] * x[n, c, u + i, v + j]

Each product weight * x of this sum gives grad_y * x to the weight, and
grad_y * weight to the pixel. A pixel lies under the kernel many times, so its
gradients add up. The loop over (i, j) of the forward is enough here too.

Shapes: x (N, C, H, W), weight (O, C, kh, kw), bias (O,),
y and grad_y (N, O, H', W') with H' = H - kh + 1 and W' = W - kw + 1.
"""

import numpy as np


def conv2d(x, weight, bias):
    """Give y (N, O, H', W')."""
    n, _, height, width = x.shape
    o, _, kh, kw = weight.shape
    rows, columns = height - kh + 1, width - kw + 1
    y = np.zeros((n, o, rows, columns), x.dtype)
    for i, j in np.ndindex(kh, kw):
        pixels = x[:, :, i : i + rows, j : j + columns]
        w = weight[:, :, i, j]
        y += np.einsum("oc,nchw->nohw", w, pixels, optimize=True)
    return y + bias[:, None, None]


def conv2d_backward(grad_y, x, weight):
    """Give (grad_x, grad_weight, grad_bias), shaped as x, weight and bias."""
    raise NotImplementedError("write conv2d_backward")
