"""Exercise 4: softmax and cross-entropy. Write the softmax and the backward.

    p[n, c] = exp(logits[n, c]) / sum_k exp(logits[n, k])
    loss    = -1 / N * sum_n log p[n, target[n]]

exp(1000) is infinite. But p stays the same if the same number is subtracted
from all logits of a row. For the backward, derive the gradient of the loss of
one row, -log p[target], by each of its logits: it is short.

Shapes: logits and p (N, C), target (N,) of whole numbers from 0 to C - 1,
loss and its gradient grad_y: one number.
"""

import numpy as np


def softmax(logits):
    """Give p (N, C), for logits of any size."""
    raise NotImplementedError("write softmax")


def cross_entropy(logits, target):
    """Give the loss: log p is computed without p, which may round to 0."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(target)), target].mean()


def cross_entropy_backward(grad_y, logits, target):
    """Give the gradient of the logits (N, C)."""
    raise NotImplementedError("write cross_entropy_backward")
