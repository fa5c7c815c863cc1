"""`watch`: the public way to see the calls of the bridge, without any change to what runs."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from cnn_lightning.layers.bridge.checks import Operation
from cnn_lightning.ops.types import Array


class Listener:
    """Base of the listeners of `watch`; each method does nothing unless a subclass overrides it.

    The methods of one call run in the thread of the call, in the order ``begin``, ``enter``, ``leave``, ``end``. If the
    operation raises, ``leave`` is left out. If the call is refused or computes only shapes, ``enter`` is left out too.
    """

    def begin(self, op: Operation, tensors: Sequence[Tensor | None]) -> None:
        """A call of ``op`` with these tensors begins."""

    def enter(self, op: Operation, arrays: Sequence[Array | None], options: dict[str, Any]) -> None:
        """The computation on arrays begins, by ``op`` itself or by the fast function that replaces it."""

    def leave(self, op: Operation, arrays: Sequence[Array | None], results: Any, dtypes: Sequence[torch.dtype]) -> None:
        """The computation has returned ``results``.

        Args:
            op: The operation.
            arrays: The same object as in ``enter``.
            results: An array, or a tuple of arrays and Nones, before the bridge casts or copies them.
            dtypes: Those that the caller asks for: one for each floating result, or one for all.
        """

    def end(self, op: Operation) -> None:
        """The call has returned or raised."""


_Listener = TypeVar("_Listener", bound=Listener)

current: tuple[Listener, ...] = ()
"""The listeners of `watch`, of all threads, since backward may run in a thread of autograd."""
_lock = threading.Lock()


@contextmanager
def watch(listener: _Listener) -> Iterator[_Listener]:
    """Notify ``listener`` of every call in every thread while inside.

    For example, the operations of a forward and backward::

        class Names(bridge.Listener):
            def begin(self, op, tensors):
                print(op.__name__)

        with bridge.watch(Names()):
            net(x).sum().backward()

    Blocks may be nested: all listeners are notified, the inner ones last of a beginning and first of an end. A call
    that a compiler traces is not reported then; it is reported at each run of the compiled program. The bridge's own
    runs on zeros, which give a tracer the shapes, are not reported.

    Yields:
        ``listener``.
    """
    global current
    with _lock:
        current = (*current, listener)
    try:
        yield listener
    finally:
        with _lock:
            last = max(index for index, other in enumerate(current) if other is listener)
            current = (*current[:last], *current[last + 1 :])


def begin(heard_by: Sequence[Listener], op: Operation, tensors: Sequence[Tensor | None]) -> None:
    """Notify the listeners that a call begins."""
    for listener in heard_by:
        listener.begin(op, tensors)


def end(heard_by: Sequence[Listener], op: Operation) -> None:
    """Notify the listeners that a call has ended."""
    for listener in reversed(heard_by):
        listener.end(op)


def reported(
    function: Operation,
    heard_by: Sequence[Listener],
    op: Operation,
    arrays: Sequence[Array | None],
    options: dict[str, Any],
    dtypes: Sequence[torch.dtype],
) -> Operation:
    """``function``, with ``enter`` before and ``leave`` after it for the operation ``op`` that it computes."""

    def run(*args: Any, **kwargs: Any) -> Any:
        for listener in heard_by:
            listener.enter(op, arrays, options)
        results = function(*args, **kwargs)
        for listener in reversed(heard_by):
            listener.leave(op, arrays, results, dtypes)
        return results

    return run
