"""Exercise 10: batch normalisation. Write the forward, averages and backward.

For each channel c, over the M = N * H * W values of the batch:

    mean = 1 / M * sum of x                 var = 1 / M * sum of (x - mean)^2
    xhat = (x - mean) / sqrt(var + eps)     y = weight * xhat + bias

After the training the statistics are given: then mean and var are constants.
They are averages over the batches of the training, of this form:

    average = (1 - momentum) * average + momentum * statistic

where the statistic of the variance is the unbiased one, var * M / (M - 1).

For the backward, remember that mean and var depend on every x: a change of one
pixel changes all outputs of its channel. With g = grad_y * weight:

    grad_x = 1 / sqrt(var + eps) * (g - mean(g) - xhat * mean(g * xhat))

Derive it. Shapes: x and y (N, C, H, W), weight, bias, mean and var (C,).
"""

import numpy as np


def batch_norm(x, weight, bias, mean=None, var=None, eps=1e-5):
    """Give (y, mean, var); mean and var are those of x if they are None."""
    raise NotImplementedError("write batch_norm")


def running_statistics(running_mean, running_var, mean, var, count, momentum):
    """Give the new averages (running_mean, running_var); count is M."""
    raise NotImplementedError("write running_statistics")


def batch_norm_backward(grad_y, x, weight, mean, var, eps=1e-5):
    """Give (grad_x, grad_weight, grad_bias), if mean and var are those of x."""
    raise NotImplementedError("write batch_norm_backward")
