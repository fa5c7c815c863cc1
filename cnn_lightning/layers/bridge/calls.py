"""The verb `call`: check the arguments, choose host, device or operator, and run the operation there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers.bridge import checks, host, listeners, tracers
from cnn_lightning.layers.bridge.checks import Operation
from cnn_lightning.layers.bridge.compile import operator


def compute(
    op: Operation,
    *tensors: Tensor | None,
    like: Tensor | Sequence[Tensor | None] | None = None,
    mixed: bool = False,
    **options: Any,
) -> Any:
    """`call` for a kernel of torch's dispatcher: below autograd, modes and tracers, on tensors of the CPU."""
    if not listeners.current:
        done = host.quick(op, tensors, like, mixed, None, options)
        if done is not None:
            return done
    arrays = host.host_arrays(tensors, mixed)
    dtypes = host.result_dtypes(tensors, like)
    heard_by = listeners.current
    try:
        if heard_by:
            listeners.begin(heard_by, op, tensors)
        results = host.run(op, tensors, dtypes, mixed, options, arrays, heard_by)
    finally:
        if heard_by:
            listeners.end(heard_by, op)
    return results[0] if len(results) == 1 else tuple(results)


def call(
    op: Operation,
    *tensors: Tensor | None,
    like: Tensor | Sequence[Tensor | None] | None = None,
    mixed: bool = False,
    into: Tensor | None = None,
    **options: Any,
) -> Any:
    """Run ``op`` on the arrays of ``tensors`` and return its results as tensors like those.

    On the CPU the arrays share the tensors' memory. On CUDA they are CuPy arrays on torch's current device and stream,
    if CuPy is installed. From any other device they are copied to the host and back. bfloat16 and float16 are computed
    in float32. While ``torch.compile``, ``torch.export`` or ``make_fx`` trace, and under any dispatch mode, the call
    becomes one opaque operator, so that the traced program runs NumPy too.

    Args:
        op: A function of arrays, referred to through its module (``activation.relu``) so that it can be replaced.
        tensors: Its positional arguments; None stays None.
        like: The tensors whose dtypes the floating results take: one for all results, or one for each. Without it, the
            first floating tensor.
        mixed: Whether floating arguments may differ in dtype (normalisation with float32 weights under bfloat16).
        into: The first argument, to write the only result into it and return it: the last line of a forward with
            ``inplace=True``, which calls ``ctx.mark_dirty``. Save afterwards what the backward needs.
        options: Keyword arguments of ``op``: numbers, strings, booleans, None, and tuples or lists of those. ``needs``,
            if given, has one boolean for each result; results that are not needed are None.

    Returns:
        A tensor if ``op`` returned an array, otherwise a tuple of tensors and Nones.

    Raises:
        TypeError: An argument is neither a tensor nor None.
        NotImplementedError: Complex or sparse tensors, and classes of tensors that refuse unknown operators.
        RuntimeError: Tensors on different devices or (unless ``mixed``) of different floating dtypes; double backward,
            because a hand-written backward has no derivative; a recorder whose program would not contain NumPy.
    """
    if not (torch.compiler.is_compiling() or listeners.current or torch.is_grad_enabled()):
        done = host.quick(op, tensors, like, mixed, into, options)
        if done is not None:
            return done
    compiling = torch.compiler.is_compiling()
    as_operator = compiling or tracers.has_dispatch_mode()
    heard_by = () if as_operator else listeners.current  # the operator reports its own runs
    try:
        if heard_by:
            listeners.begin(heard_by, op, tensors)
        if not compiling:
            tracers.refuse_recorders(op)
        arrays = None if as_operator else host.host_arrays(tensors, mixed)
        if arrays is None:
            for index, given in enumerate(tensors):
                if given is not None and not isinstance(given, Tensor):
                    raise TypeError(checks.no_tensor(checks.argument(op, index), given))
        dtypes = host.result_dtypes(tensors, like)
        if torch.is_grad_enabled() and not compiling:
            raise RuntimeError(
                f"{checks.label(op)}: double backward (create_graph=True) is not available: its gradient is "
                "hand-written and has no derivative of its own; expected a first-order gradient (bridge.call belongs "
                "into an autograd.Function), or torch's layer inside of numpy_ops(), which has all"
            )
        if as_operator or (arrays is None and any(map(tracers.needs_operator, tensors))):
            results = operator(op, tensors, dtypes, mixed, options)
        else:
            results = host.run(op, tensors, dtypes, mixed, options, arrays, heard_by)
        if into is not None and results[0] is not None:
            into.copy_(results[0])
            return into  # the same object, which Dynamo requires
        return results[0] if len(results) == 1 else tuple(results)
    finally:
        if heard_by:
            listeners.end(heard_by, op)
