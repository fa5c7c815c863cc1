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

# Each of these files enters its operators.
from cnn_lightning.aten import (
    activation,  # noqa: F401
    convolution,  # noqa: F401
    loss,  # noqa: F401
    norm,  # noqa: F401
    padding,  # noqa: F401
    pool,  # noqa: F401
    product,  # noqa: F401
    softmax,  # noqa: F401
    uncovered,  # noqa: F401
    upsample,  # noqa: F401
)
from cnn_lightning.aten.kernels import is_on, numpy_ops
from cnn_lightning.aten.report import Report

__all__ = ["Report", "is_on", "numpy_ops"]
