"""The machine that figures were measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info


def machine(threads: int, device: str = "") -> str:
    """Processor (or the ``device`` that computed), threads and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "lightning"))
    unit = f"{threads} thread{'s' * (threads > 1)}"
    return f"{device or _processor()}, {unit}, {blas_kernel()}, Python {platform.python_version()}, {versions}"


def blas_kernel() -> str:
    """The kernel of NumPy's BLAS, which decides the speed of matrix products: OpenBLAS chooses it by the processor."""
    found = [f"{each['internal_api']} {each.get('architecture', '')}".strip() for each in _blas()]
    kernel = ", ".join(dict.fromkeys(found)) or "unknown"
    return f"BLAS kernel {kernel}" + (" (forced)" if _is_forced() else "")


FORCED = "OPENBLAS_CORETYPE"
"""The environment variable that replaces the kernel that OpenBLAS would choose."""


def forced_kernel() -> str:
    """One line if the kernel is forced, so that figures are not typical of this processor; otherwise empty."""
    if not _is_forced():
        return ""
    return f"{FORCED}={os.environ[FORCED]} forces the BLAS kernel: without it, OpenBLAS takes this processor's own"


def _is_forced() -> bool:
    """Whether the variable is set and OpenBLAS reads it."""
    return bool(os.environ.get(FORCED)) and any(each["internal_api"] == "openblas" for each in _blas())


def _blas() -> list[dict[str, Any]]:
    return [each for each in threadpool_info() if each["user_api"] == "blas"]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
