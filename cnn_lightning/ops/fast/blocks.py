"""Blocks of the batch that stay in cache, a thread pool for them, and memory that is used again."""

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

# ---- threads: BLAS on one, blocks of the batch over the others

_working = threading.local()
"""Whether this thread is at work on a block: what it calls is not spread again."""

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
    """Threads an operation may use: what was set, or else this process's share of the cores.

    Set by `set_num_threads` or the variable ``CNN_LIGHTNING_NUM_THREADS``. The share is the processor affinity (where
    the system has one) over ``LOCAL_WORLD_SIZE``, the number of processes that a launcher started on this machine.
    """
    if _threads is None:
        set_num_threads(_share())
    assert _threads is not None
    return _threads


def suggest_num_threads(n: int) -> None:
    """Take the smaller of ``n`` and the share of the cores, unless a number was set already."""
    if _threads is None:
        set_num_threads(_share() if "CNN_LIGHTNING_NUM_THREADS" in os.environ else min(n, _share()))


def cores() -> int:
    """How many cores this process may use, by its affinity where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share() -> int:
    given = os.environ.get("CNN_LIGHTNING_NUM_THREADS")
    if given is not None:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"CNN_LIGHTNING_NUM_THREADS: expected a whole number of at least 1, got {given!r}")
        return int(given)
    return max(1, cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def blocks(n: int, item_bytes: int, *, at_least: int = 1, block_bytes: int | None = None) -> list[slice]:
    """Cut ``n`` items of ``item_bytes`` working memory each into blocks that stay in cache.

    The cut does not depend on the number of threads, so that sums over blocks are the same for any number. Several
    blocks are an even number, so that two threads have as much to do. Waking the other one takes some 100
    microseconds: ask for ``at_least`` two blocks only where there is much more to do than to move so many bytes.
    ``block_bytes`` are `tuning`'s unless given.
    """
    count = max(at_least, -(-n * item_bytes // (block_bytes or tuning.TUNING.block_bytes)))
    if count > 1:
        count += count % 2
    size = max(1, -(-n // count))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def run(function: Callable[[slice], _T], parts: Sequence[slice], *, spread: bool = True) -> list[_T]:
    """``[function(part) for part in parts]``, in that order, over the threads; BLAS keeps to one thread meanwhile.

    Infinity and NaN go their way without NumPy's warnings, as in torch. Without ``spread`` the calling thread does it
    all: what takes less than half a millisecond is not worth waking another one for, which takes some 150 microseconds.
    """
    return run_each([function], parts, spread=spread)[0]


def run_each(
    functions: Sequence[Callable[[slice], Any]], parts: Sequence[slice], *, spread: bool = True
) -> list[list[Any]]:
    """`run` for several functions that don't wait for each other: ``[[function(part) for part in parts], ...]``."""
    tasks = [partial(function, part) for part in parts for function in functions]
    results = _over_threads(tasks, spread=spread)
    return [results[first :: len(functions)] for first in range(len(functions))]


def _over_threads(tasks: Sequence[Callable[[], Any]], *, spread: bool) -> list[Any]:
    global _pool
    with one_blas_thread():
        n = min(get_num_threads(), len(tasks)) if spread else 1
        if n < 2 or getattr(_working, "here", False):
            return [task() for task in tasks]
        if _pool is None:
            _pool = ThreadPoolExecutor(get_num_threads() - 1, thread_name_prefix="cnn_lightning")
        results: list[Any] = [None] * len(tasks)
        todo = iter(range(len(tasks)))  # shared: whoever is done takes the next

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
"""Of OpenMP 5.0, section 3.2.44, https://www.openmp.org/spec-html/5.0/openmpsu154.html"""


class _Blas:
    """NumPy's BLAS, held to one thread while at least one operation is at work."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: list[int] = []
        self.libraries: list[Any] | None = None
        self.pauses: list[Callable[[int], int]] = []

    def end_spinning(self) -> None:
        """Send the calling thread's OpenMP workers to sleep.

        After each operation of its own on several threads torch's workers spin for some 6 ms, in case there is more to
        do, on the very cores that the blocks of a NumPy operation are to run on. They are there again when torch next
        asks for them. Measured at 40 microseconds, and at nothing where none are awake.
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
    """From whichever thread this is: threadpoolctl 3.8 listens to the first one that ever asked, and to no other."""
    hand_over = getattr(library, "clear_controlling_thread", None)
    if hand_over is not None:
        hand_over(force=True)
    library.set_num_threads(threads)
    if hand_over is not None:
        hand_over(force=True)


_blas = _Blas()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS on one thread inside, and on as many as the user had it outside; no warnings of infinity or NaN."""
    with _blas, np.errstate(all="ignore"):
        np.setbufsize(tuning.TUNING.buffer_values)  # `numpy.errstate` gives the user's own size back
        yield


# ---- memory: a fresh large array costs a page fault every 4 KiB, which is a sixth of a training step

_probe = [np.empty(0)]
_HELD_BY_NOBODY = sys.getrefcount(_probe[0])
"""What the count says of a piece that only the recycler's list holds: asked, as Python's versions may differ."""


class _Recycler:
    """Memory of outputs that nobody holds any more.

    The recycler keeps a reference to each piece of memory. Every array made from a piece, every view of such an array
    and every tensor that shares it holds another, so that the reference count tells whether the piece is free.
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
    """``nbytes`` rounded up by at most an eighth, so that batches of slightly different size share memory."""
    step = 1 << max(0, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


_CACHE_LINE = 64


def _aligned(nbytes: int) -> Array:
    """Bytes that start at a cache line, where vector instructions are fastest (malloc's start 16 bytes after one).

    Made by `frombuffer` because a view of a slice holds the sliced array, not the slice: the recycler could not see it.
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
    """Working memory of this thread, its contents arbitrary: the same piece at every call with this ``name``.

    For what an operation needs only while it runs. Never return it, nor a view of it.
    """
    dtype = np.dtype(like.dtype if dtype is None else dtype)
    nbytes = prod(shape) * dtype.itemsize
    pieces = _own.scratch
    if name not in pieces or pieces[name].nbytes < nbytes:
        pieces[name] = _aligned(nbytes)
        _own.kept.clear()  # some of it may hold the smaller piece
    piece: Array = pieces[name][:nbytes].view(dtype)
    return piece.reshape(shape)


def kept(key: Hashable, make: Callable[[], _T]) -> _T:
    """What ``make()`` built of `scratch`: the same at every call of this thread with this ``key``."""
    found: _T | None = _own.kept.get(key)
    if found is None:
        found = make()
        if len(_own.kept) >= tuning.TUNING.kept_rooms:
            _own.kept.clear()
        _own.kept[key] = found
    return found


# ---- looks at a whole array


def may_hold_nan(x: Array) -> bool:
    """Whether there is NaN in the array."""
    return bool(np.isnan(x.max(initial=0)))


def lowest(x: Array) -> float:
    """The smallest value of a floating array; NaN if it holds any, and for integers."""
    return float(x.min(initial=np.inf)) if x.dtype.kind == "f" else np.nan


def copy_windows(out: Array, x: Array, strides: Sequence[int]) -> None:
    """Fill ``out`` with the view of the C-contiguous ``x`` that has its shape and these strides, in bytes.

    One call: two threads that take turns at the interpreter's lock are slower with one for each tap.
    """
    out[...] = np.ndarray(out.shape, x.dtype, x.data, strides=strides)


def _after_fork() -> None:
    """The child has none of the parent's threads, and its locks may have been held."""
    global _pool, _blas, _recycler
    _pool, _blas, _recycler = None, _Blas(), _Recycler()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
