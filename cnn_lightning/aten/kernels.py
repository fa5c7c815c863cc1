"""Kernels for torch's CPU operators, registered at the first use, and the switch of each thread.

A kernel once registered stays: torch crashes if it is removed while another thread is inside it. Off, it passes on to
torch's own kernel, in about 1 us. Operators that are composed of others are never registered, since they would lose
their derivative; their parts are.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, library
from torch.nn.attention import SDPBackend, sdpa_kernel

from cnn_lightning.aten import inductor
from cnn_lightning.aten.report import Report

Adapter = Callable[..., Any]
Flops = Callable[..., int]
_Adapter = TypeVar("_Adapter", bound=Adapter)
_FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_HALF = frozenset({torch.bfloat16, torch.float16})


class Native(Exception):
    """An adapter has no formula for these arguments; the text says which."""


@dataclass(frozen=True)
class Operator:
    """An operator of ``aten`` and the function that computes it.

    Attributes:
        name: With its overload, as ``_native_batch_norm_legit.no_stats``.
        adapter: Has the operator's arguments and defaults.
        flops: Counts multiplications and additions, from the result and the arguments.
        indices: Whether tensors of integers are among the arguments.
        wide: Whether parameters may be float32 beside an input of half precision.
    """

    name: str
    adapter: Adapter
    flops: Flops | None
    indices: bool
    wide: bool

    def reason(self, args: tuple[Any, ...]) -> str:
        """Why torch has to compute these arguments; empty if it has not."""
        first = None
        for value in args:
            if not isinstance(value, Tensor):
                continue
            dtype = value.dtype
            if first is None:
                first = dtype
                if dtype not in _FLOATING:
                    return str(dtype).removeprefix("torch.")
            elif dtype is not first and not (
                (self.indices and not dtype.is_floating_point and not dtype.is_complex)
                or (self.wide and first in _HALF and dtype is torch.float32)
            ):
                return "mixed dtypes"
            if value.layout is not torch.strided:
                return str(value.layout).removeprefix("torch.")
        return ""


OPERATORS: dict[str, Operator] = {}
"""Every operator that NumPy computes, by its name."""


def operator(
    name: str, *, flops: Flops | None = None, indices: bool = False, wide: bool = False
) -> Callable[[_Adapter], _Adapter]:
    """Enter the adapter of an operator into `OPERATORS`; the arguments are those of `Operator`."""

    def enter(adapter: _Adapter) -> _Adapter:
        OPERATORS[name] = Operator(name, adapter, flops, indices, wide)
        return adapter

    return enter


def broadcast(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the shape that they broadcast to."""
    shape = np.broadcast_shapes(x.shape, other.shape)
    return x.expand(shape), other.expand(shape)


# ---- the switch


class _OfThread(threading.local):
    """The report of the innermost block of this thread, or None: off."""

    report: Report | None = None


_thread = _OfThread()


@contextmanager
def numpy_ops(on: bool = True) -> Iterator[Report]:
    """Compute torch's CPU operators in NumPy, in the calling thread, while inside.

    These are convolutions, matrix products, normalisations, activations, pooling, softmax, losses, resizing and
    padding, forward and backward. ``backward()`` counts where it is called. torch computes sums, elementwise
    arithmetic, copies, layers of LSTM, and tensors of other dtypes, layouts and devices. Attention is computed by its
    parts meanwhile.

    Args:
        on: False for torch's own kernels inside of another block.

    Yields:
        The report of what ran in this block.

    Raises:
        RuntimeError: Another library has replaced one of the operators; or, inside, a program that inductor compiled
            is called, whose own kernels NumPy can't replace.
    """
    if on:
        _install()
        inductor.watch(is_on)
    outer, report = _thread.report, Report()
    _thread.report = report if on else None
    try:
        with _attention_by_parts() if on else nullcontext():
            yield report
    finally:
        _thread.report = outer
        if on and outer is not None:
            outer.add(report)


def is_on() -> bool:
    """Whether this thread is inside of a `numpy_ops` block."""
    return _thread.report is not None


def _after_fork() -> None:
    _thread.report = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Attention:
    """Switches of the process that have attention computed by products and softmax; restored by the last user."""

    def __init__(self) -> None:
        self.lock, self.users, self.restore = threading.Lock(), 0, ExitStack()

    def begin(self) -> None:
        with self.lock:
            if self.users == 0:
                self.restore.enter_context(sdpa_kernel(SDPBackend.MATH))
                self.restore.callback(
                    torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
                )
                torch.backends.mha.set_fastpath_enabled(False)
            self.users += 1

    def end(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.restore.close()


_attention = _Attention()


@contextmanager
def _attention_by_parts() -> Iterator[None]:
    _attention.begin()
    try:
        yield
    finally:
        _attention.end()


# ---- the kernels


_library: list[Any] = []  # torch's class has no types
_registered: set[str] = set()
_installing = threading.Lock()


def _install() -> None:
    """Register all kernels, once in a process.

    Raises:
        RuntimeError: Another library has replaced one of the operators.
    """
    with _installing:
        if OPERATORS.keys() <= _registered:
            return
        if not _library:
            _library.append(library.Library("aten", "IMPL"))  # type: ignore[no-untyped-call]
        for each in OPERATORS.values():
            kernels = {} if each.name in _registered else dict(_kernels(each))
            try:
                for name, kernel in kernels.items():
                    _library[0].impl(name, kernel, "CPU", with_keyset=True, allow_override=False)
            except RuntimeError as error:  # those before it stay, switched off
                raise RuntimeError(
                    f"numpy_ops: expected torch's own kernel of aten::{name} on the CPU, got one that another library "
                    "registered; NumPy would compute only a part of the operators"
                ) from error
            _registered.add(each.name)


def _kernels(each: Operator) -> Iterator[tuple[str, Adapter]]:
    """The kernels of an operator: functional, in place, and into given tensors; of those that torch has."""
    base, _, overload = each.name.partition(".")
    yield each.name, _switched(each.name, each, each.adapter)
    forms = {
        f"{base}_": _in_place(each.adapter),
        f"{base}.{overload}_out" if overload else f"{base}.out": _into_given(each.adapter),
        f"{base}.grad_input": _into_given(each.adapter),
    }
    for name, adapter in forms.items():
        is_form = name.endswith(f".{overload}_out") if overload else True
        if is_form and _has_kernel(name):
            yield name, _switched(name, each, adapter)


def _has_kernel(name: str) -> bool:
    try:
        return any(
            torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)
            for key in ("CPU", "CompositeExplicitAutograd")
        )
    except RuntimeError:  # no such operator
        return False


def _switched(name: str, each: Operator, adapter: Adapter) -> Adapter:
    """The kernel: the adapter where the thread is on and there is a formula for the arguments, otherwise torch's."""
    native, flops = library.get_kernel(f"aten::{name}", "CPU").call_boxed, each.flops

    def kernel(keyset: Any, *args: Any, **options: Any) -> Any:
        report = _thread.report
        if report is None:
            return native(keyset, *args, **options)
        reason = each.reason(args)
        if not reason:
            try:
                results = adapter(*args, **options)
            except Native as missing:
                reason = str(missing)
            else:
                report.calls[name] += 1
                if flops is not None:
                    report.flops += flops(results, *args)
                return results
        report.native[name, reason] += 1
        _thread.report = None  # what torch's kernel calls is part of it
        try:
            results = native(keyset, *args, **options)
        finally:
            _thread.report = report
        if flops is not None:
            report.native_flops += flops(results, *args)
        return results

    return kernel


def _in_place(adapter: Adapter) -> Adapter:
    def write(x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x.copy_(adapter(x, *args, **options))

    return write


def _into_given(adapter: Adapter) -> Adapter:
    def write(*args: Any, **options: Any) -> Any:
        outs = _outs(options)
        results = adapter(*args, **{name: value for name, value in options.items() if name not in outs})
        many = results if isinstance(results, tuple) else (results,)
        for out, result in zip(outs.values(), many, strict=True):
            if out.dtype is not result.dtype:
                raise Native(f"out of {str(out.dtype).removeprefix('torch.')}")
            if out.shape != result.shape:
                if out.numel():
                    raise Native("out of another shape")  # torch resizes it and warns
                out.resize_(result.shape)
        for out, result in zip(outs.values(), many, strict=True):
            out.copy_(result)
        return tuple(outs.values()) if isinstance(results, tuple) else next(iter(outs.values()))

    return write


def _outs(options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors to write into; no other keyword of these operators is a tensor."""
    return {name: value for name, value in options.items() if isinstance(value, Tensor)}
