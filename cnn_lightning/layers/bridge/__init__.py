"""Tensors to arrays and back: the one place that handles devices, streams, dtypes and the compiler.

A layer of your own needs nothing else. Write a forward and a backward on arrays, then::

    class SquareFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return bridge.call(square, x)

        @staticmethod
        def backward(ctx, grad_y):
            (x,) = ctx.saved_tensors
            return bridge.call(square_backward, grad_y, x)

`call` takes the arrays of the tensors, runs the operation on them and returns tensors like those. `autocast` and
`write` do for a layer what ``torch.autocast`` and ``inplace=True`` do for torch's own. `watch` notifies a listener of
every call.

A program that records, replaces or counts torch's operators (a compiler, ``make_fx``, fake tensors, any
``TorchDispatchMode``) does not see NumPy: it sees each call as one operator. A program that records in another way
(``torch.jit``, ``torch.fx``, the exporter to ONNX, ``torch.func``) would leave NumPy out; it is refused with a one-line
error.
"""

from cnn_lightning.layers.bridge.calls import call, compute
from cnn_lightning.layers.bridge.checks import Operation
from cnn_lightning.layers.bridge.host import computes_on_host
from cnn_lightning.layers.bridge.listeners import Listener, watch
from cnn_lightning.layers.bridge.modules import (
    autocast,
    blank,
    copy,
    expect_no_proxy,
    expect_no_transform,
    expect_tensor,
    is_plain,
    overwrites,
    write,
)

__all__ = [
    "Listener",
    "Operation",
    "autocast",
    "blank",
    "call",
    "compute",
    "computes_on_host",
    "copy",
    "expect_no_proxy",
    "expect_no_transform",
    "expect_tensor",
    "is_plain",
    "overwrites",
    "watch",
    "write",
]
