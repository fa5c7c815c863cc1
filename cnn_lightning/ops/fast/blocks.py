"""Blocks of the batch that stay in cache, a thread pool for them, and recycled memory."""

import os
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import Context
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from cnn_lightning.ops.fast import tuning
from cnn_lightning.ops.types import Array

_T = TypeVar("_T")

# ---- threads: BLAS uses one, the blocks of the batch all of them


def _ignore_errors() -> None:
    """No warnings of infinity or NaN in this thread, and NumPy's buffer of `tuning`."""
    np.seterr(all="ignore")
    np.setbufsize(tuning.TUNING.buffer_values)


class _OfThread(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.computes_block = False  # what it calls runs on this thread alone
        self.depth = 0  # open blocks of `one_blas_thread`
        self.errors = np.errstate()
        self.ignores_errors = False  # inside `quietly`
        self.context = Context()
        self.context.run(_ignore_errors)
        self.scratch: dict[str, Array] = {}
        self.kept: dict[Any, Any] = {}


_own = _OfThread()

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


def blocks(n: int, item_bytes: int, *, block_bytes: int | None = None) -> list[slice]:
    """Cut ``n`` items of ``item_bytes`` working memory each into blocks that stay in cache.

    The blocks do not depend on the number of threads, so that sums over blocks are the same for any number. If there
    are several, their number is even (see `cut`). ``block_bytes`` is that of `tuning` unless given.
    """
    count = max(1, -(-n * item_bytes // (block_bytes or tuning.TUNING.block_bytes)))
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
    if len(parts) == 1:
        with _QUIET:
            return [function(parts[0])]
    return _over_threads([partial(function, part) for part in parts], parallel=parallel)


def run_each(
    functions: Sequence[Callable[[slice], Any]], parts: Sequence[slice], *, parallel: bool = True
) -> list[list[Any]]:
    """`run` for several independent functions: ``[[function(part) for part in parts], ...]``."""
    tasks = [partial(function, part) for part in parts for function in functions]
    results = _over_threads(tasks, parallel=parallel)
    return [results[first :: len(functions)] for first in range(len(functions))]


def _over_threads(tasks: Sequence[Callable[[], Any]], *, parallel: bool) -> list[Any]:
    global _pool
    with _QUIET:
        n = min(get_num_threads(), len(tasks)) if parallel and len(tasks) > 1 else 1
        if n < 2 or _own.computes_block:
            return [task() for task in tasks]
        if _pool is None:
            _pool = ThreadPoolExecutor(get_num_threads() - 1, thread_name_prefix="cnn_lightning")
        results: list[Any] = [None] * len(tasks)
        todo = iter(range(len(tasks)))  # of all threads: each takes the next task when it has finished one

        def work() -> None:
            _own.computes_block = True
            try:
                with _QUIET:
                    for index in todo:
                        results[index] = tasks[index]()
            finally:
                _own.computes_block = False

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
        self.before: list[tuple[Callable[[int], object], int]] = []
        self.libraries: list[tuple[Callable[[], int], Callable[[int], object]]] | None = None
        self.pauses: list[Callable[[int], int]] = []

    def end_spinning(self) -> None:
        """Stop the busy waiting of the calling thread's OpenMP workers.

        After each operation on several threads, torch's workers wait busily for about 6 ms, on the same cores that the
        blocks of a NumPy operation need. They run again when torch needs them. This takes 40 microseconds (measured),
        and no time if no worker waits.
        """
        for pause in self.pauses:
            pause(_SOFT)

    def limit(self) -> None:
        """One thread from now on, for one more user."""
        with self.lock:
            if self.libraries is None:
                pools = ThreadpoolController()
                self.libraries = [_threads_of(library) for library in pools.select(user_api="blas").lib_controllers]
                openmp = [library.dynlib for library in pools.select(user_api="openmp").lib_controllers]
                self.pauses = [getattr(pool, _PAUSE) for pool in openmp if hasattr(pool, _PAUSE)]
            if self.users == 0:
                self.before = [(change, threads) for get, change in self.libraries if (threads := get()) != 1]
                for change, _ in self.before:
                    change(1)
            self.users += 1

    def release(self) -> None:
        """As many threads as before, once the last user has finished."""
        with self.lock:
            self.users -= 1
            if self.users == 0:
                for change, threads in self.before:
                    change(threads)


def _threads_of(library: Any) -> tuple[Callable[[], int], Callable[[int], object]]:
    """The functions that get and set the number of threads of a library.

    OpenBLAS's own take 0.3 us, threadpoolctl's 3 us. And threadpoolctl 3.8 accepts a number only from the first thread
    that set one, but operations run in any thread.
    """
    for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64")):
        names = (f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set"))
        get, change = (getattr(library.dynlib, name, None) for name in names)
        if get and change and library.threading_layer != "openmp":
            return get, change
    return library.get_num_threads, library.set_num_threads


_blas = _Blas()


class _Quiet:
    """A block without warnings of infinity or NaN, in which BLAS uses one thread; nested blocks cost nothing."""

    def __enter__(self) -> None:
        _own.depth += 1
        if _own.depth == 1:
            _blas.limit()
            if not _own.ignores_errors:
                _own.errors = np.errstate()
                _own.errors.__enter__()  # it restores the size of the user's buffer, too
                _ignore_errors()

    def __exit__(self, *_: object) -> None:
        _own.depth -= 1
        if _own.depth == 0:
            if not _own.ignores_errors:
                _own.errors.__exit__(None, None, None)
            _blas.release()


_QUIET = _Quiet()


def quietly(function: Callable[..., _T], *args: Any, **options: Any) -> _T:
    """``function(*args, **options)`` without warnings of infinity or NaN, for functions of this folder.

    They run in a context of their thread whose error state was set once: 2 us less than to set it at each call. No
    context variable of the caller is seen there.
    """
    if _own.depth or _own.ignores_errors:
        return function(*args, **options)
    _own.ignores_errors = True
    try:
        return _own.context.run(function, *args, **options)
    finally:
        _own.ignores_errors = False


def one_blas_thread() -> AbstractContextManager[None]:
    """Inside, BLAS uses one thread, afterwards as many as before; no warnings of infinity or NaN."""
    return _QUIET


# ---- memory: a new large array costs a page fault every 4 KiB, which is a sixth of a training step

_probe = [np.empty(0)]
_HELD_BY_NOBODY = sys.getrefcount(_probe[0])
"""The reference count of a piece that only the recycler's list holds; measured, since versions of Python may differ."""


class _Pieces:
    """Memory of one size, and the piece after the one that was taken last."""

    def __init__(self) -> None:
        self.held: list[Array] = []
        self.last_use: list[int] = []
        self.next = 0

    def free(self) -> int | None:
        """The index of a piece that nobody else references; the search goes on where the last one ended.

        A training step takes pieces in the order in which the step before released them, so that it is mostly the
        first one.
        """
        for index in range(self.next, self.next + len(self.held)):
            place = index % len(self.held)
            if sys.getrefcount(self.held[place]) == _HELD_BY_NOBODY:
                return place
        return None

    def drop(self, before: int) -> None:
        """Release the free pieces whose last use was earlier."""
        for index in range(len(self.held) - 1, -1, -1):
            if self.last_use[index] < before and sys.getrefcount(self.held[index]) == _HELD_BY_NOBODY:
                del self.last_use[index]
                del self.held[index]


class _Recycler:
    """Memory of outputs that are no longer referenced.

    The recycler has one reference to each piece of memory. Every array made from a piece, every view of such an array
    and every tensor with its memory has another one, so that the reference count shows whether the piece is free.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sizes: dict[int, _Pieces] = {}
        self.clock = 0

    def take(self, nbytes: int) -> Array:
        size = _size_class(nbytes)
        with self.lock:
            self.clock += 1
            pieces = self.sizes.get(size)
            if pieces is None:
                pieces = self.sizes[size] = _Pieces()
            place = pieces.free()
            if place is None:
                pieces, place = self._larger(size) or (pieces, None)
            if place is None:
                for each in self.sizes.values():
                    each.drop(self.clock - tuning.TUNING.idle_allocations)
                place = len(pieces.held)
                pieces.held.append(_aligned(size))
                pieces.last_use.append(self.clock)
            pieces.last_use[place] = self.clock
            pieces.next = place + 1
            return pieces.held[place]

    def _larger(self, size: int) -> tuple[_Pieces, int] | None:
        """A free piece of up to one and a half times the size: DenseNet, with 60 sizes, needs a tenth less memory."""
        for other in sorted(self.sizes):
            if size < other <= size + size // 2:
                place = self.sizes[other].free()
                if place is not None:
                    return self.sizes[other], place
        return None


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
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _recycler.take(nbytes))


def empty_like(x: Array) -> Array:
    """A new array with the shape, dtype and memory layout of ``x`` (the order of its axes in memory)."""
    if x.nbytes < tuning.TUNING.recycled_bytes:
        return np.empty_like(x)
    if x.flags.c_contiguous:
        return np.ndarray(x.shape, x.dtype, _recycler.take(x.nbytes))
    order, places = order_in_memory(x.strides)
    return np.ndarray([x.shape[axis] for axis in order], x.dtype, _recycler.take(x.nbytes)).transpose(places)


@lru_cache(1024)
def order_in_memory(strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes from the outermost in memory to the innermost, and the place of each axis in that order."""
    order = tuple(sorted(range(len(strides)), key=lambda axis: (-abs(strides[axis]), axis)))
    return order, tuple(sorted(range(len(order)), key=order.__getitem__))


def scratch(name: str, shape: Sequence[int], *, like: Array, dtype: Any = None) -> Array:
    """Working memory of this thread with arbitrary contents: the same piece at every call with this ``name``.

    For data that an operation needs only while it runs. Never return it or a view of it.
    """
    dtype = np.dtype(like.dtype if dtype is None else dtype)
    nbytes = prod(shape) * dtype.itemsize
    pieces = _own.scratch
    piece = pieces.get(name)
    if piece is None or piece.size < nbytes:
        pieces[name] = _aligned(nbytes)
        _own.kept.clear()  # some of it may reference the smaller piece
    return np.ndarray(shape, dtype, pieces[name])


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


def is_finite(x: Array) -> bool:
    """Whether there is no NaN and no infinity in the array, nor a number whose square is too large."""
    with _QUIET:
        return bool(np.isfinite(np.vdot(x, x)))


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
