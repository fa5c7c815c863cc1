"""torch's own operators computed by the formulas of `cnn_lightning.ops`, under any code and any order of derivative.

`layers` replaces modules; `numpy_ops` replaces what modules and functions call in the end, the operators of ``aten``::

    with cnn_lightning.numpy_ops() as report:
        loss = net(images).square().sum()
        loss.backward()
    print(report)

Autograd, ``torch.func``, forward mode and compilers stay torch's. Each operator that they call is computed by NumPy
again, so that derivatives of any order are. `kernels` registers the operators and chooses; the other files adapt the
arguments of one kind of operators to the formulas.
"""

from cnn_lightning.aten import (
    activation,
    convolution,
    loss,
    norm,
    padding,
    pool,
    product,
    softmax,
    uncovered,
    upsample,
)
from cnn_lightning.aten.kernels import is_on, numpy_ops
from cnn_lightning.aten.report import Report

ADAPTERS = (activation, convolution, loss, norm, padding, pool, product, softmax, uncovered, upsample)
"""The files that enter operators."""

__all__ = ["ADAPTERS", "Report", "is_on", "numpy_ops"]
