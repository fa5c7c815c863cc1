"""CUDA tensors as CuPy arrays on torch's device, stream and memory, without a copy.

CuPy computes in full float32 for any setting of torch's TF32 switches; CuPy's own switch is the variable
``CUPY_TF32=1``. Neither cuDNN nor atomic additions are used, so ``torch.backends.cudnn.deterministic`` changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_CPU = 1
"""A device type of DLPack, https://dmlc.github.io/dlpack/latest/c_api.html."""


@cache
def available() -> bool:
    """Whether CuPy is installed and sees a CUDA device."""
    return find_spec("cupy") is not None and bool(import_module("cupy").is_available())


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Let CuPy use torch's current stream and allocator on ``device``.

    CuPy's device and stream are per thread, and autograd runs a CUDA backward on another thread. Therefore every call
    enters this.
    """
    cupy = import_module("cupy")
    stream = torch.cuda.current_stream(device)
    with (
        torch.cuda.device(device),
        cupy.cuda.Device(device.index),
        cupy.cuda.Stream.from_external(stream),
        cupy.cuda.using_allocator(_allocator()),
    ):
        yield


@cache
def _allocator() -> Any:
    """CuPy memory from torch's caching allocator: both use one pool, so that neither waits for memory of the other."""
    cupy = import_module("cupy")

    def malloc(size: int, device: int) -> int:
        pointer: int = torch.cuda.caching_allocator_alloc(size, device, torch.cuda.current_stream(device))
        return pointer

    def free(pointer: int, device: int) -> None:
        torch.cuda.caching_allocator_delete(pointer)  # type: ignore[no-untyped-call]

    return cupy.cuda.PythonFunctionAllocator(malloc, free).malloc


def array(tensor: Tensor) -> Any:
    """The tensor's memory as a CuPy array; enter `current` first."""
    return import_module("cupy").from_dlpack(tensor.detach().resolve_neg())


def tensor(result: Any, op: str) -> Tensor:
    """The CuPy array's memory as a tensor.

    Raises:
        TypeError: The result of ``op`` is on the host. A copy to the device would be slow and hidden.
    """
    if not hasattr(result, "__dlpack_device__") or result.__dlpack_device__()[0] == _CPU:
        raise TypeError(
            f"{op}: expected results on the device of the arguments (np.empty(..., like=x) is there), "
            f"got {type(result).__name__} on the host"
        )
    return torch.utils.dlpack.from_dlpack(result)
