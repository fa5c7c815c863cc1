"""Blocks of the batch that stay in cache, a thread pool for them, and memory that is used again.

The one place that knows what kind of array it is given: for anything but ``numpy.ndarray`` (a CuPy array, say) a
batch is a single block and runs on the calling thread, and outputs come from that library's own allocator.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from cnn_lightning.ops._types import Array

BLOCK_BYTES = 512 * 1024
"""What a block's working set may take: about a quarter of a core's L2 cache."""

_T = TypeVar("_T")
_threads: int | None = None
_pool: ThreadPoolExecutor | None = None


def set_num_threads(n: int) -> None:
    """Let operations use ``n`` threads (at least 1)."""
    global _threads, _pool
    if n < 1:
        raise ValueError(f"n: expected at least 1 thread, got {n}")
    _threads, _pool = n, None


def get_num_threads() -> int:
    """Threads an operation may use: what was set, otherwise this process's share of the cores."""
    if _threads is None:
        set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    assert _threads is not None
    return _threads


def blocks(n: int, item_bytes: int) -> list[slice]:
    """Cut ``n`` items of ``item_bytes`` working memory each into blocks that stay in cache."""
    size = max(1, BLOCK_BYTES // max(1, item_bytes))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def run(function: Callable[[slice], _T], parts: Sequence[slice], *, like: Array) -> list[_T]:
    """``[function(part) for part in parts]`` over the thread pool, in that order."""
    global _pool
    if type(like) is not np.ndarray or len(parts) < 2 or get_num_threads() == 1:
        return [function(part) for part in parts]
    if _pool is None:
        _pool = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="cnn_lightning")
    return list(_pool.map(function, parts))


def empty(shape: Sequence[int], *, like: Array, dtype: Any = None, order: str = "C") -> Array:
    """A new array for an output, of ``like``'s library and (unless given) its dtype."""
    return np.empty(tuple(shape), dtype=dtype or like.dtype, order=order, like=like)  # type: ignore[call-overload,no-any-return]


def empty_like(x: Array) -> Array:
    """A new array with the shape, dtype and memory layout of ``x``."""
    return np.empty_like(x)
