"""Blocks of the batch that stay in cache, a thread pool for them, and recycled memory."""

import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from cnn_lightning.ops.fast import tuning
from cnn_lightning.ops.types import Array

_T = TypeVar("_T")

# ---- threads: BLAS uses one, the blocks of the batch all of them

_working = threading.local()
"""Whether this thread computes a block: what it calls runs on this thread alone."""

_threads: int | None = None
_pool: ThreadPoolExecutor | None = None


def set_num_threads(n: int) -> None:
    """Let operations use ``n`` threads, the calling one included.

    Raises:
        ValueError: ``n`` is less than 1.
    """
    global _threads, _pool
    if n < 1:
        raise ValueError(f"n: expected at least 1 thread, got {n}")
    _threads, _pool = int(n), None


def get_num_threads() -> int:
    """The number of threads that an operation may use: the number set, or the cores of this process.

    It is set by `set_num_threads` or the variable ``CNN_LIGHTNING_NUM_THREADS``. The cores of this process are those of
    its affinity (if the system has one) divided by ``LOCAL_WORLD_SIZE``, the number of processes that a launcher
    started on this machine.
    """
    if _threads is None:
        set_num_threads(_default_threads())
    assert _threads is not None
    return _threads


def suggest_num_threads(n: int) -> None:
    """Set the smaller of ``n`` and the cores of this process, unless a number is set already."""
    if _threads is None:
        set_num_threads(_default_threads() if "CNN_LIGHTNING_NUM_THREADS" in os.environ else min(n, _default_threads()))


def cores() -> int:
    """The number of cores that this process may use, by its affinity if the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_threads() -> int:
    given = os.environ.get("CNN_LIGHTNING_NUM_THREADS")
    if given is not None:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"CNN_LIGHTNING_NUM_THREADS: expected a whole number of at least 1, got {given!r}")
        return int(given)
    return max(1, cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def blocks(n: int, item_bytes: int, *, at_least: int = 1, block_bytes: int | None = None) -> list[slice]:
    """Cut ``n`` items of ``item_bytes`` working memory each into blocks that stay in cache.

    The blocks do not depend on the number of threads, so that sums over blocks are the same for any number. If there
    are several, their number is even (see `cut`). To wake a thread takes about 100
    microseconds: ask for ``at_least`` two blocks only for much more work than to move so many bytes. ``block_bytes``
    is that of `tuning` unless given.
    """
    count = max(at_least, -(-n * item_bytes // (block_bytes or tuning.TUNING.block_bytes)))
    return cut(n, count, even=count > 1)


def cut(n: int, count: int, *, even: bool) -> list[slice]:
    """Cut ``n`` items into ``count`` blocks of one size, of which the last may be smaller.

    ``even`` rounds the count up to an even number, so that two threads have equal work.
    """
    if even:
        count += count % 2
    size = max(1, -(-n // max(1, count)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def run(function: Callable[[slice], _T], parts: Sequence[slice], *, parallel: bool = True) -> list[_T]:
    """``[function(part) for part in parts]``, in that order, on several threads; BLAS uses one thread meanwhile.

    Infinity and NaN give no warnings, as in torch. Without ``parallel`` the calling thread computes all blocks. This is
    better for work of less than half a millisecond, since to wake a thread takes about 150 microseconds.
    """
    return run_each([function], parts, parallel=parallel)[0]


def run_each(
    functions: Sequence[Callable[[slice], Any]], parts: Sequence[slice], *, parallel: bool = True
) -> list[list[Any]]:
    """`run` for several independent functions: ``[[function(part) for part in parts], ...]``."""
    tasks = [partial(function, part) for part in parts for function in functions]
    results = _over_threads(tasks, parallel=parallel)
    return [results[first :: len(functions)] for first in range(len(functions))]


def _over_threads(tasks: Sequence[Callable[[], Any]], *, parallel: bool) -> list[Any]:
    global _pool
    with one_blas_thread():
        n = min(get_num_threads(), len(tasks)) if parallel else 1
        if n < 2 or getattr(_working, "here", False):
            return [task() for task in tasks]
        if _pool is None:
            _pool = ThreadPoolExecutor(get_num_threads() - 1, thread_name_prefix="cnn_lightning")
        results: list[Any] = [None] * len(tasks)
        todo = iter(range(len(tasks)))  # of all threads: each takes the next task when it has finished one

        def work() -> None:
            _working.here = True
            try:
                with np.errstate(all="ignore"):
                    np.setbufsize(tuning.TUNING.buffer_values)
                    for index in todo:
                        results[index] = tasks[index]()
            finally:
                _working.here = False

        _blas.end_spinning()
        others = [_pool.submit(work) for _ in range(n - 1)]
        try:
            work()
        finally:
            for other in others:
                other.result()
        return results


_PAUSE, _SOFT = "omp_pause_resource_all", 1
"""From OpenMP 5.0, section 3.2.44, https://www.openmp.org/spec-html/5.0/openmpsu154.html"""


class _Blas:
    """Limits NumPy's BLAS to one thread while at least one operation runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: list[int] = []
        self.libraries: list[Any] | None = None
        self.pauses: list[Callable[[int], int]] = []

    def end_spinning(self) -> None:
        """Stop the busy waiting of the calling thread's OpenMP workers.

        After each operation on several threads, torch's workers wait busily for about 6 ms, on the same cores that the
        blocks of a NumPy operation need. They run again when torch needs them. This takes 40 microseconds (measured),
        and no time if no worker waits.
        """
        for pause in self.pauses:
            pause(_SOFT)

    def __enter__(self) -> None:
        with self.lock:
            if self.libraries is None:
                pools = ThreadpoolController()
                self.libraries = pools.select(user_api="blas").lib_controllers
                openmp = [library.dynlib for library in pools.select(user_api="openmp").lib_controllers]
                self.pauses = [getattr(pool, _PAUSE) for pool in openmp if hasattr(pool, _PAUSE)]
            if self.users == 0:
                self.before = [library.get_num_threads() for library in self.libraries]
                for library, threads in zip(self.libraries, self.before, strict=True):
                    if threads != 1:
                        _set(library, 1)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                for library, threads in zip(self.libraries or [], self.before, strict=True):
                    if threads != 1:
                        _set(library, threads)


def _set(library: Any, threads: int) -> None:
    """Set it from any thread: threadpoolctl 3.8 otherwise accepts only the first thread that set it."""
    hand_over = getattr(library, "clear_controlling_thread", None)
    if hand_over is not None:
        hand_over(force=True)
    library.set_num_threads(threads)
    if hand_over is not None:
        hand_over(force=True)


_blas = _Blas()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, BLAS uses one thread, afterwards as many as before; no warnings of infinity or NaN."""
    with _blas, np.errstate(all="ignore"):
        np.setbufsize(tuning.TUNING.buffer_values)  # `numpy.errstate` restores the user's size
        yield


# ---- memory: a new large array costs a page fault every 4 KiB, which is a sixth of a training step

_probe = [np.empty(0)]
_HELD_BY_NOBODY = sys.getrefcount(_probe[0])
"""The reference count of a piece that only the recycler's list holds; measured, since versions of Python may differ."""


class _Recycler:
    """Memory of outputs that are no longer referenced.

    The recycler has one reference to each piece of memory. Every array made from a piece, every view of such an array
    and every tensor with its memory has another one, so that the reference count shows whether the piece is free.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pieces: dict[int, list[Array]] = defaultdict(list)
        self.last_use: dict[int, int] = {}
        self.clock = 0

    def take(self, nbytes: int) -> Array:
        size = _size_class(nbytes)
        with self.lock:
            self.clock += 1
            pieces = self.pieces[size]
            for index in range(len(pieces)):
                if sys.getrefcount(pieces[index]) == _HELD_BY_NOBODY:
                    self.last_use[id(pieces[index])] = self.clock
                    return pieces[index]
            self._drop_idle()
            piece = _aligned(size)
            pieces.append(piece)
            self.last_use[id(piece)] = self.clock
            return piece

    def _drop_idle(self) -> None:
        for pieces in self.pieces.values():
            for index in range(len(pieces) - 1, -1, -1):
                idle = self.clock - self.last_use[id(pieces[index])] > tuning.TUNING.idle_allocations
                if idle and sys.getrefcount(pieces[index]) == _HELD_BY_NOBODY:
                    del self.last_use[id(pieces[index])]
                    del pieces[index]


def _size_class(nbytes: int) -> int:
    """``nbytes`` rounded up by at most an eighth, so that batches of slightly different size use the same memory."""
    step = 1 << max(0, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


_CACHE_LINE = 64


def _aligned(nbytes: int) -> Array:
    """Bytes that start at a cache line, where vector instructions are fastest (malloc's start 16 bytes after one).

    Made by `frombuffer`, because a view of a slice references the sliced array, not the slice, so that the reference
    count of the slice would not show it.
    """
    wide = np.empty(nbytes + _CACHE_LINE, np.uint8)
    return np.frombuffer(wide.data, np.uint8, nbytes, -wide.ctypes.data % _CACHE_LINE)


_recycler = _Recycler()


def empty(shape: Sequence[int], *, like: Array, dtype: Any = None) -> Array:
    """A new C-contiguous array for an output, of ``like``'s library and (unless given) its dtype."""
    dtype = np.dtype(like.dtype if dtype is None else dtype)
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < tuning.TUNING.recycled_bytes:
        return np.empty(tuple(shape), dtype)
    piece: Array = _recycler.take(nbytes)[:nbytes].view(dtype)
    return piece.reshape(shape)


def empty_like(x: Array) -> Array:
    """A new array with the shape, dtype and memory layout of ``x`` (the order of its axes in memory)."""
    if x.nbytes < tuning.TUNING.recycled_bytes:
        return np.empty_like(x)
    order = sorted(range(x.ndim), key=lambda axis: (-abs(x.strides[axis]), axis))
    wide = empty([x.shape[axis] for axis in order], like=x)
    return wide.transpose(np.argsort(order))


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.scratch: dict[str, Array] = {}
        self.kept: dict[Any, Any] = {}


_own = _OfThread()


def scratch(name: str, shape: Sequence[int], *, like: Array, dtype: Any = None) -> Array:
    """Working memory of this thread with arbitrary contents: the same piece at every call with this ``name``.

    For data that an operation needs only while it runs. Never return it or a view of it.
    """
    dtype = np.dtype(like.dtype if dtype is None else dtype)
    nbytes = prod(shape) * dtype.itemsize
    pieces = _own.scratch
    if name not in pieces or pieces[name].nbytes < nbytes:
        pieces[name] = _aligned(nbytes)
        _own.kept.clear()  # some of it may reference the smaller piece
    piece: Array = pieces[name][:nbytes].view(dtype)
    return piece.reshape(shape)


def kept(key: Hashable, make: Callable[[], _T]) -> _T:
    """The result of ``make()``, built on `scratch`: the same at every call of this thread with this ``key``."""
    found: _T | None = _own.kept.get(key)
    if found is None:
        found = make()
        if len(_own.kept) >= tuning.TUNING.kept_views:
            _own.kept.clear()
        _own.kept[key] = found
    return found


# ---- functions of a whole array


def may_hold_nan(x: Array) -> bool:
    """Whether there is NaN in the array."""
    return bool(np.isnan(x.max(initial=0)))


def lowest(x: Array) -> float:
    """The smallest value of a floating array; NaN if it has a NaN, and for integers."""
    return float(x.min(initial=np.inf)) if x.dtype.kind == "f" else np.nan


def copy_windows(out: Array, x: Array, strides: Sequence[int]) -> None:
    """Fill ``out`` with the view of the C-contiguous ``x`` that has its shape and these strides, in bytes.

    This is one call, because with one call for each tap two threads wait for each other at the interpreter's lock.
    """
    out[...] = np.ndarray(out.shape, x.dtype, x.data, strides=strides)


def _after_fork() -> None:
    """The child has no threads of the parent, and locks may have been acquired at the fork."""
    global _pool, _blas, _recycler
    _pool, _blas, _recycler = None, _Blas(), _Recycler()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
