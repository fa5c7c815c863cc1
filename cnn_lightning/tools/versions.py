"""What ``cnn-lightning --version`` prints: the versions and kernels that explain a result. It loads no torch."""

import ctypes
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from cnn_lightning.tools.machine import blas_kernel, forced_kernel

PACKAGES = ("torch", "torchvision", "lightning")
CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def text() -> str:
    """One line for each package and device."""
    lines = [f"cnn-lightning {_version('cnn-lightning')}", f"python {platform.python_version()}, {platform.platform()}"]
    lines += [f"numpy {np.__version__}, {blas_kernel()}"]
    if forced_kernel():
        lines += [f"  {forced_kernel()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines += [f"{name} {_version(name)}" for name in CUPY if _version(name) != MISSING]
    return "\n".join([*lines, f"CUDA: {', '.join(cuda_devices()) or 'no device'}"])


MISSING = "is not installed"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING


def cuda_devices() -> Iterator[str]:
    """The name of each CUDA device that NVIDIA's driver shows to this process; none without a driver."""
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(100)
    driver.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        if driver.cuDeviceGet(ctypes.byref(device), index) == 0:
            driver.cuDeviceGetName(name, len(name), device)
            yield name.value.decode(errors="replace")


def _driver() -> ctypes.CDLL | None:
    for name in DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
